"""`twinvit predict`: the likeliest classes of images, by either twin."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from shared_vit.cli.function_command import Positional
from shared_vit.data.sources.listing import as_text, printable
from shared_vit.errors import UserError
from shared_vit.spec.precision import Precision
from shared_vit.weights import open_weights
from shared_vit.weights.overrides import Exif, Interpolation, of_size
from shared_vit.weights.positions import Positions
from twinvit.predict.image_files import batches_of, check_order, files_of, set_up_jax
from twinvit.predict.predictor import Device, Framework, Guess, Predictor, check_sizes


def predict(
    weights: Annotated[str, Positional("RUN_OR_WEIGHTS")],
    images: Annotated[tuple[str, ...], Positional("IMAGE_OR_FOLDER ...")],
    json: bool = False,
    top_k: int = 5,
    framework: Framework = "torch",
    batch_size: int = 32,
    device: Device = "auto",
    precision: Precision = "fp32",
    dtype: Literal["fp32", "bf16", "fp16", "fp64"] | None = None,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | str | None = None,
    positions: Positions = "bicubic",
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
    eval_resize: float | None = None,
    exif: Exif | None = None,
) -> int:
    """Name the likeliest classes of images, each with its probability.

    Images are preprocessed as an evaluation of the weights does it. The exit status is 1 where
    one of them could not be decoded.

    Args:
        weights: a run (its newest checkpoint), a checkpoint, or weights of any known format.
        images: image files, and folders whose images are taken in sorted order.
        json: print an object an image and line: {"image", "top": [{"class", "index",
            "probability"}]}.
        top_k: classes to print of each image, the likeliest first.
        framework: the twin that computes them.
        batch_size: images computed at once.
        device: auto takes a GPU where there is one.
        precision: of the computation.
        dtype: of the weights in memory, by default that of the precision's parameters.
        num_heads: attention heads, for files that do not say.
        num_classes: classes, for files without a head, which get one of zeros.
        image_size: side of the input in pixels, or height and width as in 32,96; by default that of
            the weights.
        positions: how learned positions become those of another image size: bicubic with antialias
            (timm's), dinov2 (of DINOv2's hub models), or corners (big_vision's).
        mean: of red, green and blue in [0, 1], R,G,B or one number; by default that of the weights.
        std: by which the pixels are divided, in the same way.
        interpolation: filter of the resize.
        eval_resize: shorter side over the centre crop; 0 squashes to a square.
        exif: ignore the orientation in EXIF, or turn images upright; by default as the weights
            were trained, and turned for weights that this project did not write.
    """
    check_sizes(top_k, batch_size)
    check_order(weights)
    paths = files_of(images)
    source = open_weights(
        weights, num_heads=num_heads, num_classes=num_classes, image_size=image_size
    )
    source, told = of_size(source, image_size, positions, num_classes)
    if framework == "jax":
        set_up_jax(device, precision)
    changes: dict[str, Any] = dict(
        mean=mean, std=std, interpolation=interpolation, eval_resize=eval_resize, exif=exif
    )
    predictor = Predictor(source, framework, precision, device, dtype, **changes)
    for notice in told + predictor.notices:
        print(f"notice: {notice}", file=sys.stderr)
    show = _as_json if json else _as_text
    return 1 if _print_all(paths, predictor, batch_size, top_k, show) else 0


def _print_all(
    paths: list[str],
    predictor: Predictor,
    batch_size: int,
    top_k: int,
    show: Callable[[str, list[Guess]], str],
) -> int:
    """Print the guesses of each image; how many could not be decoded."""
    failed = 0
    with tqdm(total=len(paths), unit=" images", disable=None, leave=False) as bar:
        for names, inputs in batches_of(paths, predictor.cfg, batch_size):
            good = [name for name, row in zip(names, inputs) if not isinstance(row, UserError)]
            rows = [row for row in inputs if not isinstance(row, UserError)]
            found = dict(zip(good, predictor.top(np.stack(rows), top_k))) if rows else {}
            for name, row in zip(names, inputs):
                if isinstance(row, UserError):
                    failed += 1
                    tqdm.write(f"error: {row}", file=sys.stderr)
                else:
                    tqdm.write(show(name, found[name]), file=sys.stdout)
            sys.stdout.flush()
            bar.update(len(names))
    return failed


def _as_json(path: str, guesses: list[Guess]) -> str:
    return json.dumps({"image": as_text(path), "top": guesses})


def _as_text(path: str, guesses: list[Guess]) -> str:
    lines = (f"  {100 * g['probability']:6.2f} %  {g['class']} ({g['index']})" for g in guesses)
    return "\n".join([printable(path), *lines])
