"""What a target of `twinvit export` has to say: how its programs are written, run and checked."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Literal, Protocol, get_args

import numpy as np

from shared_vit.errors import UserError, nearest

To = Literal["torch", "jax", "onnx"]
Precision = Literal["fp32", "bf16"]
Platform = Literal["cpu", "cuda", "rocm", "tpu"]

Output = Literal["probabilities", "features"]

# The input of every program by name, and its free size.
INPUT, BATCH = "images", "batch"

# uint8 [B, S, S, 3] -> float32 [B, classes], or [B, width] of features
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Options:
    """How a program is to be made: None is any batch size; platforms are JAX's alone; data is the
    file for weights that the program's own cannot hold; output is also its name, and features are
    those of a model without a head."""

    precision: str = "fp32"
    batch_size: int | None = None
    platforms: tuple[str, ...] = ("cpu", "cuda")
    data: Path | None = None
    output: Output = "probabilities"


def moved(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each number times 1 + eps or 1 - eps of float32, in float32."""
    signs = 2 * rng.integers(0, 2, array.shape, dtype=np.int8) - 1
    return array * (1 + np.finfo(np.float32).eps * signs.astype(np.float32))


class Twin(Protocol):
    """A twin on its weights, and how it becomes a program."""

    def logits(self, images: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Normalised images float32 [B, S, S, 3] -> logits [B, classes], or the features of a model
        without a head, by the twin itself; with a seed, weights and images are changed by one unit
        in the last place."""

    def write(self, file: BinaryIO) -> dict[str, object]:
        """Write the program, and return what its card says of this target alone."""


@dataclass(frozen=True)
class Target:
    """A kind of program. `module` has `twin(cfg, arrays, options)` and `load(file, folder)`, the
    folder of the data file."""

    name: To
    suffix: str
    module: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]  # in the card's versions; what writing needs
    to_run: tuple[str, ...]  # what running needs
    largest: int | None = None  # bytes of weights that the file's format holds
    data: str = ""  # ending of the file next to it for more; "": there is none

    def code(self) -> ModuleType:
        return importlib.import_module(self.module)

    def require(self, packages: tuple[str, ...]) -> None:
        """Raise UserError where one of these packages is not installed."""
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"a program for {self.name} needs {', '.join(missing)}, not installed here: "
                + ("pip install 'twinvit[export]', or " if self.name == "onnx" else "")
                + f"pip install {' '.join(missing)}"
            )

    def check(self, options: Options) -> None:
        """Raise UserError for what a program for this target cannot be."""
        if options.precision not in self.precisions:
            raise UserError(
                f"--precision={options.precision}: programs for {self.name} are "
                f"{' or '.join(self.precisions)}"
            )
        if options.batch_size is not None and options.batch_size < 1:
            raise UserError(f"--batch_size={options.batch_size}: expected 1 or more")
        for name in options.platforms:
            if name not in get_args(Platform):
                raise UserError(
                    f"unknown platform {name!r}{nearest(name, get_args(Platform))} Platforms: "
                    f"{', '.join(get_args(Platform))}."
                )

    def data_path(self, out: Path) -> Path:
        """The file next to a program that holds its weights where the program's own cannot."""
        return out.with_name(out.name + self.data)

    def check_size(self, weights: int) -> None:
        """Raise UserError where a file for this target cannot hold so many bytes of weights."""
        if self.largest is not None and weights > self.largest and not self.data:
            raise UserError(
                f"the weights take {weights:,} bytes, and a file for {self.name} holds at most "
                f"{self.largest:,}: --to=torch has no such limit"
            )


_TWO_GIB = (1 << 31) - (1 << 24)  # protobuf and flatbuffers end at 2 GiB; the rest is the program's
TARGETS = {
    target.name: target
    for target in (
        Target(
            "torch", ".pt2", "twinvit.programs.to_torch", ("fp32", "bf16"), ("torch",), ("torch",)
        ),
        Target(
            "jax",
            ".jax",
            "twinvit.programs.to_jax",
            ("fp32", "bf16"),
            ("jax", "jaxlib"),
            ("jax",),
            largest=_TWO_GIB,
        ),
        Target(
            "onnx",
            ".onnx",
            "twinvit.programs.to_onnx",
            ("fp32",),  # onnxruntime computes few operations in bf16 on CPUs
            ("torch", "onnx", "onnxscript"),
            ("onnxruntime",),
            largest=_TWO_GIB,
            data=".data",
        ),
    )
}


def target_of(name: str) -> Target:
    """Raises UserError for an unknown target, with the nearest."""
    if name not in TARGETS:
        known = ", ".join(TARGETS)
        raise UserError(f"unknown target {name!r}{nearest(name, TARGETS)} Targets: {known}.")
    return TARGETS[name]
