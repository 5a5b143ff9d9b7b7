"""Explain a small port: a PyTorch encoder, and a port of it to JAX with three mistakes.

    python examples/explain_a_port.py [--html page.html] [--catalogue_only]

It prints what is wrong, where, and the proof, and takes less than half a minute on a laptop.
The first mistake is not in the catalogue: the function `soft_cap` below adds it, with a name. With
--catalogue_only it is left out, and the report tells what the port computes there as it wrote it.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from twinvit import port
from twinvit.port.call import Call
from twinvit.port.causes import Variant

# The reference: PyTorch.


class Block(nn.Module):
    """Pre-norm transformer block over [B, N, D]."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """Patches [B, N, patch] -> logits [B, classes]."""

    def __init__(self, patch: int = 27, width: int = 40, heads: int = 5, depth: int = 2):
        super().__init__()
        self.embed = nn.Linear(patch, width)
        self.blocks = nn.ModuleList(Block(width, heads, 3 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 7)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = self.embed(patches)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


# The port: JAX, plain functions over a tree of parameters.


def layer_norm(p: dict, x: jax.Array, eps: float = 1e-6) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + eps) * p["scale"] + p["bias"]


def dense(p: dict, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def attention(p: dict, x: jax.Array, heads: int) -> jax.Array:
    b, n, d = x.shape
    qkv = dense(p["qkv"], x).reshape(b, n, 3, heads, d // heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d // heads)
    scores = 30 * jnp.tanh(scores / 30)  # Gemma 2 caps them so; the reference does not
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, n, d)


def block(p: dict, x: jax.Array, heads: int) -> jax.Array:
    x = x + dense(p["proj"], attention(p, layer_norm(p["norm1"], x), heads))
    hidden = jax.nn.gelu(dense(p["fc1"], layer_norm(p["norm2"], x)))  # tanh, unless told otherwise
    return x + dense(p["fc2"], hidden)


def encoder(params: dict, patches: jax.Array) -> jax.Array:
    x = dense(params["embed"], patches)
    for p in params["blocks"]:
        x = block(p, x, heads=5)
    x = layer_norm(params["norm"], x, eps=1e-5)  # another epsilon than in the blocks
    return dense(params["head"], x.mean(axis=1))


def converted(model: Encoder) -> dict:
    """The port's own converter: torch's parameters as a tree."""

    def leaf(module: nn.Module) -> dict:
        weight, bias = (t.detach().numpy() for t in (module.weight, module.bias))
        if isinstance(module, nn.LayerNorm):
            return {"scale": weight, "bias": bias}
        return {"kernel": weight.T, "bias": bias}

    names = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
    return {
        "embed": leaf(model.embed),
        "blocks": [{n: leaf(getattr(b, n)) for n in names} for b in model.blocks],
        "norm": leaf(model.norm),
        "head": leaf(model.head),
    }


# A cause of our own: what the port computes, from the arguments of the reference's operation.


def soft_cap(call: Call) -> Iterator[Variant]:
    """The port caps values softly: cap * tanh(x / cap)."""

    def capped(x: torch.Tensor, cap: float) -> torch.Tensor:
        return cap * torch.tanh(x / cap)

    # The cap that gives the port's numbers; 30 is tried first.
    for cap in call.solve(lambda cap: capped(call.out, cap), 0.1, 1000, grid=(30,)):
        yield Variant(
            f"the port caps attention's logits softly: {cap:g} * tanh(x / {cap:g})",
            lambda x, y, cap=cap: capped(x / y, cap),
        )


def make_torch() -> Encoder:
    """The reference, with weights that hide nothing: no bias is zero, no scale is one."""
    torch.manual_seed(0)
    model = Encoder()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))
    return model


def make_jax(model: Encoder) -> port.Function:
    """The port, with the reference's weights."""
    return port.Function(encoder, converted(model))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--html", type=Path, help="write the report as a page")
    parser.add_argument("--catalogue_only", action="store_true", help="leave soft_cap out")
    args = parser.parse_args()
    if not args.catalogue_only:
        port.cause("soft_cap", on="aten.div")(soft_cap)
    model = make_torch()
    patches = np.random.default_rng(0).standard_normal((3, 16, 27))
    report = port.explain(model, make_jax(model), (patches,))
    print(report)
    if args.html:
        report.to_html(args.html)
        print(f"page: {args.html}")
    return 0 if report.same else 1


if __name__ == "__main__":
    raise SystemExit(main())
