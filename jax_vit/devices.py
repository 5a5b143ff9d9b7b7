"""The devices of a JAX run, checked against the requested ones, its processes and its mesh.

Twin of `torch_vit/devices.py`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jax_vit.rendezvous import Peers, Place, exchange, find_place
from shared_vit.errors import StoppedTogether, UserError
from shared_vit.run.requested import RequestedConfig, check_divides
from shared_vit.spec.runtime import RuntimeConfig

_peers: Peers | None = None  # of a run of several processes


def resolve(requested: RequestedConfig) -> RequestedConfig:
    """`requested` with device ("cpu" or "gpu"), world_size, precision and processes decided.

    To be called before JAX makes its first array: it sets JAX's platform, number of CPU devices and
    x64, and joins the other processes of the run. world_size counts the devices of this process.
    Raises UserError for devices that are absent, a precision that they do not have, a batch that
    they do not divide, and processes that do not come.
    """
    if requested.precision == "fp16":
        raise UserError(
            "--precision=fp16 needs a gradient scaler, which only train_torch.py has: use "
            "--precision=bf16"
        )
    place = find_place(requested)
    processes = place.num_processes if place else 1
    check_divides(requested, requested.world_size or 1, processes)
    if jax.config.jax_num_cpu_devices != (requested.world_size or 1):
        try:
            jax.config.update("jax_num_cpu_devices", requested.world_size or 1)
        except RuntimeError as error:  # in a program that has used JAX already
            if (requested.world_size or 1) > 1:
                raise UserError(
                    f"--world_size={requested.world_size}: JAX runs already in this process, and "
                    "its number of devices is fixed: start the training before JAX is used"
                ) from error
    jax.config.update("jax_enable_x64", requested.precision == "fp64")
    if requested.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if place:
        _join(requested, place)
    gpus = [] if requested.device == "cpu" else _local_gpus()
    if requested.device == "gpu" and not gpus:
        raise UserError(
            f"--device=gpu: JAX {jax.__version__} sees no GPU. Train with --device=cpu, or "
            "install JAX's CUDA plug-in that "
            "fits this machine's driver: pip install 'twinvit[cuda12]' or 'twinvit[cuda13]'."
        )
    world_size = requested.world_size or max(len(gpus), 1)
    if gpus and world_size > len(gpus):
        raise UserError(
            f"--world_size={world_size}, and there are {len(gpus)} GPUs: use "
            f"--world_size={len(gpus)}, or --device=cpu for "
            f"{world_size} devices on the CPU"
        )
    check_divides(requested, world_size, processes)
    bf16 = bool(gpus) and _has_bf16(gpus[0])
    if requested.precision == "bf16" and gpus and not bf16:
        raise UserError(
            f"--precision=bf16: {gpus[0].device_kind} has no bfloat16 (compute capability 8.0 or "
            "newer has): use "
            "--precision=fp32"
        )
    return requested.replace(
        device="gpu" if gpus else "cpu",
        world_size=world_size,
        precision=requested.precision or ("bf16" if bf16 else "fp32"),
        num_processes=processes,
        process_id=place.process_id if place else 0,
    )


def start(runtime: RuntimeConfig) -> Mesh:
    """The mesh of a resolved run: one axis, "data", over `world_size` devices of every process."""
    if runtime.device == "gpu":
        _use_compilation_cache()
    platform = jax.devices("gpu" if runtime.device == "gpu" else "cpu")
    devices = [
        [d for d in platform if d.process_index == process][: runtime.world_size]
        for process in range(jax.process_count())
    ]
    return Mesh(np.array(devices).reshape(-1), ("data",))


@contextmanager
def abort_all_on_failure() -> Iterator[None]:
    """End all processes of a run as soon as one of them fails in this context.

    Alone, the process that failed would wait for the others, which wait for it, for minutes. Where
    all have stopped before one of them failed, each ends by itself, with the status of the failure.
    """
    try:
        yield
    except BaseException as error:
        if _peers is None:
            raise
        if isinstance(error, StoppedTogether):
            print(f"error: {error}", file=sys.stderr, flush=True)
            _peers.leave(failed=True)
            raise SystemExit(2) from error
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(2)  # if a peer's end is the cause, that is reported first, and ends this one
            traceback.print_exception(error)
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) else 1)
    if _peers is not None and _peers.leave():
        raise SystemExit(2)  # a peer has said why


def _join(requested: RequestedConfig, place: Place) -> None:
    """Contact the other processes, divide up the GPUs of each host, start `jax.distributed`."""
    gpus = [] if requested.device == "cpu" else _gpu_uuids()
    info = {"host": socket.gethostname(), "gpus": gpus, "world_size": requested.world_size}
    peers = exchange(place, info)
    everyone = peers.everyone
    sizes = {f["world_size"] for f in everyone}
    if len(sizes) > 1:
        raise UserError(
            f"every process needs the same --world_size, and they have {sorted(sizes, key=str)}"
        )
    own = _share_of_gpus(everyone, place.process_id)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=own,
        cluster_detection_method="deactivate",
    )
    peers.watch()
    global _peers
    _peers = peers


def _share_of_gpus(everyone: list[dict], process_id: int) -> list[int] | None:
    """Which of its visible GPUs process `process_id` takes; None for all of them.

    Processes of one host that see the same GPUs divide them evenly. Raises UserError for too few.
    """
    own = everyone[process_id]
    if not own["gpus"]:
        return None
    sharers = [
        i for i, f in enumerate(everyone) if f["host"] == own["host"] and f["gpus"] == own["gpus"]
    ]
    overlap = [
        i for i, f in enumerate(everyone)
        if f["host"] == own["host"] and i not in sharers and set(f["gpus"]) & set(own["gpus"])
    ]  # fmt: skip
    share = own["world_size"] or len(own["gpus"]) // len(sharers)
    if overlap or share == 0 or share * len(sharers) > len(own["gpus"]):
        raise UserError(
            f"{len(sharers) + len(overlap)} processes want {own['world_size'] or 'at least 1'} "
            "GPU each of the "
            f"{len(own['gpus'])} on {own['host']}, and two cannot use the same one: start fewer, "
            "one for all the GPUs of a "
            "host is best, or give --device=cpu"
        )
    if len(sharers) == 1:
        return None
    first = sharers.index(process_id) * share
    return list(range(first, first + share))


def _gpu_uuids() -> list[str]:
    """UUIDs of the NVIDIA GPUs that this process may use.

    The driver tells them, since JAX must not start before the rendezvous.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, device, uuid = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    uuids = []
    for i in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetUuid_v2(uuid, device)
        uuids.append(bytes(uuid).hex())
    return uuids


def _local_gpus() -> list[jax.Device]:
    try:
        return jax.local_devices(backend="gpu")
    except RuntimeError:
        return []


def _has_bf16(gpu: jax.Device) -> bool:
    """NVIDIA GPUs of compute capability 8.0 or newer; all of AMD's, named such as gfx90a."""
    capability = str(getattr(gpu, "compute_capability", ""))
    return not capability[:1].isdigit() or float(capability) >= 8


def _use_compilation_cache() -> None:
    """Cache compiled programs between runs. Those for CPUs are valid for one kind of CPU only."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "twinvit" / "jax"))
