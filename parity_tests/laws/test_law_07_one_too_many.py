"""Law 7, on an edit that looks like another and that nothing needs."""

import jax
from laws import pairs
from laws.pairs import Pair
from torch import nn


def holds(report, *inputs) -> float:
    """The largest distance of any output on other inputs."""
    return max(report.verify(inputs).values())


def test_an_edit_that_nothing_needs_is_taken_back():
    """The port lacks the queries' bias alone: no other bias and nothing behind it is wrong."""

    def body(m, x):
        w = (m.q(x) @ m.k(x).transpose(-1, -2) / 8**0.5).softmax(-1)
        return m.fc2(x + m.out(w @ m.v(x)))

    def port(p, x, wrong):
        q, k, v = (pairs.dense(p, n, x) for n in "qkv")
        q = q - p["q.bias"] if wrong else q
        w = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 8**0.5, -1)
        return pairs.dense(p, "fc2", x + pairs.dense(p, "out", w @ v))

    parts = {n: nn.Linear(8, 8) for n in ("q", "k", "v", "out")}
    pair = Pair(pairs.net(body, fc2=nn.Linear(8, 7), **parts), port, (pairs.draws(2, 6, 8),))
    report = pair.told(True)
    pairs.different(report)
    assert report.explained, str(report)
    assert [(f.cause, len(f.places)) for f in report.findings] == [("bias_missing", 1)], str(report)
    assert report.findings[0].torch.startswith("q:")
    assert holds(report, pairs.draws(2, 6, 8, seed=3)) < 1e-9
