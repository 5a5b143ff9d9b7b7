"""An edit rounds too: what it computes inside counts as measured rounding; and a line for what has
no equal of its size."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from twinvit import port
from twinvit.port.search.noise import _edited


class Activated(nn.Module):
    """So many numbers that some lie where 1 + tanh of GELU cancels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 3000)
        self.norm = nn.LayerNorm(3000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.norm(self.linear(x)))


def activated(params: dict, x: jax.Array) -> jax.Array:
    y = x @ params["linear.weight"].T + params["linear.bias"]
    y = y - y.mean(-1, keepdims=True)
    y = y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    return jax.nn.gelu(y * params["norm.weight"] + params["norm.bias"])


def held(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: t.detach().numpy() for n, t in model.state_dict().items()}


def test_an_edit_that_cancels_far_from_zero_is_proven_over_many_numbers() -> None:
    model = Activated()
    x = np.random.default_rng(0).standard_normal((40, 16), np.float32)
    report = port.explain(model, port.Function(activated, held(model)), (x,))
    assert [f.cause for f in report.findings] == ["gelu_tanh"]
    assert report.explained, report.reasons


class OfOneOperation:
    """A graph whose node holds the edit."""

    def __init__(self, x: torch.Tensor) -> None:
        self.values = [x]

    def arguments(self, node: object, held: dict | None = None) -> tuple[tuple, dict]:
        return ((held or self.values)[0],), {}


class Edit:
    def __init__(self, op: object) -> None:
        self.op = op


def moves(op: object, x: torch.Tensor) -> torch.Tensor:
    """How far an edit's result moves where the operations inside it are nudged, its operand not."""
    seen: list[int] = []

    def nudge(t: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
        seen.append(1)
        return t * (1 + 1e-9 * (-1) ** len(seen))

    made = _edited(OfOneOperation(x), Edit(op), (x,), {}, nudge)  # type: ignore[arg-type]
    return (made[0] - op(x)).abs()  # type: ignore[operator]


def test_what_cancels_inside_an_edit_is_moved() -> None:
    x = torch.linspace(-4, -3, 5, dtype=torch.float64)
    cancels = moves(lambda x: (1 + torch.tanh(x)) * x, x)
    result = ((1 + torch.tanh(x)) * x).abs()
    assert (cancels > 1e-7 * result).all()  # 1e-9 of the operand, were it moved after the edit


def test_a_step_inside_an_edit_stays_where_the_recorded_operands_put_it() -> None:
    x = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)  # 1.0 lies on the threshold
    moved = moves(lambda x: torch.where(x * 3 >= 3.0, x, x - 10), x)
    assert (moved < 1e-6).all()


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.max(dim=1, keepdim=True).values
        return nn.functional.gelu(x - x.mean(dim=1, keepdim=True))


def centred(params: dict, x: jax.Array) -> jax.Array:
    top = jnp.max(x, axis=1, keepdims=True)
    return jax.nn.gelu(x - top, approximate=False)


def test_a_finding_without_an_array_of_its_size_has_the_ports_line() -> None:
    x = np.random.default_rng(1).standard_normal((11, 48), np.float32)
    report = port.explain(Centred(), port.Function(centred, {}), (x,))
    assert report.verdict == "different"
    subtracts = centred.__code__.co_firstlineno + 2
    assert [f.jax_lines for f in report.findings] == [
        [f"parity_tests/test_port_edit_rounding.py:{subtracts}"]
    ]


class Normalized(nn.Module):
    """BatchNorm in evaluation mode, and an activation whose result relu makes zero in part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(24, 48)
        self.norm = nn.BatchNorm1d(48)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if tensor.ndim == 1:
                    tensor.copy_(torch.rand_like(tensor) + (0.5 if "bias" not in name else -0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.norm(self.linear(x))).relu()


def normalized(params: dict, x: jax.Array) -> jax.Array:
    y = x @ params["linear.weight"].T + params["linear.bias"]
    mean = y.mean(0, keepdims=True)
    var = jnp.mean((y - mean) ** 2, axis=0, keepdims=True)
    y = (y - mean) / jnp.sqrt(var + 1e-5) * params["norm.weight"] + params["norm.bias"]
    return jax.nn.relu(jax.nn.gelu(y))


def test_numbers_that_an_edit_makes_other_than_zero_are_judged_by_their_own_rounding() -> None:
    model = Normalized().eval()
    x = np.random.default_rng(0).random((11, 24), np.float32)
    params = {n: a for n, a in held(model).items() if "running" not in n and "batches" not in n}
    report = port.explain(model, port.Function(normalized, params), (x,))
    assert [f.cause for f in report.findings] == ["bn_mode", "gelu_tanh"]
    assert report.explained, report.reasons


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(24, 48)
        self.norm = nn.InstanceNorm1d(1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = self.norm(self.linear(x).unsqueeze(1)).squeeze(1)
        return (z + y) * y


def summed(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    z = (x @ params["linear.weight"].T + params["linear.bias"])[:, :, None]
    mean = z.mean(2, keepdims=True)  # of one number: what is normalized is zero
    var = z.var(2, keepdims=True)
    z = ((z - mean) / jnp.sqrt(var + 1e-5))[:, :, 0]
    return (z + y) * y


def test_a_term_of_zeros_is_not_said_to_be_missing() -> None:
    model, draw = Summed(), np.random.default_rng(2)
    x, y = draw.random((11, 24), np.float32), draw.random((11, 48), np.float32)
    report = port.explain(model, port.Function(summed, held(model)), (x, y))
    assert report.verdict == "different"
    assert not {"residual_missing", "residual_scale"} & {f.cause for f in report.findings}
    (found,) = report.findings
    assert found.kind == "expression" and "norm(linear" in found.formulas["jax"], report


def own_form(params: dict, x: jax.Array) -> jax.Array:
    y = x @ params["linear.weight"].T + params["linear.bias"]
    y = y - y.mean(-1, keepdims=True)
    y = y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    y = y * params["norm.weight"] + params["norm.bias"]
    return 0.5 * y * (1 + jnp.tanh(0.81 * y + 0.04 * y * y * y))


def test_an_expression_of_the_port_rounds_as_an_edit_does() -> None:
    model = Activated()
    x = np.random.default_rng(0).standard_normal((40, 16), np.float32)
    report = port.explain(model, port.Function(own_form, held(model)), (x,))
    assert [f.kind for f in report.findings] == ["expression"]
    assert report.explained, report.reasons


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        with torch.no_grad():
            self.first.bias.zero_()  # as Flax draws it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x + self.first(x))


def without_residual(params: dict, x: jax.Array) -> jax.Array:
    y = x @ params["first.weight"].T + params["first.bias"]
    return y @ params["second.weight"].T + params["second.bias"]


def test_a_missing_residual_is_told_beside_a_bias_of_zeros() -> None:
    model = Residual()
    x = np.random.default_rng(3).standard_normal((11, 24), np.float32)
    report = port.explain(model, port.Function(without_residual, held(model)), (x,))
    assert [f.cause for f in report.findings] == ["residual_missing"] and report.explained, report
