"""JAX's settings while a port is traced and evaluated: on the CPU, with or without 64-bit types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from twinvit.port.errors import PortError
from twinvit.port.record.jax_internals import forget_types


def float64_on_cpu() -> contextlib.AbstractContextManager[None]:
    """`on_cpu` with 64-bit types."""
    return on_cpu(x64=True)


@contextlib.contextmanager
def on_cpu(x64: bool) -> Iterator[None]:
    """With or without 64-bit types on the CPU, whatever JAX's default device is: an accelerator
    rounds otherwise.

    Raises:
        PortError: JAX was configured without the CPU.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise PortError(
            f"JAX cannot use the CPU ({error}); name cpu in JAX_PLATFORMS, e.g. cuda,cpu"
        ) from error
    forget_types()
    with jax.enable_x64(x64), jax.default_device(cpu):
        yield
