"""What a port rounds and its reference does not leads the report, and can fail a test."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

WIDTH, CLASSES = 12, 10
X = np.random.default_rng(0).standard_normal((6, WIDTH))


class Gated(torch.nn.Module):
    """RMS norm, a gated layer and a head; `native` is the type that it runs in."""

    def __init__(self, native: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = torch.nn.Parameter(1 + 0.3 * torch.randn(WIDTH))
        self.up = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.head = torch.nn.Linear(WIDTH, CLASSES)
        self.to(native)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = x.dtype
        x = x.float() if own in (torch.bfloat16, torch.float16) else x
        x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        a, b = self.up(x.to(own)).chunk(2, -1)
        return self.head(torch.sigmoid(a) * b)


def held(model: torch.nn.Module) -> dict[str, Any]:
    wide = {k: v.float().numpy() for k, v in model.state_dict().items()}
    narrow = model.head.weight.dtype == torch.bfloat16
    return {k: jnp.asarray(v, jnp.bfloat16 if narrow else None) for k, v in wide.items()}


def rounding(at: str, dtype: Any = jnp.bfloat16) -> Any:
    """The port; `at` says where it rounds to `dtype` and goes on in its own type."""

    def cast(x: jax.Array, name: str) -> jax.Array:
        return x.astype(dtype).astype(x.dtype) if name == at else x

    def call(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        own = x.dtype
        x = x.astype(jnp.float32) if own == jnp.bfloat16 else x
        x = cast(x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6), "norm")
        x = (p["scale"] * x).astype(own)
        a, b = jnp.split(x @ p["up.weight"].T + p["up.bias"], 2, -1)
        x = cast(jax.nn.sigmoid(a) * b, "gate")
        return x @ p["head.weight"].T + p["head.bias"]

    return call


def explained(at: str, model: torch.nn.Module | None = None, **arguments: Any) -> port.Report:
    model = model or Gated()
    native = model.head.weight.dtype
    given = torch.from_numpy(X).to(native if native == torch.bfloat16 else torch.float64)
    return port.explain(model, port.Function(rounding(at), held(model)), given, **arguments)


def test_what_the_port_alone_rounds_is_said_first():
    report = explained("gate")
    assert report.same, report
    (narrow,) = report.rounded_alone()
    assert narrow.dtype == "bfloat16" and 1e-4 < narrow.cost < 1e-1
    assert str(report).startswith(
        f"SAME in float64; the port's bfloat16 at {narrow.lines[0]} moves the outputs by "
        f"{narrow.cost:.1e}, and the reference has none there\n"
    )
    assert "test_port_narrowings.py" in narrow.lines[0]
    assert "computes what the reference computes" in str(report)


def test_a_port_that_rounds_nothing_is_same_without_more():
    report = explained("")
    assert report.same and not report.narrowings
    assert str(report).startswith("SAME  the port computes what the reference computes")


def test_the_cost_to_logits_is_measured():
    (narrow,) = explained("gate").rounded_alone()
    model = Gated().double()
    with torch.no_grad():
        x = torch.from_numpy(X)
        x = model.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        a, b = model.up(x).chunk(2, -1)
        gate = torch.sigmoid(a) * b
        plain, other = model.head(gate), model.head(gate.bfloat16().double())
        p, q = plain.log_softmax(-1), other.log_softmax(-1)
    assert narrow.largest == pytest.approx(float((plain - other).abs().max()), rel=1e-6)
    assert narrow.divergence == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-6)
    assert narrow.agreement == float((plain.argmax(-1) == other.argmax(-1)).double().mean())


def test_a_test_may_bound_what_the_port_alone_rounds():
    model = Gated()
    function = port.Function(rounding("gate"), held(model))
    port.assert_same(model, function, X)
    port.assert_same(model, function, X, narrowings=1.0)
    with pytest.raises(AssertionError, match="rounds where its reference does not"):
        port.assert_same(model, function, X, narrowings=1e-6)


def test_what_both_sides_round_is_no_finding():
    class Rounding(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            a, b = self.up(x).chunk(2, -1)
            return self.head((torch.sigmoid(a) * b).bfloat16().to(x.dtype))

    report = explained("gate", Rounding())
    assert report.same, report
    assert [n.alone for n in report.narrowings if n.side == "jax"] == [False]
    assert not report.rounded_alone()
    assert [n.alone for n in report.narrowings if n.side == "torch"] == [False]


@pytest.mark.parametrize("at", ["", "norm"])
def test_a_reference_in_bfloat16_rounds_what_it_keeps(at):
    """Casts that the reference makes by its types are the port's own right; one more is not."""
    model = Gated(torch.bfloat16)
    report = explained(at, model)
    assert report.same, report
    found = report.rounded_alone()
    assert [n.dtype for n in found] == ["bfloat16"] * (at == "norm"), report
    kept = [n for n in report.narrowings if n.side == "jax" and n.alone is False and n.cost]
    assert len(kept) == 1, report  # the port's scaled norm, which the reference rounds, too
    if found:
        assert "the port's bfloat16 at" in str(report).splitlines()[0]


def test_with_the_port_as_the_reference_the_other_side_is_spoken_of():
    class Rounding(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            a, b = self.up(x).chunk(2, -1)
            return self.head((torch.sigmoid(a) * b).half().to(x.dtype))

    report = explained("", Rounding(), reference="jax")
    assert report.same, report
    first = str(report).splitlines()[0]
    assert "the PyTorch model's float16 at" in first and "the JAX model has none there" in first
    assert not explained("", Rounding()).rounded_alone()  # the reference's own


def test_a_difference_is_told_beside_what_is_rounded():
    model = Gated()

    def wrong(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return rounding("gate")(p, x) + 0.5 * p["head.bias"]

    report = port.explain(model, port.Function(wrong, held(model)), X)
    assert report.verdict == "different"
    assert "the port's bfloat16 at" in str(report)
