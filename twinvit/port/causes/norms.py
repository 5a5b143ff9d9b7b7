"""Normalisation: eps, axes and groups, the variance's denominator, the offset of the scale, the
kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import BATCH_NORMS, EPS_AT, NORMS, ROW_NORMS

EPS = (1e-5, 1e-6, 1e-3, 1e-12, 1e-8, 1e-4, 1e-7, 2e-5, 1e-2, 1e-10, 0.0)
TITLES = {
    "native_layer_norm": "LayerNorm",
    "native_group_norm": "GroupNorm",
    "_fused_rms_norm": "RMSNorm",
}


def title(call: Call) -> str:
    return TITLES.get(call.node.name, "BatchNorm" if "batch_norm" in call.node.name else "norm")


def parts(call: Call, args: tuple[Any, ...]) -> tuple[torch.Tensor, Any, Any, float]:
    """Input, scale, bias, eps of any normalisation."""
    name = call.node.name
    eps = args[EPS_AT[name]]
    if name == "native_layer_norm":
        return args[0], args[2], args[3], eps
    if name == "_fused_rms_norm":
        return args[0], args[2], None, torch.finfo(torch.float64).eps if eps is None else eps
    return args[0], args[1], args[2], eps


def _channels(x: torch.Tensor, w: Any) -> Any:
    """A scale or bias of the channels (axis 1), broadcastable to x."""
    return None if w is None else w.reshape(1, -1, *(1,) * (x.ndim - 2))


def affine(call: Call, x: torch.Tensor, y: torch.Tensor, w: Any, b: Any) -> torch.Tensor:
    if call.node.name not in ROW_NORMS:
        w, b = _channels(x, w), _channels(x, b)
    y = y if w is None else y * w
    return y if b is None else y + b


def own_axes(call: Call) -> tuple[int, ...]:
    """The axes that a Layer- or RMSNorm is over."""
    x = call.args[0]
    return tuple(range(x.ndim - len(call.args[1]), x.ndim))


def normalised(
    call: Call, args: tuple[Any, ...], axes: tuple[int, ...], center: bool
) -> torch.Tensor:
    """The norm over other axes, with or without the mean subtracted; scale and bias are its own."""
    x, w, b, eps = parts(call, args)
    d = x - x.mean(axes, keepdim=True) if center else x
    return affine(call, x, d * (d.pow(2).mean(axes, keepdim=True) + eps).rsqrt(), w, b)


@cause("norm_eps", on=NORMS)
def norm_eps(call: Call) -> Iterator[Variant]:
    """The port's eps of Layer-, Group-, Batch- or RMSNorm is another one, or stands outside the
    root."""
    position = EPS_AT[call.node.name]
    present = call.args[position]

    def at(eps: float) -> Callable[..., Any]:
        return call.with_args(**{f"a{position}": eps})

    def value(eps: float) -> torch.Tensor:
        out = at(eps)(*call.args, **call.kwargs)
        return out if isinstance(out, torch.Tensor) else out[0]

    for eps in call.solve(value, 1e-14, 10.0, grid=[e for e in EPS if e != present]):
        if eps != present:
            yield Variant(
                f"the port's {title(call)} has eps {eps:g}; the reference's is {present:g}",
                at(eps),
                solved=None if present is None else (eps, present),
            )
    x, w, b, eps = parts(call, call.args)
    if call.node.name in ROW_NORMS:
        axes = own_axes(call)
        center = call.node.name == "native_layer_norm"

        def outside(*args: Any, **_: Any) -> torch.Tensor:
            x, w, b, eps = parts(call, args)
            d = x - x.mean(axes, keepdim=True) if center else x
            return affine(call, x, d / (d.pow(2).mean(axes, keepdim=True).sqrt() + eps), w, b)

        yield Variant(
            f"the port's {title(call)} adds eps to the standard "
            "deviation; the reference adds it to the variance",
            outside,
        )


@cause("norm_eps", on=("add", "clamp_min", "clamp", "maximum"))
def norm_eps_written_out(call: Call) -> Iterator[Variant]:
    """The port's eps in a norm that the reference writes out."""
    name = call.node.name
    scalar = call.argument(1)
    if (
        not isinstance(scalar, int | float)
        or not 0 <= scalar <= 0.1
        or not call.leads_to("rsqrt", "sqrt", "div", "pow", "mul", steps=3)
    ):
        return
    for eps in call.solve(
        lambda t: call.with_args(a1=t)(*call.args, **call.kwargs),
        1e-14,
        1.0,
        grid=[e for e in EPS if e != scalar],
    ):
        if eps != scalar:
            yield Variant(
                f"the port's norm has eps {eps:g}; the reference's is {scalar:g}",
                call.with_args(a1=eps),
                key=f"{name}{eps:g}",
                solved=(eps, scalar),
            )


@cause("norm_axes", on=ROW_NORMS)
def norm_axes(call: Call) -> Iterator[Variant]:
    """The port normalises over other axes or groups."""
    x, own = call.args[0], own_axes(call)
    center = call.node.name == "native_layer_norm"
    for n in range(1, x.ndim + 1):
        for axes in itertools.combinations(range(x.ndim), n):
            if axes == own:
                continue

            def fn(*args: Any, axes: tuple[int, ...] = axes, **_: Any) -> torch.Tensor:
                return normalised(call, args, axes, center)

            yield Variant(
                f"the port's {title(call)} normalises over axes {axes}; the reference over {own}",
                fn,
            )


@cause("norm_axes", on="native_group_norm")
def norm_groups(call: Call) -> Iterator[Variant]:
    """The port's GroupNorm has other groups."""
    x = call.args[0]
    channels, groups = x.shape[1], call.args[6]

    def grouped(
        x: torch.Tensor, g: int, interleaved: bool, spatial: bool, eps: float
    ) -> torch.Tensor:
        shape = (
            (x.shape[0], g, channels // g, -1)
            if not interleaved
            else (x.shape[0], channels // g, g, -1)
        )
        y = x.reshape(shape)
        axis = 2 if not interleaved else 1
        axes = (axis, 3) if spatial else (axis,)
        d = y - y.mean(axes, keepdim=True)
        return (d * (d.pow(2).mean(axes, keepdim=True) + eps).rsqrt()).reshape(x.shape)

    for g in (g for g in range(1, channels + 1) if channels % g == 0):
        for interleaved, spatial in ((False, True), (True, True), (False, False)):
            if (g, interleaved, spatial) == (groups, False, True) or (
                not spatial and g == channels
            ):
                continue

            def fn(
                *args: Any, g: int = g, i: bool = interleaved, s: bool = spatial, **_: Any
            ) -> torch.Tensor:
                x, w, b, eps = parts(call, args)
                return affine(call, x, grouped(x, g, i, s, eps), w, b)

            detail = (
                " of every g-th channel"
                if interleaved
                else ""
                if spatial
                else ", each position apart"
            )
            yield Variant(
                f"the port's GroupNorm has {g} groups{detail}; "
                f"the reference's {groups} of neighbouring channels",
                fn,
            )


@cause("bn_mode", on=BATCH_NORMS, what=("forward", "train"))
def bn_mode(call: Call) -> Iterator[Variant]:
    """The port's BatchNorm normalises by the batch's statistics in evaluation, or by the running
    ones in train mode."""
    if call.train and len(call.outs) == 5:
        yield from _running_in_training(call)
        return
    if call.node.name != "_native_batch_norm_legit_no_training" and call.args[5]:
        return

    def fn(*args: Any, **_: Any) -> torch.Tensor:
        return normalised(call, args, (0, *range(2, args[0].ndim)), center=True)

    yield Variant(
        "the port's BatchNorm uses the batch's statistics; the "
        "reference uses the running ones (use_running_average=True)",
        fn,
    )


def _running_in_training(call: Call) -> Iterator[Variant]:
    for kept, also in ((False, ", which it does not update"), (True, "")):

        def fn(*args: Any, kept: bool = kept, **kw: Any) -> Any:
            x, weight, bias, mean, var, _, _, eps = args
            y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
            out = call.run(*args, **kw)
            return (y, *out[1:]) if kept else (y, *out[1:3], mean.clone(), var.clone())

        yield Variant(
            f"the port's BatchNorm uses the running statistics in train mode{also}; the reference "
            "uses the batch's and updates the running ones",
            fn,
        )


@cause(
    "norm_ddof", on=("native_layer_norm", "native_group_norm", "var", "std", "var_mean", "std_mean")
)
def norm_ddof(call: Call) -> Iterator[Variant]:
    """The port divides the variance by n - 1 for n, or the other way."""
    if call.node.name in ("native_layer_norm", "native_group_norm"):

        def fn(*args: Any, **_: Any) -> torch.Tensor:
            x, w, b, eps = parts(call, args)
            if call.node.name == "native_layer_norm":
                axes = own_axes(call)
                d = x - x.mean(axes, keepdim=True)
                y = d * (x.var(axes, keepdim=True, correction=1) + eps).rsqrt()
            else:
                z = x.reshape(x.shape[0], args[6], -1)
                y = (
                    (z - z.mean(2, keepdim=True))
                    * (z.var(2, keepdim=True, correction=1) + eps).rsqrt()
                ).reshape(x.shape)
            return affine(call, x, y, w, b)

        yield Variant("the port divides the variance by n - 1 (ddof=1); the reference by n", fn)
        return
    present = call.kwargs.get("correction", 1)
    present = 1 if present is None else present
    other = 0 if present else 1
    op = call.node.op

    def swapped(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **{**kwargs, "correction": other})

    yield Variant(
        f"the port divides the variance by n{' - 1' if other else ''} "
        f"(ddof={other}); the reference has ddof={present:g}",
        swapped,
    )


@cause("norm_offset", on=(*NORMS, "mul"))
def norm_offset(call: Call) -> Iterator[Variant]:
    """The port scales by 1 + w for w, or the other way."""
    name = call.node.name
    positions = [2] if name in ROW_NORMS else [1] if name != "mul" else [0, 1]
    for position in positions:
        if not isinstance(call.argument(position), torch.Tensor) or (
            name == "mul" and call.parameter(position) is None
        ):
            continue
        for offset, text in ((1.0, "1 + w"), (-1.0, "w - 1")):
            yield Variant(
                f"the port scales by {text}; the reference by its weight w",
                call.with_args(**{f"a{position}": lambda w, o=offset: w + o}),
            )


@cause("norm_offset", on="add")
def norm_offset_missing(call: Call) -> Iterator[Variant]:
    """The reference scales by 1 + w, the port by w."""
    for position in (0, 1):
        if call.parameter(position) is not None and isinstance(
            call.argument(1 - position), int | float
        ):
            yield Variant(
                f"the port scales by w; the reference by {call.argument(1 - position):g} + w",
                lambda *args, p=position, **_: args[p].clone(),
            )


@cause("norm_kind", on=ROW_NORMS)
def norm_kind(call: Call) -> Iterator[Variant]:
    """The port uses RMSNorm for LayerNorm, or the other way."""
    axes = own_axes(call)
    center = call.node.name != "native_layer_norm"

    def fn(*args: Any, **_: Any) -> torch.Tensor:
        return normalised(call, args, axes, center)

    yield Variant(
        "the port subtracts the mean, the reference does not"
        if center
        else "the port does not subtract the mean (RMSNorm); the reference does",
        fn,
    )


@cause("norm_missing", on=NORMS)
def norm_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a normalisation."""
    yield Variant(f"the port lacks this {title(call)}", lambda x, *_, **__: x.clone())


@cause("scale_missing", on=(*NORMS, "mul"))
def scale_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a learned scale (a norm's weight, a layer scale)."""
    name = call.node.name
    if name == "mul":
        for position in (0, 1):
            if call.parameter(position) is not None and isinstance(
                call.argument(1 - position), torch.Tensor
            ):
                yield Variant(
                    "the port does not multiply by this parameter",
                    lambda *args, p=position, **_: args[1 - p].clone(),
                )
        return
    position = 2 if name in ROW_NORMS else 1
    if isinstance(call.argument(position), torch.Tensor):
        yield Variant(
            f"the port's {title(call)} has no scale; the reference's has",
            call.with_args(**{f"a{position}": None}),
        )
