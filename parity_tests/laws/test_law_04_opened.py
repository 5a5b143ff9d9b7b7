"""Law 4, on branches that start at zero: opened, in both models alike, they show what they hid."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

D, TOKENS = 8, 5
X = pairs.draws(2, TOKENS, D)


def reversed_behind_a_gate() -> Pair:
    """The hidden branch ends in another order of the same numbers."""

    def body(m, x):
        return m.head(x + m.gate * F.gelu(m.up(x))[..., :D].flip(1))

    def port(p, x, wrong):
        h = pairs.gelu(pairs.dense(p, "up", x))[..., :D]
        return pairs.dense(p, "head", x + p["gate"] * (h if wrong else h[:, ::-1]))

    model = pairs.net(body, up=nn.Linear(D, 11), head=nn.Linear(D, 7), gate=torch.zeros(()))
    return Pair(model, port, (X,))


def heads_before_a_zero_layer() -> Pair:
    """The last layer of a branch is zero; the heads before it are merged in another order."""

    def body(m, x):
        y = m.up(x).unflatten(-1, (2, -1)).tanh()
        return m.head(x + m.last(y.flatten(2)))

    def port(p, x, wrong):
        y = jnp.tanh(pairs.dense(p, "up", x).reshape(*x.shape[:2], 2, -1))
        y = (y.swapaxes(2, 3) if wrong else y).reshape(*x.shape[:2], -1)
        return pairs.dense(p, "head", x + pairs.dense(p, "last", y))

    model = pairs.net(body, up=nn.Linear(D, 12), last=nn.Linear(12, D), head=nn.Linear(D, 7))
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    return Pair(model, port, (X,))


def shifted_before_zero_scales() -> Pair:
    """Zero scales of channels; tokens are shifted by one. All biases are zero, too."""

    def body(m, x):
        return m.head(x + m.scale * F.gelu(m.up(x)).roll(1, 1))

    def port(p, x, wrong):
        y = pairs.gelu(pairs.dense(p, "up", x))
        return pairs.dense(p, "head", x + p["scale"] * jnp.roll(y, -1 if wrong else 1, 1))

    model = pairs.net(body, up=nn.Linear(D, D), head=nn.Linear(D, 7), scale=torch.zeros(D))
    nn.init.zeros_(model.up.bias)
    nn.init.zeros_(model.head.bias)
    return Pair(model, port, (X,))


def unpatched_after_a_zero_layer() -> Pair:
    """The last layer is zero: in which order its numbers become pixels cannot be seen."""

    def body(m, x):
        y = m.last(m.up(x)).unflatten(-1, (2, 2, 3)).unflatten(1, (2, 3))
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def port(p, x, wrong):
        y = pairs.dense(p, "last", pairs.dense(p, "up", x)).reshape(2, 2, 3, 2, 2, 3)
        y = y.transpose(0, 5, 1, 4, 2, 3) if wrong else y.transpose(0, 5, 1, 3, 2, 4)
        return y.reshape(2, 3, 4, 6)

    model = pairs.net(body, up=nn.Linear(D, 11), last=nn.Linear(11, 12))
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    return Pair(model, port, (pairs.draws(2, 6, D),))


def positions_of_zeros() -> Pair:
    """Positions are zero; the port adds them to tokens in another order."""

    def body(m, x):
        return m.down(F.gelu(m.up(x + m.positions)))

    def port(p, x, wrong):
        places = p["positions"][:, ::-1] if wrong else p["positions"]
        return pairs.dense(p, "down", pairs.gelu(pairs.dense(p, "up", x + places)))

    model = pairs.net(
        body, up=nn.Linear(D, 11), down=nn.Linear(11, 7), positions=torch.zeros(1, TOKENS, D)
    )
    return Pair(model, port, (X,))


def square_of_zeros() -> Pair:
    """What is added to the scores is zero; the port transposes it."""

    def body(m, x):
        y = m.up(x)
        return m.down((y @ y.transpose(-1, -2) / 3 + m.table).softmax(-1) @ y)

    def port(p, x, wrong):
        y = pairs.dense(p, "up", x)
        table = p["table"].T if wrong else p["table"]
        return pairs.dense(p, "down", jax.nn.softmax(y @ y.swapaxes(-1, -2) / 3 + table, -1) @ y)

    model = pairs.net(
        body, up=nn.Linear(D, 11), down=nn.Linear(11, 7), table=torch.zeros(TOKENS, TOKENS)
    )
    return Pair(model, port, (X,))


def gates_exchanged() -> Pair:
    """Two gates of one shape are zero; the port exchanges them."""

    def body(m, x):
        return m.head(x + m.gate1 * F.gelu(x) + m.gate2 * x.tanh())

    def port(p, x, wrong):
        one, two = (p["gate2"], p["gate1"]) if wrong else (p["gate1"], p["gate2"])
        return pairs.dense(p, "head", x + one * pairs.gelu(x) + two * jnp.tanh(x))

    gates = {n: torch.zeros(D) for n in ("gate1", "gate2")}
    return Pair(pairs.net(body, head=nn.Linear(D, 7), **gates), port, (X,))


@pytest.mark.parametrize("make", [positions_of_zeros, square_of_zeros, gates_exchanged])
def test_zeros_of_one_name_and_shape_have_one_layout(make: Callable[[], Pair]):
    pairs.same(make().told())
    pairs.different(make().told(True), "which is zero")


@pytest.mark.parametrize("make", [reversed_behind_a_gate, shifted_before_zero_scales])
def test_another_order_of_hidden_numbers_is_different(make: Callable[[], Pair]):
    pairs.same(make().told())
    pairs.different(make().told(True), "none zero")


def modulation_exchanged() -> Pair:
    """Blocks whose shift, scale and gate come of a layer of zeros; the port exchanges two of
    them, and its layers have other names."""

    def body(m, x, c):
        for k in range(2):
            scale, shift, gate = m.ada[k](F.silu(c))[:, None].chunk(3, -1)
            x = x + gate * m.mix[k](m.norm[k](x) * (1 + scale) + shift)
        return m.head(x)

    def port(p, x, c, wrong):
        for k in range(2):
            y = jax.nn.silu(c) @ p[f"modulation_{k}/kernel"] + p[f"modulation_{k}/bias"]
            scale, shift, gate = jnp.split(y[:, None], 3, -1)
            scale, shift = (shift, scale) if wrong else (scale, shift)
            y = pairs.layer_norm(p, f"norm.{k}", x) * (1 + scale) + shift
            x = x + gate * pairs.dense(p, f"mix.{k}", y)
        return pairs.dense(p, "head", x)

    lists = {
        "ada": nn.ModuleList([nn.Linear(4, 3 * D) for _ in range(2)]),
        "mix": nn.ModuleList([nn.Linear(D, D) for _ in range(2)]),
        "norm": nn.ModuleList([nn.LayerNorm(D) for _ in range(2)]),
    }
    model = pairs.net(body, head=nn.Linear(D, 7), **lists)
    params = {k: v for k, v in pairs.held(model).items() if not k.startswith("ada")}
    for k, layer in enumerate(model.ada):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        params[f"modulation_{k}/kernel"] = np.zeros((4, 3 * D), np.float32)
        params[f"modulation_{k}/bias"] = np.zeros(3 * D, np.float32)
    return Pair(model, port, (X, pairs.draws(2, 4, seed=1)), params=params)


@pytest.mark.parametrize("make", [heads_before_a_zero_layer, unpatched_after_a_zero_layer])
def test_another_order_at_a_layer_of_zeros_is_not_decided(make: Callable[[], Pair]):
    """The layer may be held in that order, too, as far as zeros can tell."""
    pairs.same(make().told())
    pairs.undecided(make().told(True), "last.weight is zero")


def test_parts_of_a_layer_of_zeros_that_are_exchanged_are_not_the_same():
    pairs.same(modulation_exchanged().told())
    pairs.undecided(modulation_exchanged().told(True), "ada.0.weight is zero")


def padded(p, x, wrong):
    """Rows of padding are zeroed by the port, and stay zero in the reference's table."""
    rows = p["table.weight"][x] * (x != 0)[..., None]
    return pairs.dense(p, "head", rows)


def folded(p, x, wrong):
    """The scale of the queries stands in their weights and biases, which are zero."""
    y = pairs.dense(p, "q", x) @ pairs.dense(p, "k", x).swapaxes(-1, -2)
    return pairs.dense(p, "head", y @ x)


def without_zero_bias(p, x, wrong):
    """The port has no bias where the reference's is zero."""
    return pairs.dense(p, "head", pairs.gelu(x @ p["up"]))


def test_a_row_of_zeros_in_a_table_stays():
    model = pairs.net(lambda m, x: m.head(m.table(x)), table=nn.Embedding(9, D, padding_idx=0))
    model.head = nn.Linear(D, 7)
    with torch.no_grad():
        model.table.weight[0] = 0
    ids = np.random.default_rng(0).integers(0, 9, (3, 6))
    ids[0, :2] = 0
    pairs.same(Pair(model, padded, (ids,)).told())


def test_zeros_that_were_folded_do_not_count():
    def body(m, x):
        return m.head((m.q(x) * D**-0.5) @ m.k(x).transpose(-1, -2) @ x)

    model = pairs.net(body, q=nn.Linear(D, D), k=nn.Linear(D, D), head=nn.Linear(D, 7))
    nn.init.zeros_(model.q.bias)
    params = pairs.held(model)
    params["q.weight"] = params["q.weight"].astype(np.float64) * D**-0.5
    pairs.same(Pair(model, folded, (X,), params=params).told())


def test_a_bias_of_zeros_may_be_left_out():
    model = pairs.net(
        lambda m, x: m.head(F.gelu(m.up(x))), up=nn.Linear(D, D), head=nn.Linear(D, 7)
    )
    nn.init.zeros_(model.up.bias)
    params = pairs.held(model)
    params["up"] = params.pop("up.weight").T
    del params["up.bias"]
    pairs.same(Pair(model, without_zero_bias, (X,), params=params).told())


@pytest.mark.parametrize("layout", ["kernel", "heads", "turned"])
def test_a_layer_of_zeros_is_held_in_any_layout(layout: str):
    """Two of them of one size, held as the port likes."""

    def body(m, x):
        return m.head(x + m.out1(F.gelu(m.up(x))) + m.out2(m.up(x).tanh()))

    model = pairs.net(
        body,
        up=nn.Linear(D, 12),
        out1=nn.Linear(12, D),
        out2=nn.Linear(12, D),
        head=nn.Linear(D, 7),
    )
    params = pairs.held(model)
    for name in ("out1", "out2"):
        nn.init.zeros_(getattr(model, name).weight)
        shape = {"kernel": (12, D), "heads": (3, 4, D), "turned": (D, 12)}[layout]
        params[name + ".weight"] = np.zeros(shape, np.float32)

    def out(p, name, y):
        w = p[name + ".weight"]
        w = w.T if layout == "turned" else w.reshape(12, D)
        return y @ w + p[name + ".bias"]

    def port(p, x, wrong):
        y = pairs.dense(p, "up", x)
        one, two = out(p, "out1", pairs.gelu(y)), out(p, "out2", jnp.tanh(y))
        return pairs.dense(p, "head", x + one + two)

    pairs.same(Pair(model, port, (X,), params=params).told())
