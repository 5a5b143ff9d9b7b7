"""Running statistics in train mode: what a port keeps, and what it normalises by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from twinvit import port

X = np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)
MOMENTUM, EPS = 0.2, 1e-5


class Reference(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(12, 16), torch.nn.Linear(16, 9)
        self.bn = torch.nn.BatchNorm1d(16, momentum=MOMENTUM)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.bn(self.a(x))))


class Port(nnx.Module):
    """The same, its batch norm written out; `how` says what it does otherwise in train mode."""

    def __init__(self, model: torch.nn.Module, how: str) -> None:
        self.how, self.training = how, True
        held = {k: jnp.asarray(v.numpy()) for k, v in model.state_dict().items()}
        self.weights = nnx.Dict({
            k.replace(".", "_"): nnx.Param(v) for k, v in held.items() if k[:2] in ("a.", "b.")
        })  # fmt: skip
        self.scale, self.bias = nnx.Param(held["bn.weight"]), nnx.Param(held["bn.bias"])
        self.mean = nnx.BatchStat(held["bn.running_mean"])
        self.var = nnx.BatchStat(held["bn.running_var"])

    def set_attributes(self, *args: object, **modes: object) -> None:
        pass

    def train(self, **_: object) -> None:
        self.training = True

    def eval(self, **_: object) -> None:
        self.training = False

    def __call__(self, x: jax.Array) -> jax.Array:
        p = self.weights
        x = x @ p["a_weight"][...].T + p["a_bias"][...]
        old = self.mean[...], self.var[...]
        mean, var = x.mean(0), x.var(0)
        unbiased = var * len(x) / (len(x) - 1)
        new = [(1 - MOMENTUM) * o + MOMENTUM * n for o, n in zip(old, (mean, unbiased))]
        if self.training and self.how != "frozen" and self.how != "running":
            if self.how != "frozen mean":
                self.mean[...] = new[0]
            if self.how != "frozen variance":
                self.var[...] = new[1]
        if not self.training or self.how == "running":
            mean, var = old
        x = (x - mean) * jax.lax.rsqrt(var + EPS) * self.scale[...] + self.bias[...]
        return jax.nn.relu(x) @ p["b_weight"][...].T + p["b_bias"][...]


def told(how: str) -> port.Report:
    model = Reference()
    return port.explain(model, Port(model, how), X, what=("forward", "train"))


def test_a_port_that_keeps_them_is_the_same():
    report = told("")
    assert report.same, report


@pytest.mark.parametrize(
    ("how", "cause", "text"),
    [
        ("frozen", "bn_frozen", "the port's running statistics stay as before"),
        ("frozen mean", "bn_frozen", "the port's running mean stays as before"),
        ("frozen variance", "bn_frozen", "the port's running variance stays as before"),
        ("running", "bn_mode", "uses the running statistics in train mode, which it does not up"),
    ],
)
def test_statistics_that_are_not_kept_are_named(how, cause, text):
    """The port computes the new ones all the same: what counts is what it returns."""
    report = told(how)
    assert [f.cause for f in report.findings] == [cause] and report.explained, report
    assert text in report.findings[0].text and report.findings[0].what == "train"
