#!/usr/bin/env bash
# The first hour with twinvit, on a CPU: train, change framework, fine-tune on pictures, evaluate,
# predict, export to transformers and timm, explain a port.
#
#     source .venv/bin/activate
#     examples/newcomers_hour.sh [FOLDER]        # runs/newcomers_hour
#
# It shows each command and the seconds that it took, and stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v twinvit > /dev/null; then
    echo "error: no command twinvit; run \`make setup\` and \`source .venv/bin/activate\`" >&2
    exit 2
fi
out=${1:-runs/newcomers_hour}
if [ -e "$out" ]; then
    echo "error: $out exists already; name another folder: examples/newcomers_hour.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$out"

say() { printf '\n# %s\n' "$*"; }
run() {
    local start=$SECONDS status=0
    echo "\$ $*"
    "$@" || status=$?
    if [ "$status" -ne "$expected" ]; then
        echo "error: exit status $status, expected $expected; stopped" >&2
        exit 1
    fi
    echo "($((SECONDS - start)) s)"
}
expected=0

say "Train half a run on handwritten digits in PyTorch, the other half in JAX, and look at the curve."
run twinvit train --framework=torch --preset=digits --epochs=8 --warmup_steps=20 \
    --run_dir="$out/digits" --stop_at=90
run twinvit train --framework=jax --run_dir="$out/digits" --resume
run twinvit curves "$out/digits" --output="$out/digits.png"

say "Fine-tune it on a folder of pictures: other classes, another image size."
run python examples/draw_pictures.py "$out/pictures"
run twinvit train --framework=torch --init_from="$out/digits" --data=folder \
    --data_dir="$out/pictures" --run_dir="$out/shapes" --image_size=16 --batch_size=16 \
    --epochs=12 --lr=0.03 --min_area=0.5 --eval_every=45

say "Evaluate it in the other framework, and name what is in pictures."
run twinvit evaluate "$out/shapes" --framework=jax
run twinvit predict "$out/shapes" "$out/pictures/val/circle" --top_k=1

say "Export it, and run transformers' and timm's own pipelines on the same pictures."
run twinvit convert "$out/shapes" "$out/for_transformers" --to huggingface
run twinvit convert "$out/shapes" "$out/for_timm" --to timm
run python examples/their_pipelines.py "$out/shapes" "$out/for_transformers" "$out/for_timm" \
    "$out/pictures/val"

say "Explain a port that has three mistakes. Exit status 1 means: different."
expected=1
run python examples/explain_a_port.py --html "$out/port.html"

say "Look at $out/digits.png and $out/port.html."
