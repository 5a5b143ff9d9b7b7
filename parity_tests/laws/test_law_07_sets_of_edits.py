"""Law 7, on two edits that all but cancel."""

import jax
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

X = pairs.draws(6, 5)
OTHER = pairs.draws(6, 5, seed=9, scale=1.7)


def holds(report, *inputs) -> float:
    """The largest distance of any output on other inputs."""
    return max(report.verify(inputs).values())


def opposed(first: str, second: str) -> Pair:
    """Two mistakes of which the second takes back most of what the first does."""

    def body(m, x):
        return m.fc2(F.softplus(m.fc1(x)))

    def port(p, x, wrong):
        h = pairs.dense(p, "fc1", x) - (p["fc1.bias"] if first in wrong else 0)
        y = pairs.dense(p, "fc2", jax.nn.softplus(h))
        return y - (p["fc2.bias"] if second in wrong else 0)

    model = pairs.net(body, fc1=nn.Linear(5, 12), fc2=nn.Linear(12, 7))
    with torch.no_grad():
        h = model.fc1(torch.tensor(X))
        moved = (F.softplus(h) - F.softplus(h - model.fc1.bias)) @ model.fc2.weight.T
        model.fc2.bias.copy_(-0.9 * moved.mean(0))
    return Pair(model, port, (X,))


def test_two_mistakes_that_all_but_cancel_are_both_found():
    """Mending the first moves the outputs away."""
    pair = opposed("first", "second")
    report = pair.told(("first", "second"))
    assert pair.told(("second",)).distance > report.distance
    pairs.different(report)
    assert report.explained, str(report)
    places = " ".join(p for f in report.findings for p in [f.torch, *f.places])
    assert {f.cause for f in report.findings} == {"bias_missing"}
    assert "fc1" in places and "fc2" in places
    assert holds(report, OTHER) < 1e-9
