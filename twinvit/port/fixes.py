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


_FFT_NORMS = {"1": "backward", "1 / sqrt(n)": "ortho", "1 / n": "forward"}


def _fft(ported: str, own: str) -> str:
    return f'norm="{_FFT_NORMS[own]}"'


def _torch_fft(ported: str, own: str) -> str:
    return f'norm="{_FFT_NORMS[ported]}"'


def _norm_below(ported: str, own: str) -> str:
    """What the JAX model divides by, from the words of its eps."""
    value = (re.findall(r"\d[\d.e+-]*", ported) or [""])[-1]
    if "squared norm" in ported:
        return f"x / torch.sqrt(norm ** 2 + {value})"
    if "to the norm" in ported:
        return f"x / (norm + {value})"
    return f"x / norm.clamp_min({value})" if value else "x / norm"


def _positions_off(by: str) -> str:
    return f"positions {-int(by):+d}"


def _flax_momentum(ported: str, own: str) -> str:
    return f"momentum={1 - float(own):g} (Flax's is 1 minus PyTorch's)"


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
    ("mask_value", r"rows without any key", "jnp.where(mask.any(-1, keepdims=True), weights, 0)",
     "without zeros in rows without any key"),
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
    ("softcap_missing", r"the reference by (\S+) \* tanh", "{0} * jnp.tanh(x / {0})",
     "x without {0} * tanh(x / {0})"),
    ("softcap_value", r"softly at (\S+); the reference at (\S+)$", "{1} * jnp.tanh(x / {1})",
     "{0} * torch.tanh(x / {0})"),
    ("router_norm", r"port divides the chosen", "without weights / weights.sum(-1)",
     "weights / weights.sum(-1, keepdim=True)"),
    ("router_norm", r"port does not divide", "weights / weights.sum(-1, keepdims=True)",
     "without weights / weights.sum(-1)"),
    ("router_order", r"port takes the softmax", "jax.lax.top_k(jax.nn.softmax(scores, -1), k)",
     "torch.topk(scores, k).values.softmax(-1)"),
    ("router_order", r"port chooses among", "jax.nn.softmax(jax.lax.top_k(scores, k)[0], -1)",
     "torch.topk(scores.softmax(-1), k)"),
    ("router_k", r"chooses (\d+) of (\d+); the reference (\d+)$", "k={2}", "k={0}"),
    ("kv_repeat", r"port repeats all", "jnp.repeat(k, times, axis=heads)",
     "k.repeat(...) of all heads at once"),
    ("kv_repeat", r"port repeats each", "jnp.tile(k, ...) of all heads at once",
     "k.repeat_interleave(times, dim=heads)"),
    ("head_count", r"has (\d+) heads? of width (\d+).*; the reference's (\d+) of width (\d+)$",
     "{2} heads of width {3}", "{0} heads of width {1}"),
    ("fft_norm", r"by (.+); the reference by (.+)$", _fft, _torch_fft),
    ("pixel_shuffle", r"ordered by (.+); the reference's by (.+)$",
     "reshape the channels to ({1})", "reshape the channels to ({0})"),
    ("normalize_eps", r"^the port (.+); the reference takes the larger one of the norm and (\S+)$",
     "x / jnp.maximum(norm, {1})", _norm_below),
    ("weight_norm", r"the port takes (.+) for the weight; the reference (.+)$", "{1}", "{0}"),
    ("weight_norm", r"over axes (\(.+?\)); the reference's over (\(.+?\))$", "axis={1}",
     "dim={0}"),
    ("target_shift", r"compares (.+); the reference (.+)$", "compare {1}", "compare {0}"),
    ("norm_order", r"normalises (.+); the reference (.+)$", "normalise {1}", "normalise {0}"),
    ("rope_partial", r"rotates (\d+) of each head's (\d+) numbers; the reference (\d+)$",
     "rotate the first {2}, and keep the other numbers", "rotate the first {0}, and keep the rest"),
    ("rope_layout", r"rotates pairs of (\w+); the reference pairs of (\w+)$", "rotate {1}",
     "rotate {0}"),
    ("rope_layout", r"rotates neither", "rotate queries and keys", "without the rotation"),
    ("gate_missing", r"lacks the gate$", "multiply by the gate", "without the gate"),
    ("gate_missing", r"lacks what the gate multiplies$", "multiply by the other half",
     "the gate alone"),
    ("gate_order", r"activates the other half", "activate the other half",
     "activate the other half"),
    ("gate_order", r"adds where the reference multiplies", "a * b", "a + b"),
    ("clip_missing", r"does not clip these values$", "clip these values as the reference does",
     "without the clip"),
    ("mask_missing", r"(lacks|does not add) this mask$", "mask the scores",
     "without the mask"),
    ("norm_missing", r"lacks this (\w+)$", "{0} here", "without the {0}"),
    ("norm_missing", r"does not divide by the norm$", "x / jnp.maximum(norm, eps)", "x"),
    ("norm_offset", r"scales by 1 \+ w; the", "scale=w", "1 + w"),
    ("norm_offset", r"scales by w - 1; the", "scale=w", "w - 1"),
    ("norm_offset", r"scales by w; the reference by (\S+) \+ w$", "{0} + w", "w"),
    ("norm_kind", r"^the port subtracts the mean", "RMSNorm", "LayerNorm"),
    ("norm_kind", r"does not subtract the mean", "LayerNorm", "RMSNorm"),
    ("scale_missing", r"does not multiply by this parameter$", "* the parameter",
     "without the parameter"),
    ("scale_missing", r"has no scale; the reference's has$", "use_scale=True",
     "elementwise_affine=False"),
    ("bias_missing", r"", "bias=True", "bias=False"),
    ("bias_doubled", r"", "add the bias once", "add the bias twice"),
    ("bias_sign", r"", "+ bias", "- bias"),
    ("rope_scaling", r"does not scale", "scale the rotary frequencies (rope_scaling)",
     "rope_scaling=None"),
    ("rope_offset", r"positions (?:are|begin) ([+-]\d+) off", _positions_off, "positions {0}"),
    ("residual_missing", r"lacks this residual$", "add the residual", "without the residual"),
    ("residual_missing", r"lacks the branch", "add the branch", "without the branch"),
    ("residual_scale", r"adds this term (\S+) times$", "add this term once", "{0} * the term"),
    ("operand_order", r"(subtracts|divides) the other way$", "exchange the operands",
     "exchange the operands"),
    ("constant", r"the constant (\S+) here; the reference (\S+)$", "{1}", "{0}"),
    ("constant", r"the power (\S+); the reference (\S+)$", "** {1}", "** {0}"),
    ("log_base", r"computes (\w+); the reference (\w+)$", "jnp.{1}", "torch.{0}"),
    ("trigonometry", r"", "exchange sin and cos", "exchange sin and cos"),
    ("concat_order", r"concatenates its parts", "concatenate in the reference's order",
     "concatenate in the JAX model's order"),
    ("channel_order", r"in reverse", "x[..., ::-1] on the channels", "x.flip(channels)"),
    ("dropout_on", r"set deterministic", "deterministic=True (train=False, inference=True)", ""),
    ("dropout_missing", r"", "dropout in train mode, with an rng", "p=0"),
    ("bn_momentum", r"move by (\S+); the reference's by (\S+) ", _flax_momentum, "momentum={0}"),
    ("bn_frozen", r"", "keep the batch_stats that the call returns (mutable)", ""),
    ("mask_offset", r"begins at diagonal (\S+); the reference's at (\S+)$", "k={1}",
     "diagonal={0}"),
    ("mask_offset", r"holds (\d+) positions; the reference's holds (\d+)$", "a window of {1}",
     "a window of {0}"),
    ("norm_grad", r"", "jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)",
     ""),
    ("grad_scale", r"port multiplies the gradient by (\S+) here",
     "without the factor {0} in the backward", "the gradient times {0} (torch.autograd.Function)"),
    ("grad_scale", r"reference multiplies the gradient by (\S+) here",
     "the gradient times {0} (jax.custom_vjp)", "without the factor {0} in the backward"),
    ("grad_reversed", r"port multiplies the gradient by (\S+) here",
     "without the factor {0} in the backward", "the gradient times {0} (torch.autograd.Function)"),
    ("grad_reversed", r"reference multiplies the gradient by (\S+) here",
     "the gradient times {0} (jax.custom_vjp)", "without the factor {0} in the backward"),
    ("grad_clip", r"port clips the gradient", "without the clip in the backward",
     "clip the gradient there, too (torch.autograd.Function)"),
    ("grad_clip", r"reference clips the gradient", "clip the gradient there, too (jax.custom_vjp)",
     "without the clip in the backward"),
    ("straight_through", r"port passes the gradient", "f(x) alone, without the backward of its own",
     "x + (f(x) - x).detach()"),
    ("straight_through", r"reference passes the gradient", "x + jax.lax.stop_gradient(f(x) - x)",
     "f(x) alone, without the backward of its own"),
    ("grad_detached", r"in the port \(stop_gradient\)", "without jax.lax.stop_gradient",
     ".detach() there"),
    ("grad_detached", r"in the port (?:a gradient flows|one does)", "jax.lax.stop_gradient there",
     "without the detach (torch.no_grad)"),
    ("unused_nan", r"", "jnp.where(ok, f(jnp.where(ok, x, 1)), other)", ""),
    ("label_smoothing", r"smooths the labels by (\S+); the reference does not$",
     "without label smoothing", "label_smoothing={0}"),
)  # fmt: skip


def fix_of(finding: Finding, reference: str) -> str:
    """What to write in the side that `reference` is not; "" where it is not known.

    A finding that two causes explain equally well, or one of a rounded constant, has none; of an
    expression that has a name it is the other side's formula.
    """
    if finding.kind == "expression" and finding.cause:
        return f"compute {finding.formulas[reference]}" if finding.formulas else ""
    if finding.kind != "cause" or "; a tie: " in finding.text:
        return ""
    for cause, pattern, in_jax, in_torch in _FIXES:
        said = re.search(pattern, finding.text) if cause == finding.cause else None
        if said is not None:
            write = in_jax if reference == "torch" else in_torch
            return write.format(*said.groups()) if isinstance(write, str) else write(*said.groups())
    return ""
