"""Images as transformers' processors prepare them: preprocessor_config.json, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import resize
from shared_vit.weights.formats.base import Hints, Notes
from shared_vit.weights.formats.huggingface.kinds import Images
from shared_vit.weights.formats.json_fields import colours

_IN_FLOATS = "DINOv3ViT"  # how the names of processors begin that resize after the division by 255


def read_images(usual: Images, size: int, hints: Hints, notes: Notes) -> dict[str, Any]:
    """The fields of a ModelConfig that turn an image into the input. Adds to `notes`."""
    processor = hints.processor
    if processor is None:
        notes.assumed.append(usual.about)
        return {
            "mean": usual.mean,
            "std": usual.std,
            "eval_resize": usual.resize,
            "interpolation": usual.interpolation,
        }
    mean, std = colours(processor, "image_mean", "image_std", (usual.mean, usual.std), hints.where)
    if processor.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    eval_resize, interpolation = resize.from_transformers(processor, size, hints, notes)
    if resizes_in_floats(processor):
        notes.notices.append(
            f"{processor['image_processor_type']} resizes in floats, where this project rounds to "
            "whole levels of 255: up to half a level apart"
        )
    return {
        "mean": mean,
        "std": std,
        "eval_resize": eval_resize,
        "interpolation": interpolation,
        "exif": "turn" if processor.get("exif_transpose") is True else "ignore",
    }


def resizes_in_floats(processor: Mapping[str, Any]) -> bool:
    """Whether the processor of a preprocessor_config.json divides by 255 before it resizes."""
    return str(processor.get("image_processor_type")).startswith(_IN_FLOATS)


def processor_args(cfg: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json, with the name of its class.

    The ViTImageProcessor of transformers 4 only squashes; Bit's does the resize and crop of a
    ViT that was trained on crops, in versions 4 and 5. Its offset of the crop is rounded down
    where ours is rounded to the nearest, so that an odd margin may shift the crop by a pixel.
    """
    height, width = cfg.image_shape
    shape = {"height": height, "width": width}
    values: dict[str, Any] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(cfg.mean),
        "image_std": list(cfg.std),
        "resample": resize.PILLOW[cfg.interpolation],
        "rescale_factor": 1 / 255,
        **({"exif_transpose": True} if cfg.exif == "turn" else {}),  # this project's own key
    }
    if is_squashed(cfg):
        return values | {"image_processor_type": "ViTImageProcessor", "size": shape}
    return values | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": cfg.short_side},
        "do_center_crop": True,
        "crop_size": shape,
    }


def is_squashed(cfg: ModelConfig) -> bool:
    """Whether the full image is resized to the input: also where it is not square, since no
    processor resizes such a one to cover more than the crop."""
    return cfg.eval_resize == 0 or cfg.image_width > 0


def image_notes(cfg: ModelConfig) -> list[str]:
    """What the processor does not do that the model says."""
    if cfg.image_width and cfg.eval_resize:
        return [
            "no image processor of transformers resizes to cover an image that is not square: "
            f"it squashes, and this model's eval_resize is {cfg.eval_resize:g}"
        ]
    return []


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that says of the images' tower; of a model with two towers, that
    of its own with what the whole says of classes."""
    part = config.get("vision_config")
    return part if isinstance(part, Mapping) else config
