"""Claim: named models are rows, and impossible models are refused by rows."""

import dataclasses

import pytest

from shared_vit.errors import UserError
from shared_vit.spec import config, families, rules
from shared_vit.spec.config import ModelConfig, model_config, name_of
from shared_vit.spec.families import MODELS, Family
from twinvit.models import formats_of, models, row

pytestmark = pytest.mark.quick

# A combination that breaks each rule, in the order of the rows.
BROKEN = [
    dict(width=100, num_heads=7),
    dict(num_classes=0, pre_logits=8),
    dict(class_token=False),
    dict(norm_after_pool=True),
    dict(pool="map", norm_after_pool=True),
    dict(pool="mean", norm_after_pool=True, final_norm=False),
    dict(pool_class_token=True),
    dict(map_heads=4),
    dict(pool="map", map_heads=7),
    dict(distilled=True, pool="mean"),
    dict(distilled=True, pre_logits=8),
    dict(width=102, num_heads=3, pos_embed="sincos2d"),
    dict(pos_embed="none", prefix_positions=False),
    dict(class_token=False, pool="mean", prefix_positions=False),
    dict(rope="axial", rope_base=100.0, width=132, num_heads=2),
    dict(rope="centred"),
    dict(rope="centred", rope_base=100.0, rope_offset=1.0),
    dict(relative_bias=True, registers=1),
    dict(relative_bias=True, rope="axial", rope_base=100.0),
    dict(post_norm=True, layer_scale="both"),
    dict(activation="silu", gelu="tanh"),
    dict(no_bias=("k", "qkv")),
]


def test_every_rule_refuses_what_it_is_for():
    """And no rule refuses a named model."""
    assert len(BROKEN) == len(rules.RULES)
    for rule, values in zip(rules.RULES, BROKEN):
        with pytest.raises(UserError) as error:
            ModelConfig(**values)
        assert str(error.value) == rule.sentence.format(**vars(ModelConfig()) | values)
    for name in MODELS:
        model_config(name)


def test_every_model_is_listed_and_knows_its_name(capsys):
    models()
    said = capsys.readouterr().out
    for name in MODELS:
        assert f" {name} " in said
        assert name_of(model_config(name)) == name
    assert "vit_b16" in said and "86.6" in said and "arXiv:2010.11929" in said
    assert formats_of("vit_b16") == [
        "torch", "jax", "timm", "torchvision", "huggingface", "google", "big_vision",
        "mae", "dino",
    ]  # fmt: skip


def test_a_family_is_a_row(monkeypatch):
    """Its models are made, named and listed by nothing else."""
    mean = Family("s16 b32", "mean of the patches", "a paper", "MIT", {"pool": "mean"})
    monkeypatch.setitem(families.FAMILIES, "gap", mean)
    for module in (config, families):
        monkeypatch.setattr(module, "MODELS", families._rows())
    cfg = model_config("gap_s16")
    assert (cfg.pool, cfg.width) == ("mean", 384) and name_of(cfg) == "gap_s16"
    assert name_of(dataclasses.replace(cfg, pool="token")) == "vit_s16"
    monkeypatch.setitem(MODELS, "gap_s16", families._rows()["gap_s16"])
    assert row("gap_s16").startswith("gap_s16") and formats_of("gap_s16") == [
        "torch",
        "jax",
        "timm",
    ]
