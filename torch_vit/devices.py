"""The devices of a PyTorch run, checked against the requested ones.

Twin of `jax_vit/devices.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared_vit.errors import UserError
from shared_vit.run.requested import RequestedConfig, check_divides
from shared_vit.spec.runtime import RuntimeConfig


def resolve(requested: RequestedConfig) -> RequestedConfig:
    """`requested` with device ("cpu" or "gpu"), world_size, precision and compile decided.

    world_size counts processes; under torchrun it is torchrun's, over all nodes. Raises UserError
    for devices that are absent, a precision that they do not have, and a batch that they do not
    divide.
    """
    with report_from_rank_0():
        return _resolve(requested)


def _resolve(requested: RequestedConfig) -> RequestedConfig:
    gpus = (
        torch.cuda.device_count() if requested.device != "cpu" and torch.cuda.is_available() else 0
    )
    if requested.device == "gpu" and not gpus:
        raise UserError(
            f"--device=gpu: PyTorch {torch.__version__} sees no GPU. Train with --device=cpu, or "
            "install a PyTorch built "
            "for this machine's GPU driver (pytorch.org/get-started)."
        )
    world_size, local = requested.world_size or max(gpus, 1), requested.world_size or max(gpus, 1)
    if under_torchrun():
        world_size, local = (
            int(os.environ["WORLD_SIZE"]),
            int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )
        if requested.world_size not in (None, world_size):
            raise UserError(
                f"--world_size={requested.world_size}, but torchrun started {world_size} "
                "processes: leave --world_size out"
            )
    if gpus and local > gpus:
        raise UserError(
            f"{local} processes need {local} GPUs, and this machine has {gpus}: use "
            f"--world_size={gpus} "
            f"(torchrun: --nproc_per_node={gpus}), or --device=cpu for {local} processes on the CPU"
        )
    check_divides(requested, world_size)
    bf16 = bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False)
    if requested.precision == "bf16" and gpus and not bf16:
        raise UserError(
            f"--precision=bf16: {torch.cuda.get_device_name()} has no bfloat16 (compute "
            "capability 8.0 or newer has): "
            "use --precision=fp16 or fp32"
        )
    return requested.replace(
        device="gpu" if gpus else "cpu",
        world_size=world_size,
        precision=requested.precision or ("bf16" if bf16 else "fp32"),
        compile=requested.compile or ("on" if gpus else "off"),
    )


def device_of(runtime: RuntimeConfig, local_rank: int) -> torch.device:
    """The device of a process of a resolved run; makes it the current one."""
    if runtime.device != "gpu":
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


@contextmanager
def report_from_rank_0() -> Iterator[None]:
    """Under torchrun every rank makes the same mistake: rank 0 prints it, before the others end."""
    try:
        yield
    except UserError as error:
        if under_torchrun() and (rank := os.environ["RANK"]) != "0":
            time.sleep(3)
            raise UserError(f"rank {rank}: {error}") from error
        raise
