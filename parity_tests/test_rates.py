"""Rates, frozen tensors, groups and decays are the written rules, by canonical name."""

import numpy as np
import pytest

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.ema import ema_decay
from shared_vit.spec.lr_scales import frozen, lr_scales
from shared_vit.spec.recipe import parse_freeze
from shared_vit.spec.sam import check_sam_groups, sam_group

pytestmark = pytest.mark.quick

SIZES = dict(image_size=8, patch_size=4, width=8, num_heads=2, mlp_dim=16, num_classes=3)
TOKEN = ModelConfig(depth=3, pre_logits=5, **SIZES)
MEAN = ModelConfig(
    depth=2, class_token=False, pool="mean", norm_after_pool=True, pos_embed="sincos2d", **SIZES
)


def layer_of(name: str, depth: int) -> int:
    """MAE's `get_layer_id_for_vit` (util/lr_decay.py), restated."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks"):
        return int(name.split(".")[1]) + 1
    return depth + 1


@pytest.mark.parametrize("cfg", [TOKEN, MEAN])
@pytest.mark.parametrize("decay", [0.65, 1.0])
def test_rates_are_maes(cfg, decay):
    found = lr_scales(cfg, decay)
    assert list(found) == list(canonical.shapes(cfg))
    for name, scale in found.items():
        assert scale == decay ** (cfg.depth + 1 - layer_of(name, cfg.depth))
    last = "fc_norm" if cfg is MEAN else "norm"
    assert found[f"{last}.weight"] == found["head.bias"] == 1
    assert found["pos_embed"] == decay ** (cfg.depth + 1)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, float("nan")])
def test_an_impossible_layer_decay_is_refused(decay):
    with pytest.raises(UserError, match="--layer_decay must be above 0 and at most 1"):
        lr_scales(TOKEN, decay)


def test_frozen_tensors():
    names = set(canonical.shapes(TOKEN))
    embeddings = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    head = {"pre_logits.weight", "pre_logits.bias", "head.weight", "head.bias"}
    assert frozen(TOKEN, "none") == set()
    assert frozen(TOKEN, "embed") == frozen(TOKEN, 0) == embeddings
    assert frozen(TOKEN, "trunk") == names - head
    two = embeddings | {n for n in names if n.startswith(("blocks.0.", "blocks.1."))}
    assert frozen(TOKEN, 2) == two and len(two) == 4 + 2 * 12
    assert names - frozen(TOKEN, 3) == head | {"norm.weight", "norm.bias"}
    assert "cls_token" not in frozen(MEAN, "trunk") and "fc_norm.bias" in frozen(MEAN, "trunk")
    with pytest.raises(UserError, match="--freeze=4: .* the model has 3 blocks"):
        frozen(TOKEN, 4)


def test_the_flag_of_frozen_tensors():
    assert [parse_freeze(t) for t in ("none", "embed", "trunk", "0", "12")] == [
        "none", "embed", "trunk", 0, 12
    ]  # fmt: skip
    for text in ("", "-1", "head", "1.5", "²"):
        with pytest.raises(UserError, match="--freeze=.* expected none, embed, trunk"):
            parse_freeze(text)


def test_groups_of_sam_are_alike_on_any_number_of_devices():
    rows = np.arange(24)
    found = sam_group(rows, 3)
    assert found.tolist() == [0, 0, 1, 1, 2, 2] * 4
    assert np.array_equal(found, sam_group(rows ^ 1, 3))  # pairs stay together
    assert sam_group(rows, 1).max() == 0
    for devices in (1, 2, 4):
        check_sam_groups(24, devices, 3)
        for share in found.reshape(devices, -1):
            assert np.bincount(share).tolist() == [8 // devices] * 3
    with pytest.raises(UserError, match="--sam_groups=3: --batch_size=24 is not divisible"):
        check_sam_groups(24, 8, 3)


def test_the_decay_of_the_average_warms_up():
    assert ema_decay(0.9998, 1) == 2 / 11
    assert ema_decay(0.9998, 90) == 91 / 100
    assert ema_decay(0.9, 79) < 0.9 == ema_decay(0.9, 80) == ema_decay(0.9, 10**9)
    assert ema_decay(0.0, 5) == 0
