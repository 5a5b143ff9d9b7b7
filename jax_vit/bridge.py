"""Canonical NumPy arrays to and from the Flax model, and files by way of them.

Twin of `torch_vit/bridge.py`.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_vit.model import VisionTransformer
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.sides import Sides
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.memory import held
from shared_vit.weights.positions import Positions

Path = tuple[str | int, ...]


def create(cfg: ModelConfig, seed: int = 0, precision: str = "fp32") -> VisionTransformer:
    """A model in eval mode with the first weights of `seed`, equal bit for bit to the PyTorch
    twin's.

    Raises UserError for a precision that JAX, as it is set up, cannot give (see `from_arrays`).
    """
    check_config(cfg)
    return from_arrays(cfg, init.draw(cfg, seed), precision)


def from_arrays(
    cfg: ModelConfig, arrays: Arrays, precision: str = "fp32", dtype: str | None = None
) -> VisionTransformer:
    """A model in eval mode with canonical arrays, cast to the parameters' dtype.

    With `dtype` ("bf16", "fp16", "fp32", "fp64") they are held in it, and widened where they are
    used: the values are those of weights rounded to it, in less memory. Arrays are read and
    converted one at a time. It is for inference: the trainers have their own parameters.

    Raises UserError for missing or unknown arrays, mismatched shapes, a dtype wider than the
    parameters', a model that memory cannot hold, the precision fp16 (PyTorch's alone), and fp64
    without `jax_enable_x64`, which would silently be float32.
    """
    graphdef, abstract = nnx.split(abstract_model(cfg, precision))
    kept = held(cfg, arrays, precision, dtype, in_host=jax.default_backend() == "cpu")

    def filled(path: Path, variable: nnx.Variable) -> nnx.Variable:
        array = to_jax(path, np.asarray(kept[canonical_name(path)]))
        return variable.replace(jnp.asarray(array))

    state = nnx.from_flat_state((p, filled(p, v)) for p, v in nnx.to_flat_state(abstract))
    return nnx.merge(graphdef, state)


def abstract_model(cfg: ModelConfig, precision: str) -> VisionTransformer:
    """The model with shapes and dtypes instead of arrays.

    Raises UserError as `from_arrays` does.
    """
    return nnx.eval_shape(lambda: VisionTransformer(cfg, precision))


def to_arrays(model: VisionTransformer) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The model's configuration and copies of its arrays, in canonical names, order and layouts.

    Raises UserError for anything but a `jax_vit.VisionTransformer`.
    """
    if not isinstance(model, VisionTransformer):
        kind = type(model)
        raise UserError(
            f"this is a {kind.__module__}.{kind.__qualname__}, not a jax_vit.VisionTransformer: "
            "save a PyTorch model by torch_vit.save, and a wrapped one without its wrapper"
        )
    leaves = state_arrays(nnx.state(model))
    return model.cfg, {name: leaves[name] for name in canonical.shapes(model.cfg)}


def load(
    path: str | os.PathLike,
    precision: str = "fp32",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | str | None = None,
    *,
    format: str = "auto",
    positions: Positions = "bicubic",
    dtype: str | None = None,
    **input: Any,
) -> VisionTransformer:
    """A model in eval mode from a weight file of any known format, `PATH#ema` and `PATH#raw` too.

    `num_heads` is for files that do not say. Another `num_classes` than the file's makes a new head
    of zeros, another `image_size` (pixels, or height and width) resamples learned positions by the
    rule `positions` (`shared_vit.weights.positions`); `mean`, `std`, `interpolation`, `eval_resize`
    and `exif` go before what the file says or leaves open. Warns where something was guessed or
    taken for granted. `dtype` is that of the weights in memory, as for `from_arrays`. Raises
    UserError for a file of no known format, a damaged one, and a model that memory cannot hold.
    """
    cfg, arrays = weights.lazily(
        path, format, num_heads, num_classes, image_size, positions, **input
    )
    return from_arrays(cfg, arrays, precision, dtype)


def save(
    model: VisionTransformer, path: str | os.PathLike, class_names: Sequence[str] | None = None
) -> None:
    """Write the model to `path` as a canonical weight file, which both twins load.

    `class_names`, in the order of the logits, go into the file. Raises UserError for anything but a
    `jax_vit.VisionTransformer`.
    """
    weights.write(path, *to_arrays(model), class_names=class_names)


def state_arrays(state: nnx.State) -> dict[str, np.ndarray]:
    """`{canonical name: array}` of an nnx.State, copied to the host.

    The state is that of the parameters, or a slot of the optimizer, whose shapes are the same.
    """
    flat = nnx.to_flat_state(state)
    host = jax.device_get([variable[...] for _, variable in flat])
    return {canonical_name(path): to_canonical(path, leaf) for (path, _), leaf in zip(flat, host)}


def canonical_name(path: Path) -> str:
    """`('blocks', 0, 'norm1', 'scale')` -> `blocks.0.norm1.weight`."""
    leaf = "weight" if path[-1] in ("kernel", "scale") else path[-1]
    return ".".join(map(str, (*path[:-1], leaf)))


def to_jax(path: Path, array: Any) -> Any:
    """Torch's layout to Flax's: [out, in] -> [in, out], OIHW -> HWIO; other leaves as they are."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def from_jax(path: Path, array: Any) -> Any:
    """Flax's layout to torch's, of a NumPy or JAX array: the inverse of `to_jax`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_canonical(path: Path, array: np.ndarray) -> np.ndarray:
    """`from_jax`, always in its own memory: the device's buffer may be reused."""
    return np.array(from_jax(path, array), order="C")
