"""A small Vision Transformer and its port, with mistakes to plant, for the tests of
`twinvit.port`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, HIDDEN, LAYERS = 24, 3, 40, 2


class Block(nn.Module):
    """A pre-norm transformer block with q, k, v in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .reshape(b, n, 3, HEADS, d // HEADS)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Images (B, 3, 12, 12) to logits (B, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos = nn.Parameter(torch.zeros(1, 10, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def reference(seed: int = 0) -> ViT:
    """The model with weights of which none is constant."""
    torch.manual_seed(seed)
    model = ViT().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def images(seed: int = 0) -> np.ndarray:
    """Two images as PyTorch takes them, float32."""
    return np.random.default_rng(seed).standard_normal((2, 3, 12, 12)).astype(np.float32)


def params(model: ViT, stacked: bool = False) -> dict[str, Any]:
    """The weights as the port holds them: other names, kernels transposed, q/k/v apart, layers
    stacked if asked for."""

    def get(t: torch.Tensor) -> np.ndarray:
        return t.detach().numpy()

    layers = []
    for block in model.blocks:
        w, b = get(block.qkv.weight).T, get(block.qkv.bias)
        layer = {
            "g1": get(block.norm1.weight),
            "b1": get(block.norm1.bias),
            "g2": get(block.norm2.weight),
            "b2": get(block.norm2.bias),
            "out": get(block.proj.weight).T,
            "out_b": get(block.proj.bias),
            "up": get(block.fc1.weight).T,
            "up_b": get(block.fc1.bias),
            "down": get(block.fc2.weight).T,
            "down_b": get(block.fc2.bias),
        }
        for i, name in enumerate("qkv"):
            layer["w" + name] = w[:, i * WIDTH : (i + 1) * WIDTH].reshape(WIDTH, HEADS, -1)
            layer["b" + name] = b[i * WIDTH : (i + 1) * WIDTH].reshape(HEADS, -1)
        layers.append(layer)
    return {
        "patch": get(model.patch.weight).transpose(2, 3, 1, 0),
        "patch_b": get(model.patch.bias),
        "cls": get(model.cls),
        "pos": get(model.pos),
        "g": get(model.norm.weight),
        "b": get(model.norm.bias),
        "head": get(model.head.weight).T,
        "head_b": get(model.head.bias),
        "layers": jax.tree.map(lambda *x: np.stack(x), *layers) if stacked else layers,
    }


def port(
    p: dict[str, Any],
    x: jax.Array,
    *,
    tanh: bool = False,
    eps: float = 1e-6,
    scale: float | None = None,
    order: str = "qkv",
    bias: bool = True,
    columns: bool = False,
    transposed: bool = False,
    axis: int = -1,
    cap: float | None = None,
    narrow: bool = False,
) -> jax.Array:
    """The port on NHWC images, with the mistakes that the arguments name."""
    if x.shape[-1] != 3:
        raise ValueError("images are NHWC")

    def norm(x: jax.Array, g: jax.Array, b: jax.Array) -> jax.Array:
        mean = x.mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * g + b

    def block(x: jax.Array, l: dict[str, jax.Array]) -> jax.Array:  # noqa: E741
        y = norm(x, l["g1"], l["b1"])
        q, k, v = (jnp.einsum("bnd,dhe->bnhe", y, l["w" + n]) + l["b" + n] for n in order)
        scores = jnp.einsum(
            "bqhe,bkhe->bhqk", q * (q.shape[-1] ** -0.5 if scale is None else scale), k
        )
        weights = jax.nn.softmax(scores.astype(jnp.float32) if narrow else scores, axis)
        y = jnp.einsum("bhqk,bkhe->bqhe", weights, v).reshape(x.shape)
        y = x + y @ (l["out"].T if transposed else l["out"]) + (l["out_b"] if bias else 0)
        h = jax.nn.gelu(norm(y, l["g2"], l["b2"]) @ l["up"] + l["up_b"], approximate=tanh)
        if cap is not None:
            h = cap * jnp.arctan(h / cap)
        return y + h @ l["down"] + l["down_b"]

    x = (
        jax.lax.conv_general_dilated(
            x, p["patch"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        + p["patch_b"]
    )
    x = (x.swapaxes(1, 2) if columns else x).reshape(len(x), -1, WIDTH)
    x = jnp.concatenate([jnp.broadcast_to(p["cls"], (len(x), 1, WIDTH)), x], 1) + p["pos"]
    if isinstance(p["layers"], dict):
        x, _ = jax.lax.scan(lambda c, w: (block(c, w), None), x, p["layers"])
    else:
        for layer in p["layers"]:
            x = block(x, layer)
    return norm(x[:, 0], p["g"], p["b"]) @ p["head"] + p["head_b"]
