"""A program from weights: made, checked against the twin by its outputs, and saved with its
card."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import atomic_write, sync, temporary_path
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.sides import Sides, plain
from shared_vit.version import __version__
from shared_vit.weights import class_names as naming
from shared_vit.weights.adapt import adapt
from shared_vit.weights.lazy import in_memory
from shared_vit.weights.locate import card_path, checksum
from shared_vit.weights.overrides import for_images, of_size
from shared_vit.weights.positions import Positions
from shared_vit.weights.read import Source, open_weights
from twinvit.predict.predictor import TRAIN_ONE
from twinvit.programs.check import check as check_program
from twinvit.programs.preparation import code_of
from twinvit.programs.target import BATCH, INPUT, Options, Output, Target, Twin, target_of

FORMAT, VERSION = "twinvit_program", 1


def export(
    path: str | os.PathLike,
    out: str | os.PathLike,
    to: str,
    *,
    precision: str = "fp32",
    output: Output = "probabilities",
    batch_size: int | None = None,
    platforms: Sequence[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    num_heads: int | None = None,
    image_size: Sides | str | None = None,
    positions: Positions = "bicubic",
    most_inside: int | None = None,
    **input: Any,
) -> dict[str, Any]:
    """Write a program of the weights at `path` to `out`; the content of its card, `<out>.json`.

    The program takes uint8 RGB images [B, S, S, 3], as `shared_vit.data.evaluation_input` makes
    them of any image, and gives probabilities float32 [B, classes]; or, with `output` "features",
    what the model's head is given, [B, width], of weights with a head or without. `to` is torch
    (`.pt2`), jax (`.jax`, for `platforms`, by default cpu and cuda) or onnx (`.onnx`). B is free,
    or `batch_size`. `verify` loads the program and compares it with the twin before it is saved.
    `image_size` (pixels, or height and width) is for another size than the weights', for which
    learned positions are resampled by the rule `positions` (`shared_vit.weights.positions`).
    `mean`, `std`, `interpolation`, `eval_resize` and `exif` go before what the weights say or leave
    open. Weights of more than `most_inside` bytes, by default what the file can hold, are ONNX's
    external data: a second file, `<out>.data`.

    Raises UserError for what cannot be exported, a missing package, an `out` that exists without
    `overwrite`; check.NotKept, a UserError with a `verdict`, for a program whose outputs are not
    the twin's ("different") or show nothing ("undecided"); nothing is left behind.
    """
    target, out = target_of(to), Path(out)
    options = replace(_options(target, precision, batch_size, platforms), output=output)
    target.check(options)
    if verify and options.platforms and "cpu" not in options.platforms:
        raise UserError(
            f"a program for {', '.join(options.platforms)} alone cannot be checked here, on a CPU: "
            "add cpu to --platforms, or say --no_verify to export it unchecked"
        )
    _check_out(out, target, overwrite)
    target.require(target.packages + (target.to_run if verify else ()))
    source = open_weights(path, num_heads=num_heads, image_size=image_size)
    source, resized = of_size(source, image_size, positions)
    source = _with_output(source, path, output)
    item = np.dtype(PRECISIONS[precision].param).itemsize
    weights = sum(item * int(np.prod(array.shape)) for array in source.arrays.values())
    target.check_size(weights)
    source, told = for_images(source, **input)
    for notice in resized + told:
        print(f"notice: {notice}", file=sys.stderr)
    code, most = target.code(), target.largest if most_inside is None else most_inside
    too_large = bool(target.data) and most is not None and weights > most
    with atomic_write(out) as file, _data_file(target, out, too_large) as data:
        options = replace(options, data=data)
        twin: Twin = code.twin(source.cfg, in_memory(source.arrays), options)
        details = twin.write(file)
        check = None
        if verify:
            file.seek(0)
            run = code.load(file, None if data is None else data.parent)
            check = check_program(run, twin, source.cfg, options)
        card = _card(file, target, source, options, details, check)
        card_path(out).unlink(missing_ok=True)  # of the program that this one replaces
        _keep(data, target, out)
    with atomic_write(card_path(out)) as file:
        file.write((json.dumps(card, indent=2) + "\n").encode())
    return card


def _with_output(source: Source, path: str | os.PathLike, output: Output) -> Source:
    """The model that gives what is requested. Raises UserError where it has no head for it."""
    if output not in get_args(Output):
        raise UserError(f"output is {' or '.join(get_args(Output))}, not {output!r}")
    if output == "features":
        cfg, arrays = adapt(source.cfg, source.arrays, num_classes=0)
        kept = {name: source.arrays[name] for name in arrays}
        return replace(source, cfg=cfg, arrays=kept, class_names=None)
    if not source.cfg.num_classes:
        raise UserError(
            f"{path} has no head, and a program gives probabilities: say --output=features, or "
            f"{TRAIN_ONE}"
        )
    return source


def _check_out(out: Path, target: Target, overwrite: bool) -> None:
    """Raise UserError where a program cannot be written, before any work."""
    if out.suffix != target.suffix:
        raise UserError(f"a program for {target.name} is named *{target.suffix}, not {out.name}")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}")
    for path in (out, card_path(out), target.data_path(out)):
        if path.is_dir():
            raise UserError(f"cannot write {path}: there is a folder of that name")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already: choose another name, or say --overwrite")


@contextmanager
def _data_file(target: Target, out: Path, wanted: bool) -> Iterator[Path | None]:
    """Where the data of a program is written before it is checked: under its own name, in a folder
    that goes."""
    if not wanted:
        yield None
        return
    folder = temporary_path(out).absolute()
    try:
        folder.mkdir()
        yield folder / target.data_path(out).name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(data: Path | None, target: Target, out: Path) -> None:
    """Move a program's data to its final name; that of the program before is removed."""
    there = target.data_path(out)
    if data is not None:
        sync(data)
        os.replace(data, there)
    elif target.data:
        there.unlink(missing_ok=True)


def _options(
    target: Target, precision: str, batch_size: int | None, platforms: Sequence[str] | None
) -> Options:
    options = Options(precision, batch_size)
    if platforms is None:
        return options
    if target.name != "jax":
        raise UserError(f"--platforms is of programs for jax, and this one is for {target.name}")
    return replace(options, platforms=tuple(platforms))


def _card(
    file: BinaryIO,
    target: Target,
    source: Source,
    options: Options,
    details: dict[str, object],
    check: dict[str, Any] | None,
) -> dict[str, Any]:
    cfg, batch, data = source.cfg, options.batch_size or BATCH, options.data
    file.flush()
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "target": target.name,
        "precision": options.precision,
        **details,
        **({} if data is None else {"data": {"name": data.name, "sha256": checksum(data)}}),
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": [batch, *cfg.image_shape, 3],
            "of": "RGB, as the preprocessing makes them",
        },
        "output": {
            "name": options.output,
            "dtype": "float32",
            "shape": [batch, cfg.num_classes or cfg.pooled_width],
        },
        "num_classes": cfg.num_classes,
        **({} if source.class_names is None else {naming.KEY: source.class_names}),
        "preprocessing": {
            "before_the_program": {
                # None: squashed; two numbers: height and width, which it covers.
                "shorter_side": plain(cfg.resized_shape) if cfg.eval_resize else None,
                "interpolation": f"{cfg.interpolation}, with antialias",
                "centre_crop": plain(cfg.image_shape),
                "code": code_of(cfg, target.name),
            },
            "in_the_program": {"mean": cfg.mean, "std": cfg.std, "of": "RGB in [0, 1]"},
        },
        "model_config": json.loads(cfg.to_json()),
        "weights": {
            "name": source.origin.name if source.origin else source.path.name,
            "revision": source.origin.commit if source.origin else None,
            "format": source.format,
            "step": source.step,
            "sha256": {path.name: checksum(path) for path in source.files},
        },
        "check": check,
        "versions": {
            "twinvit": __version__,
            **{name: importlib.metadata.version(name) for name in target.packages},
        },
        "sha256": checksum(Path(file.name)),
    }
