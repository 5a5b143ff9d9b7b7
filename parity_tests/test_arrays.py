"""Claim: every tensor has one row, with its shape, decay, training and learning-rate layer."""

import dataclasses
import re

import pytest
from helpers import SMALL, VARIANTS

from shared_vit.spec import canonical


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_every_variant(variant):
    cfg = VARIANTS[variant]
    rows = canonical.arrays(cfg)
    assert canonical.shapes(cfg) == {name: row.shape for name, row in rows.items()}
    assert ("cls_token" in rows) == cfg.class_token
    assert ("fc_norm.weight" in rows) == cfg.norm_after_pool != ("norm.weight" in rows)
    assert ("pre_logits.bias" in rows) == (cfg.pre_logits > 0)
    assert canonical.trained(cfg, rows) == [
        n for n in rows if n != "pos_embed" or cfg.pos_embed == "learned"
    ]
    for name, row in rows.items():
        # The weights of products, and nothing else.
        assert row.decay == canonical.is_decayed(name) == (re.search(PRODUCT, name) is not None)


PRODUCT = r"(^patch_embed\.proj|qkv|attn\.proj|fc1|fc2|^pre_logits|^head)\.weight$"


def test_learning_rate_layers_are_maes():
    """`get_layer_id_for_vit` of MAE's fine-tuning: embeddings 0, block i + 1, then the rest."""
    cfg = dataclasses.replace(SMALL, pre_logits=8)
    layers = {name: row.lr_layer for name, row in canonical.arrays(cfg).items()}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert layers[name] == 0
    for i in range(cfg.depth):
        assert {v for n, v in layers.items() if n.startswith(f"blocks.{i}.")} == {i + 1}
    for name in ("norm.weight", "norm.bias", "pre_logits.weight", "head.weight", "head.bias"):
        assert layers[name] == cfg.depth + 1


def test_a_name_without_a_row_is_an_error():
    for name in ("blocks.0.ls3.gamma", "blocks.x.norm1.weight", "head.gain", "blocks.*.x"):
        with pytest.raises(KeyError):
            canonical.is_decayed(name)
    with pytest.raises(KeyError):
        canonical.trained(SMALL, ["reg_token"])
