"""Law 4: nothing vouches for what it does not depend on. A mistake that these weights or inputs
hide from the outputs is a difference; an exact port stays the same, however it is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

from twinvit import port

D, HEADS, TOKENS = 8, 2, 5


def attend(m, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    q, k, v = (
        fc(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for fc, y in ((m.q, x), (m.k, context), (m.v, context))
    )
    w = q @ k.transpose(-1, -2) / (D // HEADS) ** 0.5
    return m.out((w.softmax(-1) @ v).transpose(1, 2).flatten(2))


def block(m, x: torch.Tensor) -> torch.Tensor:
    """The branch that is hidden: normalisation, attention, MLP."""
    h = m.norm(x)
    h = x + attend(m, h, h)
    return m.down(F.gelu(m.up(h)))


def attend_port(p, x, context, wrong, reassociated=False):
    first, second = ("k", "q") if wrong == "exchanged" else ("q", "k")
    scale = D**-0.5 if wrong == "scale" else (D // HEADS) ** -0.5

    def heads(name, y):
        return pairs.dense(p, name, y).reshape(*y.shape[:2], HEADS, -1)

    if reassociated:  # q, k and v in one product, the scale in the weights of q
        w = jnp.concatenate([p["q.weight"] * scale, p["k.weight"], p["v.weight"]])
        b = jnp.concatenate([p["q.bias"] * scale, p["k.bias"], p["v.bias"]])
        y = (x @ w.T + b).reshape(*x.shape[:2], 3, HEADS, -1)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        w = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        w = jnp.exp(w - jax.scipy.special.logsumexp(w, -1, keepdims=True))
    else:
        q, k, v = heads(first, x), heads(second, context), heads("v", context)
        w = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale, -1)
    return pairs.dense(p, "out", jnp.einsum("bhqk,bkhd->bqhd", w, v).reshape(x.shape))


def block_port(p, x, wrong=None):
    """The branch: exact, exact but written otherwise, or with one mistake."""
    if wrong == "reassociated":
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        scale = p["norm.weight"] * jax.lax.rsqrt(square - mean * mean + 1e-5)
        h = x * scale + (p["norm.bias"] - mean * scale)
        h = x + attend_port(p, h, h, None, reassociated=True)
        y = pairs.dense(p, "up", h)
        y = 0.5 * y * (1 + jax.lax.erf(y / np.sqrt(2.0)))
        return pairs.dense(p, "down", y)
    h = pairs.layer_norm(p, "norm", x, 1e-3 if wrong == "eps" else 1e-5)
    h = x + attend_port(p, h, h, wrong)
    return pairs.dense(p, "down", pairs.gelu(pairs.dense(p, "up", h), wrong == "tanh"))


def parts(**more) -> dict:
    return {
        "norm": nn.LayerNorm(D),
        **{n: nn.Linear(D, D) for n in ("q", "k", "v", "out")},
        "up": nn.Linear(D, 11),
        "down": nn.Linear(11, D),
        "head": nn.Linear(D, 7),
        **more,
    }


X = pairs.draws(2, TOKENS, D)


def zero_head() -> Pair:
    """A freshly made classifier: the head's weight is zero, its bias is not."""
    model = pairs.net(lambda m, x: m.head(block(m, x)), **parts())
    with torch.no_grad():
        model.head.weight.zero_()
    return Pair(model, lambda p, x, wrong: pairs.dense(p, "head", block_port(p, x, wrong)), (X,))


def zero_gate() -> Pair:
    """A residual gate that starts at zero."""
    model = pairs.net(lambda m, x: m.head(x + m.gate * block(m, x)), **parts(gate=torch.zeros(())))
    return Pair(
        model,
        lambda p, x, wrong: pairs.dense(p, "head", x + p["gate"] * block_port(p, x, wrong)),
        (X,),
    )


def tanh_gate() -> Pair:
    """A gate under a tanh, as in models that add vision to a language model."""
    model = pairs.net(
        lambda m, x: m.head(x + m.gate.tanh() * block(m, x)), **parts(gate=torch.zeros(1))
    )
    return Pair(
        model,
        lambda p, x, wrong: pairs.dense(
            p, "head", x + jnp.tanh(p["gate"]) * block_port(p, x, wrong)
        ),
        (X,),
    )


def layer_scale() -> Pair:
    model = pairs.net(lambda m, x: m.head(x + m.scale * block(m, x)), **parts(scale=torch.zeros(D)))
    return Pair(
        model,
        lambda p, x, wrong: pairs.dense(p, "head", x + p["scale"] * block_port(p, x, wrong)),
        (X,),
    )


def zero_last_layer() -> Pair:
    """A zero-initialised last product of the branch, weight and bias."""
    model = pairs.net(lambda m, x: m.head(x + block(m, x)), **parts())
    with torch.no_grad():
        model.down.weight.zero_()
        model.down.bias.zero_()
    return Pair(
        model, lambda p, x, wrong: pairs.dense(p, "head", x + block_port(p, x, wrong)), (X,)
    )


def adaptive_norm_zero() -> Pair:
    """A gate computed from a condition by a layer of zeros, as in diffusion transformers."""
    model = pairs.net(
        lambda m, x, c: m.head(x + m.ada(c)[:, None] * block(m, x)), **parts(ada=nn.Linear(4, D))
    )
    with torch.no_grad():
        model.ada.weight.zero_()
        model.ada.bias.zero_()

    def port(p, x, c, wrong):
        gate = pairs.dense(p, "ada", c)[:, None]
        return pairs.dense(p, "head", x + gate * block_port(p, x, wrong))

    return Pair(model, port, (X, pairs.draws(2, 4, seed=1)))


def dead_relu() -> Pair:
    """Every input of a ReLU is negative."""
    model = pairs.net(lambda m, x: m.head(F.relu(block(m, x) - 100.0)), **parts())
    return Pair(
        model,
        lambda p, x, wrong: pairs.dense(p, "head", jax.nn.relu(block_port(p, x, wrong) - 100.0)),
        (X,),
    )


def masked_by_zeros() -> Pair:
    """The inputs' mask leaves nothing of the branch."""
    model = pairs.net(lambda m, x, keep: m.head(x + keep * block(m, x)), **parts())
    return Pair(
        model,
        lambda p, x, keep, wrong: pairs.dense(p, "head", x + keep * block_port(p, x, wrong)),
        (X, np.zeros((2, TOKENS, 1), np.float32)),
    )


def replaced_by_a_mask() -> Pair:
    """A choice takes the other side at every place."""
    model = pairs.net(lambda m, x, keep: m.head(torch.where(keep, block(m, x), x)), **parts())
    return Pair(
        model,
        lambda p, x, keep, wrong: pairs.dense(
            p, "head", jnp.where(keep, block_port(p, x, wrong), x)
        ),
        (X, np.zeros((2, TOKENS, 1), bool)),
    )


def unchosen_expert() -> Pair:
    """All experts are computed, and the router's weight of the second is zero for every token."""

    def body(m, x, w):
        return m.head(w[..., :1] * m.up(x)[..., :D] + w[..., 1:] * block(m, x))

    def port(p, x, w, wrong):
        first = pairs.dense(p, "up", x)[..., :D]
        y = w[..., :1] * first + w[..., 1:] * block_port(p, x, wrong)
        return pairs.dense(p, "head", y)

    w = np.zeros((2, TOKENS, 2), np.float32)
    w[..., 0] = 1
    return Pair(pairs.net(body, **parts()), port, (X, w))


def huge_constant() -> Pair:
    """The outputs are rounded to 1e18 plus nothing."""
    model = pairs.net(lambda m, x: m.head(block(m, x)) + 1e18, **parts())
    return Pair(
        model, lambda p, x, wrong: pairs.dense(p, "head", block_port(p, x, wrong)) + 1e18, (X,)
    )


def saturated() -> Pair:
    """A sigmoid of logits beyond 700 is one at every place."""
    model = pairs.net(lambda m, x: torch.sigmoid(m.head(block(m, x)) + 1000.0), **parts())
    return Pair(
        model,
        lambda p, x, wrong: jax.nn.sigmoid(
            pairs.dense(p, "head", block_port(p, x, wrong)) + 1000.0
        ),
        (X,),
    )


def clipped() -> Pair:
    """Every value lies beyond the clip."""
    model = pairs.net(lambda m, x: m.head((block(m, x) + 50.0).clamp(-1, 1) + x), **parts())
    return Pair(
        model,
        lambda p, x, wrong: pairs.dense(
            p, "head", jnp.clip(block_port(p, x, wrong) + 50.0, -1, 1) + x
        ),
        (X,),
    )


HIDING = {
    f.__name__: f
    for f in (
        zero_head,
        zero_gate,
        tanh_gate,
        layer_scale,
        zero_last_layer,
        adaptive_norm_zero,
        dead_relu,
        masked_by_zeros,
        replaced_by_a_mask,
        unchosen_expert,
        huge_constant,
        saturated,
        clipped,
    )
}
# What lies behind the mistake is hidden; before it, everything is found.
BY_NAME = {"zero_head": "head.weight", "zero_gate": "gate", "layer_scale": "scale"}


@pytest.mark.parametrize("name", HIDING)
def test_an_exact_port_is_the_same(name):
    pairs.same(HIDING[name]().told())


@pytest.mark.parametrize("name", HIDING)
def test_an_exact_port_that_is_written_otherwise_is_the_same(name):
    pairs.same(HIDING[name]().told("reassociated"))


@pytest.mark.parametrize("name", HIDING)
def test_a_hidden_activation_is_different(name):
    wrong = {"zero_last_layer": "eps"}.get(name, "tanh")
    pairs.different(HIDING[name]().told(wrong), *filter(None, [BY_NAME.get(name)]))


@pytest.mark.parametrize("wrong", ["exchanged", "scale", "eps"])
@pytest.mark.parametrize("name", ["zero_head", "zero_gate", "dead_relu"])
def test_a_hidden_mistake_of_another_kind_is_different(name, wrong):
    pairs.different(HIDING[name]().told(wrong))


def test_hidden_is_said():
    pairs.different(zero_head().told("tanh"), "hidden")
    pairs.different(zero_last_layer().told("tanh"), "hidden")


def one_position() -> Pair:
    """Attention to one position: the softmax is one whatever is computed before it."""

    def body(m, x, context):
        return m.head(x + attend(m, x, context))

    def port(p, x, context, wrong):
        return pairs.dense(p, "head", x + attend_port(p, x, context, wrong))

    return Pair(pairs.net(body, **parts()), port, (X, pairs.draws(2, 1, D, seed=1)))


def test_an_exact_port_of_attention_to_one_position_is_the_same():
    pairs.same(one_position().told())


@pytest.mark.parametrize("wrong", ["exchanged", "scale"])
def test_a_mistake_before_a_softmax_over_one_position_is_different(wrong):
    pairs.different(one_position().told(wrong))


def without_the_keys_bias() -> Pair:
    """A bias of the keys shifts all scores of a query alike: a softmax takes it off again, whatever
    the weights and the inputs. The port has none; the wrong one has no bias of the queries."""

    def body(m, x):
        return m.head(x + attend(m, x, x))

    def port(p, x, wrong):
        lost = "q.bias" if wrong else "k.bias"
        return pairs.dense(p, "head", x + attend_port({**p, lost: 0.0 * p[lost]}, x, x, None))

    return Pair(pairs.net(body, **parts()), port, (X,))


def test_what_cancels_for_all_weights_and_inputs_is_no_difference():
    pairs.same(without_the_keys_bias().told())
    pairs.different(without_the_keys_bias().told(True))


def shifted(kind: str) -> Pair:
    """The reference takes the largest off by hand and the port does not: it cancels whatever it is,
    and its gradient is zero."""

    def by_hand(xp, y, off):
        top = y.amax(-1, keepdims=True) if xp is torch else y.max(-1, keepdims=True)
        top = top if off else 0.0 * top
        if kind == "softmax":
            e = xp.exp(y - top)
            return e / e.sum(-1, keepdims=True)
        return y - (top + xp.log(xp.exp(y - top).sum(-1, keepdims=True)))

    def body(m, x):
        return m.down(by_hand(torch, F.gelu(m.up(x)), True))

    def port(p, x, wrong):
        y = pairs.gelu(pairs.dense(p, "up", x), wrong)
        return pairs.dense(p, "down", by_hand(jnp, y, False))

    return Pair(pairs.net(body, up=nn.Linear(D, 11), down=nn.Linear(11, 7)), port, (X,))


@pytest.mark.parametrize("kind", ["softmax", "logsumexp"])
def test_a_shift_that_cancels_may_be_left_out(kind):
    pairs.same(shifted(kind).told())
    pairs.different(shifted(kind).told(True))


def one_token_of_all() -> Pair:
    """The reference normalises all tokens and reads the first; the port normalises the first."""
    model = pairs.net(lambda m, x: m.head(m.norm(x + block(m, x))[:, 0]), **parts())
    with torch.no_grad():
        model.head.weight.zero_()

    def port(p, x, wrong):
        h = (x + block_port(p, x, wrong))[:, 0]
        return pairs.dense(p, "head", pairs.layer_norm(p, "norm", h))

    return Pair(model, port, (X,))


def test_what_is_cut_away_need_not_be_computed_by_the_port():
    pairs.same(one_token_of_all().told())
    pairs.different(one_token_of_all().told("tanh"))


class TrainedOnly(nn.Module):
    """An auxiliary branch that runs in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.aux, self.fc2 = nn.Linear(D, 9), nn.Linear(D, 9), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.fc1(x))
        if self.training:
            h = h + F.gelu(self.aux(x))
        return self.fc2(h)


def trained_only(wrong: bool, what) -> port.Report:
    def ours(p, x, training=False):
        h = pairs.gelu(pairs.dense(p, "fc1", x))
        if training:
            h = h + pairs.gelu(pairs.dense(p, "aux", x), wrong)
        return pairs.dense(p, "fc2", h)

    model = TrainedOnly().eval()
    return port.explain(model, port.Function(ours, pairs.held(model)), (X,), what=what)


def test_a_branch_of_train_mode_is_judged_there():
    """Guard."""
    pairs.same(trained_only(False, ("forward", "train")))
    pairs.different(trained_only(True, ("forward", "train")))


def test_a_branch_of_train_mode_is_said_not_to_be_seen_in_eval_mode():
    report = trained_only(True, "forward")
    pairs.same(report)
    pairs.says(report, "evaluation mode")


def under_no_grad() -> Pair:
    """Tables made under `no_grad`, and a detached target: their gradient is zero and the outputs
    depend on them."""

    def body(m, x):
        with torch.no_grad():
            frequencies = 0.01 ** (torch.arange(D, dtype=torch.float64) / D)
            angle = torch.outer(torch.arange(TOKENS, dtype=torch.float64), frequencies)
            table = (angle.cos() * 2.0 + angle.sin()).to(x.dtype)
            target = F.gelu(m.up(x * table) * 3.0)
        return m.down(target.detach() + F.gelu(m.up(x)))

    def port(p, x, wrong):
        angle = np.arange(TOKENS)[:, None] * np.exp(np.arange(D) / D * np.log(0.01))
        table = np.sqrt(5.0) * np.cos(angle - np.arctan(0.5))  # 2 cos + sin, in one term
        y = 3.0 * x * table @ p["up.weight"].T + 3.0 * p["up.bias"]
        h = pairs.gelu(pairs.dense(p, "up", x))
        return pairs.dense(p, "down", jax.lax.stop_gradient(pairs.gelu(y, wrong)) + h)

    return Pair(pairs.net(body, up=nn.Linear(D, 11), down=nn.Linear(11, 7)), port, (X,))


def test_what_is_made_without_gradients_is_not_called_hidden():
    pairs.same(under_no_grad().told())
    pairs.different(under_no_grad().told(True))


def quantised() -> Pair:
    """A straight-through rounding: no gradient passes, and the outputs depend on what is before."""

    def body(m, x):
        return m.down(torch.round(8 * F.gelu(m.up(x) * 3.0)) / 8)

    def port(p, x, wrong):
        y = pairs.gelu(x @ (3.0 * p["up.weight"]).T + 3.0 * p["up.bias"], wrong)
        return pairs.dense(p, "down", jnp.round(8 * y) / 8)

    return Pair(pairs.net(body, up=nn.Linear(D, 11), down=nn.Linear(11, 7)), port, (X,))


def test_rounded_values_are_judged_before_they_are_rounded():
    """GELU's two forms round to the same eighths almost everywhere."""
    pairs.same(quantised().told())
    pairs.different(quantised().told(True))


def test_what_nothing_reads_is_no_difference():
    """The port leaves out what the reference computes and throws away."""

    def body(m, x):
        h = m.up(x)
        _ = F.gelu(h * 3.0).mean()
        return m.down(torch.tanh(h))

    def port(p, x, wrong):
        return pairs.dense(p, "down", jnp.tanh(pairs.dense(p, "up", x)))

    model = pairs.net(body, up=nn.Linear(D, 11), down=nn.Linear(11, 7))
    pairs.same(Pair(model, port, (X,)).told())


def test_what_a_port_leaves_out_because_it_is_zero_is_not_the_same():
    """A port without the gated branch at all: with the gate at zero its outputs agree."""
    pair = zero_gate()
    pair.port = lambda p, x, wrong: pairs.dense(p, "head", x)
    pairs.different(pair.told())


def classes_only() -> Pair:
    """A model that returns the class: a slightly wrong logit is the same class."""

    model = pairs.net(
        lambda m, x: (0.001 * m.down(F.gelu(m.up(x))) + torch.arange(7)).argmax(-1),
        up=nn.Linear(D, 11),
        down=nn.Linear(11, 7),
    )

    def port(p, x, wrong):
        y = pairs.gelu(pairs.dense(p, "up", x), wrong)
        return (0.001 * pairs.dense(p, "down", y) + jnp.arange(7)).argmax(-1)

    return Pair(model, port, (X,))


def test_what_is_before_a_class_is_judged():
    pairs.same(classes_only().told())
    pairs.different(classes_only().told(True))
