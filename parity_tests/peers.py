# ruff: noqa: E402
"""timm's, torchvision's and transformers' own ViTs, built here and given random weights.

Nothing of the converters is used.
"""

import functools

from twinvit.convert.libraries import without_torchvision_operators

without_torchvision_operators()

import numpy as np
import timm
import torch
import torchvision
import transformers
from torch import nn

from shared_vit.spec.config import ModelConfig


def timm_model(cfg: ModelConfig, **changes) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=cfg.image_size,
        patch_size=cfg.patch_size,
        embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.num_heads,
        mlp_ratio=cfg.mlp_dim / cfg.width,
        num_classes=cfg.num_classes,
        global_pool="avg" if cfg.pool == "mean" else "token",
        fc_norm=cfg.norm_after_pool,
        class_token=cfg.class_token,
        pool_include_prefix=cfg.pool_class_token,
        act_layer="gelu_tanh" if cfg.gelu == "tanh" else "gelu",
        norm_layer=functools.partial(timm.layers.LayerNorm, eps=cfg.norm_eps),
        **changes,
    ).eval()


def torchvision_model(cfg: ModelConfig) -> nn.Module:
    model = torchvision.models.VisionTransformer(
        cfg.image_size, cfg.patch_size, cfg.depth, cfg.num_heads, cfg.width, cfg.mlp_dim,
        num_classes=cfg.num_classes, representation_size=cfg.pre_logits or None,
        norm_layer=functools.partial(nn.LayerNorm, eps=cfg.norm_eps),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh" if cfg.gelu == "tanh" else "none"
    return model.eval()


def huggingface_config(cfg: ModelConfig) -> transformers.ViTConfig:
    return transformers.ViTConfig(
        hidden_size=cfg.width, num_hidden_layers=cfg.depth, num_attention_heads=cfg.num_heads,
        intermediate_size=cfg.mlp_dim, image_size=cfg.image_size, patch_size=cfg.patch_size,
        hidden_act="gelu_pytorch_tanh" if cfg.gelu == "tanh" else "gelu",
        layer_norm_eps=cfg.norm_eps,
        num_labels=cfg.num_classes,
    )  # fmt: skip


def huggingface_model(cfg: ModelConfig) -> nn.Module:
    return transformers.ViTForImageClassification(huggingface_config(cfg)).eval()


BUILD = {"timm": timm_model, "torchvision": torchvision_model, "huggingface": huggingface_model}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights without a zero or constant tensor, at the scale of a trained model's."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        values = rng.standard_normal(parameter.shape)
        if parameter.ndim in (2, 4):
            values *= 1.5 / np.sqrt(np.prod(parameter.shape[1:]))
        elif ("norm" in name or ".ln" in name) and name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return model


def logits(model: nn.Module, images: np.ndarray, precision: str) -> np.ndarray:
    """Logits [B, classes] of images [B, H, W, 3], in float64."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)
    with torch.no_grad():
        out = model.to(dtype)(batch)
    return getattr(out, "logits", out).double().numpy()
