"""What to write in the side that is to be changed, for causes that have one answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from twinvit.port.report import Finding

Write = str | Callable[..., str]

_ACTIVATIONS = {
    "relu": "jax.nn.relu(x)",
    "gelu": "jax.nn.gelu(x, approximate=False)",
    "silu": "jax.nn.silu(x)",
    "sigmoid": "jax.nn.sigmoid(x)",
    "tanh": "jnp.tanh(x)",
    "elu": "jax.nn.elu(x)",
    "leaky_relu": "jax.nn.leaky_relu(x)",
    "softplus": "jax.nn.softplus(x)",
    "mish": "jax.nn.mish(x)",
    "hardswish": "jax.nn.hard_swish(x)",
    "hardsigmoid": "jax.nn.hard_sigmoid(x)",
    "softmax": "jax.nn.softmax(x, axis=-1)",
}


def _activation(ported: str, own: str) -> str:
    return _ACTIVATIONS.get(own, "")


def _pads(*said: str) -> str:
    """`padding=` of JAX for PyTorch's "(1, 1)", which pads both sides of each axis alike."""
    return f"padding={tuple((p, p) for p in ast.literal_eval(said[-1]))}"


def _torch_pads(ported: str, own: str) -> str:
    """A convolution's padding in PyTorch: an argument, or F.pad where the sides are uneven."""
    found = re.search(r"\(\(.*\)\)", ported)
    axes = len(ast.literal_eval(own))
    if found is not None:
        pads = ast.literal_eval(found[0])
    elif ported.startswith("VALID"):
        pads = ((0, 0),) * axes
    else:
        pads = (ast.literal_eval(ported.removesuffix(" on each axis")),) * axes
    if all(low == high for low, high in pads):
        return f"padding={tuple(low for low, _ in pads)}"
    flat = [n for pair in reversed(pads) for n in pair]
    return f"torch.nn.functional.pad(x, {tuple(flat)}), then padding=0"


def _rows_off(by: str) -> str:
    return f"index {-int(by):+d}"


# Cause, how its text names the port's and the reference's value, and what to write: in the JAX
# model where PyTorch is right, in the PyTorch model where JAX is. "" where it is not known.
_FIXES: tuple[tuple[str, str, Write, Write], ...] = (
    (
        "gelu_tanh",
        r"pass approximate=False",
        "jax.nn.gelu(x, approximate=False)",
        'torch.nn.functional.gelu(x, approximate="tanh")',
    ),
    ("gelu_erf", r"GELU with erf", "", "torch.nn.functional.gelu(x)"),
    ("gelu_quick", r"quick GELU", "", "x * torch.sigmoid(1.702 * x)"),
    ("activation", r"slope (\S+); the reference's (\S+)$", "negative_slope={1}",
     "negative_slope={0}"),
    ("activation", r"has alpha (\S+); the reference's (\S+)$", "alpha={1}", "alpha={0}"),
    ("activation", r"softplus has beta (\S+)$", "", "beta={0}"),
    ("activation", r"computes (.+); the reference computes (\w+)$", _activation, ""),
    ("norm_eps", r"adds eps to the standard deviation", "(x - mean) / jnp.sqrt(var + eps)",
     "(x - mean) / (torch.sqrt(var) + eps)"),
    ("norm_eps", r"has eps (\S+); the reference's is (\S+)$", "epsilon={1}", "eps={0}"),
    ("norm_ddof", r"ddof=(\S+)\); the reference by n$", "ddof=0", "correction={0}"),
    ("norm_ddof", r"ddof=(\S+)\); the reference has ddof=(\S+)$", "ddof={1}", "correction={0}"),
    ("norm_axes", r"normalises over axes (\(.+?\)); the reference over (\(.+?\))$", "axis={1}", ""),
    ("norm_groups", r"has (\d+) groups; the reference's (\d+) of", "num_groups={1}",
     "num_groups={0}"),
    ("bn_mode", r"uses the batch's statistics", "use_running_average=True", ""),
    ("attention_scale", r"scales attention by ([^;]+); the reference by ([^;]+)$",
     "scale the scores by {1}", "scale={0}"),
    ("softmax_axis", r"over axis (\S+); the reference's over (\S+)$", "axis={1}", "dim={0}"),
    ("softmax_missing", r"takes log softmax for softmax", "jax.nn.softmax", "torch.log_softmax"),
    ("softmax_missing", r"takes softmax for log softmax", "jax.nn.log_softmax", "torch.softmax"),
    ("mask_value", r"masks with (\S+); the reference with (\S+)$", "jnp.where(mask, scores, {1})",
     "masked_fill(mask, {0})"),
    ("padding", r"convolution by (.+); the reference by (\(.+\)) on both sides$", _pads,
     _torch_pads),
    ("padding", r"pads with mode (\w+); the reference with zeros$", "", 'padding_mode="{0}"'),
    ("stride", r"stride is (\d+) with .+; the reference's (\(.+\))$", "strides={1}", "stride={0}"),
    ("dilation", r"dilation is (\d+); the reference's (\(.+\))$", "kernel_dilation={1}",
     "dilation={0}"),
    ("rope_base", r"rotary base is (\S+); the reference's (\S+)$", "base {1}", "base {0}"),
    ("position_offset", r"looks this table up ([+-]\d+) rows off$", _rows_off, "index {0}"),
    ("scale", r"multiplies by (\S+); the reference by (\S+)$", "* {1}", "* {0}"),
    ("scale", r"multiplies this by (\S+); the reference does not$", "without * {0}", "* {0}"),
    ("weight_transposed", r"weight is transposed$", "the weight's .T", "the weight's .T"),
    ("loss_reduction", r"takes the sum; the reference the mean$", ".mean()", 'reduction="sum"'),
    ("loss_reduction", r"takes the mean; the reference the sum$", ".sum()", 'reduction="mean"'),
    ("reduction", r"takes the sum; the reference the mean$", "jnp.mean", "torch.sum"),
    ("reduction", r"takes the mean; the reference the sum$", "jnp.sum", "torch.mean"),
    ("label_smoothing", r"smooths the labels by (\S+); the reference does not$",
     "without label smoothing", "label_smoothing={0}"),
)  # fmt: skip


def fix_of(finding: Finding, reference: str) -> str:
    """What to write in the side that `reference` is not; "" where it is not known.

    A finding that two causes explain equally well, or one of a rounded constant, has none.
    """
    if finding.kind != "cause" or "; a tie: " in finding.text:
        return ""
    for cause, pattern, in_jax, in_torch in _FIXES:
        said = re.search(pattern, finding.text) if cause == finding.cause else None
        if said is not None:
            write = in_jax if reference == "torch" else in_torch
            return write.format(*said.groups()) if isinstance(write, str) else write(*said.groups())
    return ""
