"""Gradients that a PyTorch model's operations do not tell: functions with a backward of their own,
blocks without gradients, hooks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils.checkpoint

from twinvit import port
from twinvit.port.record import torch_program

INPUT = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round and halved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return -0.5 * g


reverse = Reverse.apply  # as it is bound in many a model


class Fused(torch.autograd.Function):
    """x * sigmoid(x), whose backward is its derivative, computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        s = torch.sigmoid(x.float())
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        x, s = ctx.saved_tensors
        return g * (s * (1 + x.float() * (1 - s)))


class Split(torch.autograd.Function):
    """Two results of two operands, the gradient of the first operand doubled."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + y, x - y

    @staticmethod
    def backward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * (a + b), a - b


class Net(torch.nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x)))


def compared(
    between: Callable[[torch.Tensor], torch.Tensor],
    theirs: Callable[[jax.Array], jax.Array],
    reference: str = "torch",
) -> port.Report:
    torch.manual_seed(0)
    model = Net(between)

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        return theirs(x @ p["a.weight"].T + p["a.bias"]) @ p["b.weight"].T + p["b.bias"]

    held = {k: v.numpy() for k, v in model.state_dict().items()}
    return port.explain(
        model, port.Function(call, held), (INPUT,), what=("forward", "grad"), reference=reference
    )


def times(k: float) -> Callable[[jax.Array], jax.Array]:
    return lambda y: y * k + jax.lax.stop_gradient(y * (1 - k))


def splits(x: torch.Tensor) -> torch.Tensor:
    first, second = Split.apply(torch.tanh(x), x)
    return first * second.exp()


def split(x: jax.Array) -> jax.Array:
    t = times(2.0)(jnp.tanh(x))
    return (t + x) * jnp.exp(t - x)


def without(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(x)
        with torch.enable_grad():
            x = torch.tanh(x)
    return x * gate


def clamped(x: torch.Tensor) -> torch.Tensor:
    y = torch.tanh(x)
    with torch.no_grad():
        y.clamp_(-0.5, 0.5)
    return y


def through(x: jax.Array) -> jax.Array:
    y = jnp.tanh(x)
    return y + jax.lax.stop_gradient(jnp.clip(y, -0.5, 0.5) - y)


def hooked(x: torch.Tensor) -> torch.Tensor:
    if x.requires_grad:
        x.register_hook(lambda g: -0.5 * g)
    return x


def checkpointed(x: torch.Tensor) -> torch.Tensor:
    return torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=True)


PAIRS = [
    ("reversed", reverse, times(-0.5), lambda x: x),
    ("fused", Fused.apply, jax.nn.silu, lambda x: times(0.5)(jax.nn.silu(x))),
    ("split", splits, split, lambda x: (jnp.tanh(x) + x) * jnp.exp(jnp.tanh(x) - x)),
    (
        "block",
        without,
        lambda x: jnp.tanh(x) * jax.lax.stop_gradient(jax.nn.sigmoid(x)),
        lambda x: jnp.tanh(x) * jax.nn.sigmoid(x),
    ),
    ("written", clamped, through, lambda x: jnp.clip(jnp.tanh(x), -0.5, 0.5)),
    ("hook", hooked, times(-0.5), lambda x: x),
    ("checkpoint", checkpointed, jnp.tanh, lambda x: jax.lax.stop_gradient(jnp.tanh(x))),
]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("name", "between", "right", "wrong"), PAIRS, ids=[p[0] for p in PAIRS])
def test_gradients_are_those_of_the_models_own_backward(name, between, right, wrong):
    report = compared(between, right)
    assert report.same, report
    report = compared(between, wrong)
    assert report.verdict == "different", report
    assert all(f.what == "grad" for f in report.findings), report


def test_a_model_is_left_as_it_was_after_it_is_recorded():
    before = [getattr(torch.no_grad, k) for k in ("__enter__", "__exit__")]
    base = torch.autograd.Function.__mro__[1]
    graph = torch_program.record(Net(reverse), (INPUT,), lambda out: [out])
    assert [n.index for n in graph.nodes] == list(range(len(graph.nodes)))
    assert [n.where.split(":")[0] for n in graph.nodes if n.name == "custom_backward"] == [
        "parity_tests/test_port_custom_backward.py"
    ]
    graph = torch_program.record(Net(without), (INPUT,), lambda out: [out])
    assert [n.name for n in graph.nodes if n.name == "detach"]
    assert [getattr(torch.no_grad, k) for k in ("__enter__", "__exit__")] == before
    assert "apply" not in vars(base)
    with pytest.raises(port.PortError):
        torch_program.record(Net(lambda x: x @ x), (INPUT,), lambda out: [out])
    assert "apply" not in vars(base)


def test_a_recording_refuses_gradients_through_a_function_of_its_own(tmp_path):
    torch.manual_seed(0)
    model = Net(reverse)
    held = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
        y = x @ p["a.weight"].T + p["a.bias"]
        return y @ p["b.weight"].T + p["b.bias"]

    kinds = ("forward", "grad")
    for name, side in (("torch", model), ("jax", port.Function(call, held))):
        port.record_model(tmp_path / name, side, (INPUT,), framework=name, what=kinds)
    assert port.explain_recordings(tmp_path / "torch", tmp_path / "jax").same
    with pytest.raises(port.PortError, match="backward is not recorded"):
        port.explain_recordings(tmp_path / "torch", tmp_path / "jax", what=kinds)


def test_blocks_that_no_parameter_reaches_add_no_operation():
    class Table(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                turned = torch.sin(reverse(x))
            return turned * x

    graph = torch_program.record(Table(), (INPUT,), lambda out: [out])
    assert not [n for n in graph.nodes if n.name in ("detach", "custom_backward")]
