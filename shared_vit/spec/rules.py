"""What no model can be, as rows: a test of a ModelConfig, and the sentence that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from shared_vit.errors import UserError

if TYPE_CHECKING:
    from shared_vit.spec.config import ModelConfig


class Rule(NamedTuple):
    """A combination that is impossible; `{name}` in the sentence is the value of that field."""

    broken: Callable[[ModelConfig], object]
    sentence: str


_AXIAL = ("axial", "axial_xy")

RULES = (
    Rule(lambda c: c.width % c.num_heads, "{num_heads} heads do not divide the width {width}"),
    Rule(
        lambda c: c.pre_logits and not c.num_classes,
        "pre_logits belongs to a head: num_classes=0 is a model without one",
    ),
    Rule(
        lambda c: c.pool in ("token", "token+mean") and not c.class_token,
        "pool={pool!r} needs class_token=True; without one, use pool='mean'",
    ),
    Rule(
        lambda c: c.pool in ("token", "token+mean") and c.norm_after_pool,
        "norm_after_pool belongs to pool='mean'; for pool='token' both orders are the same "
        "function",
    ),
    Rule(
        lambda c: c.pool == "map" and c.norm_after_pool,
        "norm_after_pool belongs to pool='mean': attention pooling has its own norm",
    ),
    Rule(
        lambda c: c.norm_after_pool and not c.final_norm,
        "norm_after_pool says where the final norm is, and final_norm=False leaves it out",
    ),
    Rule(
        lambda c: c.pool_class_token and not (c.num_prefix and c.pool in ("mean", "map")),
        "pool_class_token needs class_token=True (or registers) and pool='mean' or 'map'",
    ),
    Rule(
        lambda c: c.pool != "map" and (c.map_heads or c.map_mlp),
        "map_heads and map_mlp belong to pool='map', not to {pool!r}",
    ),
    Rule(
        lambda c: c.width % c.pooling_heads and c.pool == "map",
        "{map_heads} heads of attention pooling do not divide the width {width}",
    ),
    Rule(
        lambda c: c.distilled and not (c.class_token and c.pool == "token"),
        "distilled needs class_token=True and pool='token', whose logits are averaged with the "
        "distillation token's",
    ),
    Rule(
        lambda c: c.distilled and c.pre_logits,
        "a distilled model has two heads, and pre_logits belongs to a model with one",
    ),
    Rule(
        lambda c: c.pos_embed == "sincos2d" and c.width % 4,
        "sincos2d positions need a width divisible by 4, not {width}",
    ),
    Rule(
        lambda c: c.pos_embed == "none" and not c.prefix_positions,
        "prefix_positions=False says which tokens have rows in pos_embed, and pos_embed='none' has "
        "no rows",
    ),
    Rule(
        lambda c: not c.prefix_positions and not c.num_prefix,
        "prefix_positions=False is about tokens before the patches', and this model has none",
    ),
    Rule(
        lambda c: c.rope != "none" and c.head_width % 4,
        "rotary positions turn a quarter of each head by row and by column: the width of a head "
        "must be divisible by 4, and {width} / {num_heads} is not",
    ),
    Rule(
        lambda c: (c.rope != "none") != (c.rope_base > 0),
        "rope={rope!r} with rope_base={rope_base:g}: rotary positions need a base above 0, and "
        "other models have none",
    ),
    Rule(
        lambda c: c.rope not in _AXIAL and (c.rope_offset or c.rope_grid),
        "rope_offset and rope_grid belong to axial rotary positions, not to rope={rope!r}",
    ),
    Rule(
        lambda c: c.relative_bias and not (c.class_token and c.num_prefix == 1),
        "relative_bias has rows for one class token: it needs class_token=True, and no registers "
        "or distillation token",
    ),
    Rule(
        lambda c: c.relative_bias and c.rope != "none",
        "relative_bias and rope={rope!r} are two kinds of relative positions: no model has both",
    ),
    Rule(
        lambda c: c.post_norm and c.layer_scale != "none",
        "layer_scale={layer_scale!r} belongs to blocks whose norms come first, not to post_norm",
    ),
    Rule(
        lambda c: c.activation != "gelu" and c.gelu != "erf",
        "gelu={gelu!r} is a form of GELU, and the activation is {activation!r}",
    ),
    Rule(
        lambda c: {"k", "qkv"} <= set(c.no_bias),
        "no_bias names 'k' and 'qkv': 'qkv' has the bias of k in it",
    ),
)


def check_rules(cfg: ModelConfig) -> None:
    """Raise UserError for the first rule that `cfg` breaks."""
    for rule in RULES:
        if rule.broken(cfg):
            raise UserError(rule.sentence.format(**vars(cfg)))
