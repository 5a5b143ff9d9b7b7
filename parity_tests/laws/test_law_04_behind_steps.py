"""Law 4, where what hides is no zero: a bound that no number reaches."""

import jax
import pytest
import torch.nn.functional as F
from laws import pairs
from laws.pairs import Pair
from torch import nn

D, TOKENS = 8, 5
X = pairs.draws(2, TOKENS, D)


@pytest.mark.parametrize("kind", ["relu6", "clamp"])
def test_a_bound_that_nothing_reaches_is_said(kind):
    """No number is near the bound, on these inputs or any that are drawn from them."""

    def body(m, x):
        y = m.up(x)
        return m.down(F.relu6(y) if kind == "relu6" else y.clamp(-50, 50))

    def port(p, x, wrong):
        y = pairs.dense(p, "up", x)
        return pairs.dense(p, "down", jax.nn.relu(y) if kind == "relu6" else y)

    model = pairs.net(body, up=nn.Linear(D, 11), down=nn.Linear(11, 7))
    report = Pair(model, port, (0.5 * X,)).told()
    assert report.verdict != "same" or any(
        word in text for text in report.unseen for word in ("clamp", "hardtanh", "relu6")
    ), str(report)
