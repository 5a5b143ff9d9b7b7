"""The preprocessing before an exported program as code that needs Pillow and NumPy alone."""

from __future__ import annotations

from shared_vit.spec.config import ModelConfig

_LAST = {
    "torch": "images = torch.from_numpy(np.asarray(image)[None].copy())  # import torch",
    "jax": "images = jax.numpy.asarray(np.asarray(image)[None])  # import jax",
    "onnx": "images = np.asarray(image)[None]",
}


def code_of(cfg: ModelConfig, target: str) -> list[str]:
    """Lines of Python from `path`, an image file, to `images`, uint8 [1, H, W, 3], which the
    program for `target` (torch, jax, onnx) takes: the pixels of `shared_vit.data.evaluation_input`.
    """
    (height, width), (rows, columns) = cfg.image_shape, cfg.resized_shape
    opened = "image = Image.open(path)"
    if cfg.exif == "turn":
        opened = "image = ImageOps.exif_transpose(Image.open(path))"
    imported = "from PIL import Image" + (", ImageOps" if cfg.exif == "turn" else "")
    filter_name = f"Image.Resampling.{cfg.interpolation.upper()}"
    lines = [f"import numpy as np; {imported}", f'{opened}.convert("RGB")']
    if cfg.eval_resize == 0:
        return [*lines, f"image = image.resize(({width}, {height}), {filter_name})", _LAST[target]]
    sized = [f"size = tuple(int({rows} * side / min(image.size)) for side in image.size)"]
    placed = f"x, y = (round((side - {height}) / 2) for side in image.size)"
    if height != width:
        sized = [
            f"ratio = min(image.height / {rows}, image.width / {columns})",
            "size = tuple(round(side / ratio) for side in image.size)",
        ]
        placed = f"x, y = (round(a / 2) for a in (image.width - {width}, image.height - {height}))"
    return [
        *lines,
        *sized,
        f"image = image.resize(size, {filter_name})",
        placed,
        _LAST[target].replace("image)", f"image)[y : y + {height}, x : x + {width}]"),
    ]
