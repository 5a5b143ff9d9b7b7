"""What turns an image into a model's input, in words and from flags; it imports no numpy."""

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.sides import shown


def colours(text: str) -> tuple[float, float, float]:
    """The values of --mean and --std: `R,G,B`, or one number for all three. Raises UserError."""
    parts = text.strip("()[] ").split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise UserError(
            f"{text!r}: expected three numbers for red, green and blue, as 0.485,0.456,0.406, or "
            "one for all"
        )
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue


def describe_input(cfg: ModelConfig) -> str:
    """What turns an image into the model's input, in words."""
    size, whole = shown(cfg.image_shape), shown(cfg.resized_shape)
    how = "to cover" if cfg.image_width else "shorter side to"
    colour = f"mean {numbers(cfg.mean)}, std {numbers(cfg.std)}"
    if cfg.eval_resize == 0:
        shape = f"squashed to {size} ({cfg.interpolation})"
    else:
        shape = f"{how} {whole} ({cfg.interpolation}), centre {size}"
    upright = ", turned upright by EXIF" if cfg.exif == "turn" else ""
    return f"{shape}, {colour}{upright}"


def numbers(values: tuple[float, ...]) -> str:
    """Mean or standard deviation of the colours, for a message."""
    return " ".join(f"{value:g}" for value in values)
