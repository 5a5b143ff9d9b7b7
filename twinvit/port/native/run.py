"""Both programs run once as they are: in their own types, the port compiled.

The comparison evaluates both in float64, where nothing overflows. A softmax without its maximum, a
mask of two times finfo.min or an exponential in float16 is right there and NaN where it is used.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from twinvit.port import models, report
from twinvit.port.index import distance
from twinvit.port.native import overflows
from twinvit.port.outputs import labelled, pick, pick_torch
from twinvit.port.pair import Pair
from twinvit.port.record import jax_interpreter, jax_types, torch_values
from twinvit.port.record.graph import flat_tensors
from twinvit.port.record.jax_interpreter import Interpreter, Sink
from twinvit.port.record.jax_outputs import flattened
from twinvit.port.record.jax_settings import float64_on_cpu
from twinvit.port.record.torch_place import where_in_user_code

# What a compiler computes is the same; a small program is compiled four times as fast.
_QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


_NAMES = {"torch": "the reference", "jax": "the port"}  # as the search's texts call them


@dataclass
class Broken:
    """Numbers of an output that are NaN or infinite as the program runs, and finite in float64.

    Attributes:
        side: "torch" or "jax".
        output: the output's name; "" where there is one array.
        count, size: how many of how many numbers.
        kind: "NaN" or "infinity", that of the most.
        where: the first place that makes one, "rope.py:11"; "" where it cannot be told.
        own: how many of them the other side has not, as it runs.
    """

    side: str
    output: str
    count: int
    size: int
    kind: str
    where: str = ""
    own: int = 0

    @property
    def text(self) -> str:
        """ "returns NaN in 3 of 108 numbers, first at rope.py:11"."""
        name = f" of {self.output}" if self.output else ""
        place = f", first at {self.where}" if self.where else ""
        return f"returns {self.kind} in {self.count} of {self.size} numbers{name}{place}"


@dataclass
class NativeRun:
    """What the two programs return as they are, against what they return in float64.

    Attributes:
        torch, jax: the largest relative L2 distance of an output from its own float64 value, over
            numbers that are finite in both; None where the program could not be run.
        outputs: the same by side and name of the output, ("jax", "logits").
        dtypes: the outputs' types by side, {"jax": "bfloat16"}; several are joined by commas.
        broken: outputs with NaN or infinity that float64 has not.
        integers: by side, the largest share of an output's integers or booleans that are others
            than in float64.
        overflow: where an integer of the port leaves its type as it runs, "rope.py:11", looked for
            where the port is far from itself; "" where none does.
        jitted: the port ran under `jax.jit`.
        notes: what could not be done, and why.
    """

    torch: float | None = None
    jax: float | None = None
    outputs: dict[tuple[str, str], float] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    integers: dict[str, float] = field(default_factory=dict)
    overflow: str = ""
    jitted: bool = True
    notes: list[str] = field(default_factory=list)

    def failure(self, port: str) -> str:
        """What the port, "torch" or "jax", returns as it runs that is wrong; "" if nothing is.

        The port alone is blamed: NaN that the reference returns in the same places as it runs is
        the reference's program, rightly ported. NaN of the reference alone is said, and the verdict
        stands on float64: a port is asked for the reference's formulas, not for its faults.
        """
        blamed = [b for b in self.broken if b.side == port and b.own]
        if blamed:
            return f"{_NAMES[port]} as it runs {blamed[0].text}"
        if port == "jax" and self.overflow:
            far = self.jax or 0.0
            away = f"is {far:.1e} away from it" if far else "returns other integers"
            return f"{_NAMES[port]} as it runs {away}: an integer overflows at {self.overflow}"
        return ""

    def strays(self, port: str) -> bool:
        """True if the port, "torch" or "jax", is far from its own formulas in float64 as it runs,
        or returns other integers, and the reference does not."""
        other = {"jax": "torch", "torch": "jax"}[port]
        return self._far(port) or (
            self.integers.get(port, 0.0) > 0 and self.integers.get(other) == 0.0
        )

    def _far(self, port: str) -> bool:
        mine, others = (self.jax, self.torch) if port == "jax" else (self.torch, self.jax)
        if mine is None or others is None or not np.isfinite(mine):
            return False
        narrow = any(name in self.dtypes.get(port, "") for name in ("bfloat16", "float16"))
        return mine > (FAR_NARROW if narrow else FAR) and mine > OWN * others

    def drift(self, port: str) -> str:
        """Why it is open whether the port, "torch" or "jax", is right as it runs: it is far from
        its own formulas in float64, and not for an integer that overflows; "" if it is not.
        Integers alone that are others are ties that rounding decides, on either side."""
        if (port == "jax" and self.overflow) or not self._far(port):
            return ""
        mine, others = (self.jax, self.torch) if port == "jax" else (self.torch, self.jax)
        other = _NAMES["torch" if port == "jax" else "jax"]
        return (
            f"{_NAMES[port]} as it runs is {mine:.1e} from itself in float64, {other} "
            f"{others:.1e}: a step that rounding decides"
        )

    def report(self) -> report.Native:
        """The distances as a report holds them, with what is to be said."""
        texts = [f"{_NAMES[b.side]} as it runs {b.text}" for b in self.broken]
        return report.Native(
            self.torch,
            self.jax,
            self.dtypes.get("torch", ""),
            self.dtypes.get("jax", ""),
            "; ".join(texts + self.notes),
        )


Named = Sequence[tuple[str, Any]]
FAR, FAR_NARROW = 1e-2, 0.3  # relative L2: more than a type's rounding makes
OWN = 1000.0  # times the reference's own distance


def run_native(
    pair: Pair,
    pure: models.Pure,
    arrays: Sequence[np.ndarray],
    reference: Named,
    port: Named,
    *,
    train: bool = False,
) -> NativeRun:
    """Run both programs in their own types on the CPU, and compare each with itself in float64.

    Neither model is changed, and no state of random numbers moves. What cannot be run is said in a
    note and never raised.

    Args:
        pair: the two models and their inputs.
        pure, arrays: the port and the inputs that it took, in float64, as `pair.trace` gave them.
        reference, port: names and float64 values (B, ...) of the compared outputs.
        train: run in train mode, where values that are drawn are others: distances are left out.
    """
    native = NativeRun()
    runs = {}
    with _random_state():
        for side, run, wide in (
            ("torch", lambda: _torch_outputs(pair, train), reference),
            ("jax", lambda: _jax_outputs(pair, pure, arrays, native), port),
        ):
            try:
                runs[side] = _paired(run(), wide)
            except Exception as error:
                native.notes.append(
                    f"{_NAMES[side]} could not be run in its own types: {_first_line(error)}"
                )
        for side, found in runs.items():
            _judge(native, side, found, train)
        _own(native, runs)
        if not train and native.strays("jax"):
            native.overflow = _overflow(pair, pure, arrays, runs["jax"])
        for side in {b.side for b in native.broken}:
            place = _torch_place(pair, train) if side == "torch" else _jax_place(pair, pure, arrays)
            for broken in native.broken:
                if broken.side == side:
                    broken.where = place.get(broken.output, "")
    return native


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Whatever a model draws, the generators are as before afterwards."""
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


Found = list[tuple[str, str, np.ndarray, np.ndarray]]
"""Name, own type, native and float64 values of each output."""


def _paired(outputs: Named, wide: Named) -> Found:
    by_name = dict(outputs)
    result: Found = []
    for name, value in wide:
        mine = by_name[name]
        other = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        dtype = str(mine.dtype).removeprefix("torch.")
        array = (
            torch_values.to_torch(mine).numpy()
            if isinstance(mine, torch.Tensor)
            else np.asarray(jax_types.widen(np.asarray(mine)))
        )
        if array.shape != other.shape:
            raise ValueError(f"its output has shape {array.shape}, in float64 {other.shape}")
        result.append((name, dtype, array, other))
    return result


def _bad(native: np.ndarray, wide: np.ndarray, dtype: str) -> np.ndarray:
    """Where the program's own numbers are NaN or infinite and float64's are not; a number beyond
    the type's range is rightly infinite."""
    if native.dtype.kind not in "fc" or wide.dtype.kind not in "fc":
        return np.zeros(native.shape, bool)
    bad = ~np.isfinite(native) & np.isfinite(wide)
    if bad.any() and native.dtype.kind == "f":
        largest = float(jax.dtypes.finfo(dtype).max)
        with np.errstate(invalid="ignore"):
            bad &= ~(np.isinf(native) & (np.abs(wide) > largest) & ((native > 0) == (wide > 0)))
    return bad


def _below_normal(native: np.ndarray, wide: np.ndarray, dtype: str) -> np.ndarray:
    """Where both are below the smallest normal number of the type: programs may make zeros of
    them."""
    if native.dtype.kind != "f" or wide.dtype.kind != "f":
        return np.zeros(native.shape, bool)
    tiny = float(jax.dtypes.finfo(dtype).tiny)
    return (np.abs(native) < tiny) & (np.abs(wide) < tiny)


def _real(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag]) if x.dtype.kind == "c" else x


def _judge(native: NativeRun, side: str, found: Found, train: bool) -> None:
    """Distances and broken outputs of one side."""
    worst = 0.0
    for name, dtype, mine, wide in found:
        bad = _bad(mine, wide, dtype)
        if bad.any():
            nan = int(np.isnan(mine[bad]).sum())
            kind = "NaN" if 2 * nan >= int(bad.sum()) else "infinity"
            native.broken.append(Broken(side, name, int(bad.sum()), bad.size, kind))
        both = np.isfinite(mine) & np.isfinite(wide) if mine.dtype.kind in "fc" else mine == mine
        both &= ~_below_normal(mine, wide, dtype)
        far = distance(_real(wide[both]), _real(mine[both])) if wide.dtype.kind in "fc" else 0.0
        native.outputs[side, name] = far
        worst = max(worst, far)
        if mine.dtype.kind in "iub" and not train:
            share = float((mine != wide).mean()) if mine.size else 0.0
            native.integers[side] = max(native.integers.get(side, 0.0), share)
    native.dtypes[side] = ", ".join(dict.fromkeys(dtype for _, dtype, _, _ in found))
    if not train:
        setattr(native, side, worst)


def _own(native: NativeRun, runs: Mapping[str, Found]) -> None:
    """How many broken numbers of an output the other side has not; outputs are paired by place."""
    for side, other in (("jax", "torch"), ("torch", "jax")):
        for k, (name, dtype, mine, wide) in enumerate(runs.get(side, [])):
            for broken in native.broken:
                if (broken.side, broken.output) != (side, name):
                    continue
                broken.own = broken.count
                theirs = runs.get(other, [])
                if k < len(theirs):
                    bad = _bad(theirs[k][2], theirs[k][3], theirs[k][1])
                    if bad.shape == mine.shape:
                        broken.own = int((_bad(mine, wide, dtype) & ~bad).sum())
                    else:
                        broken.own = max(0, broken.count - int(bad.sum()))


# The reference


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    stance = getattr(torch.compiler, "set_stance", None)
    with stance("force_eager") if stance is not None else contextlib.nullcontext(), torch.no_grad():
        yield


def _torch_outputs(pair: Pair, train: bool) -> Named:
    """The reference's compared outputs as it runs."""
    model, names, tries = torch_values.as_given(pair.torch_model, pair.inputs, train)
    with _eager():
        for k, tensors in enumerate(tries):
            try:
                return pick_torch(torch_values.call(model, names, tensors), pair.output)
            except Exception:
                if k == len(tries) - 1:
                    raise
    raise AssertionError


class _FirstBroken(TorchDispatchMode):
    """Remembers which operation first made infinity or NaN of finite numbers, for each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[int, tuple[torch.Tensor, str]] = {}  # the tensor is kept: ids are reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        where = where_in_user_code()
        out = func(*args, **kwargs)
        leaves = tree_flatten((args, kwargs))[0]
        known = [
            self.origin[id(t)][1]
            for t in leaves
            if isinstance(t, torch.Tensor) and id(t) in self.origin
        ]
        told = any(isinstance(x, float) and not np.isfinite(x) for x in leaves)
        for t in flat_tensors(out):
            if t is None or not (t.is_floating_point() or t.is_complex()) or not t.numel():
                continue
            if not bool(torch.isfinite(t).all()):
                # an infinity that was asked for is no fault until it makes NaN
                fresh = "" if told and not bool(t.isnan().any()) else where
                kept = next((k for k in known if k), fresh)
                self.origin[id(t)] = (t, kept)
        return out


def _torch_place(pair: Pair, train: bool) -> dict[str, str]:
    """The reference's first place that breaks each output; empty if it cannot be told."""
    try:
        model, names, tries = torch_values.as_given(pair.torch_model, pair.inputs, train)
        watch = _FirstBroken()
        for tensors in tries:
            try:
                with _eager(), watch:
                    out = torch_values.call(model, names, tensors)
            except Exception:
                continue
            return {
                name: watch.origin.get(id(t), (t, ""))[1]
                for name, t in pick_torch(out, pair.output)
            }
    except Exception:
        pass
    return {}


# The port


@contextlib.contextmanager
def _narrow_on_cpu() -> Iterator[None]:
    with float64_on_cpu(), jax.enable_x64(False):
        yield


def _jax_outputs(
    pair: Pair, pure: models.Pure, arrays: Sequence[np.ndarray], native: NativeRun
) -> Named:
    """The port's compared outputs as it runs, compiled if it can be."""
    labels: list[str] = []
    leaves, inputs = pair.own_leaves(), pair.own_inputs(arrays)
    flat = flattened(pair.called, labels)
    with _narrow_on_cpu():
        try:
            lowered = jax.jit(flat).lower(leaves, *inputs)
            try:
                program = lowered.compile(_QUICK)
            except Exception:  # another version's names of options
                program = lowered.compile()
            outs = program(leaves, *inputs)
        except Exception as error:
            native.jitted = False
            outs = flat(jax.tree.map(_on_device, leaves), *map(jax.numpy.asarray, inputs))
            native.notes.append(
                f"the port does not compile under jax.jit ({_first_line(error)}); it was run "
                "operation by operation"
            )
    return _named(pair, pure, labels, [np.asarray(x) if _numeric(x) else x for x in outs])


def _named(pair: Pair, pure: models.Pure, labels: list[str], outs: Sequence[Any]) -> Named:
    return pick(labelled(labels, outs, pure.stateful), pair.output, "JAX")


def _on_device(x: Any) -> Any:
    return jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x


def _numeric(x: Any) -> bool:
    return not jax_types.extended(getattr(x, "dtype", None))


def _overflow(pair: Pair, pure: models.Pure, arrays: Sequence[np.ndarray], outputs: Found) -> str:
    """The first place of the port where an integer leaves its type as it runs, and none does in the
    comparison; of the outputs that are others for it. Empty if there is none."""
    labels: list[str] = []
    leaves, inputs = pair.own_leaves(), pair.own_inputs(arrays)
    call = flattened(pair.called, labels)
    apart = {n for n, _, a, b in outputs if not np.allclose(a, b, rtol=1e-4, atol=0)}
    try:
        with float64_on_cpu():
            wide = [*pair.leaves, *arrays]
            first, given = pair.typed(arrays)
            closed = jax.make_jaxpr(call)(list(first), *given)
            known = frozenset(w for _, w in overflows.watched(closed, wide, len(leaves))[0].found)
        with _narrow_on_cpu():
            closed = jax.make_jaxpr(call)(leaves, *inputs)
            watch, ids = overflows.watched(closed, [*leaves, *inputs], len(leaves))
    except Exception:
        return ""
    named = _named(pair, pure, labels, [_Identified(i) for i in ids])
    found = (watch.first(x.id, known) for name, x in named if name in apart)
    return next((place for place in found if place is not None), "")


class _Watch(Interpreter):
    """Evaluates a jaxpr in its own types, or widened, and tells of every equation's results."""

    def __init__(self, sink: Sink, narrow: bool) -> None:
        super().__init__(sink)
        self.narrow = narrow

    def held(self, value: Any) -> Any:
        if not self.narrow:
            return super().held(value)
        return np.asarray(value) if isinstance(value, jax.Array) and _numeric(value) else value

    def literal(self, value: Any) -> Any:
        return np.asarray(value) if self.narrow else super().literal(value)

    def told(
        self, name: str, outs: list[Any], values: list[Any], ids: list[int], where: str
    ) -> tuple[list[Any], list[int]]:
        parents = [i for i in ids if i >= 0]
        return outs, [self.tell(o, name, where, parents) for o in outs]

    def _evaluate(
        self, eqn: Any, name: str, params: dict[str, Any], values: list[Any], where: str
    ) -> Any:
        if not self.narrow:
            return super()._evaluate(eqn, name, params, values, where)
        subfuns, bind_params = jax_interpreter.bind_params(eqn, params)
        return eqn.primitive.bind(*subfuns, *values, **bind_params)


def _jax_place(pair: Pair, pure: models.Pure, arrays: Sequence[np.ndarray]) -> dict[str, str]:
    """The first place of the port that breaks each output; empty if it cannot be told.

    The traced program is evaluated widened and in its own types, and a result is bad where only its
    own type makes it NaN or infinite. From an output the bad operands are followed to those
    operations that make bad results of good operands, and the first of them is the place.
    """
    labels: list[str] = []
    leaves, inputs = pair.own_leaves(), pair.own_inputs(arrays)
    try:
        with _narrow_on_cpu():
            closed = jax.make_jaxpr(flattened(pair.called, labels))(leaves, *inputs)
        finite = _finite_in_float64(closed, leaves, inputs)
        bad: list[bool] = []
        parents: list[list[int]] = []
        places: list[str] = []

        def sink(value: Any, name: str, where: str, operands: list[int]) -> int:
            k = len(bad)
            bad.append(_breaks(value, finite[k] if k < len(finite) else None))
            parents.append(operands)
            places.append(where)
            return k

        with _narrow_on_cpu():
            values = [*leaves, *inputs]
            _, ids = _Watch(sink, narrow=True).closed(closed, values, [-1] * len(values))
    except Exception:
        return {}
    named = _named(pair, pure, labels, [_Identified(i) for i in ids])
    return {name: _origin(x.id, bad, parents, places) for name, x in named}


@dataclass
class _Identified:
    """In the place of an array, for the choice of outputs."""

    id: int
    dtype: str = "float32"
    shape: tuple[int, ...] = ()


def _finite_in_float64(
    closed: Any, leaves: Sequence[Any], inputs: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """For every value of the program in order: where it is finite in float64; None for
    everywhere."""
    finite: list[np.ndarray | None] = []

    def sink(value: Any, name: str, where: str, operands: list[int]) -> int:
        keep = None
        if jax_types.is_float(value):
            keep = np.isfinite(np.asarray(value))
            keep = None if keep.all() else keep
        finite.append(keep)
        return len(finite) - 1

    values = [jax_types.widen(x) for x in (*leaves, *inputs)]
    with float64_on_cpu():
        _Watch(sink, narrow=False).closed(closed, values, [-1] * len(values))
    return finite


def _breaks(value: Any, finite: np.ndarray | None) -> bool:
    if not jax_types.is_float(value):
        return False
    wrong = ~np.isfinite(np.asarray(jax_types.widen(np.asarray(value))))
    if finite is not None and finite.shape == wrong.shape:
        wrong &= finite
    return bool(wrong.any())


def _origin(
    start: int, bad: Sequence[bool], parents: Sequence[Sequence[int]], places: Sequence[str]
) -> str:
    """The first place among the origins of a bad value."""
    if start < 0 or not bad[start]:
        return ""
    seen, todo, origins = {start}, [start], []
    while todo:
        value = todo.pop()
        behind = [p for p in parents[value] if bad[p]]
        if not behind:
            origins.append(value)
        new = [p for p in behind if p not in seen]
        seen.update(new)
        todo += new
    return next((places[o] for o in sorted(origins) if places[o]), "")
