"""The precision policy by name, and torch's switches that it needs.

Twin of `jax_vit/precision.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared_vit.errors import UserError
from shared_vit.spec.precision import PRECISIONS, Policy


def policy_of(precision: str) -> Policy:
    """The policy of a precision's name. Raises UserError for an unknown one."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def set_backend_precision(precision: str) -> None:
    """Set this process's switches: full float32 products unless tf32 is requested.

    Sums of low-precision products are float32, always. The model makes no convolution call, so
    cuDNN's own TF32 switch does not matter.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


@contextmanager
def backend_precision(precision: str) -> Iterator[None]:
    """The switches of `set_backend_precision` inside, and those of before again after it."""
    matmul = torch.backends.cuda.matmul
    products = torch.get_float32_matmul_precision()
    bf16 = matmul.allow_bf16_reduced_precision_reduction
    fp16 = matmul.allow_fp16_reduced_precision_reduction
    set_backend_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        matmul.allow_bf16_reduced_precision_reduction = bf16
        matmul.allow_fp16_reduced_precision_reduction = fp16
