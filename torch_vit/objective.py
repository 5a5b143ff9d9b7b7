"""The loss of uint8 images and labels, mixed or not. Twin of `jax_vit/objective.py`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_vit.spec.pixels import normalization
from shared_vit.spec.recipe import Loss
from torch_vit.dropout import Dropout
from torch_vit.model import VisionTransformer
from torch_vit.ops import dtype_of


class Mixing(NamedTuple):
    """A `shared_vit.data.mixing.Mix` on the device."""

    numbers: Tensor  # [lam, pixels] in the parameters' dtype
    box: Tensor  # int32 [top, left, bottom, right]


class Objective(nn.Module):
    """Sum of the losses of uint8 images [B, H, W, 3] and labels [B].

    It is a scalar in the parameters' dtype.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: VisionTransformer,
        kind: Loss = "softmax",
        smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
    ):
        super().__init__()
        self.model, self.kind, self.smoothing = model, kind, smoothing
        device, dtype = model.patch_embed.proj.weight.device, dtype_of(model.policy.param)
        scale, shift = (torch.from_numpy(a).to(device, dtype) for a in normalization(model.cfg))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        weights = torch.tensor(class_weights, dtype=dtype, device=device) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        dropout: Dropout = None,
        mixing: Mixing | None = None,
    ) -> Tensor:
        logits = self.logits(images, dropout, mixing)
        if self.class_weights is not None:
            each = losses(logits, labels, self.kind, self.smoothing, mixing)
            return (each * weights_of_rows(self.class_weights, labels, mixing)).sum()
        if self.kind == "softmax" and not self.smoothing and mixing is None:
            return F.cross_entropy(logits, labels, reduction="sum")  # sums in another order
        return losses(logits, labels, self.kind, self.smoothing, mixing).sum()

    def logits(
        self, images: Tensor, dropout: Dropout = None, mixing: Mixing | None = None
    ) -> Tensor:
        x = images.to(self.scale.dtype) * self.scale + self.shift
        x = x if mixing is None else mix(x, mixing)
        return self.model(x.permute(0, 3, 1, 2), dropout)


def losses(
    logits: Tensor,
    labels: Tensor,
    kind: Loss,
    smoothing: float = 0.0,
    mixing: Mixing | None = None,
) -> Tensor:
    """The loss [B] of each row of logits [B, K], for its own label and for its partner's.

    softmax: cross-entropy; sigmoid: binary cross-entropies summed over the classes. The target is
    (1 - s) (lam own + (1 - lam) partner's) + s / K, s = `smoothing` (Szegedy et al. 2016), and
    no [B, K] of targets is made: both losses are linear in it.
    """
    if kind == "softmax" and not smoothing and mixing is None:
        return F.cross_entropy(logits, labels, reduction="none")
    target = logits.gather(1, labels[:, None])[:, 0]
    if mixing is not None:
        lam = mixing.numbers[0]
        partners = logits.gather(1, swap_pairs(labels)[:, None])[:, 0]
        target = lam * target + (1 - lam) * partners
    if smoothing:
        target = (1 - smoothing) * target + smoothing * logits.mean(1)
    if kind == "softmax":
        return torch.logsumexp(logits, 1) - target
    return -F.logsigmoid(-logits).sum(1) - target


def weights_of_rows(weights: Tensor, labels: Tensor, mixing: Mixing | None = None) -> Tensor:
    """The weight [B] of each row's loss: its class's, or of mixed rows the mean of both classes' by
    `lam`."""
    own = weights[labels]
    if mixing is None:
        return own
    return mixing.numbers[0] * own + (1 - mixing.numbers[0]) * swap_pairs(own)


def mix(x: Tensor, mixing: Mixing) -> Tensor:
    """Images [B, H, W, 3], each mixed with its partner: row r with row r XOR 1.

    Mixup (Zhang et al. 2018) outside the box, the partner's pixels inside (cutmix, Yun et al.
    2019).
    """
    pixels, partners = mixing.numbers[1], swap_pairs(x)
    top, left, bottom, right = mixing.box
    row = torch.arange(x.shape[1], device=x.device)[:, None, None]
    column = torch.arange(x.shape[2], device=x.device)[:, None]
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return torch.where(inside, partners, pixels * x + (1 - pixels) * partners)


def swap_pairs(x: Tensor) -> Tensor:
    """x [B, ...] with rows 2 i and 2 i + 1 exchanged."""
    return x.reshape(-1, 2, *x.shape[1:]).flip(1).reshape(x.shape)


def group_of(x: Tensor, group: int, groups: int) -> Tensor:
    """The rows [B / groups, ...] of x [B, ...] of a group (see `shared_vit.spec.sam.sam_group`)."""
    return x.unflatten(0, (-1, groups, 2))[:, group].flatten(0, 1)
