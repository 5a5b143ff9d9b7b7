"""Law 6, on what the port as it runs does otherwise than in float64: tables, integers."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(8, 5)


def table_of_numpy() -> Pair:
    """A table that NumPy makes in float64 stands in the port."""
    table = np.sin(np.arange(8)[:, None] / 10.0 ** np.arange(9))

    def body(m, x):
        return m.fc2(m.fc1(x) + torch.as_tensor(table).to(x.dtype))

    def port(p, x, wrong):
        return pairs.dense(p, "fc2", pairs.dense(p, "fc1", x) + table)

    return Pair(pairs.net(body, **pairs.perceptron()), port, (X,))


def test_a_table_of_numpy_is_no_obstacle_to_running_the_port():
    """The recording in float64 before leaves nothing behind for the run in float32."""
    report = table_of_numpy().told()
    pairs.same(report)
    assert report.native
    assert "not run" not in str(report).replace("could not", "not"), str(report)


def test_a_port_may_run_before_and_after_it_is_compared():
    """JAX remembers a table as what it was first made: in float32 if the port ran, else float64."""
    pair = table_of_numpy()
    params = pairs.held(pair.torch)

    def run():
        return jax.jit(lambda p, x: pair.port(p, x, wrong=False))

    before = run()
    first = before(params, X)
    report = pair.told()
    pairs.same(report)
    after = run()(params, X)
    assert after.dtype == first.dtype == jnp.float32
    np.testing.assert_array_equal(after, first)
    pairs.same(pair.told())


def hashed() -> Pair:
    """Ids are hashed by a product: int64 in PyTorch, int32 in the port as it runs."""

    def body(m, x, ids):
        return m.fc1(x) + m.table(ids * 100003 % 17)

    def port(p, x, ids, wrong):
        if wrong:
            place = ids * 100003 % 17
        else:
            place = (ids % 17) * (100003 % 17) % 17
        return pairs.dense(p, "fc1", x) + p["table.weight"][place]

    ids = np.array([0, 3, 21475, 30000, 40001, 49999, 17, 25000])
    return Pair(pairs.net(body, fc1=nn.Linear(5, 6), table=nn.Embedding(17, 6)), port, (X, ids))


def test_integers_that_overflow_in_the_port_as_it_runs_are_different():
    pairs.same(hashed().told())
    report = hashed().told(True)
    pairs.different(report, "in float64 the same", "overflows at", "test_law_06_as_it_runs.py")
    assert "overflows" in report.reasons[0] and not report.findings


def test_integers_alone_that_overflow_are_different():
    """The reference returns the products themselves."""
    ids = np.array([0, 3, 21475, 30000, 40001, 49999, 17, 25000])

    def body(m, x, ids):
        return m.fc1(x), ids * 100003

    def port(p, x, ids, wrong):
        return pairs.dense(p, "fc1", x), ids * (100003 if wrong else 3)

    def few(m, x, ids):
        return m.fc1(x), ids * 3

    wrong = Pair(pairs.net(body, fc1=nn.Linear(5, 6)), port, (X, ids)).told(True)
    pairs.different(wrong, "overflows at", "test_law_06_as_it_runs.py")
    pairs.same(Pair(pairs.net(few, fc1=nn.Linear(5, 6)), port, (X, ids)).told())


def test_an_input_beyond_the_type_is_different():
    ids = np.array([0, 3, 2**33 + 5, 30000, 40001, 2**34 + 1, 17, 25000])

    def body(m, x, ids):
        return m.fc1(x) + m.table(ids % 17)

    def port(p, x, ids, wrong):
        return pairs.dense(p, "fc1", x) + p["table.weight"][ids % 17]

    model = pairs.net(body, fc1=nn.Linear(5, 6), table=nn.Embedding(17, 6))
    pairs.different(Pair(model, port, (X, ids)).told(), "overflows at input 1")
    pairs.same(Pair(model, port, (X, ids % 1000)).told())


def test_a_product_that_is_to_wrap_is_not_blamed():
    """Both wrap in int32 by intent; what float32 moves is a step of floats."""

    def body(m, x, ids, z):
        place = (ids.to(torch.int32) * 100003) % 17
        return 0.1 * (m.fc1(x) + m.table(place)) + torch.floor(z * 28.9999)[:, None]

    def port(p, x, ids, z, wrong):
        place = (ids.astype(jnp.int32) * 100003) % 17
        y = 0.1 * (pairs.dense(p, "fc1", x) + p["table.weight"][place])
        return y + jnp.floor(z * 0.29 * 100 if wrong else z * 28.9999)[:, None]

    ids = np.array([0, 3, 21475, 30000, 40001, 49999, 17, 25000])
    z = np.array([1, 2, 1, 2, 2, 1, 1, 2], np.float32)
    model = pairs.net(body, fc1=nn.Linear(5, 6), table=nn.Embedding(17, 6))
    pairs.same(Pair(model, port, (X, ids, z)).told())
    moved = Pair(model, port, (X, ids, z)).told(True)
    assert moved.native.jax > 0.01 > moved.native.torch, str(moved)
    assert moved.verdict != "same" and "overflow" not in str(moved), str(moved)
