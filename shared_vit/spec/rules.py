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


RULES = (
    Rule(lambda c: c.width % c.num_heads, "{num_heads} heads do not divide the width {width}"),
    Rule(
        lambda c: c.pre_logits and not c.num_classes,
        "pre_logits belongs to a head: num_classes=0 is a model without one",
    ),
    Rule(
        lambda c: c.pool == "token" and not c.class_token,
        "pool='token' needs class_token=True; without one, use pool='mean'",
    ),
    Rule(
        lambda c: c.pool == "token" and c.norm_after_pool,
        "norm_after_pool belongs to pool='mean'; for pool='token' both orders are the same "
        "function",
    ),
    Rule(
        lambda c: c.pool_class_token and not (c.class_token and c.pool == "mean"),
        "pool_class_token needs class_token=True and pool='mean'",
    ),
    Rule(
        lambda c: c.pos_embed == "sincos2d" and c.width % 4,
        "sincos2d positions need a width divisible by 4, not {width}",
    ),
)


def check_rules(cfg: ModelConfig) -> None:
    """Raise UserError for the first rule that `cfg` breaks."""
    for rule in RULES:
        if rule.broken(cfg):
            raise UserError(rule.sentence.format(**vars(cfg)))
