"""Programs for JAX: `jax.export`, one file of StableHLO. Twin of `to_torch.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import jax_vit
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.pixels import normalization
from twinvit.programs.target import BATCH, Options, Run, moved


class JaxTwin:
    """The JAX twin on the CPU, where programs are made, whatever platforms they are for."""

    def __init__(self, cfg: ModelConfig, arrays: dict[str, np.ndarray], options: Options):
        self.cfg, self.options = cfg, options
        with _on_cpu():
            model = jax_vit.from_arrays(cfg, arrays, options.precision)
            self.graphdef, self.state = nnx.split(model)
        self.forward = jax.jit(lambda state, x: nnx.merge(self.graphdef, state)(x))

    def logits(self, images: np.ndarray, seed: int | None = None) -> np.ndarray:
        state = self.state
        with _on_cpu():
            if seed is not None:
                rng = np.random.default_rng(seed)
                images = moved(images, rng)
                state = jax.tree.map(lambda a: jnp.asarray(moved(np.asarray(a), rng)), state)
            return np.asarray(self.forward(state, images))

    def write(self, file: BinaryIO) -> dict[str, object]:
        exported = self.exported()
        file.write(exported.serialize())
        return {
            "platforms": list(exported.platforms),
            "calling_convention_version": exported.calling_convention_version,
        }

    def exported(self) -> Any:
        """The `jax.export.Exported`: the same program for all platforms, weights included."""
        scale, shift = (a.astype(np.float32) for a in normalization(self.cfg))

        def program(images: Array) -> Array:
            """uint8 RGB [B, S, S, 3] -> probabilities float32 [B, classes], or features."""
            x = images.astype(jnp.float32) * scale + shift
            found = nnx.merge(self.graphdef, self.state)(x)
            return jax.nn.softmax(found, axis=-1) if self.cfg.num_classes else found

        size = self.options.batch_size
        with _on_cpu(), _without_paths():
            batch = size or jax.export.symbolic_shape(BATCH)[0]
            images = jax.ShapeDtypeStruct((batch, *self.cfg.image_shape, 3), jnp.uint8)
            return jax.export.export(jax.jit(program), platforms=self.options.platforms)(images)


twin = JaxTwin


def load(file: BinaryIO, folder: Path | None = None) -> Run:
    """The program of a file that `jax.export` serialized, on the CPU."""
    exported = jax.export.deserialize(bytearray(file.read()))
    if "cpu" not in exported.platforms:
        raise UserError(
            f"this program is for {', '.join(exported.platforms)}, and it is run on the CPU here"
        )

    def run(images: np.ndarray) -> np.ndarray:
        with _on_cpu():
            return np.asarray(exported.call(images))

    return run


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Arrays, calls and programs on the CPU, in 32 bits whatever the process has set.

    A program traced so has nothing that one kind of device alone can run.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "programs for JAX are made on the CPU, which JAX does not see here (is JAX_PLATFORMS "
            f"set without cpu?): {str(error)[:200]}"
        ) from error
    with jax.enable_x64(False), jax.default_device(cpu):
        yield


@contextmanager
def _without_paths() -> Iterator[None]:
    """Leave the source lines out of the program: they hold paths of this machine."""
    wanted = {
        "jax_hlo_source_file_canonicalization_regex": ".*",
        "jax_traceback_in_locations_limit": 0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
