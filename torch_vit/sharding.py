"""Parameters sharded over processes: which shard is on which, and how they are gathered.

FSDP2 (torch.distributed.fsdp.fully_shard) splits each parameter along its first axis. Twin of
`jax_vit/sharding.py`.
"""

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_vit.model import VisionTransformer


def shard(model: VisionTransformer, device: torch.device) -> None:
    """Split the parameters of a model on the meta device over all processes, each block by itself.

    Its arrays are then on `device`, unset. FSDP's mixed precision stays off: the model casts by
    its policy.
    """
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device=device)


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory; of a tensor that is not split, the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """What is this process's part of `full` where it is split as `like` is."""
    if not isinstance(like, DTensor):
        return full
    mesh = like.device_mesh
    parts = full.chunk(mesh.size(), dim=0)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else full[:0]


def whole(tensor: Tensor) -> Tensor:
    """The gathered tensor. Every process that has a shard must call it, and waits."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
