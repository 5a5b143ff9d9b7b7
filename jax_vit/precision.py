"""The precision policy by name, as far as JAX can obey it. Twin of `torch_vit/precision.py`."""

import jax

from shared_vit.errors import UserError
from shared_vit.spec.precision import PRECISIONS, Policy


def policy_of(precision: str) -> Policy:
    """The policy of a precision's name. Raises UserError for one that JAX, as it is set up, lacks.

    These are fp16 (PyTorch's alone), and fp64 without `jax_enable_x64`, which JAX would silently
    compute in float32.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision == "fp16":
        raise UserError("fp16 needs a gradient scaler, which only the PyTorch twin has: use bf16")
    if precision == "fp64" and not jax.config.jax_enable_x64:
        raise UserError(
            "fp64 needs jax.config.update('jax_enable_x64', True) before JAX makes its first "
            "array: "
            "without it JAX silently computes in float32"
        )
    return PRECISIONS[precision]
