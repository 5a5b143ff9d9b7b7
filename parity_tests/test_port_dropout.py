"""Dropout and stochastic depth in train mode: paired by what goes in, their rates read off."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.index import Index
from twinvit.port.record.jax_tape import Taping
from twinvit.port.record.jax_trace import evaluate, trace

WIDTH = 16
X = np.random.default_rng(3).standard_normal((24, 6, WIDTH))


class DropPath(torch.nn.Module):
    """Leaves whole examples' branches out, as timm writes it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        return x * x.new_empty((x.shape[0], 1, 1)).bernoulli_(keep).div_(keep)


class Block(torch.nn.Module):
    """Attention with dropout of its weights, a layer with dropout, and stochastic depth."""

    def __init__(self, attention: float = 0.2, inner: float = 0.1, path: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.fc = torch.nn.Linear(WIDTH, WIDTH)
        self.drop_weights, self.drop = torch.nn.Dropout(attention), torch.nn.Dropout(inner)
        self.path = DropPath(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = self.drop_weights(torch.softmax(q @ k.mT / 4, -1))
        x = x + self.path(weights @ v)
        return x + self.path(self.drop(torch.nn.functional.gelu(self.fc(x))))


def dropped(x: jax.Array, key: jax.Array, rate: float, shape: Any = None, way: str = "") -> Any:
    """Dropout of the port; `way`: "after" scales what is kept after the zeros are made, "late"
    multiplies by a mask that is scaled, "unscaled" not at all."""
    if not rate:
        return x
    keep = 1 - rate
    mask = jax.random.bernoulli(key, keep, shape or x.shape)
    if way == "late":
        return x * (mask / keep)
    if way == "after":
        return jnp.where(mask, x, 0) / keep
    if way == "unscaled":
        return jnp.where(mask, x, 0)
    return jnp.where(mask, x / keep, 0)


def make(
    attention: float = 0.2,
    inner: float = 0.1,
    path: float = 0.3,
    way: str = "",
    wrong: str = "",
) -> Any:
    """The port as a function, with these rates."""

    def call(p: dict[str, jax.Array], x: jax.Array, train: bool = True) -> jax.Array:
        keys = jax.random.split(jax.random.key(7), 5)
        rates = (attention, inner, path) if train else (0, 0, 0)

        def branch(y: jax.Array, key: jax.Array) -> jax.Array:
            return dropped(y, key, rates[2], (y.shape[0], 1, 1), way)

        qkv = (x @ p["qkv.weight"].T + p["qkv.bias"]).reshape(*x.shape[:2], 3, WIDTH)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqd,bkd->bqk", q, k) / (3 if wrong == "scale" else 4)
        weights = dropped(jax.nn.softmax(scores), keys[0], rates[0], way=way)
        x = x + branch(weights @ v, keys[1])
        y = jax.nn.gelu(x @ p["fc.weight"].T + p["fc.bias"], approximate=wrong == "tanh")
        y = branch(dropped(y, keys[2], rates[1], way=way), keys[3])
        if wrong == "more" and train:
            y = dropped(y, keys[4], 0.4)
        return x + y

    return call


def explained(model: torch.nn.Module | None = None, what: Any = ("forward", "train"), **given: Any):
    model = model or Block()
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    return port.explain(model, port.Function(make(**given), params), X, what=what)


@pytest.mark.parametrize("way", ["", "after", "late"])
def test_the_same_rates_are_the_same_though_other_numbers_are_drawn(way):
    report = explained(way=way)
    assert report.same, report
    assert report.distance < 1e-14


def test_another_rate_is_named_where_it_is():
    report = explained(inner=0.25)
    assert [f.cause for f in report.findings] == ["dropout_rate"] and report.explained, report
    (finding,) = report.findings
    assert finding.text == "the port drops at a rate of 0.25 here; the reference of 0.1"
    assert finding.torch == "drop: mul" and finding.what == "train"


def test_exchanged_rates_are_two_findings():
    report = explained(attention=0.1, inner=0.2)
    assert [(f.cause, f.torch) for f in report.findings] == [
        ("dropout_rate", "drop_weights: mul"), ("dropout_rate", "drop: mul")
    ]  # fmt: skip
    assert report.explained, report


@pytest.mark.parametrize(
    ("rate", "places"), [("attention", ["drop_weights: mul"]), ("path", ["path: mul"] * 2)]
)
def test_dropout_that_the_port_lacks_is_named(rate, places):
    report = explained(**{rate: 0.0})
    assert [f.cause for f in report.findings] == ["dropout_missing"] and report.explained, report
    assert len(report.findings[0].places) == len(set(places))
    assert report.findings[0].torch == places[0]


def test_what_is_kept_and_not_scaled_is_named():
    report = explained(way="unscaled")
    assert {f.cause for f in report.findings} == {"dropout_scale"} and report.explained, report
    assert "multiplies the rest by 1; the reference's rate is 0.3" in str(report)


def test_dropout_that_the_reference_lacks_is_named():
    report = explained(wrong="more")
    assert [f.cause for f in report.findings] == ["dropout_on"] and report.explained, report
    assert "0.4" in report.findings[0].text


@pytest.mark.parametrize(("wrong", "cause"), [("tanh", "gelu_tanh"), ("scale", "attention_scale")])
def test_a_mistake_between_dropouts_is_found(wrong, cause):
    report = explained(wrong=wrong)
    assert report.verdict == "different" and report.explained, report
    assert cause in {f.cause for f in report.findings}
    assert not {f.cause for f in report.findings} & {"dropout_rate", "dropout_missing"}


def test_a_mistake_and_another_rate_behind_it_are_both_found():
    report = explained(wrong="scale", inner=0.4)
    assert report.explained, report
    assert [f.cause for f in report.findings][-1] == "dropout_rate"


class Noisy(Block):
    """Random numbers that are no dropout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return super().forward(x)


def test_draws_without_an_equal_leave_the_verdict_open():
    report = explained(Noisy(0.0, 0.0, 0.0), attention=0.0, inner=0.0, path=0.0)
    assert report.verdict == "undecided", report
    assert "the reference draws random numbers at" in str(report)
    assert "test_port_dropout.py" in report.reasons[0]


def test_a_rate_that_does_not_fit_its_factor_is_told():
    def call(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        mask = jax.random.bernoulli(jax.random.key(1), 0.5, x.shape)
        return jnp.where(mask, (x @ p["fc.weight"].T + p["fc.bias"]) / 0.9, 0)

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(self.fc(x))

    model = One()
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    report = port.explain(model, port.Function(call, params), X, what="train")
    assert [f.cause for f in report.findings] == ["dropout_rate"], report
    assert "scales the rest as for the reference's rate of 0.1" in report.findings[0].text


def test_a_key_of_random_numbers_is_no_array():
    index = Index()
    taping = Taping(index)
    traced = trace(lambda leaves, x: dropped(x, jax.random.key(1), 0.5), [], [X])
    evaluate(traced, [X], taping.given([index.add(X, "input", "input 0", [])]), taping)
    values = [taping.tape.value(i) for i in range(len(taping.tape.slots))]
    assert any(step.name == "random_bits" for step in taping.tape.steps)
    assert all(value is None or isinstance(value, np.ndarray) for value in values)
