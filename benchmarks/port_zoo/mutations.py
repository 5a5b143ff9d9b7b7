"""The planted mistakes: what each changes in a port's config, its cause, and where it is.

`torch` matches the reference's place as a finding names it (module path and operation). A cause of
"expression" is outside every catalogue: the right answer is what the port computes there, which
`shows` matches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mutation:
    name: str
    model: str
    cause: str  # identifiers that are right, separated by |
    torch: str  # regular expression
    change: Mapping[str, Any]
    styles: tuple[str, ...] = ()  # () is all but scan
    reference: Mapping[str, Any] = field(default_factory=dict)  # changes of both sides
    what: str = "forward"
    alone: bool = False  # hides or distorts others: not in combinations
    shows: str = ""  # regular expression: the port's formula, of a mistake outside the catalogue

    def plantable(self, style: str) -> bool:
        return style in self.styles if self.styles else style != "scan"


def _extra(name: str) -> dict[str, frozenset[str]]:
    return {"extra": frozenset({name})}


def _outside(name: str, model: str, torch: str, shows: str) -> Mutation:
    return Mutation(name, model, "expression", torch, _extra(name), shows=shows)


ALL = ("nnx", "linen", "equinox", "scan")
BLOCK = r"blocks\.0"

VIT = [
    Mutation("gelu_tanh", "vit", "gelu_tanh", r"mlp\.act", {"activation": "gelu_tanh"}, styles=ALL),
    Mutation(
        "gelu_erf",
        "vit",
        "gelu_erf",
        r"mlp\.act",
        {"activation": "gelu"},
        styles=ALL,
        reference={"activation": "gelu_tanh"},
    ),
    Mutation(
        "gelu_quick", "vit", "gelu_quick", r"mlp\.act", {"activation": "gelu_quick"}, styles=ALL
    ),
    Mutation("relu", "vit", "activation", r"mlp\.act", {"activation": "relu"}, styles=ALL),
    Mutation("silu", "vit", "activation", r"mlp\.act", {"activation": "silu"}, styles=ALL),
    Mutation("norm_eps", "vit", "norm_eps", r"norm", {"norm_eps": 1e-5}, styles=ALL),
    Mutation("norm_eps_large", "vit", "norm_eps", r"norm", {"norm_eps": 1e-3}, styles=ALL),
    Mutation("norm_axes", "vit", "norm_axes", r"norm", {"norm_axis": 1}, alone=True),
    Mutation(
        "no_scale", "vit", "attention_scale", r"attn", {"attention_scale": "none"}, styles=ALL
    ),
    Mutation(
        "width_scale", "vit", "attention_scale", r"attn", {"attention_scale": "width"}, styles=ALL
    ),
    Mutation("softmax_axis", "vit", "softmax_axis", r"attn", {"softmax_axis": -2}, styles=ALL),
    Mutation("qkv_by_head", "vit", "qkv_order", r"attn", {"qkv": "by_head"}),
    Mutation("kqv", "vit", "qkv_order", r"attn", {"qkv": "kqv"}),
    Mutation("dim_first", "vit", "qkv_order", r"attn", {"qkv": "dim_first"}),
    Mutation("bias_missing", "vit", "bias_missing", r"mlp\.fc1", {"mlp_bias": 0}),
    Mutation("bias_doubled", "vit", "bias_doubled", r"mlp\.fc1", {"mlp_bias": 2}),
    Mutation(
        "patch_columns", "vit", "token_order", r"^(view|transpose)", {"patch_order": "columns"}
    ),
    Mutation("class_last", "vit", "token_order", r"^(cat|select)", {"class_token": "last"}),
    Mutation("dropout_on", "vit", "dropout_on", r"mlp", {"dropout": 0.1}, alone=True),
    Mutation("transposed", "vit", "weight_transposed", r"attn\.proj", {"transposed": True}),
    Mutation("swapped", "vit", "weights_swapped", r"norm", {"swapped": True}),
    Mutation("norm_missing", "vit", "norm_missing", r"norm", {"last_norm": False}, alone=True),
    Mutation("norm_ddof", "vit", "norm_ddof", r"norm", {"ddof": 1}, styles=("equinox",)),
    _outside("abs_values", "vit", r"attn", r"^abs\("),
    _outside("softmax_skewed", "vit", r"attn", r"softmax \* \(1 \+ .*softmax\) / sum\("),
    _outside("clip_activation", "vit", r"mlp", r"^clip\(.*act, -0\.11, 1\.37\)$"),
    Mutation("residual_source", "vit", "residual_source", BLOCK, _extra("residual_source")),
    Mutation("branch_scale", "vit", "scale|residual_scale", BLOCK, _extra("branch_scale")),
    _outside("position_sine", "vit", r"^:|add|^$", r"\+ 0\.05 \* sin\(3\.1 \* "),
    Mutation("mean_pool", "vit", "pool_kind", r"norm|head|select|^:", _extra("mean_pool")),
]

CONV = [
    Mutation("same_padding", "conv", "padding", r"conv1", {"same_padding": True}),
    Mutation(
        "stride_first", "conv", "stride|dilation", r"layer2\.conv[12]", {"stride_first": True}
    ),
    Mutation("dilation", "conv", "dilation", r"layer1\.conv2", {"dilation": 1}),
    Mutation("pool_same", "conv", "pool_padding", r"maxpool", {"max_pool": "same"}),
    Mutation("pool_exclude", "conv", "pool_padding", r"avgpool", {"count_padding": False}),
    Mutation("norm_eps", "conv", "norm_eps", r"bn|downsample", {"norm_eps": 1e-3}),
    Mutation("flatten_order", "conv", "flatten_order", r"^view", {"flatten": "channels_last"}),
    Mutation("relu6", "conv", "activation", r"relu|clamp|^:", {"activation": "relu6"}),
    Mutation("leaky", "conv", "activation", r"leaky", {"slope": "leaky_default"}),
    Mutation("bias_missing", "conv", "bias_missing", r"fc2", {"head_bias": 0}),
    Mutation("bias_doubled", "conv", "bias_doubled", r"fc2", {"head_bias": 2}),
    Mutation(
        "kernels_transposed", "conv", "weight_transposed", r"conv", {"kernels_transposed": True}
    ),
    Mutation("swapped", "conv", "weights_swapped", r"bn", {"swapped": True}),
    Mutation(
        "bn_momentum",
        "conv",
        "bn_momentum",
        r"bn|downsample",
        {"momentum": 0.9},
        styles=("nnx", "linen"),
        reference={"train": True},
        what="train",
    ),
    Mutation(
        "bn_variance",
        "conv",
        "bn_variance",
        r"bn|downsample",
        {"unbiased": False},
        styles=("nnx", "linen"),
        reference={"train": True},
        what="train",
    ),
    Mutation(
        "group_order", "conv", "conv_groups|channel_order", r"conv2", {"group_order": "by_channel"}
    ),
    Mutation("channels_reversed", "conv", "channel_order", r"conv1", {"bgr": True}),
    _outside("stem_clip", "conv", r"maxpool|relu|bn1|layer1", r"^minimum\(.*, 2\.17\)$"),
    _outside("pool_centred", "conv", r"avgpool|fc1|flatten", r"avgpool - mean\(avgpool"),
    Mutation("branch_scale", "conv", "scale|residual_scale", r"layer1", _extra("branch_scale")),
    _outside("shortcut_abs", "conv", r"layer1", r"^abs\("),
]

DECODER = [
    Mutation("norm_eps", "decoder", "norm_eps", r"norm", {"norm_eps": 1e-5}),
    Mutation("norm_offset", "decoder", "norm_offset", r"norm", {"unit_offset": True}),
    Mutation("rope_layout", "decoder", "rope_layout", r"attention", {"rope_layout": "interleaved"}),
    Mutation("rope_base", "decoder", "rope_base", r"rotary|attention", {"rope_base": 500000.0}),
    Mutation("rope_offset", "decoder", "rope_offset", r"attention|rotary", {"key_offset": 1}),
    Mutation("no_scale", "decoder", "attention_scale", r"attention", {"attention_scale": "none"}),
    Mutation(
        "width_scale", "decoder", "attention_scale", r"attention", {"attention_scale": "width"}
    ),
    Mutation("mask_offset", "decoder", "mask_offset", r"attention", {"mask_offset": 1}),
    Mutation("mask_value", "decoder", "mask_value", r"attention", {"mask_value": -1e-9}),
    Mutation(
        "softmax_axis", "decoder", "softmax_axis", r"attention", {"softmax_axis": -2}, alone=True
    ),
    Mutation("repeat_tile", "decoder", "kv_repeat", r"attention", {"repeat": "tile"}),
    Mutation("gelu", "decoder", "activation|gelu_erf", r"mlp", {"activation": "gelu"}),
    Mutation("gate_order", "decoder", "gate_order|gate_side", r"mlp", {"gate_first": False}),
    Mutation("bias_missing", "decoder", "bias_missing", r"[qkv]_proj", {"qkv_bias": False}),
    Mutation("untied", "decoder", "tied_weights", r"lm_head", {"tied": False}),
    Mutation("scaled_embedding", "decoder", "scale", r"embed", {"scaled_embedding": True}),
    Mutation("no_mask", "decoder", "mask_missing|mask_offset", r"attention", {"mask_offset": 99}),
    Mutation(
        "loss_sum",
        "decoder",
        "loss_reduction",
        r"nll_loss",
        {"loss": "sum"},
        reference={"loss": "mean"},
        alone=True,
    ),
    Mutation(
        "loss_padding",
        "decoder",
        "loss_reduction",
        r"nll_loss",
        {"loss": "mean over padding"},
        reference={"loss": "mean"},
        alone=True,
    ),
    Mutation(
        "label_smoothing",
        "decoder",
        "label_smoothing",
        r"nll_loss",
        {"loss": "smoothed"},
        reference={"loss": "mean"},
        alone=True,
    ),
    _outside("unit_queries", "decoder", r"attention", r"rsqrt\(sum\(|/ sqrt\(sum\("),
    _outside("clip_gate", "decoder", r"mlp", r"^clip\(.*, -1\.3, 0\.9\)$"),
    Mutation(
        "branch_scale", "decoder", "scale|residual_scale", r"layers\.0|mlp", _extra("branch_scale")
    ),
    Mutation(
        "residual_source", "decoder", "residual_source", r"layers\.0|mlp", _extra("residual_source")
    ),
    _outside("logit_cap", "decoder", r"lm_head", r"^5 \* tanh\(.* / 5\)$"),
]

SEQUENCE = [
    Mutation("kernel_flip", "sequence", "conv_transpose|kernel_flipped", r"up", {"flip": False}),
    Mutation("up_same", "sequence", "conv_transpose", r"up", {"same_padding": True}),
    Mutation("antialias", "sequence", "resize", r"bilinear", {"linear": "antialias"}),
    Mutation("align_corners", "sequence", "resize", r"bilinear", {"linear": "align_corners"}),
    Mutation("cubic_a", "sequence", "resize", r"bicubic", {"cubic": "jax"}),
    Mutation("lstm_order", "sequence", "gate_order", r"lstm", {"lstm_order": "ifog"}),
    Mutation("gru_order", "sequence", "gate_order", r"gru", {"gru_order": "zrn"}),
    Mutation("second_bias", "sequence", "bias_missing", r"lstm", {"second_bias": False}),
    Mutation("gelu_erf", "sequence", "gelu_erf", r"act", {"activation": "gelu"}),
    Mutation("silu", "sequence", "activation", r"act", {"activation": "silu"}),
    Mutation("norm_eps", "sequence", "norm_eps", r"norm", {"norm_eps": 1e-6}),
    Mutation("norm_groups", "sequence", "norm_axes", r"norm", {"groups": 2}),
    Mutation("transposed", "sequence", "weight_transposed", r"hidden", {"head_transposed": True}),
    Mutation("gru_reset", "sequence", "gru_reset", r"gru", {"reset": "before"}, styles=("nnx",)),
    Mutation(
        "forget_bias", "sequence", "forget_bias", r"lstm", {"forget_bias": 1.0}, styles=("nnx",)
    ),
    _outside("clip_state", "sequence", r"lstm", r"^clip\(.*, -0\.21, 0\.33\)$"),
    _outside("up_abs", "sequence", r"up|bilinear|^:", r"^abs\("),
    Mutation(
        "skip_scale", "sequence", "scale|residual_scale", r"skip|add|^:", _extra("skip_scale")
    ),
    Mutation(
        "column_max", "sequence", "pool_kind|reduction", r"mean|lstm|^:", _extra("column_max")
    ),
]

MUTATIONS = VIT + CONV + DECODER + SEQUENCE
