"""Law 8, on an edit that other inputs need at places where the first inputs do not show it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

LAYERS = ("one", "two", "three")
LARGEST = {"one": 8.0, "two": 5.8, "three": 5.8}


def clipped(at: tuple[str, ...]) -> Pair:
    """Three layers with ReLU; the wrong port clips at 6 at some of them. On these inputs the
    first layer exceeds 6, the others come near it."""

    def body(m, x):
        for fc in (m.one, m.two, m.three):
            x = F.relu(fc(x))
        return m.head(x)

    def port(p, x, wrong):
        for name in LAYERS:
            x = pairs.dense(p, name, x)
            x = jnp.clip(x, 0, 6) if wrong and name in at else jax.nn.relu(x)
        return pairs.dense(p, "head", x)

    model = pairs.net(body, head=nn.Linear(8, 7), **{n: nn.Linear(8, 8) for n in LAYERS})
    inputs = pairs.draws(5, 8)
    x = torch.from_numpy(inputs)
    with torch.no_grad():
        for name in LAYERS:
            fc = getattr(model, name)
            scale = LARGEST[name] / fc(x).max()
            fc.weight *= scale
            fc.bias *= scale
            x = fc(x).clamp(0, 6)
    return Pair(model, port, (inputs,))


@pytest.mark.parametrize("at", [("one", "two", "three"), ("one", "three"), ("one", "two")])
def test_a_clip_is_told_of_every_layer_that_other_inputs_show(at):
    report = clipped(at).told(True)
    pairs.different(report, "where these inputs do not show it")
    assert report.explained, str(report)
    assert [f.cause for f in report.findings] == ["activation"], str(report)
    (finding,) = report.findings
    assert len(finding.places) == 1 or len(set(finding.places)) == len(at)
    far = report.verify((pairs.draws(5, 8, seed=3, scale=20.0),))
    assert max(far.values()) < 1e-9


def test_a_clip_of_one_layer_is_told_of_that_layer_alone():
    report = clipped(("one",)).told(True)
    pairs.different(report)
    assert report.explained and [f.cause for f in report.findings] == ["activation"]
    assert "do not show" not in str(report)
    assert max(report.verify((pairs.draws(5, 8, seed=3, scale=20.0),)).values()) < 1e-9


def test_a_difference_that_the_edit_does_not_make_stays_open():
    """On other inputs the second layer clips at 5.9, which no edit that was found explains."""
    pair = clipped(("one",))

    def port(p, x, wrong):
        for name in LAYERS:
            top = {"one": 6.0, "two": 5.9, "three": np.inf}[name]
            x = jnp.clip(pairs.dense(p, name, x), 0, top if wrong else np.inf)
        return pairs.dense(p, "head", x)

    report = Pair(pair.torch, port, pair.inputs).told(True)
    pairs.different(report, "not on others")
    assert not report.explained


def test_the_exact_port_is_the_same():
    pairs.same(clipped(LAYERS).told(False))
