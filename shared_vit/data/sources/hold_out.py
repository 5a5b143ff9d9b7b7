"""A validation split out of class folders that have none: the same images at every start."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from shared_vit.data.sources.listing import Listing, Names

FRACTION = 0.2  # of each class


def hold_out(
    listing: Listing, split: str = "", fraction: float = FRACTION, seed: int = 0
) -> tuple[Listing, Listing]:
    """`(train, val)` of a listing: `share` of each class's images, at least one of two or more.

    Which ones depends on their paths below the folder `split` and on `seed` alone: not on where the
    folder is, and images that are added move no others but at the boundary.
    """
    held = np.zeros(len(listing.files), bool)
    paths = listing.files.part(0, len(listing.files)) if len(listing.files) else []
    for label in range(len(listing.class_names)):
        numbers = np.flatnonzero(listing.labels == label).tolist()
        count = min(max(1, round(fraction * len(numbers))), len(numbers) - 1)
        if count > 0:
            ranked = sorted(numbers, key=lambda i: _rank(paths[i], split, seed))
            held[ranked[:count]] = True
    return _part(listing, paths, ~held), _part(listing, paths, held)


def _rank(path: bytes, split: str, seed: int) -> bytes:
    below = os.path.relpath(path, os.fsencode(split)) if split else path
    return hashlib.sha256(b"%d " % seed + below).digest()


def _part(listing: Listing, paths: list[bytes], chosen: np.ndarray) -> Listing:
    files = Names.of([path for path, taken in zip(paths, chosen) if taken])
    labels, sizes = listing.labels[chosen], listing.sizes[chosen]
    return Listing(listing.class_names, files, labels, sizes, listing.left_out)
