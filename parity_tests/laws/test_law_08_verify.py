"""Law 8: what holds on the given inputs and weights alone is not the same; the edits hold on the
caller's inputs, and sound ports stay the same on every draw."""

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
OTHER = pairs.draws(8, 6, seed=5)
PARTS = {"fc1": lambda: nn.Linear(6, 9), "fc2": lambda: nn.Linear(9, 4)}


def net(body, **more):
    return pairs.net(body, **{k: f() for k, f in PARTS.items()}, **more)


def outputs_of(model, *inputs) -> np.ndarray:
    with torch.no_grad():
        return model(*map(torch.as_tensor, inputs)).numpy()


def wide_outputs_of(model, *inputs) -> np.ndarray:
    """In float64, as the comparison runs it."""
    model.double()
    wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs]
    result = outputs_of(model, *wide)
    model.float()
    return result


def hard_coded() -> Pair:
    """The port returns what the reference returned for these inputs."""
    model = net(pairs.mlp)
    stored = wide_outputs_of(model, X)

    def port(p, x, wrong):
        return jnp.asarray(stored) if wrong else pairs.mlp_port(p, x)

    return Pair(model, port, (X,))


def hard_coded_beside_the_work() -> Pair:
    """It computes everything, and returns the stored outputs."""
    model = net(pairs.mlp)
    stored = wide_outputs_of(model, X)

    def port(p, x, wrong):
        y = pairs.mlp_port(p, x)
        return jnp.asarray(stored) + jnp.zeros_like(y) * y if wrong else y

    return Pair(model, port, (X,))


def ids_ignored() -> Pair:
    """The ids are 0, 1, 2, ...: the port reads the table's first rows."""

    def body(m, x, ids):
        return m.fc2(F.gelu(m.fc1(x) + m.table(ids)))

    def port(p, x, ids, wrong):
        row = p["table.weight"][:8] if wrong else p["table.weight"][ids]
        return pairs.dense(p, "fc2", pairs.gelu(pairs.dense(p, "fc1", x) + row))

    return Pair(net(body, table=nn.Embedding(12, 9)), port, (X, np.arange(8)))


def equal_rows() -> Pair:
    """All rows of the batch are one: the port averages over them."""

    def body(m, x):
        return m.fc2(F.gelu(m.fc1(x) - m.fc1(x).mean(-1, keepdim=True)))

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x)
        h = h - (h.mean(0).mean() if wrong else h.mean(-1, keepdims=True))
        return pairs.dense(p, "fc2", pairs.gelu(h))

    return Pair(net(body), port, (np.tile(X[:1], (8, 1)),))


def constant_inputs() -> Pair:
    """Tokens that are all one half: the port shifts them by one."""

    def body(m, x):
        return m.fc2(F.gelu(m.fc1(x)) * torch.arange(1.0, 9.0)[:, None])

    def port(p, x, wrong):
        x = jnp.roll(x, 1, axis=0) if wrong else x
        h = pairs.gelu(pairs.dense(p, "fc1", x)) * jnp.arange(1.0, 9.0)[:, None]
        return pairs.dense(p, "fc2", h)

    return Pair(net(body), port, (np.full((8, 6), 0.5, np.float32),))


def calibrated() -> Pair:
    """The inputs' own mean is stored in the port."""
    mean = X.astype(np.float64).mean(0)

    def body(m, x):
        return pairs.mlp(m, x - x.mean(0))

    def port(p, x, wrong):
        return pairs.mlp_port(p, x - (mean if wrong else x.mean(0)))

    return Pair(net(body), port, (X,))


def largest_stored() -> Pair:
    """The largest absolute input, by which the reference scales, is stored in the port."""
    top = float(np.abs(X).max())

    def body(m, x):
        return pairs.mlp(m, x / x.abs().max())

    def port(p, x, wrong):
        return pairs.mlp_port(p, x / (top if wrong else jnp.abs(x).max()))

    return Pair(net(body), port, (X,))


def norm_stored() -> Pair:
    """The length of a weight, by which the reference divides, stands in the code."""

    def body(m, x):
        return m.fc2(F.gelu(m.fc1(x) / m.fc1.weight.square().sum().sqrt()))

    model = net(body)
    length = float(np.sqrt(np.square(model.fc1.weight.detach().numpy().astype(np.float64)).sum()))

    def port(p, x, wrong):
        own = length if wrong else jnp.sqrt(jnp.square(p["fc1.weight"]).sum())
        return pairs.dense(p, "fc2", pairs.gelu(pairs.dense(p, "fc1", x) / own))

    return Pair(model, port, (X,))


def mask_stored() -> Pair:
    """The inputs' mask stands in the port."""

    def body(m, x, keep):
        return m.fc2(F.gelu(m.fc1(x)) * keep)

    keep = np.arange(9)[None] < np.array([3, 9, 1, 5, 9, 2, 4, 8])[:, None]

    def port(p, x, given, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x)) * (keep if wrong else given)
        return pairs.dense(p, "fc2", h)

    return Pair(net(body), port, (X, keep))


COINCIDENCES = {
    f.__name__: f
    for f in (
        hard_coded,
        hard_coded_beside_the_work,
        ids_ignored,
        equal_rows,
        constant_inputs,
        calibrated,
        largest_stored,
        norm_stored,
        mask_stored,
    )
}


@pytest.mark.parametrize("name", COINCIDENCES)
def test_an_exact_port_is_the_same(name):
    pairs.same(COINCIDENCES[name]().told())


@pytest.mark.parametrize("name", COINCIDENCES)
def test_what_holds_on_these_inputs_and_weights_alone_is_different(name):
    pairs.different(COINCIDENCES[name]().told(True))


def positive_only() -> Pair:
    """The port leaves out a ReLU of inputs that are all positive."""

    def body(m, x):
        return pairs.mlp(m, F.relu(x))

    def port(p, x, wrong):
        return pairs.mlp_port(p, x if wrong else jax.nn.relu(x))

    return Pair(net(body), port, (np.abs(X) + 0.1,))


def test_verify_tells_the_caller_s_inputs():
    """Same on positive inputs, far on others, and the exact port on neither."""
    exact, wrong = positive_only().told(), positive_only().told(True)
    assert max(wrong.verify((np.abs(OTHER) + 0.1,)).values()) < 1e-9
    assert max(wrong.verify((OTHER,)).values()) > 1e-3
    assert max(exact.verify((OTHER,)).values()) < 1e-9


def test_verify_tells_each_output_by_its_name():
    def body(m, x):
        return {"logits": pairs.mlp(m, F.relu(x)), "mean": m.fc1(x).mean(-1)}

    def port(p, x, wrong):
        y = pairs.mlp_port(p, x if wrong else jax.nn.relu(x))
        return {"logits": y, "mean": pairs.dense(p, "fc1", x).mean(-1)}

    told = Pair(net(body), port, (np.abs(X) + 0.1,)).told(True).verify((OTHER,))
    assert set(told) == {"logits", "mean"} and told["logits"] > 1e-3 > 1e-9 > told["mean"]


def test_a_verdict_on_several_draws_holds_for_all():
    pair = positive_only()
    pair.inputs = [(np.abs(X) + 0.1,), (OTHER,)]
    pairs.same(pair.told())
    pairs.different(pair.told(True))


def test_saturated_first_inputs_are_not_the_only_ones():
    """Beyond ten, both forms of GELU are the identity or zero."""
    x = np.where(X > 0, 1.0, -1.0).astype(np.float32) * (50 + np.abs(X))

    def body(m, x):
        return m.fc2(m.fc1(F.gelu(x)))

    def port(p, x, wrong):
        return pairs.dense(p, "fc2", pairs.dense(p, "fc1", pairs.gelu(x, wrong)))

    pair = Pair(net(body), port, [(x,), (X,)])
    pairs.same(pair.told())
    pairs.different(pair.told(True))


# Sound ports that draws of other inputs and weights must not accuse.


def closed_over() -> Pair:
    """All weights stand in the port's code, and it holds no parameters."""
    model = net(pairs.mlp)
    p_ = pairs.held(model)
    return Pair(model, lambda p, x, wrong: pairs.mlp_port(p_, x), (X,), params={})


def folded_batch_norm() -> Pair:
    """Batch normalisation folded into the product, in float64."""

    def body(m, x):
        return m.fc2(F.relu(m.bn(m.fc1(x))))

    model = net(body, bn=nn.BatchNorm1d(9))
    p = {k: v.astype(np.float64) for k, v in pairs.held(model).items()}
    scale = p["bn.weight"] / np.sqrt(p["bn.running_var"] + 1e-5)
    folded = {
        "fc1.weight": p["fc1.weight"] * scale[:, None],
        "fc1.bias": (p["fc1.bias"] - p["bn.running_mean"]) * scale + p["bn.bias"],
        "fc2.weight": p["fc2.weight"],
        "fc2.bias": p["fc2.bias"],
    }

    def port(p, x, wrong):
        return pairs.dense(p, "fc2", jax.nn.relu(pairs.dense(p, "fc1", x)))

    return Pair(model, port, (X,), params=folded)


def batch_norm() -> Pair:
    """Running variances stay positive in every draw."""

    def body(m, x):
        return m.fc2(F.relu(m.bn(m.fc1(x))))

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x) - p["bn.running_mean"]
        h = h / jnp.sqrt(p["bn.running_var"] + 1e-5) * p["bn.weight"] + p["bn.bias"]
        return pairs.dense(p, "fc2", jax.nn.relu(h))

    return Pair(net(body, bn=nn.BatchNorm1d(9)), port, (X,))


def tied() -> Pair:
    """One table is read twice in the reference, and held twice, once transposed, in the port."""

    def body(m, x, ids):
        return (m.fc1(x) + m.table(ids)).tanh() @ m.table.weight.T

    model = pairs.net(body, fc1=nn.Linear(6, 9), table=nn.Embedding(12, 9))
    params = pairs.held(model)
    params["head"] = params["table.weight"].T.copy()

    def port(p, x, ids, wrong):
        return jnp.tanh(pairs.dense(p, "fc1", x) + p["table.weight"][ids]) @ p["head"]

    return Pair(model, port, (X, np.array([3, 1, 4, 1, 5, 9, 2, 6])), params=params)


def float_labels() -> Pair:
    """Classes as floats, up to the last row of a table: a larger number is refused by PyTorch."""

    def body(m, x, t):
        return m.fc2(F.gelu(m.fc1(x) + m.table(t.long())))

    def port(p, x, t, wrong):
        h = pairs.dense(p, "fc1", x) + p["table.weight"][t.astype(jnp.int32)]
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    t = np.array([11, 3, 0, 7, 11, 10, 9, 1], np.float32)
    return Pair(net(body, table=nn.Embedding(12, 9)), port, (X, t))


def checked_range() -> Pair:
    """The reference refuses pixels beyond one."""

    def body(m, x):
        if bool((x > 1).any()):
            raise ValueError("pixels are between 0 and 1")
        return pairs.mlp(m, x)

    x = np.random.default_rng(0).uniform(0, 1, (8, 6)).astype(np.float32)
    return Pair(net(body), pairs.mlp_port, (x,))


def logarithm_of_a_weight() -> Pair:
    """A positive parameter under a logarithm and a root."""

    def body(m, x):
        return m.fc2(F.gelu(m.fc1(x)) * m.rate.log() + m.rate.sqrt())

    def port(p, x, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong)
        return pairs.dense(p, "fc2", h * jnp.log(p["rate"]) + jnp.sqrt(p["rate"]))

    rate = torch.rand(9, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.001
    return Pair(net(body, rate=rate), port, (X,))


def cholesky_of_a_weight() -> Pair:
    """A positive definite parameter: PyTorch refuses another, JAX returns NaN."""

    def body(m, x):
        return m.fc2(F.gelu(m.fc1(x)) @ torch.linalg.cholesky(m.cov))

    def port(p, x, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong)
        return pairs.dense(p, "fc2", h @ jnp.linalg.cholesky(p["cov"]))

    a = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    cov = a @ a.T / 9 + 0.1 * torch.eye(9)
    return Pair(net(body, cov=(cov + cov.T) / 2), port, (X,))


def lengths() -> Pair:
    """Lengths of sequences as whole numbers, which are sums of the masks they stand beside."""

    def body(m, x, keep, length):
        return m.fc2(F.gelu(m.fc1(x)) * keep) / length[:, None]

    def port(p, x, keep, length, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong) * keep
        return pairs.dense(p, "fc2", h) / length[:, None]

    keep = (np.arange(9)[None] < np.array([3, 9, 1, 5, 9, 2, 4, 8])[:, None]).astype(np.int64)
    return Pair(net(body), port, (X, keep, keep.sum(1)))


def last_token() -> Pair:
    """The place of the last token, as an index that must stay inside the sequence."""

    def body(m, x, last):
        return m.fc2(F.gelu(m.fc1(x)).reshape(2, 4, 9)[torch.arange(2), last])

    def port(p, x, last, wrong):
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong).reshape(2, 4, 9)
        return pairs.dense(p, "fc2", h[jnp.arange(2), last])

    return Pair(net(body), port, (X, np.array([3, 2])))


def fused_parameters() -> Pair:
    """Query, key and value stand in one array of the port, transposed and by head."""

    def body(m, x):
        q, k, v = m.q(x), m.k(x), m.v(x)
        return m.fc2(F.gelu((q @ k.T / 3.0).softmax(-1) @ v))

    parts = {n: nn.Linear(6, 9) for n in "qkv"}
    model = pairs.net(body, fc2=nn.Linear(9, 4), **parts)
    own = pairs.held(model)
    params = {
        "w": np.stack([own[n + ".weight"].T.reshape(6, 3, 3) for n in "qkv"], 1),
        "b": np.stack([own[n + ".bias"].reshape(3, 3) for n in "qkv"]),
        **{k: v for k, v in own.items() if k.startswith("fc2")},
    }

    def port(p, x, wrong):
        y = jnp.einsum("ti,ikhd->tkhd", x, p["w"]) + p["b"]
        q, k, v = (y[:, i].reshape(len(x), 9) for i in range(3))
        h = jax.nn.softmax(q @ k.T / 3.0, -1) @ v
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(model, port, (X,), params=params)


def split_parameters() -> Pair:
    """One array of the reference stands in three of the port, one of them scaled by the
    converter."""

    def body(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        return m.fc2(F.gelu((q @ k.T / 3.0).softmax(-1) @ v))

    model = pairs.net(body, qkv=nn.Linear(6, 27), fc2=nn.Linear(9, 4))
    own = {k: v.astype(np.float64) for k, v in pairs.held(model).items()}
    params = {k: v for k, v in own.items() if k.startswith("fc2")}
    for i, n in enumerate("qkv"):
        factor = 3.0 if n == "q" else 1.0
        params[n + ".weight"] = own["qkv.weight"][9 * i : 9 * i + 9] / factor
        params[n + ".bias"] = own["qkv.bias"][9 * i : 9 * i + 9] / factor

    def port(p, x, wrong):
        q, k, v = (pairs.dense(p, n, x) for n in "qkv")
        return pairs.dense(p, "fc2", pairs.gelu(jax.nn.softmax(q @ k.T, -1) @ v, wrong))

    return Pair(model, port, (X,), params=params)


def padded_table() -> Pair:
    """The port's table has rows of zeros more, which no id reads."""

    def body(m, x, ids):
        return (m.fc1(x) + m.table(ids)).tanh() @ m.table.weight.T

    model = pairs.net(body, fc1=nn.Linear(6, 9), table=nn.Embedding(12, 9))
    params = pairs.held(model)
    params["table.weight"] = np.pad(params["table.weight"], ((0, 4), (0, 0)))

    def port(p, x, ids, wrong):
        h = jnp.tanh(pairs.dense(p, "fc1", x) + p["table.weight"][ids])
        return (h @ p["table.weight"].T)[:, :12]

    return Pair(model, port, (X, np.array([3, 1, 4, 1, 5, 11, 2, 0])), params=params)


def table_in_a_buffer() -> Pair:
    """Frequencies are a buffer of the reference, and a formula of the port."""

    def body(m, x, t):
        angle = t[:, None] * m.frequencies
        return m.fc2(F.gelu(m.fc1(x) * angle.cos() + angle.sin()))

    model = net(body)
    frequencies = 100.0 ** -(torch.arange(9) / 9)
    model.register_buffer("frequencies", frequencies)
    params = {k: v for k, v in pairs.held(model).items() if k != "frequencies"}
    table = frequencies.numpy().astype(np.float64)

    def port(p, x, t, wrong):
        angle = t[:, None] * table
        h = pairs.dense(p, "fc1", x) * jnp.cos(angle) + jnp.sin(angle)
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(model, port, (X, np.arange(8)), params=params)


def mask_in_a_buffer() -> Pair:
    """A mask of zeros and -inf is a buffer of either side."""

    def body(m, x):
        h = m.fc1(x)
        return m.fc2(F.gelu((h @ h.T + m.mask).softmax(-1) @ h))

    model = net(body)
    model.register_buffer("mask", torch.full((8, 8), -np.inf).triu(1))

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x)
        h = jax.nn.softmax(h @ h.T + p["mask"], -1) @ h
        return pairs.dense(p, "fc2", pairs.gelu(h, wrong))

    return Pair(model, port, (X,))


SOUND = {
    f.__name__: f
    for f in (
        closed_over,
        folded_batch_norm,
        batch_norm,
        tied,
        float_labels,
        checked_range,
        logarithm_of_a_weight,
        cholesky_of_a_weight,
        lengths,
        last_token,
        fused_parameters,
        split_parameters,
        padded_table,
        table_in_a_buffer,
        mask_in_a_buffer,
    )
}


@pytest.mark.parametrize("name", SOUND)
def test_draws_accuse_no_sound_port(name):
    pairs.same(SOUND[name]().told())


@pytest.mark.parametrize(
    "name",
    [
        "float_labels",
        "checked_range",
        "logarithm_of_a_weight",
        "cholesky_of_a_weight",
        "last_token",
    ],
)
def test_a_mistake_is_named_beside_what_draws_may_not_change(name):
    """Guards, but for the labels."""
    report = SOUND[name]().told(True)
    pairs.different(report)
    assert report.explained and [f.cause for f in report.findings] == ["gelu_tanh"], str(report)
