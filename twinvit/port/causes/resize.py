"""Resizing: the cubic's coefficient, antialiasing, where pixels' centres lie, what lies beyond the
border."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import RESIZES


def _kernel(name: str, x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    if name == "linear":
        return np.maximum(0.0, 1 - x)
    if name == "lanczos3":
        return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return np.where(
        x <= 1,
        (a + 2) * x**3 - (a + 3) * x**2 + 1,
        np.where(x < 2, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a, 0.0),
    )


def matrix(
    n: int, m: int, name: str, a: float, antialias: bool, centres: str, border: str
) -> np.ndarray:
    """The linear map (m, n) that resizes n samples to m.

    Args:
        name: "linear", "cubic", "lanczos3" or "nearest"; `a` is the cubic's coefficient (Keys 1981:
            -0.5).
        antialias: widen the kernel when shrinking.
        centres: "half" pixel, "corners" aligned, or "asymmetric".
        border: "clamp" repeats the edge, "renormalise" leaves out what lies beyond it (as
            jax.image.resize does).
    """
    scale = n / m
    i = np.arange(m, dtype=np.float64)
    if centres == "corners":
        at = i * (n - 1) / max(m - 1, 1)
    elif centres == "asymmetric":
        at = i * scale
    else:
        at = (i + 0.5) * scale - 0.5
    if name == "nearest":
        chosen = np.clip(
            np.floor(at + (0.5 if centres == "half" else 0.0))
            if centres != "corners"
            else np.round(at),
            0,
            n - 1,
        )
        result = np.zeros((m, n))
        result[np.arange(m), chosen.astype(int)] = 1
        return result
    wide = max(1.0, scale) if antialias else 1.0
    if border == "renormalise":
        weights = _kernel(name, (at[:, None] - np.arange(n)[None]) / wide, a)
        return weights / weights.sum(1, keepdims=True)
    reach = int(np.ceil(3 * wide)) + 1
    result = np.zeros((m, n))
    for k in range(-reach, reach + 1):
        position = np.floor(at) + k
        weight = _kernel(name, (at - position) / wide, a)
        np.add.at(result, (np.arange(m), np.clip(position, 0, n - 1).astype(int)), weight)
    return result / result.sum(1, keepdims=True) if antialias else result


@cause("resize", on=RESIZES)
def resize(call: Call) -> Iterator[Variant]:
    """The port resizes otherwise: the kernel, its coefficient, antialiasing, centres of pixels, the
    border."""
    own = tuple(call.args[0].shape[2:])
    new = tuple(call.out.shape[2:])
    names = ("linear", "cubic", "nearest", "lanczos3")
    mine = (
        "cubic"
        if "bicubic" in call.node.name
        else "nearest"
        if "nearest" in call.node.name
        else "linear"
    )
    for name in sorted(names, key=lambda n: n != mine):
        for a in (-0.5, -0.75, -1.0) if name == "cubic" else (0.0,):
            for antialias in (False, True) if name != "nearest" else (False,):
                for centres in ("half", "corners", "asymmetric"):
                    for border in ("clamp", "renormalise") if name != "nearest" else ("clamp",):
                        made = [
                            torch.from_numpy(matrix(n, m, name, a, antialias, centres, border))
                            for n, m in zip(own, new)
                        ]

                        def fn(
                            x: torch.Tensor, *_: Any, made: list[torch.Tensor] = made, **__: Any
                        ) -> torch.Tensor:
                            for axis, w in enumerate(made):
                                x = (x.movedim(2 + axis, -1) @ w.T).movedim(-1, 2 + axis)
                            return x

                        words = [
                            name + (f" with a = {a}" if name == "cubic" else ""),
                            "antialiased" if antialias else "not antialiased",
                            {
                                "half": "half-pixel centres",
                                "corners": "aligned corners",
                                "asymmetric": "asymmetric centres",
                            }[centres],
                            "edges repeated"
                            if border == "clamp"
                            else "weights beyond the edge left out",
                        ]
                        yield Variant(f"the port resizes by another rule: {', '.join(words)}", fn)
