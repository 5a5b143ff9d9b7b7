"""A described GPU: devices to compile for, and the answers that JAX would get from it.

`devices/*.txtpb` are XLA's `GpuTargetConfigProto` in text, from published facts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

DEVICES = Path(__file__).parent / "devices"


@dataclass(frozen=True)
class Description:
    """A GPU: XLA's text about it, and the rates that the roofline assumes."""

    name: str
    text: str

    def _number(self, field: str) -> int:
        return int(re.search(rf"\b{field}: (\d+)", self.text)[1])

    @property
    def bytes_per_second(self) -> int:
        """Of memory, by the data sheet."""
        return self._number("memory_bandwidth")

    @property
    def compute_capability(self) -> str:
        major = re.search(
            r"cuda_compute_capability \{\s*major: (\d+)(?:\s+minor: (\d+))?", self.text
        )
        return f"{major[1]}.{major[2] or 0}"

    @property
    def cudnn_version(self) -> int:
        """As cuDNN counts: 91000 is 9.10.0."""
        version = re.search(
            r"dnn_version_info \{\s*major: (\d+)(?:\s+minor: (\d+))?(?:\s+patch: (\d+))?", self.text
        )
        major, minor, patch = (int(n or 0) for n in version.groups())
        return 10000 * major + 100 * minor + patch


def describe(name_or_path: str) -> Description:
    """The description named `h100` or `h200`, or that of a file. Raises FileNotFoundError."""
    path = Path(name_or_path)
    if not path.suffix:
        path = DEVICES / f"{name_or_path}.txtpb"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in DEVICES.glob("*.txtpb")))
        raise FileNotFoundError(
            f"no description of a device at {path}: give one of {known}, or the path of a text "
            "file with XLA's GpuTargetConfigProto"
        )
    return Description(path.stem, path.read_text())


def missing() -> str | None:
    """What has to be installed before programs can be compiled; None if nothing."""
    import jax

    plugins = [f"jax_plugins.xla_cuda{n}" for n in (12, 13)]
    found = [p for p in plugins if _has_module(p)]
    if not found:
        version = jax.__version__
        return (
            "jax's CUDA plug-in is not installed here. In a virtual environment of its own (about "
            "480 MB; no GPU and no other part of CUDA is needed): pip install --no-deps "
            f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}"
        )
    if not shutil.which("ptxas") and not _has_module("nvidia.cuda_nvcc"):
        return (
            "ptxas, CUDA's assembler, is neither on PATH nor in this environment: "
            "pip install nvidia-cuda-nvcc-cu12"
        )
    return None


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def mesh(description: Description, devices: int):
    """A mesh of `devices` described GPUs along the axis "data", to compile for."""
    # The plug-in checks at its start the libraries that a run needs and a compilation does not.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=description.name,
        target_config=description.text,
        topology=f"1x1x{devices}",
    )
    return Mesh(np.array(topology.devices), ("data",))


@contextlib.contextmanager
def pretend(description: Description) -> Iterator[None]:
    """Answer as the described GPU what is asked of the device while a program is lowered.

    That is `jax.devices()[0]`, for the twin, and the versions that JAX's cuDNN attention asks for.
    """
    import jax
    from jax._src.cudnn import fused_attention_stablehlo as fused

    device = SimpleNamespace(
        platform="gpu",
        device_kind=description.name,
        compute_capability=description.compute_capability,
        client=SimpleNamespace(platform_version="cuda"),
    )

    def at_least(capability: str) -> bool:
        return float(description.compute_capability) >= float(capability)

    with contextlib.ExitStack() as stack:
        for owner, name, answer in (
            (jax, "devices", lambda *_: [device]),
            (fused, "check_cudnn_version", lambda: description.cudnn_version),
            (fused, "check_compute_capability", at_least),
        ):
            stack.enter_context(mock.patch.object(owner, name, answer))
        yield
