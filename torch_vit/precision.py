"""Process-wide switches of torch's back ends that the precision policy needs."""

import torch


def set_backend_precision(precision: str) -> None:
    """Full float32 products unless tf32 is asked for, and sums of low-precision products in float32, always.

    The model makes no convolution call, so cuDNN's own TF32 switch does not matter.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
