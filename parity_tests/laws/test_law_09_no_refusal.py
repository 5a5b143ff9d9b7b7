"""Law 9: no crash, and no refusal of what runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(8, 6)


def parts() -> dict:
    return {"fc1": nn.Linear(6, 9), "norm": nn.LayerNorm(9), "fc2": nn.Linear(9, 4)}


def float_without_a_cast_back() -> Pair:
    """The reference computes its norm in float32 by name and goes on in what comes out."""

    def body(m, x):
        h = m.fc1(x).float()
        h = (h - h.mean(-1, keepdim=True)) * torch.rsqrt(h.var(-1, keepdim=True) + 1e-5)
        return m.fc2(F.gelu(h))

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x).astype(jnp.float32)
        h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True, ddof=1) + 1e-5)
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(pairs.net(body, **parts()), port, (X,))


def float32_table() -> Pair:
    """A table made in float32 inside the reference meets a product."""

    def body(m, x):
        table = torch.arange(6, dtype=torch.float32) / 3
        return m.fc2(F.gelu(m.fc1(x) + (table @ m.fc1.weight.T)))

    def port(p, x, wrong):
        table = jnp.arange(6, dtype=jnp.float32) / 3
        h = pairs.dense(p, "fc1", x) + table @ p["fc1.weight"].T
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(pairs.net(body, **parts()), port, (X,))


def empty_part() -> Pair:
    """A sequence of no tokens is concatenated."""

    def body(m, x, past):
        return m.fc2(F.gelu(m.fc1(torch.cat([past, x]))))

    def port(p, x, past, wrong):
        h = pairs.dense(p, "fc1", jnp.concatenate([past, x]))
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(pairs.net(body, **parts()), port, (X, np.zeros((0, 6), np.float32)))


def branch_by_value() -> Pair:
    """An `if` of the inputs' values."""

    def body(m, x):
        h = m.fc1(x)
        h = F.gelu(h) if h.sum() > -1e6 else F.relu(h)
        return m.fc2(h)

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x)
        h = jax.lax.cond(h.sum() > -1e6, lambda h: pairs.gelu(h, wrong), jax.nn.relu, h)
        return pairs.dense(p, "fc2", h)

    return Pair(pairs.net(body, **parts()), port, (X,))


def loop_by_value() -> Pair:
    """As many steps as the largest of the inputs says."""

    def body(m, x, steps):
        h = m.fc1(x)
        for _ in range(int(steps.max())):
            h = F.gelu(h) * 1.5
        return m.fc2(h)

    def port(p, x, steps, wrong):
        h = pairs.dense(p, "fc1", x)
        h = jax.lax.fori_loop(0, steps.max(), lambda _, h: pairs.gelu(h, wrong) * 1.5, h)
        return pairs.dense(p, "fc2", h)

    return Pair(pairs.net(body, **parts()), port, (X, np.array([1, 3, 2])))


def length_by_value() -> Pair:
    """The largest length decides how much of the sequence is computed."""

    def body(m, x, length):
        n = int(length.max())
        return m.fc2(F.gelu(m.fc1(x[:n])).sum(0, keepdim=True))

    def port(p, x, length, wrong):
        keep = jnp.arange(8) < length.max()
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong)
        return pairs.dense(p, "fc2", jnp.where(keep[:, None], h, 0).sum(0, keepdims=True))

    return Pair(
        pairs.net(body, fc1=nn.Linear(6, 9), fc2=nn.Linear(9, 12)), port, (X, np.array([2, 6]))
    )


def cache_in_float32() -> Pair:
    """A cache of float32 is updated by position."""

    def body(m, x):
        cache = torch.zeros(12, 9, dtype=m.fc1.weight.dtype)
        cache[2:10] = m.fc1(x)
        return m.fc2(F.gelu(cache))

    def port(p, x, wrong):
        cache = jnp.zeros((12, 9), jnp.float32)
        cache = jax.lax.dynamic_update_slice(cache, pairs.dense(p, "fc1", x), (2, 0))
        return pairs.dense(p, "fc2", pairs.gelu(cache, wrong))

    return Pair(pairs.net(body, **parts()), port, (X,))


def carry_in_float32() -> Pair:
    """A scan's carry begins as zeros of float32 and counts in int32."""

    def body(m, x):
        h, ys = x.new_zeros(9), []
        for i, row in enumerate(x):
            h = F.gelu(m.fc1(row) + 0.5 * h) + 0.1 * i
            ys.append(h)
        return m.fc2(torch.stack(ys))

    def port(p, x, wrong):
        def step(carry, row):
            h, i = carry
            h = pairs.gelu(pairs.dense(p, "fc1", row) + 0.5 * h, wrong) + 0.1 * i
            return (h, i + 1), h

        start = jnp.zeros(9, jnp.float32), jnp.zeros((), jnp.int32)
        return pairs.dense(p, "fc2", jax.lax.scan(step, start, x)[1])

    return Pair(pairs.net(body, **parts()), port, (X,))


def in_place_on_the_input() -> Pair:
    """The reference scales its input where it stands."""

    def body(m, x):
        x.mul_(2).add_(1)
        return m.fc2(F.gelu(m.fc1(x)))

    def port(p, x, wrong):
        return pairs.mlp_port(p, x * 2 + 1, wrong)

    return Pair(pairs.net(body, **parts()), port, (X.copy(),))


def bytes_of_images() -> Pair:
    """Pixels are bytes, scaled by either side."""

    def body(m, x):
        return pairs.mlp(m, x.float() / 255 - 0.5)

    def port(p, x, wrong):
        return pairs.mlp_port(p, x.astype(jnp.float32) / 255 - 0.5, wrong)

    x = np.random.default_rng(0).integers(0, 256, (8, 6)).astype(np.uint8)
    return Pair(pairs.net(body, **parts()), port, (x,))


def scalar_input() -> Pair:
    """A number without axes is an input."""

    def body(m, x, t):
        return m.fc2(F.gelu(m.fc1(x) * t))

    def port(p, x, t, wrong):
        return pairs.dense(p, "fc2", pairs.gelu(pairs.dense(p, "fc1", x) * t, wrong))

    return Pair(pairs.net(body, **parts()), port, (X, np.float32(1.7)))


def library_attention() -> Pair:
    """Each framework's own attention, causal."""

    def body(m, x):
        q, k, v = (y.unflatten(-1, (3, 3)).transpose(0, 1)[None] for y in m.qkv(x).chunk(3, -1))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.fc2(F.gelu(h[0].transpose(0, 1).flatten(1)))

    def port(p, x, wrong):
        q, k, v = (y.reshape(1, 8, 3, 3) for y in jnp.split(pairs.dense(p, "qkv", x), 3, -1))
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(8, 9)
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(pairs.net(body, qkv=nn.Linear(6, 27), fc2=nn.Linear(9, 4)), port, (X,))


RUNS = {
    f.__name__: f
    for f in (
        float_without_a_cast_back,
        float32_table,
        empty_part,
        branch_by_value,
        loop_by_value,
        length_by_value,
        cache_in_float32,
        carry_in_float32,
        in_place_on_the_input,
        bytes_of_images,
        scalar_input,
        library_attention,
    )
}


@pytest.mark.parametrize("name", RUNS)
def test_an_exact_port_is_the_same(name):
    pairs.same(RUNS[name]().told())


@pytest.mark.parametrize("name", RUNS)
def test_a_wrong_port_is_different_and_named(name):
    """Guards are the pairs that have always run."""
    report = RUNS[name]().told(True)
    pairs.different(report)
    assert "gelu_tanh" in [finding.cause for finding in report.findings], str(report)


def test_inputs_are_not_changed():
    pair = in_place_on_the_input()
    pair.told()
    assert np.array_equal(pair.inputs[0], X)


@pytest.mark.parametrize("name", ["branch_by_value", "loop_by_value", "length_by_value"])
def test_control_flow_of_values_is_said(name):
    pairs.says(RUNS[name]().told(), "depends on", "test_law_09_no_refusal.py")


def expert_without_tokens() -> Pair:
    """Of three experts, one gets no token; the port computes all and takes the chosen."""

    def body(m, x, place):
        y = x.new_zeros(len(x), 4)
        for e, expert in enumerate((m.one, m.two, m.three)):
            chosen = place == e
            y[chosen] = expert(F.gelu(m.fc1(x[chosen])))
        return y

    def port(p, x, place, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong)
        y = jnp.stack([pairs.dense(p, n, h) for n in ("one", "two", "three")])
        return jnp.einsum("te,etd->td", jax.nn.one_hot(place, 3), y)

    experts = {n: nn.Linear(9, 4) for n in ("one", "two", "three")}
    model = pairs.net(body, fc1=nn.Linear(6, 9), **experts)
    return Pair(model, port, (X, np.array([0, 2, 2, 0, 0, 2, 0, 2])))


def test_weights_held_in_bfloat16_are_judged_alike():
    model = pairs.net(pairs.mlp, **parts())
    held = {k: jnp.asarray(v, jnp.bfloat16) for k, v in pairs.held(model).items()}

    def port(p, x, wrong):
        return pairs.mlp_port({k: v.astype(jnp.float32) for k, v in p.items()}, x, wrong)

    pair = Pair(model, port, (X,), params=held)
    report = pair.told()
    pairs.different(report)
    assert report.explained and [f.kind for f in report.findings] == ["weights"]
    pairs.says(report, "bfloat16")
    assert [f.kind for f in pair.told(True).findings] == ["weights", "cause"]


def test_weights_of_another_training_are_not_called_rounded():
    """Guard: weights one percent off are other weights."""
    model = pairs.net(pairs.mlp, **parts())
    moved = {
        k: v * (1 + 0.01 * pairs.draws(*v.shape, seed=7)) for k, v in pairs.held(model).items()
    }
    try:
        report = Pair(model, pairs.mlp_port, (X,), params=moved).told()
    except Exception as error:
        assert "weights" in str(error)
    else:
        assert report.verdict != "same"


def test_an_expert_without_tokens_is_no_obstacle():
    pairs.same(expert_without_tokens().told())
    pairs.different(expert_without_tokens().told(True))
