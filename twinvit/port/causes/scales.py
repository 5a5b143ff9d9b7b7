"""Constants, residuals, operands: factors, terms that are missing or doubled, swapped operands."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.causes.attention import _nice, scales
from twinvit.port.ops import ELEMENTWISE, GATES, LAYOUT


@cause("scale", on=("mul", "div"))
def scale(call: Call) -> Iterator[Variant]:
    """The port multiplies by another constant, or by none."""
    scalar = call.argument(1)
    if isinstance(scalar, torch.Tensor) and scalar.numel() == 1 and call.fixed(1):
        scalar = float(scalar)
    if (
        not isinstance(scalar, int | float)
        or not isinstance(call.args[0], torch.Tensor)
        or scalar == 0
        or call.leads_to("softmax", steps=9)
    ):
        return
    present = 1 / scalar if call.node.name == "div" else float(scalar)
    for t in call.solve(lambda t: call.args[0] * t, 1e-6, 1e6, grid=scales(call, present)):
        yield Variant(
            f"the port multiplies by {_nice(t)}; the reference by {_nice(present)}",
            lambda x, *_, t=t, **__: x * t,
            solved=(t, present),
        )


@cause("scale", on=("embedding", "addmm", "mm", "convolution", "cat", "native_layer_norm", "bmm"))
def scale_added(call: Call) -> Iterator[Variant]:
    """The port multiplies by a constant where the reference does not (embeddings by sqrt(d))."""
    if call.node.name == "bmm" and call.leads_to("softmax", steps=6):
        return
    rms = float(call.out.double().pow(2).mean().sqrt()) if call.out.is_floating_point() else 0.0
    if not rms:
        return
    grid = (
        [f for n in call.widths() for f in (n**0.5, n**-0.5)][:12]
        if call.node.name == "embedding"
        else []
    )
    for t in call.solve(lambda t: call.out * t, 1e-4, 1e4, grid=grid, count=4):
        if abs(t - 1) > 1e-9:

            def fn(*args: object, t: float = t, **kw: object) -> object:
                out = call.run(*args, **kw)
                return out * t if isinstance(out, torch.Tensor) else (out[0] * t, *out[1:])

            text = f"the port multiplies this by {_nice(t)}; the reference does not"
            yield Variant(text, fn, solved=(t, 1.0))


@cause("residual_missing", on=("add",))
def residual_missing(call: Call) -> Iterator[Variant]:
    """The port lacks a residual or another term."""
    a, b = call.argument(0), call.argument(1)
    if (
        not isinstance(a, torch.Tensor)
        or not isinstance(b, torch.Tensor)
        or call.parameter(0)
        or call.parameter(1)
    ):
        return
    for position in (0, 1):
        kept = call.argument(1 - position)
        if kept.shape == call.out.shape:
            yield Variant(
                "the port lacks this residual"
                if position == 0
                else "the port lacks the branch added here",
                lambda *args, p=position, **_: args[1 - p].clone(),
            )


@cause("residual_scale", on=("add",))
def residual_scale(call: Call) -> Iterator[Variant]:
    """The port adds a term with another factor (a residual twice, a layer scale missing)."""
    a, b = call.argument(0), call.argument(1)
    if (
        not isinstance(a, torch.Tensor)
        or not isinstance(b, torch.Tensor)
        or call.parameter(0)
        or call.parameter(1)
        or not call.out.is_floating_point()
    ):
        return
    for position in (0, 1):
        kept, term = call.args[1 - position], call.args[position]
        for t in dict.fromkeys((*call.solve_factor(kept, term), 2.0, -1.0, 0.5)):
            if abs(t - 1) > 1e-12 and abs(t) > 1e-9:  # nothing is left of the term: it is missing
                yield Variant(
                    f"the port adds this term {t:g} times",
                    lambda *args, p=position, t=t, **_: args[1 - p] + t * args[p],
                    solved=(t, 1.0),
                )
    for t in (0.5, math.sqrt(0.5), 2.0):
        yield Variant(
            f"the port multiplies the sum by {t:.6g}", lambda a, b, *_, t=t, **__: (a + b) * t
        )
    if a.shape == b.shape:
        yield Variant("the port multiplies where the reference adds", lambda a, b, *_, **__: a * b)


@cause("residual_source", on=("add",))
def residual_source(call: Call) -> Iterator[Variant]:
    """The port's residual comes from another place (after a norm for before it)."""
    graph = call.graph
    if call.comes_from("sigmoid", steps=3):  # a recurrent cell's update is no residual
        return
    for position in (0, 1):
        mine = call.ref(position)
        if (
            mine is None
            or call.parameter(position)
            or call.parameter(1 - position)
            or graph.values[mine].shape != call.out.shape
            or mine not in graph.input_dependent()
        ):
            continue
        other = call.ref(1 - position)
        if other is None:
            continue
        near: list[int] = []
        chain = [mine]
        for value in chain:  # what the residual itself is the sum of, back to earlier blocks
            producer = graph.producer[value]
            for ref in (
                graph.nodes[producer].refs if producer is not None and len(chain) < 6 else ()
            ):
                if (
                    graph.values[ref].shape == call.out.shape
                    and ref in graph.input_dependent()
                    and ref not in chain
                ):
                    chain.append(ref)
        near += [v for v in chain[1:] if v not in (other, _skipped(call, mine))]
        for node in reversed(graph.nodes[max(0, call.node.index - 40) : call.node.index]):
            out = node.outs[0] if node.outs else None
            if (
                out is not None
                and out not in (mine, other, *near, _skipped(call, mine))
                and graph.values[out].shape == call.out.shape
                and node.name not in LAYOUT
            ):
                near.append(out)
        for source in near[:12]:
            if not bool(graph.values[source].any()):  # zeros say nothing of where they come from
                continue
            place = graph.nodes[graph.producer[source] or 0].place
            yield Variant(
                f"the port's residual is the output of {place}",
                lambda kept, taken: kept + taken,
                refs=(other, source),
                key=f"residual {call.node.index - (graph.producer[source] or 0)}",
            )


def _skipped(call: Call, value: int) -> int | None:
    """What a value would be without the elementwise operation that makes it: another mistake."""
    producer = call.graph.producer[value]
    if producer is None:
        return None
    node = call.graph.nodes[producer]
    return node.refs[0] if node.name in ELEMENTWISE and len(node.refs) == 1 else None


@cause("operand_order", on=("sub", "div", "pow"))
def operand_order(call: Call) -> Iterator[Variant]:
    """The port swaps the operands of a difference or quotient."""
    a, b = call.argument(0), call.argument(1)
    if isinstance(a, torch.Tensor) and (isinstance(b, torch.Tensor) or call.node.name == "sub"):
        if call.node.name == "sub":
            yield Variant("the port subtracts the other way", lambda a, b, *_, **__: b - a)
            yield Variant(
                "the port adds where the reference subtracts", lambda a, b, *_, **__: a + b
            )
            yield from _first_alone(call, "the port does not subtract this")
        elif call.node.name == "div":
            yield Variant("the port divides the other way", lambda a, b, *_, **__: b / a)
            yield Variant(
                "the port multiplies where the reference divides", lambda a, b, *_, **__: a * b
            )
            yield from _first_alone(call, "the port does not divide by this")


def _first_alone(call: Call, text: str) -> Iterator[Variant]:
    """The first operand without the second, which nothing reads any more."""
    ref, shape = call.ref(0), call.out.shape
    if ref is not None:
        yield Variant(text, lambda a: a.expand(shape).clone(), refs=(ref,))


@cause("gate_missing", on="mul")
def gate_missing(call: Call) -> Iterator[Variant]:
    """The port's gated unit lacks its gate, or what the gate multiplies."""
    yield from _one_factor(call, gated=True)


@cause("gate_missing", on="glu")
def glu_gate_missing(call: Call) -> Iterator[Variant]:
    """The port's gated linear unit lacks its gate, or what the gate multiplies."""
    axis = int(call.argument(1, call.kwargs.get("dim", -1)))
    yield Variant("the port lacks the gate", lambda x, *_, **__: x.chunk(2, axis)[0].clone())
    yield Variant(
        "the port lacks what the gate multiplies",
        lambda x, *_, **__: torch.sigmoid(x.chunk(2, axis)[1]),
    )


@cause("gate_order", on="glu")
def glu_halves(call: Call) -> Iterator[Variant]:
    """The port's gated linear unit activates the other half, or by another function."""
    axis = int(call.argument(1, call.kwargs.get("dim", -1)))

    def other(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        a, b = x.chunk(2, axis)
        return torch.sigmoid(a) * b

    yield Variant("the port activates the other half of the gated unit", other)


def _one_factor(call: Call, gated: bool) -> Iterator[Variant]:
    """One factor of two without the other; `gated`: one of them is an activation, and the other
    is not."""
    a, b = call.argument(0), call.argument(1)
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return
    if a.shape != b.shape and not gated:  # a gate may be one number for each token or channel
        return
    if call.parameter(0) or call.parameter(1):
        return
    graph, refs, shape = call.graph, (call.ref(0), call.ref(1)), call.out.shape
    made = [graph.producer[r] if r is not None else None for r in refs]
    gates = [p is not None and graph.nodes[p].name in GATES for p in made]
    if (sum(gates) == 1) != gated:
        return
    for position, ref in enumerate(refs):
        if ref is None:
            continue
        if gated:
            text = (
                "the port lacks what the gate multiplies" if gates[position]
                else "the port lacks the gate"
            )  # fmt: skip
        else:
            text = "the port lacks the gated half" if position else "the port lacks the gate"
        yield Variant(text, lambda x: x.expand(shape).clone(), refs=(ref,))


@cause("gate_order", on="mul")
def gate_halves(call: Call) -> Iterator[Variant]:
    """The port's gated unit lacks its gate, or activates the other half; an LSTM's or GRU's gates
    in another order."""
    a, b = call.argument(0), call.argument(1)
    if (
        not isinstance(a, torch.Tensor)
        or not isinstance(b, torch.Tensor)
        or a.shape != b.shape
        or call.parameter(0)
        or call.parameter(1)
    ):
        return
    yield from _one_factor(call, gated=False)
    yield Variant("the port adds where the reference multiplies", lambda a, b, **_: a + b)
    graph = call.graph
    for position in (0, 1):
        producer = graph.producer[call.ref(position) or 0]
        node = graph.nodes[producer] if producer is not None else None
        if node is None or node.name not in GATES or not node.refs:
            continue
        inner, other = node.refs[0], call.ref(1 - position)
        if other is not None:
            op, extra, kw = node.op, node.args[1:], node.kwargs
            yield Variant(
                "the port activates the other half of the gated unit",
                lambda x, g, op=op, e=extra, kw=kw: x * op(g, *e, **kw),
                refs=(inner, other),
                key="other half",
            )


@cause("constant", on=("add", "sub", "pow", "clamp", "clamp_min"))
def constant(call: Call) -> Iterator[Variant]:
    """The port has another constant here."""
    scalar = call.argument(1)
    if (
        not isinstance(scalar, int | float)
        or not isinstance(call.args[0], torch.Tensor)
        or not call.args[0].is_floating_point()
    ):
        return
    if call.node.name in ("add", "sub") and abs(scalar) > 0.1:
        for t in call.solve(
            lambda t: call.with_args(a1=t)(*call.args, **call.kwargs),
            -1e3,
            1e3,
            grid=(0.0, -scalar, 1.0),
        ):
            yield Variant(
                f"the port has the constant {t:g} here; the reference {scalar:g}",
                call.with_args(a1=t),
                solved=(t, scalar),
            )
    elif call.node.name == "pow":
        for t in (1, 2, 3, 4, 0.5, -0.5, -1):
            if t != scalar:
                yield Variant(
                    f"the port has the power {t:g}; the reference {scalar:g}", call.with_args(a1=t)
                )


@cause("log_base", on=("log", "log2", "log10", "log1p", "exp", "exp2", "expm1"))
def log_base(call: Call) -> Iterator[Variant]:
    """The port takes the logarithm or exponential of another base."""
    for name in (
        ("log", "log2", "log10", "log1p") if "log" in call.node.name else ("exp", "exp2", "expm1")
    ):
        if name != call.node.name:
            yield Variant(
                f"the port computes {name}; the reference {call.node.name}",
                lambda x, *_, n=name, **__: getattr(torch, n)(x),
            )


@cause("trigonometry", on=("sin", "cos"))
def trigonometry(call: Call) -> Iterator[Variant]:
    """The port has sine and cosine in each other's place."""
    other = {"sin": torch.cos, "cos": torch.sin}[call.node.name]
    yield Variant("the port has sine and cosine in each other's place", lambda x, **_: other(x))
