"""The tensors of a ViT, one row each: canonical name, shape, initializer, decay, position.

Canonical names are timm's for `vit_base_patch16_224`, in torch's layouts. Whatever has to know a
tensor reads the rows: first weights, optimizers, formats, checks. A name without a row is an error.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from shared_vit.errors import UserError, some
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.distributions import (
    Constant,
    Distribution,
    LecunNormal,
    Normal,
    RotaryDirections,
    SinCos2d,
    XavierUniform,
)
from shared_vit.spec.relative import table_rows
from shared_vit.spec.sides import shown


@dataclass(frozen=True)
class Array:
    """What is known of one tensor of a model."""

    shape: tuple[int, ...]
    init: Distribution
    decay: bool  # whether weight decay applies
    trained: bool  # whether the optimizer updates it
    lr_layer: int  # 0: embeddings; i + 1: block i; depth + 1: last norm and head


_Condition = Callable[[ModelConfig], bool]
_Shape = Callable[[ModelConfig], tuple[int, ...]]


def _always(cfg: ModelConfig) -> bool:
    return True


@dataclass(frozen=True)
class _Kind:
    """The tensors of one name, in every model and block that has them."""

    shape: _Shape
    init: Distribution | Callable[[ModelConfig], Distribution]
    decay: bool = False
    trained: _Condition = _always
    exists: _Condition = _always


_ZEROS, _ONES = Constant(0.0), Constant(1.0)
_XAVIER, _LECUN = XavierUniform(), LecunNormal()


def _positions(cfg: ModelConfig) -> Distribution:
    return SinCos2d(cfg.grid) if _fixed(cfg) else Normal(0.02)


def _fixed(cfg: ModelConfig) -> bool:
    return cfg.pos_embed == "sincos2d"


def _has_bias(kind: str) -> _Condition:
    return lambda c: kind not in c.no_bias


def _both(a: _Condition, b: _Condition) -> _Condition:
    return lambda c: a(c) and b(c)


def _norm(
    name: str,
    exists: _Condition = _always,
    width: Callable[[ModelConfig], int] = lambda c: c.width,
) -> dict[str, _Kind]:
    has_bias = _both(exists, lambda c: c.norm == "layer")
    return {
        f"{name}.weight": _Kind(lambda c: (width(c),), _ONES, exists=exists),
        f"{name}.bias": _Kind(lambda c: (width(c),), _ZEROS, exists=has_bias),
    }


def _product(
    name: str,
    shape: _Shape,
    weight: Distribution | Callable[[ModelConfig], Distribution],
    bias: Distribution = _ZEROS,
    exists: _Condition = _always,
    has_bias: _Condition = _always,
) -> dict[str, _Kind]:
    return {
        f"{name}.weight": _Kind(shape, weight, decay=True, exists=exists),
        f"{name}.bias": _Kind(lambda c: shape(c)[:1], bias, exists=_both(exists, has_bias)),
    }


def _scale(name: str, exists: _Condition) -> dict[str, _Kind]:
    first = lambda c: Constant(c.layer_scale_init)  # noqa: E731
    return {f"{name}.gamma": _Kind(lambda c: (c.width,), first, exists=exists)}


_pooling: _Condition = lambda c: c.pool == "map"  # noqa: E731
_MLP_BIAS = _has_bias("mlp")

# In the order of the forward pass. The distributions are those of Google's ViT (Dosovitskiy et al.
# 2021), of what it has not those of timm; decay is on the weights of products, not on biases,
# norms, tokens, positions and scales, as in timm.
_KINDS: dict[str, _Kind] = {
    "cls_token": _Kind(lambda c: (1, 1, c.width), _ZEROS, exists=lambda c: c.class_token),
    "dist_token": _Kind(lambda c: (1, 1, c.width), Normal(0.02), exists=lambda c: c.distilled),
    "reg_token": _Kind(
        lambda c: (1, c.registers, c.width), Normal(1e-6), exists=lambda c: c.registers > 0
    ),
    "pos_embed": _Kind(
        lambda c: (1, c.position_rows, c.width),
        _positions,
        trained=lambda c: not _fixed(c),
        exists=lambda c: c.pos_embed != "none",
    ),
    **_product(
        "patch_embed.proj",
        lambda c: (c.width, 3, c.patch_size, c.patch_size),
        _LECUN,
        has_bias=_has_bias("patch"),
    ),
    **_norm("patch_embed.norm", exists=lambda c: c.embed_norm == "patches"),
    **_norm("norm_pre", exists=lambda c: c.embed_norm == "tokens"),
    "rope.freqs": _Kind(
        lambda c: (2, c.depth, c.num_heads, c.head_width // 2),
        lambda c: RotaryDirections(c.rope_base),
        exists=lambda c: c.rope == "mixed",
    ),
    **_norm("blocks.*.norm1"),
    **_product(
        "blocks.*.attn.qkv",
        lambda c: (3 * c.width, c.width),
        XavierUniform(matrices=3),
        has_bias=_has_bias("qkv"),
    ),
    **_norm("blocks.*.attn.q_norm", lambda c: c.qk_norm, lambda c: c.head_width),
    **_norm("blocks.*.attn.k_norm", lambda c: c.qk_norm, lambda c: c.head_width),
    "blocks.*.attn.relative_position_bias_table": _Kind(
        lambda c: (table_rows(c.grid), c.num_heads),
        _ZEROS,
        exists=lambda c: c.relative_bias,
    ),
    **_norm("blocks.*.attn.norm", lambda c: c.inner_norm == "both"),
    **_product(
        "blocks.*.attn.proj",
        lambda c: (c.width, c.width),
        _XAVIER,
        has_bias=_has_bias("proj"),
    ),
    **_scale("blocks.*.ls1", lambda c: c.layer_scale != "none"),
    **_norm("blocks.*.norm2"),
    **_product(
        "blocks.*.mlp.fc1",
        lambda c: (c.mlp_dim * (2 if c.gated else 1), c.width),
        lambda c: XavierUniform(2) if c.gated else _XAVIER,
        Normal(1e-6),
        has_bias=_MLP_BIAS,
    ),
    **_norm("blocks.*.mlp.norm", lambda c: c.inner_norm != "none", lambda c: c.mlp_dim),
    **_product(
        "blocks.*.mlp.fc2",
        lambda c: (c.width, c.mlp_dim),
        _XAVIER,
        Normal(1e-6),
        has_bias=_MLP_BIAS,
    ),
    **_scale("blocks.*.ls2", lambda c: c.layer_scale == "both"),
    **_norm("norm", exists=lambda c: c.final_norm and not c.norm_after_pool),
    "attn_pool.latent": _Kind(
        lambda c: (1, 1, c.width),
        lambda c: Normal(c.width**-0.5),
        decay=True,
        exists=_pooling,
    ),
    **_product("attn_pool.q", lambda c: (c.width, c.width), _XAVIER, exists=_pooling),
    **_product("attn_pool.kv", lambda c: (2 * c.width, c.width), XavierUniform(2), exists=_pooling),
    **_product("attn_pool.proj", lambda c: (c.width, c.width), _XAVIER, exists=_pooling),
    **_norm("attn_pool.norm", exists=_pooling),
    **_product(
        "attn_pool.mlp.fc1",
        lambda c: (c.pooling_mlp, c.width),
        _XAVIER,
        Normal(1e-6),
        exists=_pooling,
    ),
    **_product(
        "attn_pool.mlp.fc2",
        lambda c: (c.width, c.pooling_mlp),
        _XAVIER,
        Normal(1e-6),
        exists=_pooling,
    ),
    **_norm("fc_norm", exists=lambda c: c.norm_after_pool),
    **_product(
        "pre_logits",
        lambda c: (c.pre_logits, c.pooled_width),
        _LECUN,
        exists=lambda c: c.pre_logits > 0,
    ),
    **_product(
        "head",
        lambda c: (c.num_classes, c.pre_logits or c.pooled_width),
        _ZEROS,
        exists=lambda c: c.num_classes > 0,
    ),
    **_product(
        "head_dist",
        lambda c: (c.num_classes, c.width),
        _ZEROS,
        exists=lambda c: c.num_classes > 0 and c.distilled,
    ),
}
_BLOCK = "blocks.*."
_EMBEDDINGS = (
    "cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.", "rope.",
)  # fmt: skip


def arrays(cfg: ModelConfig) -> dict[str, Array]:
    """`{canonical name: Array}` of every tensor of the model, in the order of the forward pass.

    `lr_layer` counts as MAE's layer-wise learning rates do (He et al. 2022).
    """
    return dict(_arrays(cfg))


@cache
def _arrays(cfg: ModelConfig) -> dict[str, Array]:
    """`arrays`, made once: a trainer needs it for each state that it loads or returns."""
    before = [n for n in _KINDS if n.startswith(_EMBEDDINGS)]
    block = [n for n in _KINDS if n.startswith(_BLOCK)]
    after = [n for n in _KINDS if n not in (*before, *block)]
    places = [(name, name, 0) for name in before]
    for i in range(cfg.depth):
        places += [(kind.replace("*", str(i), 1), kind, i + 1) for kind in block]
    places += [(name, name, cfg.depth + 1) for name in after]
    rows = ((name, _KINDS[kind], layer) for name, kind, layer in places)
    return {name: _row(cfg, kind, layer) for name, kind, layer in rows if kind.exists(cfg)}


def _row(cfg: ModelConfig, kind: _Kind, layer: int) -> Array:
    init = kind.init(cfg) if callable(kind.init) else kind.init
    return Array(kind.shape(cfg), init, kind.decay, kind.trained(cfg), layer)


def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """`{canonical name: shape}` of every tensor of the model, in the order of the forward pass."""
    return {name: row.shape for name, row in arrays(cfg).items()}


def trained(cfg: ModelConfig, names: Iterable[str]) -> list[str]:
    """Those of `names` that the optimizer updates: all but fixed sin-cos positions."""
    rows = arrays(cfg)
    return [n for n in names if rows[n].trained]


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to the tensor of this name, in every model that has it.

    Raises KeyError for a name that no model has.
    """
    return _KINDS[re.sub(r"^blocks\.\d+\.", _BLOCK, name)].decay


def has_unseen_key_bias(cfg: ModelConfig) -> bool:
    """Whether the bias of keys is no part of the function: a softmax takes no notice of what is
    added to all scores of a query. Rotary positions and norms of keys make it count."""
    return cfg.rope == "none" and not cfg.qk_norm and not {"k", "qkv"} & set(cfg.no_bias)


def num_params(cfg: ModelConfig) -> int:
    """Number of parameters, fixed positions not counted."""
    return sum(math.prod(row.shape) for row in arrays(cfg).values() if row.trained)


class Shaped(Protocol):
    """Anything with a shape: arrays in memory, on disk, of any framework."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check(cfg: ModelConfig, arrays: Mapping[str, Shaped], where: str = "these weights") -> None:
    """Raise UserError, naming the tensors, unless names and shapes are those that `cfg` needs."""
    expected = shapes(cfg)
    wrong = [
        f"{n} has shape {tuple(arrays[n].shape)}, expected {s}"
        for n, s in expected.items()
        if n in arrays and tuple(arrays[n].shape) != s
    ]
    missing = [n for n in expected if n not in arrays]
    extra = [n for n in arrays if n not in expected]
    kinds = (("", wrong), ("missing: ", missing), ("unknown: ", extra))
    faults = [label + some(items, separator=", ") for label, items in kinds if items]
    if faults:
        raise UserError(
            f"{where} do not fit the model (width {cfg.width}, depth {cfg.depth}, patch "
            f"{cfg.patch_size}, image {shown(cfg.image_shape)}, {cfg.num_classes} classes): "
            f"{'; '.join(faults)}"
        )
