"""Maps of weights: by value, by name, and both ways."""

from pathlib import Path

import numpy as np
import port_models as models
import pytest

from twinvit import port


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
