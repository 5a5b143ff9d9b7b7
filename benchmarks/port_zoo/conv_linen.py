"""The residual net in Flax Linen: NHWC, batch statistics as a mutable collection."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .activations import ACTIVATIONS
from .conv_config import ConvConfig, kernel


class BatchNorm(nn.Module):
    cfg: ConvConfig
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, shape = self.cfg, (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        ra_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        ra_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if self.train:
            mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            keep = 1 - cfg.momentum
            n = x.shape[0] * x.shape[1] * x.shape[2]
            correction = n / (n - 1) if cfg.unbiased else 1
            if self.is_mutable_collection("batch_stats"):
                ra_mean.value = keep * ra_mean.value + (1 - keep) * mean
                ra_var.value = keep * ra_var.value + (1 - keep) * correction * var
        else:
            mean, var = ra_mean.value, ra_var.value
        return (x - mean) * (scale * jax.lax.rsqrt(var + cfg.norm_eps)) + bias


class ResNetBlock(nn.Module):
    cfg: ConvConfig
    filters: int
    strides: int
    dilation: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        act, norm = ACTIVATIONS[cfg.activation], partial(BatchNorm, cfg, self.train)
        conv = partial(nn.Conv, use_bias=False, padding="VALID")
        s1, s2 = (self.strides, 1) if cfg.stride_first else (1, self.strides)
        width = self.filters // 2 * 2
        y = conv(width, (1, 1), strides=s1, name="conv1")(x)
        y = act(norm(name="bn1")(y))
        y = conv(
            width,
            (3, 3),
            strides=s2,
            padding=self.dilation,
            kernel_dilation=self.dilation,
            feature_group_count=cfg.groups,
            name="conv2",
        )(y)
        y = act(norm(name="bn2")(y))
        y = conv(self.filters, (1, 1), name="conv3")(y)
        y = norm(name="bn3")(y)
        if "branch_scale" in cfg.extra:
            y = 0.97 * y
        residual = conv(self.filters, (1, 1), strides=self.strides, name="proj_conv")(x)
        residual = norm(name="proj_norm")(residual)
        if "shortcut_abs" in cfg.extra:
            residual = jnp.abs(residual)
        return act(residual + y)


class ResNet(nn.Module):
    cfg: ConvConfig

    @nn.compact
    def __call__(self, images: jax.Array, train: bool | None = None) -> jax.Array:
        cfg = self.cfg
        train = cfg.train if train is None else train
        act = ACTIVATIONS[cfg.activation]
        pads = "SAME" if cfg.same_padding else [(1, 1), (1, 1)]
        x = nn.Conv(cfg.stem, (3, 3), strides=2, padding=pads, use_bias=False, name="stem")(images)
        x = act(BatchNorm(cfg, train, name="stem_norm")(x))
        pool_pads = "SAME" if cfg.max_pool == "same" else [(1, 1), (1, 1)]
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=pool_pads)
        if "stem_clip" in cfg.extra:
            x = jnp.minimum(x, 2.17)
        x = ResNetBlock(cfg, cfg.widths[0], 1, cfg.dilation, train, name="stage1")(x)
        x = ResNetBlock(cfg, cfg.widths[1], 2, 1, train, name="stage2")(x)
        pads = [(1, 1), (1, 1)]
        x = nn.avg_pool(x, (3, 3), (2, 2), pads, count_include_pad=cfg.count_padding)
        if "pool_centred" in cfg.extra:
            x -= x.mean(axis=-1, keepdims=True)
        if cfg.flatten == "channels_first":
            x = jnp.moveaxis(x, -1, 1)
        x = x.reshape((x.shape[0], -1))
        x = ACTIVATIONS[cfg.slope](nn.Dense(cfg.hidden, name="hidden")(x))
        x = nn.Dense(cfg.classes, use_bias=cfg.head_bias > 0, name="head")(x)
        if cfg.head_bias == 2:
            x = x + self.get_variable("params", "head")["bias"]
        return x


def load(cfg: ConvConfig, state: dict[str, np.ndarray]) -> tuple[nn.Module, dict]:
    """The module and its variables, with the weights of a PyTorch `state_dict`."""
    params: dict = {}
    stats: dict = {}

    def conv(name: str) -> dict:
        axes = (3, 2, 1, 0) if cfg.kernels_transposed else (2, 3, 1, 0)
        return {"kernel": kernel(cfg, state, name).transpose(axes)}

    def norm(name: str, scale: str | None = None) -> tuple[dict, dict]:
        return (
            {"scale": state[f"{scale or name}.weight"], "bias": state[f"{name}.bias"]},
            {"mean": state[f"{name}.running_mean"], "var": state[f"{name}.running_var"]},
        )

    params["stem"] = conv("conv1")
    params["stem_norm"], stats["stem_norm"] = norm("bn1")
    for i in (1, 2):
        block, block_stats, name = {}, {}, f"layer{i}"
        for j in (1, 2, 3):
            block[f"conv{j}"] = conv(f"{name}.conv{j}")
            other = {1: 2, 2: 1, 3: 3}[j] if cfg.swapped else j
            block[f"bn{j}"], block_stats[f"bn{j}"] = norm(f"{name}.bn{j}", f"{name}.bn{other}")
        block["proj_conv"] = conv(f"{name}.downsample.0")
        block["proj_norm"], block_stats["proj_norm"] = norm(f"{name}.downsample.1")
        params[f"stage{i}"], stats[f"stage{i}"] = block, block_stats
    for layer, name in (("hidden", "fc1"), ("head", "fc2")):
        params[layer] = {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
    if cfg.head_bias == 0:
        del params["head"]["bias"]
    variables = {"params": params, "batch_stats": stats}
    return ResNet(cfg), jax.tree.map(jnp.asarray, variables)
