"""What a run that starts from weights takes from them, in four lines."""

from __future__ import annotations

from shared_vit.errors import some
from shared_vit.spec.config import ModelConfig, name_of
from shared_vit.weights import Source


def describe_start(source: Source, model: ModelConfig) -> list[str]:
    """Where the weights come from, and what becomes of head, positions and input.

    source: the weights of --init_from; model: that of the run. Further lines are notices.
    """
    step = "" if source.step is None else f", step {source.step}"
    lines = [
        f"starts from: {source.path} (format {source.format}{step}), {name_of(source.cfg)}",
        f"head: {_head(source.cfg, model)}",
        f"positions: {_positions(source.cfg, model)}",
        f"input: mean {numbers(model.mean)}, std {numbers(model.std)}; LayerNorm eps "
        f"{model.norm_eps:g}, GELU {model.gelu}",
    ]
    if source.assumed:
        lines[-1] += f"; the file does not say, taken as usual: {some(source.assumed)}"
    return lines + [f"notice: {notice}" for notice in source.notices]


def _head(old: ModelConfig, new: ModelConfig) -> str:
    if old.num_classes == new.num_classes:
        return f"kept, {new.num_classes} classes"
    dropped = ", its pre-logits layer is dropped" if old.pre_logits else ""
    return (
        f"new, zero, for {new.num_classes} classes; that of {old.num_classes} is dropped{dropped}"
    )


def _positions(old: ModelConfig, new: ModelConfig) -> str:
    before, after = (f"{side} x {side}" for side in (old.grid, new.grid))
    if before == after:
        return f"kept, {after}"
    if new.pos_embed == "sincos2d":
        return f"computed anew, {after} (the weights have {before})"
    return f"resampled from {before} to {after}"


def numbers(values: tuple[float, ...]) -> str:
    """Mean or standard deviation of the colours, for a message."""
    return " ".join(f"{value:g}" for value in values)
