"""The JAX twin's programs for a GPU, read on a machine that has none.

    python benchmarks/gpu_compile.py --lower_only
    python benchmarks/gpu_compile.py --models vit_b16:256,vit_s16:512 --device h100 --json out.json

--lower_only needs nothing but the plain CPU install: for every named model and preset, the types of
the products and the calls of fused attention, of the forward pass and of the gradient.

Otherwise training steps are compiled for a described device (h100, h200, or a file with XLA's
GpuTargetConfigProto), which needs jax's CUDA plug-in, without any GPU; the command says what to
install and installs nothing. Reported are products by type, attention calls, kernels, bytes by
class, memory, aliased arrays, collectives and a roofline. Autotuning needs a device, so products
are XLA's default Triton kernels, or cuBLASLt's with --products=cublaslt.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent)]

import jax  # noqa: E402
from about import origin  # noqa: E402
from gpu_program import device, lowered, report, step  # noqa: E402

from shared_vit.run.presets import PRESETS  # noqa: E402
from shared_vit.spec.config import MODELS, ModelConfig, model_config  # noqa: E402
from shared_vit.spec.recipe import Recipe  # noqa: E402

PRECISION = "bf16"


def main() -> None:
    args = parse()
    jax.config.update("jax_platforms", "cpu" if args.lower_only else "cpu,cuda")
    description = device.describe(args.device)
    if args.lower_only:
        models = lower_all(args, description)
        result = {"device": description.name, "models": models}
    else:
        lacking = device.missing()
        if lacking:
            raise SystemExit(lacking)
        result = {"device": description.name, "steps": []}
        for step_report in compile_all(args, description):
            result["steps"].append(step_report)
            write(args, result)
        print(report.table(result["steps"]))
    write(args, result)
    if args.lower_only and any("refused" in c for m in models.values() for c in m.values()):
        raise SystemExit("JAX refuses to lower a program that a run would need")


def write(args: argparse.Namespace, result: dict) -> None:
    """The results so far, to --json."""
    about = origin(("jax", "jaxlib")) | {"precision": PRECISION}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result | about, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lower_only", action="store_true", help="types of products and attention calls"
    )
    parser.add_argument(
        "--models",
        help="NAME or NAME:BATCH, separated by commas; batches are for all devices; with "
        "--lower_only NAME alone",
    )
    parser.add_argument("--device", default="h100", help="h100, h200 or a file")
    parser.add_argument("--devices", type=int, default=1, help="how many of them share a batch")
    parser.add_argument("--products", choices=["triton", "cublaslt"], default="triton")
    parser.add_argument("--depth", type=int, help="blocks, instead of the model's own")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--hlo", type=Path, help="write the optimised programs into this folder")
    return parser.parse_args()


def named_models() -> dict[str, ModelConfig]:
    """Every named model at its own size, and the model of every preset."""
    sides = {"vit_nano2": 8, "vit_mini4": 32, "vit_ti4": 32}
    models = {name: model_config(name, image_size=sides.get(name, 224)) for name in MODELS}
    for name, preset in PRESETS.items():
        if "model" not in preset:  # that of the weights it starts from
            continue
        own = {n: preset[n] for n in ("image_size", "pool", "pos_embed", "gelu") if n in preset}
        if preset.get("pool") == "mean":
            own["class_token"] = False
        models[f"preset {name}"] = model_config(preset["model"], **own)
    return models


def lower_all(args: argparse.Namespace, description: device.Description) -> dict:
    """`{model: {"forward", "gradient": {"products", "attention"} or {"refused"}}}`."""
    models = named_models()
    chosen = args.models.split(",") if args.models else list(models)
    if unknown := [name for name in chosen if name not in models]:
        raise SystemExit(f"no model {', '.join(map(repr, unknown))}; there are {', '.join(models)}")
    found: dict[str, dict] = {}
    for name in chosen:
        cfg, found[name] = models[name], {}
        for what in ("forward", "gradient"):
            try:
                with device.pretend(description):
                    found[name][what] = lowered.count(step.lower(cfg, PRECISION, what))
            except NotImplementedError as error:
                found[name][what] = {"refused": str(error)}
            size = f"{cfg.num_tokens} tokens, {cfg.depth} blocks"
            print(f"{name} ({size}), {what}: {found[name][what]}", flush=True)
    return found


def compile_all(args: argparse.Namespace, description: device.Description) -> Iterator[dict]:
    """A report for each model and batch."""
    triton = args.products == "triton"
    options = {} if triton else {"xla_gpu_enable_triton_gemm": False}
    rates = report.assumed_rates(description, triton)
    for item in (args.models or "vit_b16:256").split(","):
        name, _, batch = item.partition(":")
        batch = int(batch or 256)
        cfg = model_config(name, **({"depth": args.depth} if args.depth else {}))
        train = Recipe(model=cfg, batch_size=batch, precision=PRECISION)
        begin = time.perf_counter()
        with device.pretend(description):
            traced = step.ShapesTrainer(cfg, train, device.mesh(description, args.devices)).trace()
            compiled = traced.lower().compile(compiler_options=options)
        seconds = time.perf_counter() - begin
        if args.hlo:
            args.hlo.mkdir(parents=True, exist_ok=True)
            (args.hlo / f"{name}-{batch}-{args.products}.hlo").write_text(compiled.as_text())
        about = {
            "model": name, "depth": cfg.depth, "batch_size": batch, "device": description.name,
            "devices": args.devices, "kernels_of_products": args.products,
            "seconds_to_compile": seconds,
        }  # fmt: skip
        found = about | report.analyse(compiled, cfg, batch // args.devices, rates)
        peak = found["peak_bytes"] / 1e9
        print(f"{item}: {seconds:.0f} s, peak {peak:.1f} GB", file=sys.stderr, flush=True)
        yield found


if __name__ == "__main__":
    main()
