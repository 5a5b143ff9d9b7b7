"""Maps of weights: by value, by name, and both ways."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import port_models as models
import pytest
import torch
from flax import nnx

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


# The map is doubted before the port is


class Layers(torch.nn.Module):
    """Linear layers of one width with tanh between them, (B, 9) to (B, 9)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(9, 9) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def layers(names: str, wrong: int | None = None):
    """A port of `Layers` whose layers have these names in order; `wrong`: where it has ReLU."""

    def call(p, x):
        for k, name in enumerate(names):
            x = x @ p[name]["w"] + p[name]["b"]
            x = jax.nn.relu(x) if k == wrong else jnp.tanh(x)
        return x

    rng = np.random.default_rng(1)
    params = {n: {"w": rng.standard_normal((9, 9)), "b": np.zeros(9)} for n in sorted(names)}
    return port.Function(call, params)


X = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)


@pytest.mark.parametrize("names", ["abcd", "dcba", "cadb"])
def test_a_right_port_under_any_names_is_the_same(names: str):
    report = port.explain(Layers(4), layers(names), (X,), weights="transfer")
    assert report.same, report


@pytest.mark.parametrize(
    ("names", "wrong"), [("abcd", 0), ("dcba", 0), ("abcd", 2), ("dcba", 2), ("cadb", 2)]
)
def test_a_wrong_port_is_told_its_own_mistake_alone(names: str, wrong: int):
    report = port.explain(Layers(4), layers(names, wrong), (X,), weights="transfer")
    assert [f.cause for f in report.findings] == ["activation"] and report.explained, report
    assert report.findings[0].places == ["tanh"] or "tanh" in report.findings[0].torch


def test_a_map_that_stays_open_is_to_be_doubted_first():
    report = port.explain(Layers(4), layers("cadb", 0), (X,), weights="transfer")
    assert report.verdict == "different"
    alone = [f.cause for f in report.findings] == ["activation"]
    assert alone or any("doubt our map first" in note for note in report.notes), report


def test_the_map_that_was_corrected_is_said_to_be_ours():
    report = port.explain(Layers(5), layers("edcba", 0), (X,), weights="transfer")
    assert report.explained and [f.cause for f in report.findings] == ["activation"], report
    assert any("our map, not your port" in note for note in report.notes)
    right = port.explain(Layers(5), layers("edcba"), (X,), weights="transfer")
    assert right.same and not any("our map" in note for note in right.notes)


class Norms(torch.nn.Module):
    """Two layers with batch norm, (B, 9) to (B, 9)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn1 = torch.nn.Linear(9, 9), torch.nn.BatchNorm1d(9)
        self.b, self.bn2 = torch.nn.Linear(9, 9), torch.nn.BatchNorm1d(9)
        for module in (self.bn1, self.bn2):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.normal_()
            module.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.b(torch.relu(self.bn1(self.a(x)))))


class PortedNorms(nnx.Module):
    def __init__(self, crossed: bool) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(9, 9, rngs=rngs), nnx.Linear(9, 9, rngs=rngs)
        self.bn1, self.bn2 = (
            nnx.BatchNorm(9, rngs=rngs, use_running_average=True, epsilon=1e-5) for _ in range(2)
        )
        self.crossed = crossed

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = (self.bn2, self.bn1) if self.crossed else (self.bn1, self.bn2)
        return second(self.b(nnx.relu(first(self.a(x)))))


@pytest.mark.parametrize("crossed", [False, True])
def test_whole_norms_are_exchanged_where_names_mislead(crossed: bool):
    found = port.map_weights(Norms().eval(), PortedNorms(crossed), (X,))
    first = next(r for r in found.rules if r.jax == "bn1.scale")
    assert first.torch == ["bn2.weight" if crossed else "bn1.weight"] and not found.ambiguous
    report = port.explain(Norms().eval(), PortedNorms(crossed), (X,), weights="transfer")
    assert report.same, report


def test_a_port_that_holds_norms_in_each_others_place_is_still_told():
    model = Norms().eval()
    ported = PortedNorms(False)
    for name in "ab":
        getattr(ported, name).kernel.value = jnp.asarray(getattr(model, name).weight.detach().T)
        getattr(ported, name).bias.value = jnp.asarray(getattr(model, name).bias.detach())
    for own, other in (("bn1", "bn2"), ("bn2", "bn1")):
        there, here = getattr(ported, own), getattr(model, other)
        there.scale.value = jnp.asarray(here.weight.detach())
        there.bias.value = jnp.asarray(here.bias.detach())
        there.mean.value = jnp.asarray(here.running_mean)
        there.var.value = jnp.asarray(here.running_var)
    report = port.explain(model, ported, (X,))
    assert report.verdict == "different", report
    assert {f.cause for f in report.findings} == {"weights_swapped"}, report


def test_equal_arrays_are_ambiguous_whatever_their_names():
    model = Layers(2)
    model.layers[1].load_state_dict(model.layers[0].state_dict())
    weight, bias = model.layers[0].weight.detach().numpy().T, model.layers[0].bias.detach().numpy()
    params = {n: {"w": weight.copy(), "b": bias.copy()} for n in ("first", "second")}

    def call(p, x):
        for name in ("second", "first"):
            x = jnp.tanh(x @ p[name]["w"] + p[name]["b"])
        return x

    found = port.map_weights(model, port.Function(call, params), (X,))
    assert any("layers.0.weight, layers.1.weight hold equal numbers" in a for a in found.ambiguous)
    assert any("layers.0.bias, layers.1.bias hold equal numbers" in a for a in found.ambiguous)
    assert port.explain(model, port.Function(call, params), (X,), weights=found).same


def test_an_identity_matrix_does_not_tell_the_order_of_its_axes():
    model = Layers(2)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.eye(9))
    found = port.map_weights(model, layers("ab"), (X,))
    assert found.ambiguous == ["layers.0.weight is the same in another order of its axes"]


def test_query_key_and_value_are_told_apart_in_a_packed_product():
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mha = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            for p in self.parameters():
                p.data.normal_()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mha(x, x, x)[0]

    class Ported(nnx.Module):
        def __init__(self) -> None:
            self.attention = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.attention(x)

    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    found = port.map_weights(Attention(), Ported(), (x,))
    parts = {r.jax: r.part for r in found.rules if "kernel" in r.jax}
    assert parts == {
        "attention.query.kernel": (0, 3),
        "attention.key.kernel": (1, 3),
        "attention.value.kernel": (2, 3),
        "attention.out.kernel": (),
    }
    assert not found.ambiguous
    assert port.explain(Attention(), Ported(), (x,), weights=found).same
