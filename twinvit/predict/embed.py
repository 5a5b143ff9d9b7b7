"""`twinvit embed` and `twinvit.embedder`: features of images, what a model's head is given."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from shared_vit.cli.function_command import Flag, Positional
from shared_vit.data.sources.listing import as_text
from shared_vit.errors import UserError
from shared_vit.files import atomic_write
from shared_vit.spec import canonical
from shared_vit.spec.precision import Precision
from shared_vit.spec.sides import Sides
from shared_vit.weights.lazy import LazyArray
from shared_vit.weights.overrides import Exif, Interpolation, of_size
from shared_vit.weights.positions import Positions
from shared_vit.weights.read import Source, open_weights
from twinvit.predict.image_files import batches_of, check_order, files_of, set_up_jax
from twinvit.predict.predictor import (
    Device,
    Framework,
    ImageFile,
    Predictor,
    check_sizes,
    preprocess,
)


class Embedder:
    """A model whose output is its features: the pooled tokens after the last norm.

    A head, and a pre-logits layer before it, are left out; weights without a head are as good. cfg:
    how images are prepared; width: features of an image; notices: what was guessed or taken for
    granted about the weights.
    """

    def __init__(
        self,
        source: Source,
        framework: Framework = "torch",
        precision: Precision = "fp32",
        device: Device = "auto",
        dtype: str | None = None,
        **changes: Any,
    ):
        """dtype: of the weights in memory; changes: arguments of
        `shared_vit.weights.overrides.with_input`."""
        headless = _without_head(source)
        self._model = Predictor(headless, framework, precision, device, dtype, **changes)
        self.cfg, self.width = self._model.cfg, self._model.cfg.num_classes
        self.notices = self._model.notices

    @property
    def model(self) -> Any:
        """The `torch_vit.VisionTransformer` or `jax_vit.VisionTransformer`, whose head gives back
        what it is given."""
        return self._model.model

    def embed(self, images: ImageFile | Sequence[ImageFile], batch_size: int = 32) -> np.ndarray:
        """Features of images (paths, PIL images, uint8 RGB [H, W, 3]), float32 [B, width]; of one
        image without a list, [width]. Raises UserError for what cannot be decoded."""
        return self._parts(self.features, (self.width,), images, batch_size)

    def tokens(self, images: ImageFile | Sequence[ImageFile], batch_size: int = 32) -> np.ndarray:
        """The patches' tokens after the last norm, float32 [B, rows, columns, width]; of one
        image without a list, [rows, columns, width]. Otherwise as `embed`."""
        shape = (*self.cfg.grid, self.cfg.width)
        return self._parts(lambda x: self.features_and_tokens(x)[1], shape, images, batch_size)

    def _parts(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        images: ImageFile | Sequence[ImageFile],
        batch_size: int,
    ) -> np.ndarray:
        check_sizes(1, batch_size)
        one = isinstance(images, str | os.PathLike | np.ndarray) or hasattr(images, "mode")
        pictures: list[Any] = [images] if one else list(images)  # type: ignore[arg-type]
        parts = [
            compute(preprocess(pictures[i : i + batch_size], self.cfg))
            for i in range(0, len(pictures), batch_size)
        ]
        found = np.concatenate(parts) if parts else np.zeros((0, *shape), np.float32)
        return found[0] if one else found

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """Features, float32 [B, width], of preprocessed images, uint8 [B, S, S, 3]."""
        return self._model.logits(inputs).astype(np.float32)

    def features_and_tokens(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features [B, width] and the patches' tokens [B, rows, columns, width], float32, of
        preprocessed images, uint8 [B, S, S, 3]."""
        return self._model.features(inputs)


def embedder(
    path: str | os.PathLike,
    framework: Framework = "torch",
    precision: Precision = "fp32",
    device: Device = "auto",
    num_heads: int | None = None,
    image_size: Sides | str | None = None,
    positions: Positions = "bicubic",
    dtype: str | None = None,
    **changes: Any,
) -> Embedder:
    """An `Embedder` of a run, a checkpoint, or weights of any format, with a head or without.

    `num_heads` is for files that do not say; `image_size` (pixels, or height and width) for another
    size than the weights', for which learned positions are resampled by the rule `positions`;
    `dtype` is that of the weights in memory, as for `torch_vit.load`;
    `mean`, `std`, `interpolation`, `eval_resize` and `exif` go before what the weights say or leave
    open. Raises UserError.
    """
    source = open_weights(path, num_heads=num_heads, image_size=image_size)
    source, _ = of_size(source, image_size, positions)
    return Embedder(source, framework, precision, device, dtype, **changes)


def embed(
    weights: Annotated[str, Positional("RUN_OR_WEIGHTS")],
    images: Annotated[tuple[str, ...], Positional("IMAGE_OR_FOLDER ...")],
    out: Annotated[str, Flag(aliases=("-o",))],
    overwrite: bool = False,
    tokens: bool = False,
    framework: Framework = "torch",
    batch_size: int = 32,
    device: Device = "auto",
    precision: Precision = "fp32",
    dtype: Literal["fp32", "bf16", "fp16", "fp64"] | None = None,
    num_heads: int | None = None,
    image_size: int | str | None = None,
    positions: Positions = "bicubic",
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
    eval_resize: float | None = None,
    exif: Exif | None = None,
) -> int:
    """Write the features of images, what the model's head is given, to an .npz file.

    It holds `images`, their paths, and `features`, float32 [images, width], in the same order; with
    --tokens also `tokens`, those of the patches, float32 [images, rows, columns, width]. The exit
    status is 1 where an image could not be decoded, which is left out.

    Args:
        weights: a run (its newest checkpoint), a checkpoint, or weights of any known format.
        images: image files, and folders whose images are taken in sorted order.
        out: file to write.
        overwrite: replace the file where it exists.
        tokens: write the tokens of the patches too, after the last norm.
        framework: the twin that computes them.
        batch_size: images computed at once.
        device: auto takes a GPU where there is one.
        precision: of the computation.
        dtype: of the weights in memory, by default that of the precision's parameters.
        num_heads: attention heads, for files that do not say.
        image_size: side of the input in pixels, or height and width as in 32,96; by default that of
            the weights.
        positions: how learned positions become those of another image size: bicubic with antialias
            (timm's), dinov2 (of DINOv2's hub models), or corners (big_vision's).
        mean: of red, green and blue in [0, 1], R,G,B or one number; by default that of the weights.
        std: by which the pixels are divided, in the same way.
        interpolation: filter of the resize.
        eval_resize: shorter side over the centre crop; 0 squashes to a square.
        exif: ignore the orientation in EXIF, or turn images upright.
    """
    check_sizes(1, batch_size)
    check_order(weights, "embed")
    target = _free(Path(out), overwrite)
    paths = files_of(images, "embed")
    if framework == "jax":
        set_up_jax(device, precision)
    changes: dict[str, Any] = dict(
        mean=mean, std=std, interpolation=interpolation, eval_resize=eval_resize, exif=exif
    )
    source = open_weights(weights, num_heads=num_heads, image_size=image_size)
    source, told = of_size(source, image_size, positions)
    model = Embedder(source, framework, precision, device, dtype, **changes)
    for notice in told + model.notices:
        print(f"notice: {notice}", file=sys.stderr)
    names, arrays = _rows(model, paths, batch_size, tokens)
    with atomic_write(target) as file:
        np.savez(file, images=np.array(names, dtype=np.str_), **arrays)  # type: ignore[arg-type]
    print(f"wrote {target}: {len(names):,} images, {_of_an_image(model, tokens)}")
    return 1 if len(names) < len(paths) else 0


def _of_an_image(model: Embedder, tokens: bool) -> str:
    """What is written for each image, in words."""
    rows, columns = model.cfg.grid
    also = f", and {rows} x {columns} tokens of {model.cfg.width}" if tokens else ""
    return f"{model.width} features each{also}"


def _rows(
    model: Embedder, paths: list[str], size: int, tokens: bool
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The images that could be decoded, and their features, and tokens where they are requested;
    the others are named on stderr."""
    names: list[str] = []
    rows = {"features": [np.zeros((0, model.width), np.float32)]}
    if tokens:
        rows["tokens"] = [np.zeros((0, *model.cfg.grid, model.cfg.width), np.float32)]
    with tqdm(total=len(paths), unit=" images", disable=None, leave=False) as bar:
        for part, inputs in batches_of(paths, model.cfg, size):
            good = [row for row in inputs if not isinstance(row, UserError)]
            names += [as_text(p) for p, row in zip(part, inputs) if not isinstance(row, UserError)]
            for row in inputs:
                if isinstance(row, UserError):
                    tqdm.write(f"error: {row}", file=sys.stderr)
            if good and tokens:
                for each, found in zip(rows.values(), model.features_and_tokens(np.stack(good))):
                    each.append(found)
            elif good:
                rows["features"].append(model.features(np.stack(good)))
            bar.update(len(part))
    return names, {name: np.concatenate(each) for name, each in rows.items()}


def _free(out: Path, overwrite: bool) -> Path:
    if out.suffix != ".npz":
        raise UserError(f"features are written to *.npz, not to {out.name}")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already: choose another name, or say --overwrite")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}")
    return out


def _without_head(source: Source) -> Source:
    """The model with a head that gives back what it is given."""
    width = source.cfg.pooled_width
    cfg = dataclasses.replace(source.cfg, num_classes=width, pre_logits=0)
    dtype = source.arrays["patch_embed.proj.weight"].dtype
    kinds = {"weight": np.eye(width, dtype=dtype), "bias": np.zeros(width, dtype)}
    heads = ("head", "head_dist") if cfg.distilled else ("head",)
    head = {f"{name}.{kind}": array for name in heads for kind, array in kinds.items()}
    arrays: dict[str, Any] = {**source.arrays, **head}
    kept: dict[str, LazyArray] = {name: arrays[name] for name in canonical.shapes(cfg)}
    names = tuple(map(str, range(width)))
    return dataclasses.replace(source, cfg=cfg, arrays=kept, class_names=names)
