"""Law 3: rounding has a bound. A step at an input's value, a draw or an ill-conditioned operation
does not make every port the same, and a sound port is not told different for rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(9, 6)
T = np.array([3.0, 7.0, 1.0, 19.0, 4.0, 12.0, 8.0, 3.0, 5.0], np.float32)
EDGES = np.array([1.0, 3.0, 5.0, 8.0, 12.0], np.float32)
SORTED = np.array([0.0, 2.0, 2.0, 1.0, 2.0, 0.0, 5.0, 5.0, 2.0], np.float32)

# kind: what the reference makes of T, what the port makes of it; each is one number a row
STEPS = {
    "long": (lambda t: t.long() % 7, lambda t: t.astype(jnp.int32) % 7),
    "floor": (torch.floor, jnp.floor),
    "ceil": (torch.ceil, jnp.ceil),
    "round": (lambda t: torch.round(t / 2), lambda t: jnp.round(t / 2)),
    "trunc": (lambda t: torch.trunc(t / 3) * 3, lambda t: jnp.trunc(t / 3) * 3),
    "sign": (lambda t: torch.sign(t - 3), lambda t: jnp.sign(t - 3)),
    "remainder": (lambda t: t % 1 * 2 + 1, lambda t: t % 1 * 2 + 1),
    "floor division": (lambda t: t // 4, lambda t: t // 4),
    "comparison": (lambda t: (t > 3).float(), lambda t: (t > 3).astype(jnp.float32)),
    "equality": (lambda t: (t == 3).float(), lambda t: (t == 3).astype(jnp.float32)),
    "heaviside": (
        lambda t: torch.heaviside(t - 3, torch.ones(())),
        lambda t: jnp.heaviside(t - 3, 1.0),
    ),
    "searchsorted": (
        lambda t: torch.searchsorted(torch.tensor(EDGES).to(t.dtype), t),
        lambda t: jnp.searchsorted(jnp.asarray(EDGES), t),
    ),
    "bucketize right": (
        lambda t: torch.bucketize(t, torch.tensor(EDGES).to(t.dtype), right=True),
        lambda t: jnp.digitize(t, jnp.asarray(EDGES)),
    ),
    "one-hot": (
        lambda t: F.one_hot(t.long(), 20)[:, ::3].sum(-1),
        lambda t: jax.nn.one_hot(t.astype(jnp.int32), 20)[:, ::3].sum(-1),
    ),
    "argmax of ties": (
        lambda t: torch.stack([t, t, t - 1], -1).argmax(-1) + t,
        lambda t: jnp.stack([t, t, t - 1], -1).argmax(-1) + t,
    ),
    "count of ties": (
        lambda t: (t[:, None] == t[None].amax(-1)).sum(-1) + (t[:, None] <= t[None]).sum(-1),
        lambda t: (t[:, None] == t[None].max(-1)).sum(-1) + (t[:, None] <= t[None]).sum(-1),
    ),
    "sort of ties": (
        lambda t: torch.sort(t, stable=True).indices.argsort(),
        lambda t: jnp.argsort(jnp.argsort(t)),
    ),
    "topk of ties": (
        lambda t: t.topk(4).values.sum() + t,
        lambda t: jax.lax.top_k(t, 4)[0].sum() + t,
    ),
    "clamp": (lambda t: t.clamp(3, 8), lambda t: jnp.clip(t, 3, 8)),
    "nan_to_num": (
        lambda t: torch.nan_to_num(1 / (t - 3), posinf=2.0),
        lambda t: jnp.nan_to_num(1 / (t - 3), posinf=2.0),
    ),
}


def stepped(kind: str) -> Pair:
    """A step whose edge is the input's value, and an MLP; the wrong port has GELU's tanh form."""
    theirs, ours = STEPS[kind]

    def body(m, x, t):
        y = m.fc1(x)
        return m.fc2(F.gelu(y + 0.1 * y * theirs(t)[:, None]))

    def port(p, x, t, wrong):
        y = pairs.dense(p, "fc1", x)
        return pairs.dense(p, "fc2", pairs.gelu(y + 0.1 * y * ours(t)[:, None], wrong))

    return Pair(pairs.net(body, fc1=nn.Linear(6, 9), fc2=nn.Linear(9, 4)), port, (X, T))


@pytest.mark.parametrize("kind", STEPS)
def test_a_sound_port_with_a_step_at_its_inputs_is_the_same(kind):
    pairs.same(stepped(kind).told())


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_at_an_input_hides_no_mistake_elsewhere(kind):
    """Guards are the ties and the clamp, which a nudge does not move far."""
    pairs.different(stepped(kind).told(True))


def routed() -> Pair:
    """The two best of four experts by scores that tie for half the tokens."""

    def body(m, x, s):
        value, place = s.topk(2)
        w = torch.zeros_like(s).scatter(-1, place, value.softmax(-1))
        return torch.einsum("te,teo->to", w, F.gelu(m.fc(x)).unflatten(-1, (4, 3)))

    def port(p, x, s, wrong):
        value, place = jax.lax.top_k(s, 2)
        w = (jax.nn.one_hot(place, 4) * jax.nn.softmax(value)[..., None]).sum(-2)
        y = pairs.gelu(pairs.dense(p, "fc", x), wrong).reshape(9, 4, 3)
        return jnp.einsum("te,teo->to", w, y)

    s = np.round(pairs.draws(9, 4, seed=3) * 2) / 2
    s[:4, :3] = [3, 2, 1]  # the rest ties nowhere among its two best, so that no order is chosen
    best = np.sort(s, -1)
    s[best[:, -2] == best[:, -3]] = [0, 5, 5, 1]
    return Pair(pairs.net(body, fc=nn.Linear(6, 12)), port, (X, s))


def test_ties_of_a_router_that_choose_nothing_hide_nothing():
    """Guard."""
    pairs.same(routed().told())
    pairs.different(routed().told(True))


def timesteps(exponential: bool = True) -> Pair:
    """A sinusoidal embedding of whole timesteps up to 99,999, as floats."""

    def body(m, x, t):
        h = 8
        f = torch.exp(-np.log(10000.0) * torch.arange(h, dtype=torch.float64) / h)
        e = t[:, None].double() * f
        e = torch.cat([e.cos(), e.sin()], -1).to(m.fc1.weight.dtype)
        return m.fc2(F.silu(m.fc1(e)) + m.x(x))

    def port(p, x, t, wrong):
        h = 8
        if exponential:
            f = np.exp(-np.log(10000.0) * np.arange(h) / (h - 1 if wrong == "spacing" else h))
        else:
            f = 10000.0 ** (-np.arange(h) / h)
        e = t[:, None] * f
        parts = [jnp.cos(e), jnp.sin(e)]
        e = jnp.concatenate(parts[::-1] if wrong == "flip" else parts, -1)
        y = pairs.dense(p, "fc1", e)
        y = jax.nn.silu(y) + pairs.dense(p, "x", x)
        return pairs.dense(p, "fc2", y)

    t = np.array([0, 1, 17, 999, 1000, 4096, 54321, 65536, 99999], np.float32)
    parts = {"fc1": nn.Linear(16, 9), "x": nn.Linear(6, 9), "fc2": nn.Linear(9, 4)}
    return Pair(pairs.net(body, **parts), port, (X, t))


@pytest.mark.parametrize("exponential", [True, False])
def test_a_sound_embedding_of_whole_timesteps_is_the_same(exponential):
    pairs.same(timesteps(exponential).told())


@pytest.mark.parametrize("wrong", ["flip", "spacing"])
def test_a_wrong_embedding_of_whole_timesteps_is_different(wrong):
    """Guard: the wrong half of the sound embedding above."""
    pairs.different(timesteps().told(wrong))


def nerf() -> Pair:
    """Sines and cosines of points times powers of two up to 2^15."""

    def body(m, x):
        a = x[..., None] * 2.0 ** torch.arange(16, dtype=x.dtype) * np.pi
        e = torch.cat([a.sin(), a.cos()], -1).flatten(-2)
        return m.fc2(F.gelu(m.fc1(e)))

    def port(p, x, wrong):
        bands = 2.0 ** np.arange(16) * np.pi
        if wrong == "band":
            bands[15] *= 1 + 1e-6
        a = x[..., None] * bands
        parts = [jnp.sin(a), jnp.cos(a)]
        if wrong == "interleaved":
            e = jnp.stack(parts, -1).reshape(*x.shape, 32)
        else:
            e = jnp.concatenate(parts, -1)
        e = e.reshape(len(x), -1)
        return pairs.dense(p, "fc2", pairs.gelu(pairs.dense(p, "fc1", e), wrong == "tanh"))

    model = pairs.net(body, fc1=nn.Linear(96, 9), fc2=nn.Linear(9, 4))
    x = np.random.default_rng(0).uniform(-1, 1, (9, 3)).astype(np.float32)
    return Pair(model, port, (x,))


def test_a_sound_encoding_of_points_is_the_same():
    pairs.same(nerf().told())


@pytest.mark.parametrize("wrong", ["band", "interleaved", "tanh"])
def test_a_wrong_encoding_of_points_is_different(wrong):
    """Guard: the wrong half of the sound encoding above."""
    pairs.different(nerf().told(wrong))


def solve() -> Pair:
    """A linear system of condition 1e8 between two layers."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    r, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))
    a = (q * np.geomspace(1, 1e-8, 6)) @ r

    def body(m, x):
        h = F.gelu(m.fc1(x))
        return m.fc2(torch.linalg.solve(m.a, h.T).T * 1e-6)

    def port(p, x, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong == "tanh")
        a = p["a"].T if wrong == "transposed" else p["a"]
        y = (jnp.linalg.inv(a) @ h.T).T if wrong == "inverse" else jnp.linalg.solve(a, h.T).T
        return pairs.dense(p, "fc2", y * 1e-6)

    parts = {"fc1": nn.Linear(6, 6), "fc2": nn.Linear(6, 4), "a": torch.tensor(a)}
    return Pair(pairs.net(body, **parts), port, (X,))


def test_a_sound_port_of_an_ill_conditioned_solve_is_not_different():
    report = solve().told("inverse")
    assert report.verdict != "different", str(report)
    if report.verdict == "undecided":
        pairs.undecided(report, "solve")


def test_a_mistake_before_an_ill_conditioned_solve_is_different():
    """Guard."""
    pairs.different(solve().told("tanh"))


def test_a_mistake_in_an_ill_conditioned_solve_is_not_the_same():
    """Guard."""
    assert solve().told("transposed").verdict != "same"


def other_side() -> Pair:
    """49 / 49 is one and 49 times (1 / 49) is below it: the port's floor takes the other side."""

    def body(m, x, t):
        y = torch.floor(t / m.period)
        return m.fc1(x) * (1 + y)[:, None], F.gelu(m.fc1(x))

    def port(p, x, t, wrong):
        h = pairs.dense(p, "fc1", x)
        y = jnp.floor(t * (1 / p["period"]))
        return h * (1 + y)[:, None], pairs.gelu(h, wrong)

    t = np.array([49, 98, 7, 150, 200, 30, 49, 60, 110], np.float32)
    parts = {"fc1": nn.Linear(6, 8), "period": torch.tensor(49.0)}
    return Pair(pairs.net(body, **parts), port, (X, t))


def test_a_step_taken_on_the_other_side_by_rounding_is_undecided():
    assert np.floor(np.float64(49) * (1 / np.float64(49))) == 0
    pairs.undecided(other_side().told(), "floor")


def test_what_does_not_depend_on_that_step_is_judged():
    pairs.different(other_side().told(True))


def far_side() -> Pair:
    """The port's floor is far from its edge and wrong: no rounding excuses it."""

    def body(m, x, t):
        return m.fc1(x) * torch.floor(t / 2.0)[:, None]

    def port(p, x, t, wrong):
        return pairs.dense(p, "fc1", x) * jnp.floor(t / 2.0 + 0.5 * wrong)[:, None]

    return Pair(pairs.net(body, fc1=nn.Linear(6, 8)), port, (X, T))


def test_a_step_that_no_rounding_excuses_is_different():
    pairs.same(far_side().told())
    pairs.different(far_side().told(True))


def rounds_to_even() -> Pair:
    """Halves: PyTorch rounds to even, the wrong port away from zero; both are exact."""

    def body(m, x, t):
        return m.fc1(x) * torch.round(t / 2.0)[:, None]

    def port(p, x, t, wrong):
        half = t / 2.0
        return (
            pairs.dense(p, "fc1", x)
            * (jnp.floor(half + 0.5) if wrong else jnp.round(half))[:, None]
        )

    return Pair(pairs.net(body, fc1=nn.Linear(6, 8)), port, (X, T))


def test_rounding_of_halves_to_even():
    """On halves the two take other sides of the same edge: that is never `same`."""
    pairs.same(rounds_to_even().told())
    assert rounds_to_even().told(True).verdict != "same"


def comparison_at_the_edge() -> Pair:
    """Padding is `t > 0`; the wrong port has `t >= 0`, and t holds zeros."""

    def body(m, x, t):
        return m.fc1(x) * (t > 0)[:, None]

    def port(p, x, t, wrong):
        return pairs.dense(p, "fc1", x) * (t >= 0 if wrong else t > 0)[:, None]

    t = np.array([0, 1, 2, 0, 5, 0, 3, 4, 1], np.float32)
    return Pair(pairs.net(body, fc1=nn.Linear(6, 8)), port, (X, t))


def test_another_comparison_at_an_exact_edge_is_not_the_same():
    """Guard: nothing rounds between the input and the comparison."""
    pairs.same(comparison_at_the_edge().told())
    pairs.different(comparison_at_the_edge().told(True))


class Dropped(nn.Module):
    def __init__(self, draw: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 9), nn.Linear(9, 4)
        self.draw = draw
        self.drop = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.fc1(x))
        if self.draw == "dropout":
            h = self.drop(h)
        elif self.training:
            h = h * (torch.rand(h.shape[0], 1, dtype=h.dtype) > 0.3) / 0.7
        return self.fc2(h)


@pytest.mark.parametrize("draw", ["dropout", "path"])
@pytest.mark.parametrize("wrong", [False, True])
def test_draws_of_train_mode_do_not_make_every_port_the_same(draw, wrong):
    """The port draws nothing; drawn anew, the reference's own masks would count as rounding."""
    torch.manual_seed(0)
    model = Dropped(draw)

    def port(p, x, wrong):
        return pairs.dense(p, "fc2", pairs.gelu(pairs.dense(p, "fc1", x), wrong))

    report = Pair(model, port, (X,)).told(wrong, what=("forward", "train"))
    assert report.verdict != "same", str(report)
    if wrong:
        pairs.different(report)
