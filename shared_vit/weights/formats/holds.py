"""Which models a format can hold: values of `ModelConfig`'s fields, and tensors.

Each format declares it (`Format.holds`, `Format.zero`); errors for other models follow from that.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.lazy import Arrays

if TYPE_CHECKING:
    from shared_vit.weights.formats.base import Format

# The values of a field that a format can hold, or whether it can hold the field in a model.
Rule = Collection[Any] | Callable[[ModelConfig], bool]

BOTH = (False, True)
ANY: Rule = lambda cfg: True  # noqa: E731

# Fields that every format holds at any value: sizes, and what the format's code takes as arguments
# (`Format.notes`) or does not need.
FREE = frozenset(
    (
        "image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim",
        "gelu", "norm_eps", "layer_scale_init", "dropout", "drop_path",
        "mean", "std", "eval_resize", "interpolation", "exif",
    )
)  # fmt: skip

# Fields that most formats hold at more than one value.
_USUAL: Mapping[str, Rule] = {"pos_embed": ("learned", "sincos2d")}

# What a user can do about a value that a format does not hold.
REMEDIES = {
    "pre_logits": "--num_classes=N leaves out the pre-logits layer and the head, and makes a head "
    "of zeros",
    "num_classes": "--num_classes=N makes a head of zeros",
}
_WITHOUT_HEAD = "--num_classes=0 leaves the head out"


def not_held(cfg: ModelConfig, holds: Mapping[str, Rule]) -> list[str]:
    """The fields whose values in `cfg` a format does not hold.

    Of a field that is neither among `FREE` nor in `holds` it holds the historical value alone, or
    the default of one without a history. It holds heads of any number of classes.
    """
    return [
        f.name
        for f in dataclasses.fields(cfg)
        if (f.name in holds or f.name not in FREE)
        and not _held(cfg, f, holds.get(f.name, _USUAL.get(f.name)))
    ]


def _held(cfg: ModelConfig, f: dataclasses.Field, rule: Rule | None) -> bool:
    value = getattr(cfg, f.name)
    if rule is None and f.name == "num_classes":
        return bool(value)
    if rule is None:
        usual = f.metadata["setting"].historical if "setting" in f.metadata else f.default
        return bool(value == usual)
    return rule(cfg) if callable(rule) else value in rule


def check_held(fmt: Format, cfg: ModelConfig, formats: Mapping[str, Format]) -> None:
    """Raise UserError, naming those of `formats` that can, unless `fmt` can hold the model."""
    fields = fmt.not_held(cfg)
    if not fields:
        return
    shown = ", ".join(f"{name}={getattr(cfg, name)!r}" for name in fields)
    others = [name for name, other in formats.items() if not other.not_held(cfg)]
    known = REMEDIES | ({"num_classes": _WITHOUT_HEAD} if cfg.num_classes else {})
    remedies = "".join(f"; {known[name]}" for name in fields if name in known)
    raise UserError(
        f"{fmt.name} cannot hold a model with {shown}: {', '.join(['torch', 'jax', *others])} can"
        f"{remedies}"
    )


def check_zero(fmt: Format, cfg: ModelConfig, arrays: Arrays, where: str) -> None:
    """Raise UserError unless the tensors that `fmt` has no place for are all zero."""
    for name in arrays:
        if in_kinds(name, fmt.zeros(cfg)) and np.asarray(arrays[name]).any():
            raise UserError(
                f"cannot write {where}: {fmt.name} has no place for {name}, and it is not zero"
            )


def in_kinds(name: str, kinds: Collection[str]) -> bool:
    """Whether a canonical name is among those of `kinds`, in which `*` is the number of a block."""
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", name) in kinds
