"""Before the comparison: the port against itself, preprocessing, and causes that tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.causes import _REGISTRY, Variant

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)


class Conv(torch.nn.Module):
    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.conv = torch.nn.Conv2d(3, 5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv((x - 0.5) / 0.25 if self.scaled else x).flatten(1)


def parts(scaled: bool) -> tuple[Conv, port.Function]:
    torch.manual_seed(0)
    model = Conv(scaled)
    params = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p, x):
        x = (x - 0.5) / 0.25 if scaled else x
        return jnp.einsum("bchw,ochw->bo", x, p["conv.weight"]) + p["conv.bias"]

    return model, port.Function(call, params)


@pytest.mark.parametrize("scaled", [False, True])
def test_preprocessing_that_is_no_part_of_the_models_is_not_seen(scaled):
    report = port.explain(*parts(scaled), (IMAGES,))
    assert report.same, report
    assert any("preprocessing" in text for text in report.unseen) != scaled


def test_other_inputs_are_said_to_be_others():
    report = port.explain(*parts(False), (IMAGES,), jax_inputs=(IMAGES * 2 + 1,))
    assert not report.same and any("other numbers" in note for note in report.notes)
    report = port.explain(*parts(False), (IMAGES,), jax_inputs=(IMAGES,))
    assert report.same and not any("other numbers" in note for note in report.notes)


def test_a_port_that_differs_from_itself_cannot_be_judged():
    model, exact = parts(False)
    rng = np.random.default_rng(1)

    def call(p, x):
        return exact.fn(p, x) + rng.standard_normal((2, 5))

    with pytest.raises(port.PortError, match="JAX model differs from itself"):
        port.explain(model, port.Function(call, exact.params), (IMAGES,))


def test_causes_that_explain_equally_well_are_a_tie():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 11), torch.nn.GELU(), torch.nn.Linear(11, 8), torch.nn.Linear(8, 8)
    )
    params = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p, x):
        x = jnp.tanh(x @ p["0.weight"].T + p["0.bias"])
        return (x @ p["2.weight"].T + p["2.bias"]) @ p["3.weight"].T + p["3.bias"]

    @port.cause("other_name", on="aten.gelu")
    def other(call):
        "The same formula under another name."
        yield Variant("the port has tanh here", lambda x, **_: torch.tanh(x))

    try:
        x = RNG.standard_normal((4, 9)).astype(np.float32)
        report = port.explain(model, port.Function(call, params), (x,))
    finally:
        _REGISTRY[:] = [c for c in _REGISTRY if c.name != "other_name"]
    (finding,) = report.findings
    assert report.explained and finding.cause == "activation", report
    assert "a tie: other_name (the port has tanh here)" in finding.text


def test_the_port_runs_on_the_cpu_whatever_the_default_device_is():
    model, exact = parts(False)
    devices = []

    def call(p, x):
        devices.append(jax.config.jax_default_device)
        return exact.fn(p, x)

    with jax.default_device(jax.devices()[3]):  # in the place of an accelerator
        assert port.explain(model, port.Function(call, exact.params), (IMAGES,)).same
    assert set(devices) == {jax.local_devices(backend="cpu")[0]}


class Mean(torch.nn.Module):
    """The mean over positions, taken in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(9, 9), torch.nn.Linear(9, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).mean(1, dtype=torch.float32).double())


def summed() -> tuple[torch.nn.Module, port.Function]:
    torch.manual_seed(0)
    model = Mean()

    def call(p, x):
        return (x @ p["a.weight"].T + p["a.bias"]).sum(1) @ p["b.weight"].T + p["b.bias"]

    return model, port.Function(call, {k: v.numpy() for k, v in model.state_dict().items()})


def test_an_edited_operation_keeps_its_narrowing():
    report = port.explain(*summed(), RNG.standard_normal((5, 7, 9)))
    assert [f.cause for f in report.findings] == ["reduction"], report
    (narrowing,) = report.narrowings
    assert narrowing.side == "torch" and narrowing.cost is not None
    assert 1e-9 < narrowing.cost < 1e-6


def test_a_cause_that_raises_is_noted():
    @port.cause("broken", on="aten.mean")
    def broken(call):
        "A cause with a mistake in it."
        raise RuntimeError("no such operation")

    try:
        report = port.explain(*summed(), RNG.standard_normal((5, 7, 9)))
    finally:
        _REGISTRY[:] = [c for c in _REGISTRY if c.name != "broken"]
    assert report.explained
    assert any("broken at mean: RuntimeError: no such" in note for note in report.notes)
