"""Images of a command line: found, prepared in threads, in batches."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from shared_vit.cores import cores
from shared_vit.data.sources.left_out import describe
from shared_vit.data.sources.listing import ENDINGS, KNOWN, images_below, printable
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Precision
from shared_vit.weights.locate import SUFFIXES
from twinvit.predict.predictor import Device, preprocess

_OF_WEIGHTS = tuple(os.fsencode(suffix) for suffix in SUFFIXES)


def check_order(weights: str, command: str = "predict") -> None:
    """Raise UserError for images given as the weights."""
    if _is_images(weights):
        kind = "a folder of images" if os.path.isdir(weights) else "an image"
        raise UserError(
            f"{printable(weights)} is {kind}; the weights come first: "
            f"twinvit {command} RUN_OR_WEIGHTS IMAGE_OR_FOLDER..."
        )


def _is_images(path: str) -> bool:
    """Whether a path is an image by its name, or a folder with images and without weights."""
    if not os.path.isdir(path):
        return os.fsencode(path).lower().endswith(ENDINGS) and os.path.isfile(path)
    names = [os.fsencode(name).lower() for name in os.listdir(path)]
    weights = any(name.endswith(_OF_WEIGHTS) or name == b"checkpoints" for name in names)
    return not weights and any(name.endswith(ENDINGS) for name in names)


def files_of(images: tuple[str, ...], command: str = "predict") -> list[str]:
    """The image files of the arguments, in their order. Raises UserError before any work."""
    if not images:
        raise UserError(
            f"twinvit {command} needs images: twinvit {command} RUN_OR_WEIGHTS IMAGE..."
        )
    files = []
    for path in images:
        if not os.path.exists(path):
            raise UserError(f"{printable(path)} is not there: expected an image file or a folder")
        left: Counter[str] = Counter()
        below = images_below(path, left) if os.path.isdir(path) else [path]
        text = describe(printable(path), {"all": left})
        if not below:
            more = f"; {text}" if text else ""
            raise UserError(f"{printable(path)} is a folder without images {KNOWN}{more}")
        if text:
            print(f"notice: {text}", file=sys.stderr)
        files += below
    return files


def batches_of(
    paths: list[str], cfg: ModelConfig, size: int
) -> Iterator[tuple[list[str], list[np.ndarray | UserError]]]:
    """`(paths, inputs)`, `size` at a time; an input is uint8 [S, S, 3], or why there is none.

    Threads prepare the next ones meanwhile: the decoders release Python's lock.
    """

    def prepare(path: str) -> np.ndarray | UserError:
        try:
            return preprocess(path, cfg)[0]
        except UserError as error:
            return error

    with ThreadPoolExecutor(cores()) as pool:
        parts = [paths[i : i + size] for i in range(0, len(paths), size)]
        ahead: list[Future[np.ndarray | UserError]] = []
        for part, after in zip(parts, [*parts[1:], []]):
            now = ahead or [pool.submit(prepare, path) for path in part]
            ahead = [pool.submit(prepare, path) for path in after]
            yield part, [future.result() for future in now]


def set_up_jax(device: Device, precision: Precision) -> None:
    """The settings that JAX needs before it makes its first array."""
    import jax

    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if precision == "fp64":
        jax.config.update("jax_enable_x64", True)
