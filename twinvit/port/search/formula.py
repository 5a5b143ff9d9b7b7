"""Formulas of both sides, in the reference's names, as they are printed."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Graph, Node, Ref
from twinvit.port.record.jax_tape import Step, Tape
from twinvit.port.search.folding import Expression, fold
from twinvit.port.search.region import Refused, Region

SHOWN = 220  # characters of a formula that are printed
DEEPEST = 60
WRITTEN = 3000  # operations of a formula, those that stand in it twice counted twice

_NAMES = {
    "add": "add", "add_any": "add", "sub": "sub", "mul": "mul", "div": "div", "neg": "neg",
    "max": "maximum", "min": "minimum", "logistic": "sigmoid", "reduce_max": "max",
    "reduce_min": "min", "reduce_prod": "prod", "select_n": "where", "dot_general": "matmul",
    "conv_general_dilated": "convolution", "iota": "arange", "eq": "equal", "lt": "less",
    "le": "less_equal", "gt": "greater", "ge": "greater_equal", "ne": "not_equal",
    "gather": "take", "top_k": "topk", "and": "logical_and", "or": "logical_or", "not": "invert",
    "concatenate": "concatenate", "reduce_and": "all", "reduce_or": "any", "rem": "remainder",
}  # fmt: skip
_SIGNS = {
    "add": (" + ", 1), "sub": (" - ", 1), "mul": (" * ", 2), "div": (" / ", 2),
    "matmul": (" @ ", 2), "equal": (" == ", 0), "less": (" < ", 0), "less_equal": (" <= ", 0),
    "greater": (" > ", 0), "greater_equal": (" >= ", 0), "not_equal": (" != ", 0),
    "pow": (" ** ", 3), "logical_and": (" & ", 0), "logical_or": (" | ", 0),
}  # fmt: skip


def port_formula(tape: Tape, region: Region, graph: Graph) -> Expression:
    """A part of the port's program as an expression, library functions folded."""
    made: dict[int, Expression] = {}
    size: dict[int, int] = {}
    for slot, (value, _) in region.inputs.items():
        made[slot] = ("value", value_name(graph, value))
    for slot in region.constants:
        made[slot] = _constant(tape, slot)
    moved = any(_mixes(tape.steps[k]) for k in region.steps)
    for k in region.steps:
        step = tape.steps[k]
        taken = [made[i] for i in step.operands]
        total = 1 + sum(size.get(i, 1) for i in step.operands)
        if total > WRITTEN:
            raise Refused("it is too long to be written down")
        size.update(dict.fromkeys(step.outs, total))
        results = taken if step.layout and not moved else _expression(step, taken, tape)
        for out, x in zip(step.outs, results):
            made[out] = x
    return fold(made[region.out])


def _mixes(step: Step) -> bool:
    """True for a step by which it matters where its operands' numbers stand."""
    if step.eqn is None:
        return True
    shapes = {
        tuple(v.aval.shape)
        for v in (*step.eqn.invars, *step.eqn.outvars)
        if np.prod(v.aval.shape) > 1
    }
    if step.layout and step.name != "broadcast_in_dim":
        return False
    return len(shapes) > 1


def _constant(tape: Tape, slot: int) -> Expression:
    value = tape.value(slot)
    if value is None or not value.size:
        return ("value", "()")
    if value.size > 1 and (value != value.flat[0]).any():
        return ("arange", ("number", float(value.size)))
    return ("number", float(value.flat[0]))


def _expression(step: Step, taken: list[Expression], tape: Tape) -> list[Expression]:
    """One step's results as expressions of its operands."""
    name = step.name
    params = step.eqn.params if step.eqn is not None else {}
    if name in ("transpose", "reshape", "rev"):
        return [_moved(step, taken[0], tape)]
    if step.layout or name in ("squeeze", "expand_dims"):
        return list(taken[: len(step.outs)])
    if name == "slice" or name in ("dynamic_slice", "split"):
        x = taken[0]
        return [("part", x, _which(step, k)) for k in range(len(step.outs))]
    if name == "reduce_sum":
        before, axes = step.eqn.invars[0].aval.shape, tuple(params["axes"])
        size = float(np.prod([before[a] for a in axes]))
        return [("sum", taken[0], _axes(axes, len(before)), size)]
    if name.startswith("reduce_") and "axes" in params:
        before = step.eqn.invars[0].aval.shape
        return [(_NAMES.get(name, name[7:]), taken[0], _axes(tuple(params["axes"]), len(before)))]
    if name == "integer_pow":
        return [("pow", taken[0], ("number", float(params["y"])))]
    if name == "select_n" and len(taken) == 3:
        return [("where", taken[0], taken[2], taken[1])]
    if name == "iota":
        return [("arange", ("number", float(params["shape"][params["dimension"]])))]
    if name == "top_k":
        return [("topk", taken[0], part) for part in ("values", "indices")]
    known = _NAMES.get(name, name)
    if len(step.outs) > 1:
        return [(known, *taken, str(k)) for k in range(len(step.outs))]
    return [(known, *taken)]


def _axes(axes: tuple[int, ...], ndim: int) -> str:
    """Axes counted from the end, "-1"."""
    return ", ".join(str(a - ndim) for a in axes)


def _moved(step: Step, x: Expression, tape: Tape) -> Expression:
    """A change of layout that is worth printing: axes exchanged, merged or split."""
    before = [n for n in step.eqn.invars[0].aval.shape if n != 1]
    after = [n for n in step.eqn.outvars[0].aval.shape if n != 1]
    if step.name == "reshape":
        return x if before == after else ("reshape", x, str(tuple(step.eqn.outvars[0].aval.shape)))
    if step.name == "rev":
        return ("flip", x, ", ".join(map(str, step.eqn.params["dimensions"])))
    order = [a for a in step.eqn.params["permutation"] if step.eqn.invars[0].aval.shape[a] != 1]
    if order == sorted(order):
        return x
    return ("transpose", x, str(tuple(step.eqn.params["permutation"])))


def _which(step: Step, k: int) -> str:
    """Which part is taken, as it is indexed."""
    if step.eqn is None:
        return str(step.part)
    params = step.eqn.params
    if step.name == "split":
        return str(k)
    if "start_indices" not in params:
        return "..."
    shape = step.eqn.invars[0].aval.shape
    strides = params["strides"] or [1] * len(shape)
    parts = [
        ":" if (a, b, s) == (0, n, 1) else f"{a}:{b}" + (f":{s}" if s != 1 else "")
        for a, b, s, n in zip(params["start_indices"], params["limit_indices"], strides, shape)
    ]
    while len(parts) > 1 and parts[0] == ":" and parts[1] == ":":
        parts.pop(0)
    return ", ".join(["...", *parts[1:]] if parts[0] == ":" and len(shape) > 1 else parts)


def reference_formula(graph: Graph, value: int, inside: Collection[int]) -> Expression:
    """What the reference computes at a value, of these operations, as an expression."""
    known: dict[int, Expression] = {}

    def made(i: int, depth: int) -> Expression:
        producer = graph.producer[i]
        if producer is None or depth > DEEPEST:
            return ("value", value_name(graph, i))
        node = graph.nodes[producer]
        if node.name in LAYOUT and node.refs and depth:
            return made(node.refs[0], depth + 1) if _reaches(graph, i, inside) else named(i)
        if producer not in inside:
            return named(i)
        if i not in known:
            known[i] = _node(node, i, lambda r: made(r, depth + 1))
        return known[i]

    def named(i: int) -> Expression:
        return ("value", value_name(graph, i))

    return fold(made(value, 0))


def _reaches(graph: Graph, i: int, inside: Collection[int]) -> bool:
    while (producer := graph.producer[i]) is not None and graph.nodes[producer].name in LAYOUT:
        if not graph.nodes[producer].refs:
            return False
        i = graph.nodes[producer].refs[0]
    return producer is not None and producer in inside


def _node(node: Node, out: int, made: Any) -> Expression:
    """An operation of the reference as an expression."""
    name = {"mm": "matmul", "bmm": "matmul", "max_pool2d_with_indices": "max_pool2d"}.get(
        node.name, node.name.removeprefix("native_")
    )
    if _is_edited(node):
        return (f"edited {name}", *(made(r) for r in node.refs))
    if node.name in ("addmm", "baddbmm"):
        bias, a, b = (made(r.id) if isinstance(r, Ref) else ("number", 0.0) for r in node.args[:3])
        return ("add", ("matmul", a, b), bias)
    taken = [_argument(a, made) for a in node.args if a is not None]
    if name in ("sum", "mean", "amax", "softmax", "_softmax") and len(taken) > 1:
        taken = [taken[0], *(str(a) for a in node.args[1:2])]
    if len([o for o in node.outs if o is not None]) > 1 and out != node.outs[0]:
        return (name, *taken, str(node.outs.index(out)))
    return (name, *taken)


def _is_edited(node: Node) -> bool:
    """True for an operation that an edit gave other arguments."""
    own = isinstance(node.op, torch._ops.OpOverload | functools.partial)
    return not own and not node.kwargs and all(isinstance(a, Ref) for a in node.args)


def _argument(a: Any, made: Any) -> Any:
    if isinstance(a, Ref):
        return made(a.id)
    if isinstance(a, bool):
        return str(a)
    if isinstance(a, int | float):
        return ("number", float(a))
    if isinstance(a, list | tuple) and any(isinstance(x, Ref) for x in a):
        return ("list", *(_argument(x, made) for x in a if x is not None))
    return str(a)


def value_name(graph: Graph, i: int) -> str:
    """A value of the reference by its module: "gate", "attn.softmax", "topk.indices"."""
    while (producer := graph.producer[i]) is not None and graph.nodes[producer].name in LAYOUT:
        if not graph.nodes[producer].refs:
            break
        i = graph.nodes[producer].refs[0]
    source = graph.source[i]
    if producer is None:
        if source.startswith("input:"):
            return "input" if len(graph.inputs()) == 1 else source.replace(":", " ")
        if source == "gradient":  # what arrives at an operation's result
            return source
        return _short(source[6:], 2) if source.startswith("param:") else "constant"
    node = graph.nodes[producer]
    scope = _short(node.scope, 2)
    outs = [o for o in node.outs if o is not None]
    operation = node.name.removeprefix("native_").removesuffix("_with_indices")
    if len(outs) > 1 and operation in ("topk", "sort", "max", "min"):
        operation += (".values", ".indices")[node.outs.index(i)]
    elif len(outs) > 1 and node.outs.index(i):
        operation += f"[{node.outs.index(i)}]"
    if scope and _last_of_module(graph, node):
        return scope
    within = "" if scope.rpartition(".")[2].isdigit() else scope
    return f"{within}.{operation}".lstrip(".")


def _last_of_module(graph: Graph, node: Node) -> bool:
    """True if nothing in an operation's module follows it."""
    later = graph.nodes[node.index + 1 :]
    within = node.scope + "."
    for other in later:
        if other.scope == node.scope and other.name not in LAYOUT:
            return False
        if other.scope != node.scope and not other.scope.startswith(within):
            return True
    return True


def _short(name: str, count_: int) -> str:
    """A module's name without the numbers of layers before it."""
    pieces = name.split(".")
    last = max((k for k, p in enumerate(pieces) if p.isdigit()), default=-1)
    kept = pieces[last + 1 :] or pieces
    return ".".join(kept[-count_:])


def printed(x: Expression, limit: int | None = SHOWN) -> str:
    """An expression in one line; more than `limit` characters are left out."""
    text = _text(x, -1, {})
    if limit is not None and len(text) > limit:
        text = text[: limit - 4].rstrip() + " ..."
    return text


def _text(x: Any, outer: int, known: Mapping[Any, str]) -> str:
    if not isinstance(x, tuple):
        return str(x)
    name = x[0]
    if name == "value":
        return str(x[1])
    if name == "number":
        return f"{x[1]:.6g}"
    if name == "product":
        return _joined([" * "], x[1:], 2, outer, known)
    if name in _SIGNS and len(x) == 3:
        sign, level = _SIGNS[name]
        return _joined([sign], x[1:], level, outer, known, right=name in ("sub", "div", "pow"))
    if name == "neg":
        return f"-{_text(x[1], 3, known)}"
    if name == "part":
        return f"{_text(x[1], 4, known)}[{x[2]}]"
    if name == "list":
        return f"[{', '.join(_text(a, -1, known) for a in x[1:])}]"
    if name == "topk" and x[-1] in ("values", "indices"):
        return f"topk({_text(x[1], -1, known)}).{x[-1]}"
    if name in ("norm", "rms_norm"):
        return f"{name}({_text(x[1], -1, known)}, eps={x[2]:.6g})"
    if name == "sum":
        return f"sum({_text(x[1], -1, known)}, {x[2]})" if len(x) > 2 else f"sum({x[1]})"
    return f"{name}({', '.join(_text(a, -1, known) for a in x[1:])})"


def _joined(
    signs: list[str],
    items: tuple[Any, ...],
    level: int,
    outer: int,
    known: Mapping[Any, str],
    right: bool = False,
) -> str:
    texts = [_text(a, level + 1 if right and k else level, known) for k, a in enumerate(items)]
    text = signs[0].join(texts)
    return f"({text})" if level < outer else text


def alike(text: str) -> str:
    """A place or a formula with the numbers of layers left out, so that those of one kind are
    equal."""
    return re.sub(r"(?<=[A-Za-z_])\.\d+", "", text)


def same_kind(node: Node, other: Node) -> bool:
    """True for the same operation of the same module, of whichever layer."""
    return node.name == other.name and alike(node.scope) == alike(other.scope)
