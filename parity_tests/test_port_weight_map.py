"""Maps of weights: by value, by name, and both ways."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import port_models as models
import pytest
import torch

from twinvit import port
from twinvit.port.weight_map import Rule


@pytest.mark.parametrize("stacked", [False, True])
def test_equal_values_decide_and_the_map_converts_both_ways(stacked: bool, tmp_path: Path):
    model = models.reference()
    found = port.map_weights(model, port.Function(models.port, models.params(model, stacked)))
    assert not found.ambiguous and not found.unused
    found.save(tmp_path / "map.toml")
    found = port.WeightMap.load(tmp_path / "map.toml")
    other = models.reference(seed=3)
    back = found.invert(found.apply(other.state_dict()))
    assert back.keys() == other.state_dict().keys()
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(back[name], value.numpy())
    wanted = models.params(other, stacked)["head"]
    np.testing.assert_array_equal(found.apply(other.state_dict())["head"], wanted)


def test_a_file_that_is_no_map_is_refused(tmp_path: Path):
    (tmp_path / "map.toml").write_text("format = 1\n")
    with pytest.raises(port.PortError, match="no map"):
        port.WeightMap.load(tmp_path / "map.toml")


def test_a_missing_array_is_named():
    model = models.reference()
    found = port.map_weights(model, port.Function(models.port, models.params(model)))
    state = dict(model.state_dict())
    del state["head.weight"]
    with pytest.raises(port.PortError, match="head.weight"):
        found.apply(state)


def one_rule() -> port.WeightMap:
    """A map of one array of 3 x 4 numbers (4 x 3 in the port)."""
    return port.WeightMap([Rule("w", ["a"], (4, 3), (3, 4), (1, 0))])


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (12,)])
def test_arrays_of_other_shapes_are_refused_both_ways(shape: tuple[int, ...]):
    with pytest.raises(port.PortError, match="w cannot be made of a"):
        one_rule().apply({"a": np.zeros(shape)})
    with pytest.raises(port.PortError, match="a cannot be made of w"):
        one_rule().invert({"w": np.zeros(shape[::-1])})


def test_a_part_that_no_rule_makes_is_named():
    found = port.WeightMap([Rule("q", ["qkv"], (4, 4), (4, 4), (0, 1), (0, 3))])
    with pytest.raises(port.PortError, match="1 of 3 parts of qkv"):
        found.invert({"q": np.zeros((4, 4))})


@pytest.mark.parametrize("text", ["format = 2\nmap = []\n", "map = []\n", "format = ", "map = 3"])
def test_broken_files_are_refused(text: str, tmp_path: Path):
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(port.PortError, match="no map"):
        port.WeightMap.load(tmp_path / "map.toml")
    (tmp_path / "map.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(port.PortError, match="no map"):
        port.WeightMap.load(tmp_path / "map.toml")


def test_an_empty_map_is_read_again(tmp_path: Path):
    port.WeightMap(unused=["jax: w"]).save(tmp_path / "map.toml")
    assert port.WeightMap.load(tmp_path / "map.toml") == port.WeightMap(unused=["jax: w"])


def test_names_that_mislead_are_exchanged_and_leave_nothing_open():
    torch.manual_seed(0)

    class Three(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in "abc":
                self.add_module(name, torch.nn.Linear(9, 9, bias=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    def call(p, x):  # a cycle: no single exchange makes it right
        return jnp.tanh(jnp.tanh(x @ p["b"]) @ p["c"]) @ p["a"]

    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 9))
    params = {name: rng.standard_normal((9, 9)) for name in "abc"}
    found = port.map_weights(Three(), port.Function(call, params), (x,))
    assert {r.jax: r.torch for r in found.rules} == {
        "b": ["a.weight"],
        "c": ["b.weight"],
        "a": ["c.weight"],
    }
    assert not found.ambiguous and not found.unused
