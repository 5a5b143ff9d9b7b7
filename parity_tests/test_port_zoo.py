"""The zoo of ports: exact where it says so, and every planted mistake can be seen."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import port_zoo  # noqa: E402

PORTS = [(model, style) for model, styles in port_zoo.STYLES.items() for style in styles]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.parametrize(("model", "style"), PORTS)
def test_exact_ports_agree_to_rounding(x64, model, style):
    case = port_zoo.build(model, style, seed=PORTS.index((model, style)), dtype=np.float64)
    assert distance(case.run_torch(), case.run_jax()) < 1e-12


@pytest.mark.parametrize("style", ["nnx", "linen"])
def test_batch_statistics_agree_in_training(x64, style):
    case = port_zoo.build("conv", style, dtype=np.float64, train=True)
    assert distance(case.run_torch(), case.run_jax()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "style", "name"),
    [
        (m.model, style, m.name)
        for i, m in enumerate(port_zoo.MUTATIONS)
        if m.what == "forward"
        for styles in [[s for s in port_zoo.STYLES[m.model] if m.plantable(s)]]
        for style in [styles[i % len(styles)]]
    ],
)
def test_every_mistake_changes_the_output(x64, model, style, name):
    case = port_zoo.build(model, style, mutations=[name], dtype=np.float64)
    assert distance(case.run_torch(), case.run_jax()) > 1e-8


@pytest.mark.parametrize("mutation", port_zoo.MUTATIONS, ids=lambda m: f"{m.model}-{m.name}")
def test_a_wrong_place_is_not_the_right_one(mutation):
    assert not re.search(mutation.torch, "elsewhere: op")


def test_drawn_mistakes_do_not_touch_the_same_setting():
    rng = np.random.default_rng(0)
    for model, style in PORTS:
        for _ in range(20):
            drawn = port_zoo.draw_mutations(model, style, 3, rng)
            keys = [key for m in drawn for key in m.change]
            assert len(keys) == len(set(keys))
