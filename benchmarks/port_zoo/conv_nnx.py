"""The residual net in Flax NNX: NHWC, a batch norm with PyTorch's running update."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .activations import ACTIVATIONS
from .conv_config import ConvConfig, kernel


class BatchNorm(nnx.Module):
    def __init__(self, cfg: ConvConfig, features: int) -> None:
        self.cfg = cfg
        self.use_running_average = not cfg.train
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            running, m = var, cfg.momentum
            self.mean[...] = (1 - m) * mean + m * x.mean((0, 1, 2))
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            sample = var * count / (count - 1) if cfg.unbiased else var
            self.var[...] = (1 - m) * running + m * sample
        return (x - mean) / jnp.sqrt(var + cfg.norm_eps) * self.scale[...] + self.bias[...]


def conv(
    inputs: int, outputs: int, size: int, stride: int = 1, padding="VALID", **kwargs
) -> nnx.Conv:
    kwargs |= {"use_bias": False, "rngs": nnx.Rngs(0), "padding": padding}
    return nnx.Conv(inputs, outputs, (size, size), strides=(stride, stride), **kwargs)


class Bottleneck(nnx.Module):
    def __init__(
        self, cfg: ConvConfig, inputs: int, outputs: int, stride: int, dilation: int
    ) -> None:
        self.cfg = cfg
        s1, s2 = (stride, 1) if cfg.stride_first else (1, stride)
        width = outputs // 2 * 2
        self.conv1 = conv(inputs, width, 1, s1)
        self.bn1 = BatchNorm(cfg, width)
        self.conv2 = conv(
            width,
            width,
            3,
            s2,
            padding=dilation,
            kernel_dilation=dilation,
            feature_group_count=cfg.groups,
        )
        self.bn2 = BatchNorm(cfg, width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = BatchNorm(cfg, outputs)
        self.shortcut = conv(inputs, outputs, 1, stride)
        self.shortcut_bn = BatchNorm(cfg, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.cfg.activation]
        y = act(self.bn1(self.conv1(x)))
        y = act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if "branch_scale" in self.cfg.extra:
            y = y * 0.97
        shortcut = self.shortcut_bn(self.shortcut(x))
        if "shortcut_abs" in self.cfg.extra:
            shortcut = jnp.abs(shortcut)
        return act(y + shortcut)


class ConvNet(nnx.Module):
    """Images (batch, height, width, channels) to logits (batch, classes)."""

    def __init__(self, cfg: ConvConfig) -> None:
        self.cfg = cfg
        self.stem = conv(cfg.channels, cfg.stem, 3, 2, "SAME" if cfg.same_padding else 1)
        self.stem_bn = BatchNorm(cfg, cfg.stem)
        first, second = cfg.widths
        self.block1 = Bottleneck(cfg, cfg.stem, first, stride=1, dilation=cfg.dilation)
        self.block2 = Bottleneck(cfg, first, second, stride=2, dilation=1)
        self.fc1 = nnx.Linear(cfg.flat, cfg.hidden, rngs=nnx.Rngs(0))
        self.fc2 = nnx.Linear(cfg.hidden, cfg.classes, use_bias=cfg.head_bias > 0, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = ACTIVATIONS[cfg.activation](self.stem_bn(self.stem(images)))
        padding = ((1, 1), (1, 1)) if cfg.max_pool == "symmetric" else "SAME"
        x = nnx.max_pool(x, (3, 3), (2, 2), padding)
        if "stem_clip" in cfg.extra:
            x = jnp.minimum(x, 2.17)
        x = self.block2(self.block1(x))
        pads = ((1, 1), (1, 1))
        x = nnx.avg_pool(x, (3, 3), (2, 2), pads, count_include_pad=cfg.count_padding)
        if "pool_centred" in cfg.extra:
            x = x - x.mean(axis=-1, keepdims=True)
        if cfg.flatten == "channels_first":
            x = x.transpose(0, 3, 1, 2)
        x = self.fc1(x.reshape(x.shape[0], -1))
        x = self.fc2(ACTIVATIONS[cfg.slope](x))
        return x + self.fc2.bias[...] if cfg.head_bias == 2 else x


def load(cfg: ConvConfig, state: dict[str, np.ndarray]) -> ConvNet:
    """The port with the weights of a PyTorch `state_dict`."""
    model = nnx.eval_shape(lambda: ConvNet(cfg))

    def conv(layer: nnx.Conv, name: str) -> None:
        axes = (3, 2, 1, 0) if cfg.kernels_transposed else (2, 3, 1, 0)
        layer.kernel.set_value(jnp.asarray(kernel(cfg, state, name).transpose(axes)))

    def norm(layer: BatchNorm, name: str, scale: str | None = None) -> None:
        layer.scale.set_value(jnp.asarray(state[f"{scale or name}.weight"]))
        layer.bias.set_value(jnp.asarray(state[f"{name}.bias"]))
        layer.mean.set_value(jnp.asarray(state[f"{name}.running_mean"]))
        layer.var.set_value(jnp.asarray(state[f"{name}.running_var"]))

    conv(model.stem, "conv1")
    norm(model.stem_bn, "bn1")
    for i in (1, 2):
        block, name = getattr(model, f"block{i}"), f"layer{i}"
        for j in (1, 2, 3):
            conv(getattr(block, f"conv{j}"), f"{name}.conv{j}")
            other = {1: 2, 2: 1, 3: 3}[j] if cfg.swapped else j
            norm(getattr(block, f"bn{j}"), f"{name}.bn{j}", f"{name}.bn{other}")
        conv(block.shortcut, f"{name}.downsample.0")
        norm(block.shortcut_bn, f"{name}.downsample.1")
    for layer, name in ((model.fc1, "fc1"), (model.fc2, "fc2")):
        layer.kernel.set_value(jnp.asarray(state[f"{name}.weight"].T))
        if layer.bias is not None:
            layer.bias.set_value(jnp.asarray(state[f"{name}.bias"]))
    return model
