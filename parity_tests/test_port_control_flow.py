"""References whose control flow follows numbers that the port's mistake changes: experts that are
given other tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from twinvit import port
from twinvit.port.record import torch_program
from twinvit.port.record.graph import Edit
from twinvit.port.record.unused import unused_operands

WIDTH, EXPERTS = 12, 6
INPUT = np.random.default_rng(0).standard_normal((9, WIDTH)).astype(np.float32)


class Experts(nn.Module):
    """Each token goes to the two experts that its router prefers; an expert without tokens is not
    run."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.shared = nn.Linear(WIDTH, WIDTH) if shared else None
        self.opened = nn.Linear(WIDTH, 1, bias=False) if shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.gate(x).sigmoid()
        weights, chosen = scores.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True) * 2.5
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, k = torch.where(chosen == e)
            if len(token):
                y.index_add_(0, token, torch.tanh(expert(x[token])) * weights[token, k, None])
        if self.shared is None or self.opened is None:
            return y
        return y + self.shared(x) * torch.sigmoid(self.opened(x))


class Stack(nn.Module):
    """Two layers of experts: the second one's tokens depend on what the first one computes."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Experts(shared) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def experts(p: dict[str, Any], x: jax.Array, wrong: str) -> jax.Array:
    """All experts of all tokens, and of each token those that count."""
    logits = x @ p["gate.weight"].T
    scores = jax.nn.softmax(logits, -1) if wrong == "softmax" else jax.nn.sigmoid(logits)
    weights, chosen = jax.lax.top_k(scores, 2)
    if wrong != "norm":
        weights = weights / weights.sum(-1, keepdims=True)
    if wrong != "scale":
        weights = weights * 2.5
    act = jax.nn.relu if wrong == "relu" else jnp.tanh
    names = [f"experts.{e}" for e in range(EXPERTS)]
    every = jnp.stack([act(x @ p[f"{n}.weight"].T + p[f"{n}.bias"]) for n in names], 1)
    y = jnp.einsum("nke,ned,nk->nd", jax.nn.one_hot(chosen, EXPERTS), every, weights)
    if "shared.weight" not in p or wrong == "shared":
        return y
    gate = 1.0 if wrong == "gate" else jax.nn.sigmoid(x @ p["opened.weight"].T)
    return y + (x @ p["shared.weight"].T + p["shared.bias"]) * gate


@pytest.mark.parametrize(
    ("wrong", "shared", "cause"),
    [
        ("", False, ""),
        ("norm", False, "router_norm"),
        ("scale", False, "scale"),
        ("softmax", False, "activation"),
        ("", True, ""),
        ("shared", True, "residual_missing"),
        ("gate", True, "gate_missing"),
    ],
)
def test_a_reference_is_recorded_again_where_an_edit_sends_tokens_elsewhere(wrong, shared, cause):
    torch.manual_seed(0)
    model = Stack(shared).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    held = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        for k in range(2):
            start = f"layers.{k}."
            layer = {n.removeprefix(start): v for n, v in p.items() if n.startswith(start)}
            x = x + experts(layer, x, wrong)
        return x

    report = port.explain(model, port.Function(call, held), (INPUT,))
    assert report.verdict == ("different" if wrong else "same"), report
    assert [f.cause for f in report.findings] == ([cause] if wrong else []), report
    assert report.explained
    if wrong:
        assert any("recorded again" in note for note in report.notes)
        assert {place.split(":")[0] for place in report.findings[0].places} == {
            "layers.0",
            "layers.1",
        }
    other = np.random.default_rng(1).standard_normal(INPUT.shape).astype(np.float32)
    assert max(report.verify((other,)).values()) < 1e-12


class Branch(nn.Module):
    """Two branches, chosen by a sum."""

    limit = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.above, self.below = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.gelu(self.first(x))
        return self.above(h) if h.sum() > self.limit else torch.tanh(self.below(h))


@pytest.mark.parametrize("approximate", [False, True])
def test_an_edit_is_proven_in_the_branch_that_it_leads_to(approximate):
    torch.manual_seed(0)
    model = Branch().eval()
    held = {k: v.numpy() for k, v in model.state_dict().items()}
    h = model.first(torch.tensor(INPUT)).detach()
    sums = [float(nn.functional.gelu(h, approximate=a).sum()) for a in ("none", "tanh")]
    model.limit = sum(sums) / 2

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        def linear(name: str, y: jax.Array) -> jax.Array:
            return y @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        h = jax.nn.gelu(linear("first", x), approximate=approximate)
        return jnp.where(h.sum() > model.limit, linear("above", h), jnp.tanh(linear("below", h)))

    report = port.explain(model, port.Function(call, held), (INPUT,), what=("forward", "grad"))
    assert [f.cause for f in report.findings] == ["gelu_tanh"] * approximate, report
    assert report.explained and report.same != approximate


EDITS = {
    "left out": (lambda m, x, y: x.clone(), True),
    "of integers alone": (lambda m, x, y: x + torch.ones_like(y), True),
    "behind a step": (lambda m, x, y: x + (y - 5).relu(), False),
    "negative alone": (lambda m, x, y: x + (-y).relu(), False),
    "clamped": (lambda m, x, y: x * y.clamp(max=0.05), False),
    "the smaller one": (lambda m, x, y: torch.maximum(x, y - 9), False),
    "compared": (lambda m, x, y: x + (y > 300).double() * x, False),
    "times zero": (lambda m, x, y: x + 0 * y, False),  # NaN and infinity pass
    "masked out": (lambda m, x, y: torch.where(m, 2 * x, y), False),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_operand_is_unused_only_where_no_values_make_it_count(case):
    """On the recorded values the mask is True throughout, and no number is large."""
    edit, unused = EDITS[case]
    inputs = (torch.ones(3, 5, dtype=torch.bool), *torch.randn(2, 3, 5, dtype=torch.float64))
    graph = torch_program.record(torch.where, inputs, lambda out: [out])
    (node,) = (n for n in graph.nodes if n.name == "where")
    found = unused_operands(node.edited(Edit(edit, None)), dict(enumerate(graph.values)))
    assert found == ({node.refs[2]} if unused else set())


class Limited(nn.Module):
    """Of four groups of two rows the two groups that are preferred, of these the three best rows,
    weighted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(WIDTH, 8)
        self.rows = nn.Parameter(torch.randn(8, WIDTH))
        self.shift = nn.Parameter(0.3 * torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.gate(2 * x).sigmoid()
        shifted = scores + self.shift
        groups = shifted.view(-1, 4, 2).sum(-1)
        kept = torch.zeros_like(groups).scatter(1, groups.topk(2, -1).indices, 1.0)
        shifted = shifted.masked_fill(kept.repeat_interleave(2, 1) == 0, -torch.inf)
        chosen = shifted.topk(3, -1).indices
        return (scores.gather(1, chosen)[..., None] * self.rows[chosen]).sum(1)


def limited(wrong: str) -> Any:
    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        scores = jax.nn.sigmoid((2 * x) @ p["gate.weight"].T + p["gate.bias"])
        shifted = scores + p["shift"]
        groups = shifted.reshape(-1, 4, 2).sum(-1)
        chosen = jax.lax.top_k(groups, 3 if wrong == "groups" else 2)[1]
        kept = jax.nn.one_hot(chosen, 4).sum(1)
        if wrong != "limit":
            shifted = jnp.where(jnp.repeat(kept, 2, 1) > 0, shifted, -jnp.inf)
        chosen = jax.lax.top_k(shifted, 3)[1]
        weights = jnp.take_along_axis(shifted if wrong == "shifted" else scores, chosen, 1)
        return jnp.einsum("nk,nkd->nd", weights, p["rows"][chosen])

    return call


@pytest.mark.parametrize("wrong", ["", "limit", "shifted", "groups"])
def test_what_a_choice_alone_depends_on_is_named(wrong):
    model = Limited()
    held = {k: v.numpy() for k, v in model.state_dict().items()}
    report = port.explain(model, port.Function(limited(wrong), held), (INPUT,))
    assert report.same == (not wrong), report
    assert ("mask_missing" in [f.cause for f in report.findings]) == (wrong == "limit"), report
    if wrong == "limit":
        assert report.explained and len(report.findings) == 1, report
        assert len(report.verified) == 2 and all(d.rounding for d in report.verified)
