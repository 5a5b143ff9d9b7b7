"""Fine-tune a headless DINOv2 on class folders in JAX, evaluate it in PyTorch, export it, and find
the same features in timm.

    python examples/finetune_dinov2.py PICTURES OUT [BACKBONE] [--flag=value ...]

PICTURES holds train/<class>/ and val/<class>/ (examples/draw_pictures.py makes a small one).
BACKBONE is the authors' file, such as dinov2_vits14_reg4_pretrain.pth; without one, a small DINOv2
with registers and first weights is written to OUT/backbone.pth in the authors' names. OUT/run
becomes the training run, OUT/program.pt2 the exported program, OUT/timm the folder for timm.
Further flags change the training.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import torch_vit
from shared_vit import model_config, weights
from shared_vit.data import evaluation_input, normalize
from shared_vit.spec import init
from twinvit.convert.libraries import without_torchvision_operators


def command(*arguments: object) -> None:
    """`twinvit ...`, as in a shell."""
    words = [str(a) for a in arguments]
    print("\n$ twinvit", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "twinvit", *words])
    if done.returncode:
        sys.exit(done.returncode)


def write_backbone(file: Path) -> None:
    """A DINOv2 with four registers and no head, as its authors' code saves it."""
    sizes = dict(width=64, depth=2, num_heads=2, mlp_dim=256)
    cfg = model_config("dinov2r_s14", num_classes=0, image_size=28, **sizes)
    weights.write_weights(file, cfg, init.draw(cfg, seed=0), "dinov2")


def features_in_timm(folder: Path, images: torch.Tensor) -> np.ndarray:
    """What timm's own model computes before its head, float64 [B, width]."""
    without_torchvision_operators()  # not needed where torchvision is of torch's own build
    import timm
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    model = model.double().eval()
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True).numpy()


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    pictures, out = Path(sys.argv[1]), Path(sys.argv[2])
    flags = [argument for argument in sys.argv[3:] if argument.startswith("--")]
    given = [argument for argument in sys.argv[3:] if not argument.startswith("--")]
    run, backbone = out / "run", Path(given[0]) if given else out / "backbone.pth"
    if not given:
        out.mkdir(parents=True, exist_ok=True)
        write_backbone(backbone)
    command("train", "--framework=jax", f"--init_from={backbone}", "--data=folder",
            f"--data_dir={pictures}", "--device=cpu", f"--run_dir={run}", *flags)  # fmt: skip
    command("evaluate", run, "--framework=torch", "--device=cpu")
    command("export", run, out / "program.pt2", "--to=torch")
    command("convert", run, out / "timm", "--to=timm")

    model = torch_vit.load(run, precision="fp64")
    files = sorted(pictures.glob("val/*/*"))
    decoded = (np.asarray(Image.open(file).convert("RGB")) for file in files)
    inputs = [evaluation_input(image, model.cfg) for image in decoded]
    pixels = np.stack([normalize(image, model.cfg) for image in inputs]).transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(pixels, np.float64))
    with torch.no_grad():
        ours = model.features(images).pooled.numpy()
    theirs = features_in_timm(out / "timm", images)
    gap = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"\nfeatures of {len(files)} images: {gap:.0e} from timm's")
    return 0 if gap < 1e-6 else 1


if __name__ == "__main__":
    raise SystemExit(main())
