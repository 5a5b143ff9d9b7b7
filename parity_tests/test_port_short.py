"""`port.explain` in short: an exact port is the same, a wrong one is not, and its mistake is named.

The other tests of ports are about what is found; these run in seconds.
"""

import jax
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.verdict import kinds, tolerance

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("approximate", [False, True], ids=["exact", "wrong"])
def test_an_exact_port_is_the_same_and_a_wrong_one_is_not(approximate):
    torch.manual_seed(0)
    reference = torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.LayerNorm(12), torch.nn.Linear(12, 5)
    ).double()
    params = {name: p.detach().numpy() for name, p in reference.named_parameters()}

    def port_of_it(params, x):
        x = jax.nn.gelu(x @ params["0.weight"].T + params["0.bias"], approximate=approximate)
        x = x - x.mean(-1, keepdims=True)
        x = x / jax.numpy.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        x = x * params["2.weight"] + params["2.bias"]
        return x @ params["3.weight"].T + params["3.bias"]

    images = np.random.default_rng(0).standard_normal((4, 6))
    report = port.explain(reference, port.Function(port_of_it, params), (images,))
    assert report.verdict == ("different" if approximate else "same"), report.text()
    assert [f.cause for f in report.findings] == (["gelu_tanh"] if approximate else [])


@pytest.mark.parametrize("noise, most", [(0.0, 1e-13), (1e-14, 1e-12), (1e-13, 1e-11), (1.0, 1e-9)])
def test_a_tolerance_is_a_hundred_roundings_within_bounds(noise, most):
    assert tolerance(noise) == pytest.approx(most)


def test_what_is_not_finite_is_of_different_kinds():
    assert len({*kinds(np.array([0.0, np.nan, np.inf, -np.inf]))}) == 4
