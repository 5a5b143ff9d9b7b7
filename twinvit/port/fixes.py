"""What to write in the side that is to be changed, for causes that have one answer."""

from __future__ import annotations

import re

from twinvit.port.report import Finding

# Cause, how its text names the port's and the reference's value, and what to write: in the JAX
# model where PyTorch is right, in the PyTorch model where JAX is. "" where it is not known.
_FIXES = {
    "gelu_tanh": (
        r"pass approximate=False",
        "jax.nn.gelu(x, approximate=False)",
        'torch.nn.functional.gelu(x, approximate="tanh")',
    ),
    "gelu_erf": (r"GELU with erf", "", "torch.nn.functional.gelu(x)"),
    "gelu_quick": (r"quick GELU", "", "x * torch.sigmoid(1.702 * x)"),
    "norm_eps": (r"has eps (\S+); the reference's is (\S+)$", "epsilon={1}", "eps={0}"),
    "attention_scale": (
        r"scales attention by ([^;]+); the reference by ([^;]+)$",
        "scale the scores by {1}",
        "scale={0}",
    ),
    "softmax_axis": (r"over axis (\S+); the reference's over (\S+)$", "axis={1}", "dim={0}"),
}


def fix_of(finding: Finding, reference: str) -> str:
    """What to write in the side that `reference` is not; "" where it is not known.

    A finding that two causes explain equally well, or one of a rounded constant, has none.
    """
    known = _FIXES.get(finding.cause)
    if known is None or finding.kind != "cause" or "; a tie: " in finding.text:
        return ""
    pattern, in_jax, in_torch = known
    said = re.search(pattern, finding.text)
    if said is None:
        return ""
    return (in_jax if reference == "torch" else in_torch).format(*said.groups())
