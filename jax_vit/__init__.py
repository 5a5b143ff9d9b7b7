"""The Vision Transformer in JAX and Flax NNX, twin of `torch_vit`."""

from jax_vit.bridge import create, from_arrays, load, save, to_arrays
from jax_vit.model import VisionTransformer

__all__ = ["VisionTransformer", "create", "from_arrays", "load", "save", "to_arrays"]
