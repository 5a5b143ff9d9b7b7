"""Claim: the models have the papers' parameter counts, the same in both twins."""

import math

import pytest
import torch
from flax import nnx

from jax_vit.model import VisionTransformer as JaxViT
from shared_vit import model_config
from shared_vit.spec import canonical
from torch_vit.model import VisionTransformer as TorchViT

pytestmark = pytest.mark.quick

COUNTS = {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_h14": 632_045_800,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    cfg = model_config(name)
    abstract = nnx.state(nnx.eval_shape(lambda: JaxViT(cfg)), nnx.Param)
    in_jax = sum(math.prod(v.shape) for _, v in nnx.to_flat_state(abstract))
    with torch.device("meta"):
        in_torch = sum(p.numel() for p in TorchViT(cfg).parameters())
    assert in_jax == in_torch == canonical.num_params(cfg) == COUNTS[name]


def test_vit_means_b16():
    assert model_config("vit") == model_config("vit_b16")
