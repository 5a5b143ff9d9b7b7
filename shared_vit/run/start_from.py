"""What a run that starts from weights takes from them, in four lines."""

from __future__ import annotations

from shared_vit.errors import some
from shared_vit.spec.config import ModelConfig, name_of
from shared_vit.spec.input import numbers
from shared_vit.weights import Source
from shared_vit.weights.positions import Positions, describe_positions


def describe_start(
    source: Source,
    model: ModelConfig,
    class_names: tuple[str, ...] | None = None,
    positions: Positions = "bicubic",
) -> list[str]:
    """Where the weights come from, and what becomes of head, positions and input.

    source: the weights of --init_from; model: that of the run; class_names: what the data call
    the classes; positions: the rule of their resampling. Further lines are notices.
    """
    step = "" if source.step is None else f", step {source.step}"
    origin = "" if source.origin is None else f", {source.origin.describe()}"
    lines = [
        f"starts from: {source.path} (format {source.format}{step}{origin}), {name_of(source.cfg)}",
        f"head: {_head(source, model)}",
        f"positions: {describe_positions(source.cfg, model, positions)}",
        f"input: mean {numbers(model.mean)}, std {numbers(model.std)}; LayerNorm eps "
        f"{model.norm_eps:g}, GELU {model.gelu}",
    ]
    if source.assumed:
        lines[-1] += f"; the file does not say, taken as usual: {some(source.assumed)}"
    notices = source.notices + _other_names(source, model, class_names)
    return lines + [f"notice: {notice}" for notice in notices]


def _other_names(source: Source, model: ModelConfig, names: tuple[str, ...] | None) -> list[str]:
    """A notice where a loaded head meets other classes, or the same in another order."""
    if not names or not source.class_names or source.cfg.num_classes != model.num_classes:
        return []
    pairs = [(first_name(a), first_name(b)) for a, b in zip(source.class_names, names)]
    other = [i for i, (a, b) in enumerate(pairs) if a != b]
    if not other:
        return []
    return [
        f"{len(other)} of the {len(names)} classes have another name in the weights than in the "
        f"data, such as class {other[0]}, {source.class_names[other[0]]!r} there and "
        f"{names[other[0]]!r} here: the head is loaded, and is trained on the data's"
    ]


def first_name(name: str) -> str:
    """The first of the synonyms that a name may list, in small letters."""
    return name.split(",")[0].strip().casefold()


def _head(source: Source, new: ModelConfig) -> str:
    old = source.cfg
    if old.num_classes == new.num_classes and not source.new_head:
        return f"kept, {new.num_classes} classes"
    if not old.num_classes or source.new_head:
        return f"new, zero, for {new.num_classes} classes; the weights have none"
    dropped = ", its pre-logits layer is dropped" if old.pre_logits else ""
    return (
        f"new, zero, for {new.num_classes} classes; that of {old.num_classes} is dropped{dropped}"
    )
