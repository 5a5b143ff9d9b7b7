"""The preprocessing before an exported program as code that needs Pillow and NumPy alone."""

from __future__ import annotations

from shared_vit.spec.config import ModelConfig

_LAST = {
    "torch": "images = torch.from_numpy(np.asarray(image)[None].copy())  # import torch",
    "jax": "images = jax.numpy.asarray(np.asarray(image)[None])  # import jax",
    "onnx": "images = np.asarray(image)[None]",
}


def code_of(cfg: ModelConfig, target: str) -> list[str]:
    """Lines of Python from `path`, an image file, to `images`, uint8 [1, S, S, 3], which the
    program for `target` (torch, jax, onnx) takes: the pixels of `shared_vit.data.evaluation_input`.
    """
    size, short = cfg.image_size, cfg.short_side
    opened = "image = Image.open(path)"
    if cfg.exif == "turn":
        opened = "image = ImageOps.exif_transpose(Image.open(path))"
    imported = "from PIL import Image" + (", ImageOps" if cfg.exif == "turn" else "")
    filter_name = f"Image.Resampling.{cfg.interpolation.upper()}"
    lines = [f"import numpy as np; {imported}", f'{opened}.convert("RGB")']
    if cfg.eval_resize == 0:
        return [*lines, f"image = image.resize(({size}, {size}), {filter_name})", _LAST[target]]
    return [
        *lines,
        f"size = tuple(int({short} * side / min(image.size)) for side in image.size)",
        f"image = image.resize(size, {filter_name})",
        f"x, y = (round((side - {size}) / 2) for side in image.size)",
        _LAST[target].replace("image)", f"image)[y : y + {size}, x : x + {size}]"),
    ]
