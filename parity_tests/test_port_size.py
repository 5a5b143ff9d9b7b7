"""Claim: what an explanation takes is said before it starts, and weights that are drawn are not
held."""

import numpy as np
import torch
from laws import pairs

from twinvit.port.expected import of_sizes
from twinvit.port.redraw import Drawn, redrawn_weights
from twinvit.port.search.noise import LARGE, _moved_leaf, _Nudge


def test_parameters_memory_and_time_are_said_first():
    said: list[str] = []
    pair = pairs.Pair(
        pairs.net(pairs.mlp, **pairs.perceptron()), pairs.mlp_port, (pairs.draws(7, 5),)
    )
    pair.told(progress=said.append)
    assert said[0].startswith("the reference has 114 parameters, the port 114; expect about 0.2 GB")
    assert "1.7 GB of memory beyond the two models, and 27 s" in of_sizes(24_000_000, 24_000_000)


def test_drawn_weights_are_made_when_they_are_asked_for_and_alike_each_time():
    mine = [pairs.draws(6, 5, seed=k).astype(np.float64) for k in range(2)]
    theirs = [x.T.copy() for x in mine]
    weights = redrawn_weights(mine, theirs, [], 3)
    assert isinstance(weights.mine, Drawn) and weights.moved == 2
    first, again = weights.mine[0], weights.mine[0]
    assert first is not again and np.array_equal(first, again)
    assert np.array_equal(first, weights.theirs[0].T) and not np.array_equal(first, mine[0])
    assert [x.shape for x in weights.mine] == [(6, 5)] * 2 and len(list(weights.theirs)) == 2


def test_a_large_parameter_is_moved_alike_each_time():
    value = torch.randn(LARGE, dtype=torch.float64)
    nudge = _Nudge(0, LARGE)
    first, again = _moved_leaf(value, nudge)
    after = nudge.at
    nudge(value)
    present = nudge.at
    assert torch.equal(first, again()) and not torch.equal(first, value)
    assert nudge.at == present != after
