"""Canonical NumPy arrays to and from the Flax model, and files by way of them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_vit.model import VisionTransformer
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS

Path = tuple[str | int, ...]


def create(cfg: ModelConfig, seed: int = 0, precision: str = "fp32") -> VisionTransformer:
    """A model with the first weights of `seed`, equal bit for bit to the PyTorch twin's. Raises UserError (see below)."""
    return from_arrays(cfg, init.draw(cfg, seed), precision)


def from_arrays(cfg: ModelConfig, arrays: Mapping[str, np.ndarray], precision: str = "fp32") -> VisionTransformer:
    """A model with canonical arrays, cast to the parameters' dtype.

    Raises UserError for missing, unknown or misshapen arrays, for fp16 (PyTorch's alone), and for fp64 without
    `jax_enable_x64`, which would silently be float32.
    """
    check_precision(precision)
    canonical.check(cfg, arrays)
    model = nnx.eval_shape(lambda: VisionTransformer(cfg, precision))
    graphdef, abstract = nnx.split(model)
    dtype = PRECISIONS[precision].param
    state = nnx.from_flat_state(
        (path, variable.replace(jnp.asarray(to_jax(path, np.asarray(arrays[canonical_name(path)], dtype)))))
        for path, variable in nnx.to_flat_state(abstract)
    )
    return nnx.merge(graphdef, state)


def to_arrays(model: VisionTransformer) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The model's configuration and copies of its arrays, in canonical names, order and layouts."""
    leaves = state_arrays(nnx.state(model))
    return model.cfg, {name: leaves[name] for name in canonical.shapes(model.cfg)}


def load(path, precision: str = "fp32", num_heads: int | None = None) -> VisionTransformer:
    """A model from a weight file of any known format. Raises UserError for a file that is none, or not whole."""
    return from_arrays(*weights.read(path, num_heads=num_heads), precision)


def save(model: VisionTransformer, path) -> None:
    """Write the model to `path` as a canonical weight file, which both twins load."""
    weights.write(path, *to_arrays(model))


def state_arrays(state: nnx.State) -> dict[str, np.ndarray]:
    """`{canonical name: array}` of an nnx.State (parameters, or moments of their shapes), copied to the host."""
    flat = nnx.to_flat_state(state)
    host = jax.device_get([variable[...] for _, variable in flat])
    return {canonical_name(path): to_canonical(path, leaf) for (path, _), leaf in zip(flat, host)}


def canonical_name(path: Path) -> str:
    """`('blocks', 0, 'norm1', 'scale')` -> `blocks.0.norm1.weight`."""
    leaf = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
    return ".".join(map(str, (*path[:-1], leaf)))


def to_jax(path: Path, array: np.ndarray) -> np.ndarray:
    """Torch's layout to Flax's: [out, in] -> [in, out], OIHW -> HWIO; other leaves as they are."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_canonical(path: Path, array: np.ndarray) -> np.ndarray:
    """Flax's layout to torch's, always in memory of its own: the device's buffer may be reused."""
    if path[-1] == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.array(array, order="C")


def check_precision(precision: str) -> None:
    """Raise UserError for a precision that JAX, as it is set up, cannot give."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision == "fp16":
        raise UserError("fp16 needs a gradient scaler, which only the PyTorch twin has: use bf16 in JAX")
    if precision == "fp64" and not jax.config.jax_enable_x64:
        raise UserError(
            "fp64 needs jax.config.update('jax_enable_x64', True) before JAX makes its first array; without it "
            "JAX computes in float32 without a word"
        )
