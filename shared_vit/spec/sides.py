"""The sides of an image: one number of pixels where it is square, else height and width."""

from __future__ import annotations

from typing import Any

from shared_vit.errors import UserError

Sides = int | tuple[int, int]


def sides(size: Sides | str) -> tuple[int, int]:
    """Height and width of `224`, `(32, 96)` or "32,96". Raises UserError for anything else."""
    values: Any = size.split(",") if isinstance(size, str) else size
    values = [values] if isinstance(values, int) else list(values)
    if not 1 <= len(values) <= 2 or not all(str(v).strip().isdecimal() for v in values):
        raise UserError(
            f"an image's size is a number of pixels, or height and width as in 32,96, not {size!r}"
        )
    height, width = int(values[0]), int(values[-1])
    return height, width


def plain(shape: tuple[int, int]) -> Sides:
    """The one number of a square, else both."""
    height, width = shape
    return height if height == width else shape


def parse_sides(text: str) -> Sides:
    """The value of --image_size."""
    return plain(sides(text))


def image_fields(size: Sides | str) -> dict[str, Any]:
    """The fields of a ModelConfig that are an image's size."""
    height, width = sides(size)
    return {"image_size": height, "image_width": 0 if width == height else width}


def shown(shape: tuple[int, int]) -> str:
    """`224 px`, or `32 x 96 px`."""
    height, width = shape
    return f"{height} px" if height == width else f"{height} x {width} px"
