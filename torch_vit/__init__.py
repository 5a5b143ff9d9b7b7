"""The Vision Transformer in PyTorch, twin of `jax_vit`."""

from torch_vit.bridge import create, from_arrays, load, save, to_arrays
from torch_vit.model import VisionTransformer

__all__ = ["VisionTransformer", "create", "from_arrays", "load", "save", "to_arrays"]
