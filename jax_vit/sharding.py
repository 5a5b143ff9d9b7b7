"""Parameters sharded over a mesh: the sharding of each array, and how it is gathered.

Twin of `torch_vit/sharding.py`.
"""

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LEAST_SHARDED = 2**12  # elements; smaller arrays cost more to gather than to replicate


def placement(mesh: Mesh, shape: tuple[int, ...], sharded: bool) -> NamedSharding:
    """Where an array of the parameters' shapes lies on a mesh with the axis "data".

    If `sharded`, a large array is split along its largest axis that the devices divide; any other
    is on every device.
    """
    axes = [i for i, size in enumerate(shape) if size % mesh.size == 0]
    if not sharded or not axes or np.prod(shape) < LEAST_SHARDED:
        return NamedSharding(mesh, PartitionSpec())
    axis = max(axes, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def whole(array: Array, mesh: Mesh) -> Array:
    """The array gathered on every device. Every process of the mesh must call it, and waits."""
    return _gather(mesh)(array).block_until_ready().addressable_data(0)


@cache
def _gather(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, PartitionSpec()))
