"""Evaluation's resize and crop in the words of other libraries.

This project's: the shorter side to round(image_size * eval_resize) pixels, then the centre; or,
with eval_resize 0, the full image to a square.
"""

import math
from collections.abc import Mapping
from typing import Any

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import Hints, Notes
from shared_vit.weights.formats.json_fields import number, section

# Filters of Pillow, as transformers numbers them.
PILLOW = {"bilinear": 2, "bicubic": 3}


def ratio(short: int, size: int) -> float:
    """The `eval_resize` of a shorter side of `short` pixels and a crop of `size`.

    The historical value where it gives the same pixels. Sizes below the crop are taken as the crop.
    """
    usual = 256 / 224
    return usual if round(size * usual) == short else max(short, size) / size


def crop_pct(cfg: ModelConfig) -> float:
    """timm's `crop_pct`: its shorter side is floor(image_size / crop_pct)."""
    if cfg.eval_resize == 0:
        return 1.0
    pairs = list(zip(cfg.resized_shape, cfg.image_shape))
    most = min(side / to for to, side in pairs)
    plain = [float(f"{1 / cfg.eval_resize:.4g}"), 1 / cfg.eval_resize, most]
    exact = math.nextafter(most, 0)
    fits = (p for p in plain if all(math.floor(side / p) == to for to, side in pairs))
    return next(fits, exact)


def from_timm(
    cfg: Mapping[str, Any], size: int, usual: float, square: bool, hints: Hints, notes: Notes
) -> tuple[float, str]:
    """`(eval_resize, interpolation)` of a `pretrained_cfg`; `usual` is its absent crop_pct."""
    part = number(cfg, "crop_pct", float, usual, hints.where)
    if not 0.1 <= part <= 1:
        notes.notices.append(f"timm's crop_pct is {part:g}: taken as 1")
        part = 1.0
    resize = ratio(math.floor(size / part), size) if square else 1 / part
    mode = cfg.get("crop_mode") or "center"
    if mode == "squash":
        if part != 1:
            notes.notices.append(f"timm squashes and then crops {part:g} of it: taken as 1")
        resize = 0.0
    elif mode != "center":
        notes.notices.append(f"timm's crop_mode is {mode!r:.40}: taken as 'center'")
    return resize, _known(cfg.get("interpolation") or "bicubic", "bicubic", notes)


def from_transformers(
    processor: Mapping[str, Any], size: int, hints: Hints, notes: Notes
) -> tuple[float, str]:
    """`(eval_resize, interpolation)` of a preprocessor_config.json."""
    resample = processor.get("resample", PILLOW["bilinear"])
    names = {code: name for name, code in PILLOW.items()}
    known = isinstance(resample, int) and resample in names
    filter_name = _known(
        names[resample] if known else f"number {resample!r:.20}", "bilinear", notes
    )
    crops = processor.get("do_center_crop") is True
    side = processor.get("size")
    if isinstance(side, Mapping):
        shorter = number(side, "shortest_edge", int, None, hints.where)
    else:
        shorter = number(processor, "size", int, None, hints.where) if crops else None
    if shorter is not None and crops:
        requested = processor.get("crop_size")
        box = section(processor, "crop_size", hints.where) if isinstance(requested, Mapping) else {}
        crop = number(box, "height", int, None, hints.where) if box else requested
        if crop not in (None, size):
            notes.notices.append(f"its image processor crops to {crop!r:.20} px, not {size}")
        if shorter >= size:
            return ratio(shorter, size), filter_name
    if crops or shorter is not None:
        notes.notices.append("its image processor resizes or crops in a way that is not known")
    return 0.0, filter_name


def _known(name: object, usual: str, notes: Notes) -> str:
    if isinstance(name, str) and name in PILLOW:
        return name
    notes.notices.append(f"the filter of its resize is {name!r:.40}: taken as {usual}")
    return usual
