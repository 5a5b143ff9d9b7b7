"""Weights that a converter folded in float32 are a matter of precision, proven by the fold."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from twinvit import port


class Normalised(nn.Module):
    """A linear layer, batch norm in its running statistics, and a head: (B, 5) to (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.bn, self.out = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        with torch.no_grad():
            for tensor in (self.bn.weight, self.bn.bias, self.bn.running_mean):
                tensor.normal_()
            self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.bn(self.fc(x)).relu())


class Summed(nn.Module):
    """Two biases that are added: (B, 5) to (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.out = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 4)
        self.b_in, self.b_hidden = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((x @ self.w + self.b_in + self.b_hidden).tanh())


def folded(model: nn.Module, dtype: type, eps: float = 1e-5) -> dict[str, np.ndarray]:
    """The port's weights, folded in `dtype`."""
    p = {k: v.detach().numpy().astype(dtype) for k, v in model.state_dict().items()}
    out = {"o": p["out.weight"].T, "ob": p["out.bias"]}
    if isinstance(model, Summed):
        return out | {"w": p["w"], "b": p["b_in"] + p["b_hidden"]}
    scale = p["bn.weight"] / np.sqrt(p["bn.running_var"] + dtype(eps))
    bias = (p["fc.bias"] - p["bn.running_mean"]) * scale + p["bn.bias"]
    return out | {"w": p["fc.weight"].T * scale, "b": bias}


def told(model: nn.Module, dtype: type, **changes: float) -> port.Report:
    act = jax.nn.relu if isinstance(model, Normalised) else jax.numpy.tanh

    def call(p: dict, x: jax.Array) -> jax.Array:
        return act(x @ p["w"] + p["b"]) @ p["o"] + p["ob"]

    x = np.random.default_rng(0).standard_normal((6, 5))
    return port.explain(model.eval(), port.Function(call, folded(model, dtype, **changes)), (x,))


@pytest.mark.parametrize("model", [Normalised, Summed])
def test_weights_folded_in_float32_are_a_matter_of_precision(model):
    assert told(model(), np.float64).same
    report = told(model(), np.float32)
    assert report.explained and report.distance > 1e-9 and report.remaining < 1e-13
    assert {f.kind for f in report.findings} == {"precision"}
    assert "folded in float32" in report.findings[0].text


def test_a_sum_that_lost_nothing_is_no_finding():
    """The biases' sum is exact in float32, and another mistake moves the outputs a little."""
    model = Summed().eval()
    with torch.no_grad():
        for bias in (model.b_in, model.b_hidden):
            bias.copy_((bias * 64).round() / 64)
    params = folded(model, np.float32)

    def call(p: dict, x: jax.Array) -> jax.Array:
        return jax.numpy.tanh(x @ p["w"] + p["b"]) * 1.00002 @ p["o"] + p["ob"]

    x = np.random.default_rng(0).standard_normal((6, 5))
    report = port.explain(model, port.Function(call, params), (x,))
    assert report.verdict == "different" and "folded in float32" not in str(report), report


def test_a_fold_with_another_eps_is_no_matter_of_precision():
    report = told(Normalised(), np.float32, eps=3e-5)
    assert report.verdict == "different"
    assert not report.explained or any(f.kind != "precision" for f in report.findings)


class Alone(nn.Module):
    """Weights that a port folds without exception: (B, 5) to (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.gain = nn.Linear(5, 8), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.gain


@pytest.mark.parametrize(("offset", "verdict"), [(0.0, "same"), (0.2, "refused")])
def test_a_port_all_of_whose_weights_are_folded_is_judged(offset, verdict):
    model = Alone().double().eval()
    p = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    folded = {"w": p["fc.weight"].T * p["gain"] + offset, "b": p["fc.bias"] * p["gain"]}
    x = np.random.default_rng(0).standard_normal((6, 5))
    call = port.Function(lambda p, x: x @ p["w"] + p["b"], folded)
    if verdict == "refused":
        with pytest.raises(port.PortError, match="other weights"):
            port.explain(model, call, (x,))
    else:
        assert port.explain(model, call, (x,)).same
