"""The residual net in Equinox: channels first, batch norm folded into a scale and a shift."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import ACTIVATIONS
from .conv_config import ConvConfig, kernel


class FrozenNorm(eqx.Module):
    """Batch norm with running statistics, per channel of (channels, height, width)."""

    weight: Array
    bias: Array
    mean: Array
    variance: Array
    eps: float = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        scale = self.weight / jnp.sqrt(self.variance + self.eps)
        shift = self.bias - self.mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Bottleneck(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    norms: list[FrozenNorm]
    skip: eqx.nn.Conv2d
    skip_norm: FrozenNorm
    cfg: ConvConfig = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        act = ACTIVATIONS[self.cfg.activation]
        y = act(self.norms[0](self.convs[0](x)))
        y = act(self.norms[1](self.convs[1](y)))
        y = self.norms[2](self.convs[2](y))
        if "branch_scale" in self.cfg.extra:
            y = y * 0.97
        skip = self.skip_norm(self.skip(x))
        if "shortcut_abs" in self.cfg.extra:
            skip = jnp.abs(skip)
        return act(y + skip)


class ConvNet(eqx.Module):
    stem: eqx.nn.Conv2d
    stem_norm: FrozenNorm
    blocks: list[Bottleneck]
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear
    cfg: ConvConfig = eqx.field(static=True)

    def one(self, image: Array) -> Array:
        cfg = self.cfg
        x = ACTIVATIONS[cfg.activation](self.stem_norm(self.stem(image)))
        pads = "SAME" if cfg.max_pool == "same" else ((0, 0), (1, 1), (1, 1))
        window, strides = (1, 3, 3), (1, 2, 2)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pads)
        if "stem_clip" in cfg.extra:
            x = jnp.minimum(x, 2.17)
        for block in self.blocks:
            x = block(x)
        pads = ((0, 0), (1, 1), (1, 1))
        total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, pads)
        count = 9.0
        if not cfg.count_padding:
            ones = jnp.ones_like(x)
            count = jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, strides, pads)
        x = total / count
        if "pool_centred" in cfg.extra:
            x = x - x.mean(axis=0)
        if cfg.flatten == "channels_last":
            x = x.transpose(1, 2, 0)
        x = self.head(ACTIVATIONS[cfg.slope](self.hidden(x.ravel())))
        return x + self.head.bias if cfg.head_bias == 2 else x

    def __call__(self, images: Array) -> Array:
        return jax.vmap(self.one)(images)


def load(cfg: ConvConfig, state: dict[str, np.ndarray]) -> ConvNet:
    """The port with the weights of a PyTorch `state_dict`."""
    key = jax.random.key(0)

    def conv(name: str, **kwargs) -> eqx.nn.Conv2d:
        weight = jnp.asarray(kernel(cfg, state, name))
        out, inputs, size, _ = weight.shape
        inputs *= kwargs.get("groups", 1)
        layer = eqx.filter_eval_shape(
            eqx.nn.Conv2d, inputs, out, size, use_bias=False, key=key, **kwargs
        )
        if cfg.kernels_transposed:
            weight = weight.swapaxes(2, 3)
        return eqx.tree_at(lambda m: m.weight, layer, weight)

    def norm(name: str, scale: str | None = None) -> FrozenNorm:
        names = f"{scale or name}.weight", f"{name}.bias"
        names += f"{name}.running_mean", f"{name}.running_var"
        return FrozenNorm(*(jnp.asarray(state[n]) for n in names), cfg.norm_eps)

    def linear(name: str, bias: bool = True) -> eqx.nn.Linear:
        weight = jnp.asarray(state[f"{name}.weight"])
        layer = eqx.filter_eval_shape(
            eqx.nn.Linear, weight.shape[1], weight.shape[0], use_bias=bias, key=key
        )
        layer = eqx.tree_at(lambda m: m.weight, layer, weight)
        if bias:
            layer = eqx.tree_at(lambda m: m.bias, layer, jnp.asarray(state[f"{name}.bias"]))
        return layer

    blocks = []
    for name, stride, dilation in (("layer1", 1, cfg.dilation), ("layer2", 2, 1)):
        s1, s2 = (stride, 1) if cfg.stride_first else (1, stride)
        spread = {"stride": s2, "padding": dilation, "dilation": dilation, "groups": cfg.groups}
        convs = [conv(f"{name}.conv1", stride=s1), conv(f"{name}.conv2", **spread)]
        convs.append(conv(f"{name}.conv3"))
        order = (2, 1, 3) if cfg.swapped else (1, 2, 3)
        norms = [norm(f"{name}.bn{i}", f"{name}.bn{j}") for i, j in zip((1, 2, 3), order)]
        skip = conv(f"{name}.downsample.0", stride=stride)
        blocks.append(Bottleneck(convs, norms, skip, norm(f"{name}.downsample.1"), cfg))
    padding = "SAME" if cfg.same_padding else 1
    stem = conv("conv1", stride=2, padding=padding)
    head = linear("fc2", bias=cfg.head_bias > 0)
    return ConvNet(stem, norm("bn1"), blocks, linear("fc1"), head, cfg)
