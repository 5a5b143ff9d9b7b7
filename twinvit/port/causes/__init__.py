"""The catalogue of causes: wrong versions of a reference's operations, as found in people's ports.

A cause is a name, the operations it applies to, and a generator of variants. A variant is a text
and a function that
computes, from the operation's arguments, what the port would compute. Users add theirs with the
decorator:

    @port.cause("gelu_tanh", on="aten.gelu")
    def gelu_tanh(call):
        "GELU's tanh form for erf."
        yield Variant("the port computes GELU's tanh form", lambda x, **_: gelu(x,
        approximate="tanh"))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinvit.port.call import Call

FAMILIES = (
    "softcaps",
    "routers",
    "heads",
    "transforms",
    "shifts",
    "norm_place",
    "rope_part",
    "activations",
    "norms",
    "linear",
    "convolution",
    "attention",
    "layout",
    "pooling",
    "resize",
    "scales",
    "rope",
    "recurrent",
    "losses",
    "training",
)
SPECIAL = {
    "softcap_missing": ("activation", "scale", "attention_scale"),
    "softcap_value": ("activation", "scale", "attention_scale"),
    "router_norm": ("operand_order",),
    "router_order": ("softmax_missing",),
    "kv_repeat": ("qkv_order",),
    "fft_norm": ("scale",),
    "normalize_eps": ("norm_eps", "activation", "clip_missing", "constant"),
    "norm_missing": ("activation", "clip_missing"),
    "norm_order": ("residual_missing", "residual_source", "norm_missing"),
    "rope_partial": ("rope_base",),
    "weight_norm": ("scale_missing", "operand_order"),
    "gate_missing": ("gate_order", "residual_scale"),
    "target_shift": ("loss_reduction", "token_order", "padding"),
}
"""Causes that say more than others which explain the same: no tie with those."""


@dataclass(frozen=True)
class Variant:
    """One wrong version of an operation.

    Attributes:
        text: what the port computes there, and what to change; one sentence or two.
        fn: takes the operation's arguments (or the values `refs`) and returns what the operation
            returns. Of an
            operation with several results it may return the first alone.
        refs: ids of the values that `fn` takes instead of the arguments.
        node: the operation that is replaced, if not the one that the cause was called with.
        also: further operations that the same edit replaces.
        also_refs: of each of these, ids of the values that it takes instead of its arguments; empty
            where they take their arguments.
        key: what makes two variants at different places the same edit; the text if empty.
    """

    text: str
    fn: Callable[..., Any]
    refs: tuple[int, ...] | None = None
    node: int | None = None
    also: tuple[tuple[int, Callable[..., Any]], ...] = ()
    also_refs: tuple[tuple[int, ...], ...] = ()
    key: str = ""
    reshapes: bool = False
    """True if the result may have another shape."""
    solved: tuple[float, float] | None = None
    """The port's constant and the reference's, where one was solved for."""


Generator = Callable[["Call"], Iterable[Variant] | None]


@dataclass(frozen=True)
class Cause:
    """A catalogued cause."""

    name: str
    on: tuple[str, ...]
    generate: Generator
    text: str
    family: str
    what: tuple[str, ...] = ("forward",)
    order: int = field(default=0, compare=False)


_REGISTRY: list[Cause] = []
_LOADED = False


def cause(
    name: str, on: str | Iterable[str], what: str | Iterable[str] = "forward"
) -> Callable[[Generator], Generator]:
    """Add a cause to the catalogue.

    Args:
        name: identifier; several generators may share one.
        on: ATen operations that it is a wrong version of, "aten.gelu" or several; "*" for any.
        what: "forward", "grad" or "train".
    """
    names = (on,) if isinstance(on, str) else tuple(on)
    kinds = (what,) if isinstance(what, str) else tuple(what)

    def add(generate: Generator) -> Generator:
        text = (generate.__doc__ or name).strip().split("\n\n")[0].replace("\n", " ")
        family = generate.__module__.rsplit(".", 1)[-1]
        _REGISTRY.append(
            Cause(
                name,
                tuple(n.removeprefix("aten.") for n in names),
                generate,
                " ".join(text.split()),
                family,
                kinds,
                len(_REGISTRY),
            )
        )
        return generate

    return add


def catalogue() -> list[Cause]:
    """Every cause, the built-in ones first."""
    global _LOADED
    if not _LOADED:
        _LOADED = True
        own = [entry for entry in _REGISTRY if not entry.generate.__module__.startswith(__name__)]
        for family in FAMILIES:
            importlib.import_module(f"{__name__}.{family}")
        for entry in own:
            _REGISTRY.remove(entry)
            _REGISTRY.append(replace(entry, order=len(_REGISTRY)))
    return list(_REGISTRY)


def causes_on(name: str, what: Iterable[str] = ("forward",)) -> Iterator[Cause]:
    """The causes that apply to an operation of this name."""
    for entry in catalogue():
        if any(w in entry.what for w in what) and (name in entry.on or "*" in entry.on):
            yield entry


def describe() -> list[tuple[str, str, str]]:
    """(identifier, family, text) of each cause, once."""
    seen: dict[str, tuple[str, str, str]] = {}
    for entry in catalogue():
        seen.setdefault(entry.name, (entry.name, entry.family, entry.text))
    return list(seen.values())
