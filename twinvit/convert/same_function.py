"""Whether two models are one function: outputs number by number, settings, names and weights.

What `twinvit compare` and `twinvit convert --verify` judge by. Outputs cannot show what a zero
hides, so weights are compared as arrays as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from shared_vit.data.sources.imagenet_names import plain_names
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from shared_vit.weights.class_names import Names
from shared_vit.weights.lazy import Arrays
from twinvit.parity.noise_rule import relative_l2
from twinvit.port.verdict import (
    DIFFERENT,
    FLOAT32,
    FLOAT64,
    SAME,
    UNDECIDED,
    Arithmetic,
    judge,
    kinds,
)

Outputs = dict[str, np.ndarray]  # canonical module name: output; "" is the logits

# The most that two right implementations differ by, relative L2 of any layer's output. Measured at
# ViT-B/16: right implementations are 3e-15 apart in float64 and 2.5e-6 in float32, a wrong GELU
# 5e-4. For the others it is about twice what bfloat16 and TF32 themselves cost.
LIMITS = {"fp64": 1e-12, "fp32": 5e-6, "tf32": 5e-3, "bf16": 4e-2}
# In the narrow types the twins may round after other operations: LIMITS is the finest bound.
ARITHMETIC: dict[str, Arithmetic] = {"fp64": FLOAT64, "fp32": FLOAT32}

# Positions themselves are in the weights, and so is which tokens have them.
TRAINING_ONLY = ("dropout", "drop_path", "pos_embed", "prefix_positions", "layer_scale_init")
_BEFORE_PATCHES = ("cls_token", "dist_token", "reg_token")  # in the order of their positions
PREPROCESSING = ("mean", "std", "eval_resize", "interpolation")
NUDGED_RUNS = 3
VERDICTS = (SAME, DIFFERENT, UNDECIDED)  # a verdict's position is its exit status
_SAME_COLOUR = 1e-6  # of mean and std: a float32 in a file is 6e-8 off


@dataclass
class Judged:
    """What comparing outputs found.

    Attributes:
        distances: relative L2 by module, in the order of computation; "" is the logits.
        wrong: modules whose outputs differ, and why, in words.
        open: modules that could not be decided, and why.
    """

    distances: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)


def judged(
    mine: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    precision: str,
    limit: float,
    rounding: Mapping[str, np.ndarray] | None = None,
) -> Judged:
    """Compare the outputs that both have: each within `limit` as a whole and, where rounding was
    measured, each value within its own."""
    found = Judged()
    for name in [n for n in mine if n in theirs]:
        far = relative_l2(theirs[name], mine[name])
        found.distances[name] = far
        broken = kinds(mine[name])
        if broken.any() and np.array_equal(broken, kinds(theirs[name])):
            found.open[name] = "not finite in either"
        elif not far <= limit:
            found.wrong[name] = f"{far:.1e} apart, the limit is {limit:g}"
        elif rounding is not None and precision in ARITHMETIC:
            each = judge(mine[name], theirs[name], rounding.get(name), ARITHMETIC[precision])
            if each.verdict == DIFFERENT:
                found.wrong[name] = each.reason
            elif each.verdict == UNDECIDED:
                found.open[name] = each.reason
    return found


def measured_rounding(
    run: Callable[[Arrays, np.ndarray, int | None], Mapping[str, np.ndarray]],
    arrays: Arrays,
    images: np.ndarray,
    precision: str,
    first: Mapping[str, np.ndarray],
) -> Outputs:
    """The largest absolute change of each value of each output, when weights, images and outputs of
    modules are changed by one unit in the last place, three times; a value in one image changes as
    the same value in the others does.

    Args:
        run: `run(arrays, images, seed)` gives the outputs; with a seed, it changes each module's.
    """
    eps = float(np.finfo(PRECISIONS[precision].param).eps)
    moved: Outputs = {}
    for seed in range(NUDGED_RUNS):
        rng = np.random.default_rng(seed)
        nudged = {name: nudge(np.asarray(a), rng, eps) for name, a in arrays.items()}
        for name, value in run(nudged, nudge(images, rng, eps), seed).items():
            gap = np.abs(value - first[name])
            moved[name] = np.maximum(moved[name], gap) if name in moved else gap
    return {n: np.broadcast_to(a.max(axis=0, keepdims=True), a.shape) for n, a in moved.items()}


def nudge(array: np.ndarray, rng: np.random.Generator, eps: float) -> np.ndarray:
    """The array in float64, each number times 1 + eps or 1 - eps."""
    signs = 2 * rng.integers(0, 2, array.shape, dtype=np.int8) - 1
    return array.astype(np.float64) * (1 + eps * signs)


def settings_apart(a: ModelConfig, b: ModelConfig) -> Iterator[tuple[str, str, bool]]:
    """`(field, "this, that", whether it is another function)` of each setting that differs."""
    for f in dataclasses.fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if x == y:
            continue
        matters = f.name not in TRAINING_ONLY
        if f.name in ("mean", "std"):
            matters = bool(np.abs(np.subtract(x, y)).max() > _SAME_COLOUR)
        elif f.name == "eval_resize" and a.image_shape == b.image_shape:
            matters = a.resized_shape != b.resized_shape or (x == 0) != (y == 0)
        yield f.name, f"{x}, {y}", matters


def names_apart(a: Names, b: Names) -> str:
    """Which class has another name; "" where none has, or one of them has no names."""
    if a is None or b is None:
        return ""
    mine, theirs = plain_names(a), plain_names(b)
    if len(mine) != len(theirs):
        return ""  # the numbers of classes differ: a difference of settings is reported
    apart = [i for i, (x, y) in enumerate(zip(mine, theirs)) if x != y]
    if not apart:
        return ""
    i = apart[0]
    order = ", the same names in another order" if sorted(mine) == sorted(theirs) else ""
    return (
        f"{len(apart)} of {len(mine)} classes have other names{order}: class {i} is "
        f"{mine[i]!r}, {theirs[i]!r}"
    )


def weights_apart(a: Arrays, b: Arrays, tolerance: float = 0.0) -> list[str]:
    """Names of arrays that differ by more than `tolerance` of their largest number; those that one
    side alone has among them. A token before the patches' and its position count as their sum."""
    apart = sorted(set(a) ^ set(b))
    rows = [arrays["pos_embed"].shape[1] if "pos_embed" in arrays else 0 for arrays in (a, b)]
    for name in [n for n in a if n in b]:
        # Of two with other numbers of rows, the one with fewer has none for these tokens.
        x, y = (_array(name, arrays, r == max(rows)) for arrays, r in zip((a, b), rows))
        if x.shape != y.shape:
            apart.append(name)
            continue
        bound = tolerance * float(np.abs(x).max(initial=0.0))
        if not (np.array_equal(x, y) or bool((np.abs(x - y) <= bound).all())):
            apart.append(name)
    return apart


def _array(name: str, arrays: Arrays, has_rows: bool) -> np.ndarray:
    """In float64; a position of a token before the patches' is counted with that token."""
    array = np.asarray(arrays[name]).astype(np.float64)
    if "pos_embed" not in arrays or not has_rows:
        return array
    ends = np.cumsum([0, *(arrays[n].shape[1] if n in arrays else 0 for n in _BEFORE_PATCHES)])
    if name == "pos_embed":
        return array[:, ends[-1] :]
    if name in _BEFORE_PATCHES:
        i = _BEFORE_PATCHES.index(name)
        return array + np.asarray(arrays["pos_embed"]).astype(np.float64)[:, ends[i] : ends[i + 1]]
    return array


def zero_weights(arrays: Arrays) -> list[str]:
    """Weights of products and norms that are zero everywhere, behind which outputs show nothing."""
    return [
        name
        for name, array in arrays.items()
        if name.endswith("weight") and not np.asarray(array).any()
    ]


def nothing_in(arrays: Arrays) -> bool:
    """Whether all weights are zero."""
    return not any(np.asarray(array).any() for array in arrays.values())
