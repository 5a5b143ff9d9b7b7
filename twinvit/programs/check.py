"""Whether a program computes what the twin does: logits, number by number, within rounding.

A program gives probabilities alone. Their logarithms are the logits but for what a softmax leaves
out, a number for each image, and show a class however unlikely it is, down to what float32 holds.
Features are compared as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shared_vit.data.preprocess import evaluation_input, normalize
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from twinvit.convert.synthetic_images import drawn_images
from twinvit.port.verdict import DIFFERENT, SAME, UNDECIDED, kinds, relative
from twinvit.programs.target import Options, Run, Twin

# How far a program may be off: a number in units of the rounding measured at its class, and the
# whole in units of the whole's. A program has the twin's own operations. In float32 right ones are
# within 0.5 of both (small models; torch, jax), and what one unit in the last place becomes is all
# that may differ. In bf16 such a unit becomes all of bf16's rounding, behind which a tanh GELU for
# erf would pass; right programs round where the twin does and are within 1e-4 of it.
BOUNDS = {"fp32": (10.0, 5.0), "bf16": (1.0, 0.1)}
NUDGED_RUNS = 3
_EPS = float(np.finfo(np.float32).eps)
_LEAST = -86.0  # float32 holds no smaller logarithm of a normal number
_LEAST_SEEN = 0.5  # of all numbers


class NotKept(UserError):
    """A program that was not saved. verdict: "different", or "undecided" where nothing was
    shown."""

    def __init__(self, verdict: str, message: str):
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True)
class Checked:
    """What comparing log-probabilities [images, classes], or features, found.

    verdict: "same", "different" or "undecided", and why. relative_l2: the distance over what the
    logits are from their mean. limit: of that. worst: the largest difference of a number in units
    of its rounding. seen: fraction of the values that float32 can show.
    """

    verdict: str
    why: str
    relative_l2: float
    limit: float
    worst: float
    seen: float


def check(run: Run, twin: Twin, cfg: ModelConfig, options: Options) -> dict[str, Any]:
    """The card's account of the comparison of a loaded program with its twin.

    Raises NotKept where they differ, and where nothing could be shown.
    """
    images = np.stack([evaluation_input(image, cfg) for image in drawn_images(cfg.image_shape)])
    number = len(images)
    size = options.batch_size or number
    images = np.resize(images, (-(-len(images) // size) * size, *images.shape[1:]))
    found = np.concatenate([run(images[i : i + size]) for i in range(0, len(images), size)])
    if options.batch_size is None:  # the batch size that a trace fixes most easily is one
        found = np.concatenate([found, run(images[:1])])

    def wanted(seed: int | None) -> np.ndarray:
        logits = twin.logits(normalize(images, cfg), seed)
        if options.batch_size is None:
            logits = np.concatenate([logits, logits[:1]])
        logits = logits.astype(np.float64)
        return log_softmax(logits) if of_head else logits

    of_head = options.output == "probabilities"
    nudged = [wanted(seed) for seed in range(NUDGED_RUNS)]
    result = compared(found, wanted(None), nudged, number, options.precision, of_head)
    if result.verdict != SAME:
        raise NotKept(
            result.verdict,
            f"{result.why} ({number} images, {options.precision}), so the program was not saved: "
            + ("please report this; " if result.verdict == DIFFERENT else "")
            + "--no_verify exports it unchecked",
        )
    return {
        "verdict": result.verdict,
        "of": "logits, as logarithms of the probabilities" if of_head else "features",
        "relative_l2": result.relative_l2,
        "limit": result.limit,
        "worst_in_units_of_rounding": result.worst,
        "numbers_seen": result.seen,
        "pictures": number,
        "constant": False,
    }


def compared(
    found: np.ndarray,
    wanted: np.ndarray,
    nudged: list[np.ndarray],
    number: int,
    precision: str,
    of_head: bool = True,
) -> Checked:
    """Probabilities of the program against log-probabilities of the twin, [images, classes], and
    those of the twin with weights and images changed by one unit in the last place; without a head,
    features of each. The first `number` rows are of other images each."""
    if found.shape != wanted.shape:
        why = f"the program's output is {list(found.shape)}, the twin's {list(wanted.shape)}"
        return Checked(DIFFERENT, why, np.inf, 0.0, np.inf, 0.0)
    if kinds(found).any() or kinds(wanted).any():
        both = np.array_equal(kinds(found) != 0, kinds(wanted) != 0)
        why = "outputs are not finite"
        return Checked(UNDECIDED if both else DIFFERENT, why, np.inf, 0.0, np.inf, 0.0)
    least = _LEAST if of_head else -np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = found.astype(np.float64)
        logs = np.maximum(np.log(logs), least) if of_head else logs
    mine = np.maximum(wanted, least)
    seen = (mine > least) | (logs > least)
    moved = np.max([np.abs(np.maximum(n, least) - mine) for n in nudged], axis=0)
    unit = moved.max(axis=0, keepdims=True) + _EPS * (1 + np.abs(mine))
    gap = np.where(seen, np.abs(logs - mine), 0.0)
    spread = mine - mine.mean(axis=1, keepdims=True)
    far = relative(spread, spread + np.where(seen, logs - mine, 0.0))
    most, whole = BOUNDS[precision]
    noise = relative(spread, spread + np.where(seen, unit, 0.0))
    limit = whole * noise
    worst, share = float((gap / unit).max()), float(seen.mean())
    verdict, why = SAME, ""
    if worst > most or far > limit:
        hidden = precision == "bf16" and worst <= 10 and far <= 10 * noise
        verdict = UNDECIDED if hidden else DIFFERENT
        what = "logits" if of_head else "features"
        why = (
            f"the program's {what} are {far:.1e} away from the twin's (relative L2, limit "
            f"{limit:.1e}; a number by {worst:.2g} times its rounding, limit {most:g})"
        )
        if hidden:
            why += ": another rounding or another formula, which bf16 cannot distinguish"
    elif (np.ptp(mine[:number], axis=0) <= 10 * unit[:number].max(axis=0)).all():
        verdict = UNDECIDED
        what = "probabilities (a head of zeros, or one class alone)" if of_head else "features"
        why = f"every image has the same {what}, so that nothing was compared"
    elif share < _LEAST_SEEN:
        verdict, why = UNDECIDED, f"{1 - share:.0%} of the probabilities are 0 in float32"
    return Checked(verdict, why, far, limit, worst, share)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
