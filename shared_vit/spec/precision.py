"""The precision policy: which arrays have which dtype. Both twins follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """Which arrays have which dtype. Stated here, followed by both twins.

    Parameters, optimizer state, LayerNorm, softmax, loss, head, logits and the residual stream are
    `param` (float32, or float64 throughout under fp64). The other products take inputs and weights
    in `compute`, accumulate and add the bias in float32, and round once to `compute`; GELU takes
    and gives `compute`. A model may be given weights in a dtype narrower than `param`, in which
    they stay; each is widened where it is used. `tf32` lets the hardware round the inputs of
    float32 products to TensorFloat-32; everywhere else float32 products are full float32.
    """

    param: str
    compute: str
    tf32: bool = False


PRECISIONS = {
    "fp32": Policy("float32", "float32"),
    "tf32": Policy("float32", "float32", tf32=True),
    "bf16": Policy("float32", "bfloat16"),
    "fp16": Policy("float32", "float16"),
    "fp64": Policy("float64", "float64"),
}

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
