"""A difference that no cause explains is told as the port wrote it, and proven on other inputs.

Each wrong port computes something that the catalogue does not have, or has under another name; each
has a right port beside it.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from twinvit import port
from twinvit.port.report import Report

WIDTH, HIDDEN, EXPERTS, HEADS, TOKENS = 12, 20, 6, 4, 7
X = np.random.default_rng(0).standard_normal((3, TOKENS, WIDTH))
OTHER = np.random.default_rng(1).standard_normal((3, TOKENS, WIDTH)) * 1.3


def drawn(model: nn.Module) -> nn.Module:
    """The model with every parameter drawn, norms' weights around one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3
            p.copy_(size * torch.randn(p.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return model.eval()


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def linear(p: dict[str, Any], name: str, x: Any) -> Any:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def norm(p: dict[str, Any], name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


class Router(nn.Module):
    """Experts chosen by a softmax over all of them, their two best weights kept."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.Linear(WIDTH, EXPERTS * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best = self.gate(x).softmax(-1).topk(2, -1)
        share = torch.zeros(*x.shape[:-1], EXPERTS, dtype=x.dtype)
        share = share.scatter(-1, best.indices, best.values)
        y = self.experts(x).unflatten(-1, (EXPERTS, WIDTH))
        return x + self.out((y * share[..., None]).sum(-2))


def router(mistake: str) -> Callable[..., Any]:
    def fn(p: dict[str, Any], x: Any) -> Any:
        scores = linear(p, "gate", x)
        if mistake == "order":  # softmax after top-k
            values, chosen = jax.lax.top_k(scores, 2)
            values = jax.nn.softmax(values, -1)
        else:
            values, chosen = jax.lax.top_k(jax.nn.softmax(scores, -1), 2)
        if mistake == "normalised":
            values = values / values.sum(-1, keepdims=True)
        if mistake == "largest":
            values = values / values.max(-1, keepdims=True)
        if mistake == "twice":
            values = jax.nn.softmax(values, -1)
        share = (jax.nn.one_hot(chosen, EXPERTS, dtype=x.dtype) * values[..., None]).sum(-2)
        y = linear(p, "experts", x).reshape(*x.shape[:-1], EXPERTS, WIDTH)
        return x + linear(p, "out", (y * share[..., None]).sum(-2))

    return fn


class Attention(nn.Module):
    """Grouped queries, scores capped softly, a norm before."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH // 2)
        self.v, self.out = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, t, HEADS, -1).transpose(1, 2)
        k = self.k(y).view(b, t, HEADS // 2, -1).transpose(1, 2).repeat_interleave(2, 1)
        v = self.v(y).view(b, t, HEADS // 2, -1).transpose(1, 2).repeat_interleave(2, 1)
        scores = 1.5 * torch.tanh(q @ k.transpose(-1, -2) / 1.5)
        y = scores.softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(b, t, -1))


def attention(mistake: str) -> Callable[..., Any]:
    def fn(p: dict[str, Any], x: Any) -> Any:
        b, t, _ = x.shape
        y = x if mistake == "norm_after" else norm(p, "norm", x)
        q = linear(p, "q", y).reshape(b, t, HEADS, -1).swapaxes(1, 2)
        k = linear(p, "k", y).reshape(b, t, HEADS // 2, -1).swapaxes(1, 2)
        v = linear(p, "v", y).reshape(b, t, HEADS // 2, -1).swapaxes(1, 2)
        if mistake == "tile":
            k, v = jnp.concatenate([k, k], 1), jnp.concatenate([v, v], 1)
        else:
            k, v = jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1)
        cap = 1.9 if mistake == "cap_value" else 1.5
        scores = cap * jnp.tanh(q @ k.swapaxes(-1, -2) / cap)
        y = jax.nn.softmax(scores, -1) @ v
        if mistake == "second_cap":
            y = 0.8 * jnp.tanh(y / 0.8)
        y = linear(p, "out", y.swapaxes(1, 2).reshape(b, t, -1))
        return norm(p, "norm", x + y) if mistake == "norm_after" else x + y

    return fn


class Outer(nn.Module):
    """Rows and columns of a pair representation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.norm, self.out = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pair = self.left(x)[:, :, None] + self.right(x)[:, None].clamp(-1, 1)
        return self.out(self.norm(pair).sin()).sum(1)


def outer(mistake: str) -> Callable[..., Any]:
    def fn(p: dict[str, Any], x: Any) -> Any:
        a, b = linear(p, "left", x), linear(p, "right", x)
        if mistake == "sides":
            pair = a[:, None] + jnp.clip(b, -1, 1)[:, :, None]
        elif mistake == "no_clip":
            pair = a[:, :, None] + b[:, None]
        else:
            pair = a[:, :, None] + jnp.clip(b, -1, 1)[:, None]
        y = norm(p, "norm", pair)
        y = jnp.sin(y) if mistake != "square" else jnp.sin(y) + 0.1 * y * jnp.abs(y)
        return linear(p, "out", y).sum(1)

    return fn


PAIRS = {
    "router/largest": r"topk\.values / max\(topk\.values",
    "router/twice": r"softmax\(topk\.values",
    "attention/second_cap": r"0\.8 \* tanh\(bmm / 0\.8\)",
    "outer/square": r"sin \+ 0\.1 \* norm \* abs\(norm\)",
}
CATALOGUED = (
    "attention/cap_value", "attention/tile", "attention/norm_after", "router/normalised",
    "router/order", "outer/sides", "outer/no_clip",
)  # fmt: skip
"""What the catalogue explains, though under another name: it goes first."""


def explained(name: str, mistake: str | None = None) -> Report:
    kind, make = {
        "router": (Router, router), "attention": (Attention, attention), "outer": (Outer, outer),
    }[name.split("/")[0]]  # fmt: skip
    model = drawn(kind())
    fn = make(name.split("/")[1] if mistake is None else mistake)
    return port.explain(model, port.Function(fn, weights(model)), (X,))


@pytest.mark.parametrize("name", PAIRS)
def test_what_the_port_computes_is_told_and_holds_on_other_inputs(name):
    report = explained(name)
    assert report.explained and report.verdict == "different", report
    found = [f for f in report.findings if f.kind == "expression"]
    assert any(re.search(PAIRS[name], f.formulas["jax"]) for f in found), report
    for f in found:
        assert f.operations is not None and max(f.operations) <= 16
        assert "test_port_transplant.py:" in f.jax and f.formulas["torch"]
        assert len(f.text.splitlines()) == 2
    assert max(report.verify((OTHER,)).values()) < 1e-11
    assert {d.kind for d in report.verified} == {"inputs", "weights"}


@pytest.mark.parametrize("name", CATALOGUED)
def test_the_catalogue_goes_first(name):
    report = explained(name)
    assert report.explained and max(report.verify((OTHER,)).values()) < 1e-11, report


@pytest.mark.parametrize("name", ["router/", "attention/", "outer/"])
def test_the_right_port_is_the_same(name):
    first = next(n for n in PAIRS if n.startswith(name))
    report = explained(first, "")
    assert report.same and not report.findings, report


class Blocks(nn.Module):
    """Residual blocks of two layers and a norm."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(WIDTH),
                    "up": nn.Linear(WIDTH, HIDDEN),
                    "down": nn.Linear(HIDDEN, WIDTH),
                }
            )
            for _ in range(count)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for b in self.blocks:
            x = x + b["down"](nn.functional.gelu(b["up"](b["norm"](x))))
        return x


def blocks(p: dict[str, Any], x: Any, activation: Callable[[Any], Any], add: Any = None) -> Any:
    for k in range(sum(name.endswith("up.weight") for name in p)):
        y = activation(linear(p, f"blocks.{k}.up", norm(p, f"blocks.{k}.norm", x)))
        x = x + linear(p, f"blocks.{k}.down", y)
        x = x if add is None else add(k, x)
    return x


def gelu(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=False)


def test_a_mistake_in_every_block_is_one_finding_and_replaces_little():
    model = drawn(Blocks())
    report = port.explain(
        model,
        port.Function(lambda p, x: blocks(p, x, lambda y: gelu(y) * jnp.cos(y)), weights(model)),
        (X,),
    )
    assert report.explained and len(report.findings) == 1, report
    finding = report.findings[0]
    assert finding.kind == "expression" and len(finding.places) == 6
    assert "cos(" in finding.formulas["jax"] and finding.operations is not None
    replaced, run = finding.operations
    assert run <= 3 and 6 * replaced <= len(report.operations) / 10


def test_the_network_is_no_transplant():
    """A port that has nothing in common with its reference."""
    model = drawn(Blocks(3))

    def other(p: dict[str, Any], x: Any) -> Any:
        for k in range(3):
            y = jnp.sin(2 * x) @ p[f"blocks.{k}.up.weight"].T + 0.1
            y = jnp.cos(3 * y) * y
            x = x * 0.9 + jnp.tanh(y @ p[f"blocks.{k}.down.weight"].T) ** 3
        return x

    report = port.explain(model, port.Function(other, weights(model)), (X,))
    assert report.verdict == "different" and not report.explained, report
    for f in report.findings:
        assert f.operations is None or max(f.operations) <= 16


@pytest.mark.parametrize("where", ["output", "inside", "sum", "mask"])
def test_numbers_are_no_transplant(where):
    """A port that closes over what the reference computes on these inputs."""
    model = drawn(Blocks(2))
    p = weights(model)
    stored = np.random.default_rng(5).standard_normal(X.shape) + X
    few = np.where(stored > 0, 1.0, 0.5)

    def add(k: int, x: Any) -> Any:
        if k:
            return x
        return {"inside": jnp.asarray(stored), "sum": x + stored, "mask": x * few}[where]

    def fn(p: dict[str, Any], x: Any) -> Any:
        if where == "output":
            return jnp.asarray(stored) + 0 * x
        return blocks(p, x, gelu, add)

    report = port.explain(model, port.Function(fn, p), (X,))
    assert report.verdict == "different" and not report.explained, report
    assert not [f for f in report.findings if f.kind == "expression"], report


def test_what_cannot_be_put_in_place_says_why_and_names_the_part():
    model = drawn(Blocks(2))
    numbers = np.random.default_rng(5).standard_normal(WIDTH)
    report = port.explain(
        model,
        port.Function(
            lambda p, x: blocks(p, x, gelu, lambda k, y: y if k else y * numbers), weights(model)
        ),
        (X,),
    )
    text = next(f.text for f in report.findings if f.kind == "unknown")
    assert "an array of constants of shape (12,)" in text and "test_port_transplant.py" in text


def test_gradients_behind_a_transplant_are_the_ports():
    model = drawn(Blocks(2))
    report = port.explain(
        model,
        port.Function(lambda p, x: blocks(p, x, lambda y: gelu(y) * jnp.cos(y)), weights(model)),
        (X,),
        what=("forward", "grad"),
    )
    assert report.explained and [f.what for f in report.findings] == ["forward"], report


def test_a_wrong_gradient_behind_a_transplant_is_seen():
    model = drawn(Blocks(2))

    def strange(y: Any) -> Any:
        return gelu(y) * jnp.cos(jax.lax.stop_gradient(y))

    report = port.explain(
        model,
        port.Function(lambda p, x: blocks(p, x, strange), weights(model)),
        (X,),
        what=("forward", "grad"),
    )
    assert report.explained and {f.kind for f in report.findings} == {"expression"}, report


class Cell(nn.Module):
    """A recurrence of its own over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(x[:, 0])
        seen = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.mix(x[:, t]) + self.read(h))
            seen.append(h)
        return torch.stack(seen, 1)


def cell(p: dict[str, Any], x: Any, state: Callable[[Any], Any]) -> Any:
    def step(h: Any, xt: Any) -> Any:
        h = jnp.tanh(linear(p, "mix", xt) + linear(p, "read", state(h)))
        return h, h

    return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[1].swapaxes(0, 1)


def test_in_a_loop_a_transplant_is_made_in_every_step():
    model = drawn(Cell())
    right = port.explain(
        model, port.Function(lambda p, x: cell(p, x, lambda h: h), weights(model)), (X,)
    )
    assert right.same, right
    wrong = port.Function(lambda p, x: cell(p, x, lambda h: h - 0.3 * h * h), weights(model))
    report = port.explain(model, wrong, (X,))
    assert report.explained and {f.kind for f in report.findings} == {"expression"}, report
    assert max(report.verify((OTHER,)).values()) < 1e-11


def test_a_clip_that_some_steps_of_a_loop_do_not_show_is_in_all():
    model = drawn(Cell())
    wrong = port.Function(
        lambda p, x: cell(p, x, lambda h: jnp.clip(h, -0.94, 0.94)), weights(model)
    )
    report = port.explain(model, wrong, (X,))
    assert report.explained and len(report.findings) == 1, report
    assert max(report.verify((3 * OTHER,)).values()) < 1e-11


def test_a_clip_that_these_inputs_show_in_one_block_is_in_all():
    """Drawn weights show the others: the finding tells of them."""
    model = drawn(Blocks(3))

    def clipped(p: dict[str, Any], x: Any) -> Any:
        return blocks(p, x, lambda y: jnp.minimum(gelu(y), 3.45))

    report = port.explain(model, port.Function(clipped, weights(model)), (X * 1.6,))
    assert report.verdict == "different" and report.explained, report
    assert len(report.findings) == 1 and len(report.findings[0].places) == 3
    assert "where these inputs do not show it" in report.findings[0].text
