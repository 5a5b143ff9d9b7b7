"""Fine-tune a Hugging Face ViT on your own images in JAX, and give it back to transformers.

    python examples/finetune_hugging_face.py VIT PICTURES OUT [--flag=value ...]

VIT is a folder of `ViTForImageClassification.save_pretrained`, for example what `hf download
google/vit-base-patch16-224 --local-dir VIT` fetches. PICTURES holds train/<class>/ and
val/<class>/ (examples/draw_pictures.py makes a small one). OUT/run becomes the training run,
OUT/vit the folder for transformers. The training takes the preset `finetune`; further flags change
it.
"""

import subprocess
import sys
from pathlib import Path

import twinvit
from twinvit.convert.libraries import without_torchvision_operators


def command(*arguments: str) -> None:
    """`twinvit ...`, as in a shell."""
    done = subprocess.run([sys.executable, "-m", "twinvit", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def main() -> int:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    vit, pictures, out = sys.argv[1:4]
    run, back = Path(out) / "run", Path(out) / "vit"
    data = ["--data=folder", f"--data_dir={pictures}"]
    command(
        "train", "--framework=jax", f"--init_from={vit}", *data, f"--run_dir={run}", *sys.argv[4:]
    )
    command("convert", str(run), str(back), "--to=huggingface")

    # Both sides name what is in the validation images.
    without_torchvision_operators()  # not needed where torchvision is of torch's own build
    from transformers import pipeline

    files = sorted(str(path) for path in Path(pictures).glob("val/*/*"))
    theirs = pipeline("image-classification", model=str(back))(files, top_k=1)
    ours = twinvit.load(run).predict(files, top_k=1)  # as `twinvit predict` does
    same = 0
    for file, [their], [our] in zip(files, theirs, ours):
        same += their["label"] == our["class"]
        print(f"{file}: {their['label']} (transformers)  {our['class']} (twinvit)")
    print(f"the same class for {same} of {len(files)} images")
    return 0 if same == len(files) else 1


if __name__ == "__main__":
    raise SystemExit(main())
