"""The Vision Transformer (Dosovitskiy et al. 2021) in Flax NNX.

Read it next to `torch_vit/model.py`, line for line.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jax_vit.attention import Attention
from jax_vit.dropout import Dropout, drop, drop_path
from jax_vit.features import Features
from jax_vit.inputs import check_inputs
from jax_vit.mlp import Mlp
from jax_vit.ops import (
    Conv,
    LayerScale,
    Linear,
    add_positions,
    cast,
    identity,
    make_norm,
    parameter,
    product,
    remat,
    stream,
)
from jax_vit.pooling import AttentionPool
from jax_vit.precision import policy_of
from jax_vit.relative import RelativeIndex
from jax_vit.rope import BlockPositions, Rope
from jax_vit.trace import trace
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.layers import block_numbers
from shared_vit.spec.mask_keys import path_site
from shared_vit.spec.precision import Policy


class PatchEmbed(nnx.Module):
    """Images [B, H, W, 3] -> [B, patches, width]: a convolution whose stride is its size.

    It is computed as one product of flattened patches.
    """

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.patch_size, self.policy = cfg.patch_size, policy
        self.proj = Conv(3, cfg.width, cfg.patch_size, policy, "patch" not in cfg.no_bias)
        has_norm = cfg.embed_norm == "patches"
        self.norm = make_norm(cfg, cfg.width, policy) if has_norm else identity

    def __call__(self, images: Array) -> Array:
        b, h, w, c = images.shape
        p = self.patch_size
        x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.proj.kernel.reshape(p * p * c, -1)
        x = product(x.reshape(b, -1, p * p * c), kernel, self.proj.bias, self.policy)
        return self.norm(x)


class Block(nnx.Module):
    """Pre-norm encoder block [B, N, width] -> the same.

    A site is the number of a dropout in the model, which chooses its random key. Those of dropout
    begin at `site`; the branches are dropped at the rate `path_rate`, with the sites `path_site`
    and `path_site + 1`. positions: what the attention needs of positions (rotary tables or biases).
    """

    def __init__(self, cfg: ModelConfig, policy: Policy):
        self.rate, self.policy = cfg.dropout, policy
        self.norm1 = make_norm(cfg, cfg.width, policy)
        self.attn = Attention(cfg, policy)
        self.ls1 = identity if cfg.layer_scale == "none" else LayerScale(cfg.width, policy)
        self.norm2 = make_norm(cfg, cfg.width, policy)
        self.mlp = Mlp(cfg, policy)
        self.ls2 = LayerScale(cfg.width, policy) if cfg.layer_scale == "both" else identity

    def __call__(
        self,
        x: Array,
        dropout: Dropout,
        positions: BlockPositions,
        site: int,
        path_site: int,
        path_rate: float,
    ) -> Array:
        y = drop(self.attn(self.norm1(x), positions), dropout, site, self.rate)
        y = cast(self.ls1(y), self.policy.param)
        x = x + drop_path(y, dropout, path_site, path_rate)
        y = cast(self.ls2(self.mlp(self.norm2(x), dropout, site + 1)), self.policy.param)
        return x + drop_path(y, dropout, path_site + 1, path_rate)


class PostNormBlock(Block):
    """`Block` whose norms are those of the branches' outputs."""

    def __call__(
        self,
        x: Array,
        dropout: Dropout,
        positions: BlockPositions,
        site: int,
        path_site: int,
        path_rate: float,
    ) -> Array:
        y = self.norm1(drop(self.attn(x, positions), dropout, site, self.rate))
        x = x + drop_path(y, dropout, path_site, path_rate)
        y = self.norm2(self.mlp(x, dropout, site + 1))
        return x + drop_path(y, dropout, path_site + 1, path_rate)


class VisionTransformer(nnx.Module):
    """Normalised images, floats [B, H, W, 3] -> logits [B, classes] in the parameters' dtype.

    With `cfg.num_classes` 0 there is no head, and the output is the pooled features [B, width].

    The constructor leaves the weights unset: zero, and one for LayerNorm's scales.
    `jax_vit.create` initializes them, `jax_vit.from_arrays` and `jax_vit.load` load them.

    `dropout=(keys, rows)` turns dropout and stochastic depth on: keys uint32 [sites, 2]
    (`shared_vit.spec.mask_keys.site_keys`), rows int32 [B], the images' indices in the global
    batch. Without it a call is deterministic. A new model is in eval mode; after `train()`, a call
    without `dropout` raises UserError where `cfg.dropout` or `cfg.drop_path` is above 0.

    The last norm is applied to the class token alone where the logits need no other, and to every
    token under `every_token`.

    With `remat` set, the backward pass recomputes each block from its input, the only tensor that
    is stored.

    Raises UserError for an impossible precision and for images of another layout, size or dtype.
    """

    def __init__(self, cfg: ModelConfig, precision: str = "fp32"):
        check_config(cfg)
        policy = policy_of(precision)
        full = replace(policy, compute=policy.param)
        self.cfg, self.precision, self.policy = cfg, precision, policy
        self.remat = False
        self._embeddings(cfg, policy)
        block = PostNormBlock if cfg.post_norm else Block
        self.blocks = nnx.List(block(cfg, policy) for _ in range(cfg.depth))
        norm = make_norm(cfg, cfg.width, policy) if cfg.final_norm else identity
        self.norm = identity if cfg.norm_after_pool else norm
        self.attn_pool = AttentionPool(cfg, policy) if cfg.pool == "map" else None
        self.fc_norm = norm if cfg.norm_after_pool else identity
        self.pre_logits = Linear(cfg.pooled_width, cfg.pre_logits, full) if cfg.pre_logits else None
        features = cfg.pre_logits or cfg.pooled_width
        self.head = Linear(features, cfg.num_classes, full) if cfg.num_classes else identity
        if cfg.distilled:
            self.head_dist = (
                Linear(features, cfg.num_classes, full) if cfg.num_classes else identity
            )
        self.deterministic = True

    def _embeddings(self, cfg: ModelConfig, policy: Policy) -> None:
        width = cfg.width
        self.cls_token = parameter((1, 1, width), policy) if cfg.class_token else None
        self.dist_token = parameter((1, 1, width), policy) if cfg.distilled else None
        self.reg_token = parameter((1, cfg.registers, width), policy) if cfg.registers else None
        rows, learned = cfg.position_rows, cfg.pos_embed == "learned"
        self.pos_embed = parameter((1, rows, width), policy, trained=learned) if rows else None
        self.patch_embed = PatchEmbed(cfg, policy)
        self.norm_pre = make_norm(cfg, width, policy) if cfg.embed_norm == "tokens" else identity
        # Its name is timm's for rotary positions.
        self.rope = Rope(cfg, policy) if cfg.rope != "none" else None
        self.relative = RelativeIndex(cfg) if cfg.relative_bias else None

    def __call__(self, images: Array, dropout: Dropout = None, every_token: bool = False) -> Array:
        x, _ = self.encode(images, dropout)
        if self.cfg.pool == "token" and not every_token:
            x = x[:, : 1 + self.cfg.distilled]
        x = self.fc_norm(self.pool(self.norm(x)))
        if self.pre_logits is not None:
            x = jnp.tanh(self.pre_logits(x))
        if self.cfg.distilled:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(x)

    def encode(
        self, images: Array, dropout: Dropout = None, kept: tuple[int, ...] = ()
    ) -> tuple[Array, list[Array]]:
        """The tokens after the last block, before the last norm, [B, N, width], and those after
        each of the blocks `kept`."""
        check_inputs(self, images, dropout)
        x = drop(self.embed(images), dropout, 0, self.cfg.dropout)
        x, outputs = self.norm_pre(x), []
        for i, (block, positions) in enumerate(zip(self.blocks, self.block_positions())):
            call = remat(block) if self.remat else block
            paths = path_site(self.cfg.depth, i), self.cfg.path_rate(i)
            x = call(x, dropout, positions, 1 + 3 * i, *paths)
            if i in kept:
                outputs.append(x)
        return x, outputs

    def embed(self, images: Array) -> Array:
        """The tokens before the first block, [B, N, width]: class, distillation, registers,
        patches row by row; with their positions."""
        x = cast(self.patch_embed(images), self.policy.param)
        before = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        has_rows, every = self.pos_embed is not None, self.cfg.prefix_positions
        if has_rows and not every:
            x = add_positions(x, self.pos_embed)
        if before:
            before = [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in before]
            x = jnp.concatenate([*before, x], axis=1)
        return add_positions(x, self.pos_embed) if has_rows and every else stream(x)

    def block_positions(self) -> list[BlockPositions]:
        """For each block, the positions that its attention is given."""
        if self.rope is not None:
            return self.rope.block_positions()
        return [()] * self.cfg.depth if self.relative is None else self.relative.block_positions()

    def pool(self, x: Array) -> Array:
        """[B, N, width] -> [B, width], as `cfg.pool` says: the class token, the mean of the
        patches, or attention pooling.

        `cfg.pool_class_token` says whether the latter two take the tokens before the patches'.
        Of a distilled model the class and distillation tokens are returned, [B, 2, width].
        """
        if self.cfg.distilled:
            return x[:, :2]
        if self.cfg.pool == "token":
            return x[:, 0]
        patches = x if self.cfg.pool_class_token else x[:, self.cfg.num_prefix :]
        if self.attn_pool is not None:
            return self.attn_pool(patches)
        mean = patches.mean(axis=1)
        return mean if self.cfg.pool == "mean" else jnp.concatenate([x[:, 0], mean], axis=-1)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches': class, distillation, registers."""
        return self.cfg.num_prefix

    def features(
        self, images: Array, layers: int | Sequence[int] | None = None, norm: bool = True
    ) -> Features:
        """Tokens and pooled features of normalised images, and the tokens after blocks `layers`:
        their indices from 0, negative ones from the end, or how many of the last.

        `norm` applies the last norm to these too, where it is one of tokens. It can be jitted or
        compiled, and has gradients. Raises UserError for a block that the model does not have.
        """
        kept = block_numbers(self.cfg, layers)
        x, outputs = self.encode(images, None, kept)
        tokens = self.norm(x)
        pooled = self.fc_norm(self.pool(tokens))
        pooled = pooled.mean(axis=1) if self.cfg.distilled else pooled
        chosen = tuple(self.norm(y) if norm else y for y in outputs)
        return Features(tokens, pooled, chosen, self.cfg.grid, self.cfg.num_prefix)

    def trace(self, images: Array) -> dict[str, Array]:
        """`{canonical module name: its output}` of one forward pass, in order of completion.

        `""` is the logits.
        """
        return trace(self, images)
