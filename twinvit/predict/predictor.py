"""What classes a model sees in images: weights, preprocessing, a twin and names in one object."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast

import numpy as np

import jax_vit  # noqa: F401 - registers the reader of orbax's folders; imports no framework
import torch_vit  # noqa: F401 - registers the reader of .pth files; imports no framework
from shared_vit.data.decode import MOST_BYTES, DecodeError, decode, decoded
from shared_vit.data.preprocess import evaluation_input
from shared_vit.data.sources.imagenet_names import imagenet_names, plain_names
from shared_vit.data.sources.listing import printable
from shared_vit.errors import UserError
from shared_vit.files import read_limited
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.precision import Precision
from shared_vit.spec.sides import Sides
from shared_vit.weights import Source, open_weights
from shared_vit.weights.overrides import Colours, Exif, Interpolation, for_images, of_size
from shared_vit.weights.positions import Positions

if TYPE_CHECKING:
    from PIL import Image

Framework = Literal["torch", "jax"]
Device = Literal["auto", "cpu", "gpu"]
# A path, a PIL image, or uint8 [H, W, 3].
ImageFile: TypeAlias = "str | os.PathLike | Image.Image | np.ndarray"

TRAIN_ONE = "`twinvit train --preset=linear_probe --init_from=...` trains one"

Guess = TypedDict("Guess", {"class": str, "index": int, "probability": float})


class Predictor:
    """A model with all that it takes to name what is in an image. `twinvit.load` makes it.

    model: the twin itself, in eval mode. class_names: one for each class; indices where nothing
    said them. notices: what was guessed about the weights, and may be wrong.
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
        _check("framework", framework, ("torch", "jax"))
        _check("device", device, ("auto", "cpu", "gpu"))
        if not source.cfg.num_classes:
            raise UserError(f"{source.path} has no head, so that it names no classes: {TRAIN_ONE}")
        source, told = for_images(source, **changes)
        self.cfg, self.framework = source.cfg, framework
        self.class_names, more = names_of(source)
        self.notices = [*told, *more]
        # Imported here, so that the other framework need not even be installed.
        twin = importlib.import_module(f"{framework}_vit.classifier")
        self._logits = twin.Classifier(self.cfg, source.arrays, precision, device, dtype)
        self._where = f"{source.path} in {precision}"

    @property
    def model(self) -> Any:
        """The `torch_vit.VisionTransformer` or `jax_vit.VisionTransformer`."""
        return self._logits.model

    def predict(
        self, images: ImageFile | Sequence[ImageFile], top_k: int = 5, batch_size: int = 32
    ) -> Any:
        """The `top_k` likeliest classes of an image, likeliest first; of a list, a list of them.

        An image is a path, a PIL image, or uint8 RGB [H, W, 3], and is preprocessed as in an
        evaluation; a class is `{"class": name, "index": number, "probability": share of 1}`. Raises
        UserError for anything else and for what cannot be decoded.
        """
        pictures, one = _listed(images)
        check_sizes(top_k, batch_size)
        found = [
            guesses
            for i in range(0, len(pictures), batch_size)
            for guesses in self.top(preprocess(pictures[i : i + batch_size], self.cfg), top_k)
        ]
        return found[0] if one else found

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """What the head gives, float64 [B, classes], of preprocessed images, uint8 [B, S, S, 3].
        Raises UserError where the precision overflows."""
        logits = self._logits(inputs)
        if not np.isfinite(logits).all():
            raise UserError(f"{self._where}: the logits are not finite; use fp32")
        return logits

    def features(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features [B, width] and patches' tokens [B, rows, columns, width], float32, of
        preprocessed images, uint8 [B, S, S, 3]. Raises UserError where the precision overflows."""
        pooled, patches = self._logits.features(inputs)
        if not (np.isfinite(pooled).all() and np.isfinite(patches).all()):
            raise UserError(f"{self._where}: the features are not finite; use fp32")
        return pooled, patches

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Softmax over the classes, float64 [B, classes], of preprocessed images, uint8
        [B, S, S, 3]. Raises UserError where the precision overflows."""
        return softmax(self.logits(inputs))

    def top(self, inputs: np.ndarray, top_k: int = 5) -> list[list[Guess]]:
        """`predict` of preprocessed images, uint8 [B, S, S, 3]; equal ones go by their number."""
        return [
            [
                {"class": self.class_names[i], "index": int(i), "probability": float(row[i])}
                for i in np.argsort(-row, kind="stable")[:top_k]
            ]
            for row in self.probabilities(inputs)
        ]


def load(
    path: str | os.PathLike,
    framework: Framework = "torch",
    precision: Precision = "fp32",
    device: Device = "auto",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | str | None = None,
    *,
    format: str = "auto",
    positions: Positions = "bicubic",
    dtype: str | None = None,
    mean: Colours | None = None,
    std: Colours | None = None,
    interpolation: Interpolation | None = None,
    eval_resize: float | None = None,
    exif: Exif | None = None,
) -> Predictor:
    """A predictor of a run (its newest intact checkpoint), a checkpoint, or weights of any format.

    The other framework is not imported (but a `.pth` file is read by PyTorch). `num_heads` is for
    files that do not say; `num_classes` for those without a head, `image_size` (pixels, or height
    and width) for another size than theirs, for which learned positions are resampled by the rule
    `positions` (`shared_vit.weights.positions`); `dtype` is that of the weights in memory, as for
    `torch_vit.load`; `mean`, `std`, `interpolation`, `eval_resize`
    (shorter side over crop; 0 squashes) and `exif` go before what the weights say or leave open.
    Images are turned upright by EXIF where the weights were not written by this project. Warns
    where something was guessed or taken for granted. Raises UserError.
    """
    source = open_weights(path, format, num_heads, num_classes, image_size)
    changes = dict(
        mean=mean, std=std, interpolation=interpolation, eval_resize=eval_resize, exif=exif
    )
    source, _ = of_size(source, image_size, positions, num_classes)
    predictor = Predictor(source, framework, precision, device, dtype, **changes)
    for notice in predictor.notices:
        warnings.warn(notice, stacklevel=2)
    return predictor


def preprocess(images: ImageFile | Sequence[ImageFile], cfg: ModelConfig) -> np.ndarray:
    """What a model is shown of images in evaluation, uint8 [B, *cfg.image_shape, 3].

    `twinvit.normalize(batch, cfg)` makes the floats that the models take of it: (x / 255 - mean) /
    std, as [B, H, W, 3] for JAX; PyTorch's layout is `.transpose(0, 3, 1, 2)` of it. Raises
    UserError for what is no image or cannot be decoded.
    """
    check_config(cfg)
    pictures, _ = _listed(images)
    out = np.empty((len(pictures), *cfg.image_shape, 3), np.uint8)
    for row, picture in zip(out, pictures):
        row[:] = _prepared(picture, cfg)
    return out


def _prepared(picture: ImageFile, cfg: ModelConfig) -> np.ndarray:
    turn = cfg.exif == "turn"
    if not isinstance(picture, str | os.PathLike):
        return evaluation_input(_pixels(picture, turn), cfg)
    name = printable(os.fspath(picture))
    try:
        return evaluation_input(decode(read_limited(picture, MOST_BYTES), turn), cfg)
    except FileNotFoundError:
        raise UserError(f"cannot read {name}: it is not there") from None
    except DecodeError as error:
        raise DecodeError(f"cannot decode {name}: {error}") from error


def _pixels(picture: Image.Image | np.ndarray, turn: bool) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        return picture
    if hasattr(picture, "convert") and hasattr(picture, "mode"):  # without an import of Pillow
        return decoded(picture, turn)
    raise UserError(
        f"an image is a path, a PIL image or a uint8 array [H, W, 3], not {type(picture).__name__}"
    )


def names_of(source: Source) -> tuple[list[str], list[str]]:
    """The classes' names, and what was guessed of them.

    The names that the weights have; ImageNet's where they have none and 1,000 classes; else
    numbers.
    """
    if source.class_names is not None:
        return list(plain_names(source.class_names)), []
    if source.cfg.num_classes == len(imagenet_names()):
        guess = f"{source.path} does not name its 1,000 classes: taken to be ImageNet's"
        return list(imagenet_names().values()), [guess]
    return [str(i) for i in range(source.cfg.num_classes)], []


def _listed(images: Any) -> tuple[list[ImageFile], bool]:
    """A list of images, and whether there was one without a list."""
    if isinstance(images, np.ndarray):
        one = images.ndim != 4
        return ([images] if one else list(images)), one
    if isinstance(images, Sequence | Iterator) and not isinstance(images, str | bytes):
        return cast(list[ImageFile], list(images)), False
    return [images], True


def check_sizes(top_k: int, batch_size: int) -> None:
    """Raise UserError for numbers below 1."""
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} is one of {', '.join(known)}, not {value!r}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Fractions of 1 over the last axis, in the dtype of the logits."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
