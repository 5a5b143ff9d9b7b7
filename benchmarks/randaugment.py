"""Processor time of RandAugment for one image on one core, for each operation and on average.

    python benchmarks/randaugment.py [--size 224] [--magnitude 10] [--layers 2]

Times are of the thread and not of the clock, the least of several rounds, so that other programs
disturb them little.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_vit.cli.function_command import run  # noqa: E402
from shared_vit.data import randaugment  # noqa: E402


def benchmark(size: int = 224, magnitude: int = 10, layers: int = 2, images: int = 400) -> None:
    """Print a table of milliseconds.

    Args:
        size: Side of the images in pixels.
        magnitude: M.
        layers: N.
        images: Images in each of the five rounds.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3))
    image = np.kron(coarse, np.ones((-(-size // 8),) * 2 + (1,)))[:size, :size]
    image = np.clip(image + rng.integers(-12, 13, image.shape), 0, 255).astype(np.uint8)
    each = {}
    for name in randaugment.OPERATIONS:
        each[name] = _milliseconds(
            lambda name=name: randaugment.apply(name, image, magnitude, 1, (9, 9)), images // 10
        )
        print(f"{name:<14}{each[name]:.3f} ms")
    draws = iter(rng.random((6 * images, layers, randaugment.UNIFORMS_PER_LAYER)))
    mean = layers * sum(each.values()) / len(each)
    drawn = _milliseconds(lambda: randaugment.rand_augment(image, magnitude, next(draws)), images)
    print(f"{layers} layers: {mean:.3f} ms by the table, {drawn:.3f} ms over {images} draws")


def _milliseconds(run: Callable[[], object], times: int) -> float:
    run()
    best = np.inf
    for _ in range(5):
        begin = time.thread_time()
        for _ in range(times):
            run()
        best = min(best, time.thread_time() - begin)
    return 1e3 * best / times


if __name__ == "__main__":
    run(benchmark, sys.argv[1:], "randaugment.py")
