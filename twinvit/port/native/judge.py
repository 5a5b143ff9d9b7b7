"""A program's own outputs against those in float64: distances, NaN and infinity."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import torch

from twinvit.port.index import distance
from twinvit.port.native.result import Broken, Found, Named, NativeRun
from twinvit.port.record import jax_types, torch_values


def paired(outputs: Named, wide: Named) -> Found:
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


def judge(native: NativeRun, side: str, found: Found, train: bool) -> None:
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


def count_own(native: NativeRun, runs: Mapping[str, Found]) -> None:
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
