"""Weights of the classes in the loss, for data in which some classes have few images."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared_vit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

BALANCED = (-1.0,)  # stands for `balanced` until the data are known
_LONGEST = 1 << 22  # bytes of a file


def parse_class_weights(text: str) -> tuple[float, ...]:
    """`off`, `balanced`, numbers with commas between, or a text file with a number a line, in the
    order of the classes. Raises UserError."""
    if text == "off":
        return ()
    if text == "balanced":
        return BALANCED
    words = text.split(",")
    if not _numbers(words):
        path = Path(text)
        if not path.is_file() or path.stat().st_size > _LONGEST:
            raise UserError(
                f"--class_weights={text}: expected off, balanced, numbers with commas between, or "
                "a text file with a number a line, in the order of the classes"
            )
        words = path.read_text(errors="replace").split()
        if not _numbers(words):
            raise UserError(f"--class_weights={text}: expected a number in each line of the file")
    return tuple(float(word) for word in words)


def _numbers(words: Sequence[str]) -> bool:
    return bool(words) and all(re.fullmatch(r"-?[0-9]*\.?[0-9]+(e-?[0-9]+)?", w) for w in words)


def check_class_weights(weights: Sequence[float]) -> None:
    """Raise UserError for what cannot weigh a loss."""
    if weights == BALANCED or not weights:
        return
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise UserError("--class_weights are numbers of at least 0, and not all of them 0")


def settled(weights: tuple[float, ...], labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """The weights of a model's classes; `balanced` is N / (C n) for a class with n of the N images
    of C classes, so that the mean over the images is 1, and 1 for classes without images.

    Raises UserError for another number of weights than of classes.
    """
    if weights == BALANCED:
        counts = collections.Counter(labels.tolist())
        each = (counts.get(label, 0) for label in range(num_classes))
        return tuple(len(labels) / (len(counts) * n) if n else 1.0 for n in each)
    if weights and len(weights) != num_classes:
        raise UserError(
            f"--class_weights has {len(weights)} weights, and the model has {num_classes} classes"
        )
    return weights
