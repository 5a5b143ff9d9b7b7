"""What files have in addition to a model's function, by patterns of names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shared_vit.weights.lazy import Arrays


def without(arrays: Arrays, left_out: Mapping[str, str]) -> tuple[Arrays, list[str]]:
    """The arrays without those whose full names match, and a line for each pattern that has any.

    left_out: patterns, and what they are.
    """
    said = []
    for pattern, what in left_out.items():
        hits = [name for name in arrays if re.fullmatch(pattern, name)]
        if hits:
            arrays = {name: array for name, array in arrays.items() if name not in hits}
            said.append(f"left out: {what} ({len(hits)}: {hits[0]})")
    return arrays, said
