"""The loss of uint8 images and labels, mixed or not. Twin of `torch_vit/objective.py`."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jax_vit.dropout import Dropout
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.pixels import normalization
from shared_vit.spec.recipe import Loss


class Mixing(NamedTuple):
    """A `shared_vit.data.mixing.Mix` on the device."""

    numbers: Array  # [lam, pixels] in the parameters' dtype
    box: Array  # int32 [top, left, bottom, right]


class Objective:
    """Sum of the losses of uint8 images [B, H, W, 3] and labels [B].

    It is a scalar in the parameters' dtype.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        cfg: ModelConfig,
        dtype: np.dtype,
        kind: Loss = "softmax",
        smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
    ):
        self.graphdef, self.kind, self.smoothing = graphdef, kind, smoothing
        self.scale, self.shift = (a.astype(dtype) for a in normalization(cfg))
        self.class_weights = np.array(class_weights, dtype) if class_weights else None

    def __call__(
        self,
        params: nnx.State,
        fixed: nnx.State,
        images: Array,
        labels: Array,
        dropout: Dropout = None,
        mixing: Mixing | None = None,
    ) -> Array:
        logits = self.logits(params, fixed, images, dropout, mixing)
        each = losses(logits, labels, self.kind, self.smoothing, mixing)
        if self.class_weights is None:
            return each.sum()
        return (each * weights_of_rows(jnp.asarray(self.class_weights), labels, mixing)).sum()

    def logits(
        self,
        params: nnx.State,
        fixed: nnx.State,
        images: Array,
        dropout: Dropout = None,
        mixing: Mixing | None = None,
    ) -> Array:
        x = images.astype(self.scale.dtype) * self.scale + self.shift
        x = x if mixing is None else mix(x, mixing)
        # Variables of this trace: `nnx.remat` in a scan refuses frozen ones from outside it.
        fixed = jax.tree.map(lambda a: a, fixed)
        return nnx.merge(self.graphdef, params, fixed)(x, dropout)


def losses(
    logits: Array,
    labels: Array,
    kind: Loss,
    smoothing: float = 0.0,
    mixing: Mixing | None = None,
) -> Array:
    """The loss [B] of each row of logits [B, K], for its own label and for its partner's.

    softmax: cross-entropy; sigmoid: binary cross-entropies summed over the classes. The target is
    (1 - s) (lam own + (1 - lam) partner's) + s / K, s = `smoothing` (Szegedy et al. 2016), and
    no [B, K] of targets is made: both losses are linear in it.
    """
    if kind == "softmax" and not smoothing and mixing is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    target = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    if mixing is not None:
        lam = mixing.numbers[0]
        partners = jnp.take_along_axis(logits, swap_pairs(labels)[:, None], axis=1)[:, 0]
        target = lam * target + (1 - lam) * partners
    if smoothing:
        target = (1 - smoothing) * target + smoothing * logits.mean(1)
    if kind == "softmax":
        return jax.nn.logsumexp(logits, axis=1) - target
    return -jax.nn.log_sigmoid(-logits).sum(1) - target


def weights_of_rows(weights: Array, labels: Array, mixing: Mixing | None = None) -> Array:
    """The weight [B] of each row's loss: its class's, or of mixed rows the mean of both classes' by
    `lam`."""
    own = weights[labels]
    if mixing is None:
        return own
    return mixing.numbers[0] * own + (1 - mixing.numbers[0]) * swap_pairs(own)


def mix(x: Array, mixing: Mixing) -> Array:
    """Images [B, H, W, 3], each mixed with its partner: row r with row r XOR 1.

    Mixup (Zhang et al. 2018) outside the box, the partner's pixels inside (cutmix, Yun et al.
    2019).
    """
    pixels, partners = mixing.numbers[1], swap_pairs(x)
    top, left, bottom, right = mixing.box
    row = jnp.arange(x.shape[1])[:, None, None]
    column = jnp.arange(x.shape[2])[:, None]
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return jnp.where(inside, partners, pixels * x + (1 - pixels) * partners)


def swap_pairs(x: Array) -> Array:
    """x [B, ...] with rows 2 i and 2 i + 1 exchanged."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def by_group(x: Array, groups: int) -> Array:
    """x [parts, B, ...] as [groups, parts, B / groups, ...], the rows of each group together (see
    `shared_vit.spec.sam.sam_group`)."""
    parts, _, *rest = x.shape
    pairs = x.reshape(parts, -1, groups, 2, *rest)
    return jnp.moveaxis(pairs, 2, 0).reshape(groups, parts, -1, *rest)
