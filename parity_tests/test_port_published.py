"""What published ports were found to do: tables made in float32, a window that is one too wide."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import port_zoo  # noqa: E402


@pytest.mark.parametrize("style", ["nnx", "equinox"])
def test_a_table_made_in_float32_is_a_matter_of_precision(style):
    case = port_zoo.build("decoder", style, rope_table=True)
    report = port.explain(case.torch_model, case.explainable(), case.inputs)
    assert [f.kind for f in report.findings] == ["precision"], report
    assert report.explained and not report.same
    assert 1e-9 < report.distance < 1e-6 and report.remaining < 1e-13


def test_a_wrong_base_is_no_matter_of_precision():
    case = port_zoo.build("decoder", "nnx", mutations=["rope_base"])
    report = port.explain(case.torch_model, case.explainable(), case.inputs)
    assert [f.cause for f in report.findings] == ["rope_base"], report


WINDOW = 4


class Windowed(torch.nn.Module):
    """Attention to the last `WINDOW` positions, the mask added."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(12, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        i = torch.arange(x.shape[1])
        seen = (i[None] <= i[:, None]) & (i[None] > i[:, None] - WINDOW)
        mask = torch.where(seen, 0.0, -1e9).to(x.dtype)
        return torch.softmax(q @ k.transpose(1, 2) + mask, dim=-1) @ v


def windowed(params: dict, x: jax.Array, wider: int) -> jax.Array:
    q, k, v = jnp.split(x @ params["w"] + params["b"], 3, axis=-1)
    n = x.shape[1]
    seen = jnp.triu(jnp.tril(jnp.ones((n, n), bool)), k=1 - WINDOW - wider)
    scores = jnp.where(seen, q @ k.swapaxes(1, 2), -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ v


@pytest.mark.parametrize(
    ("wider", "told"), [(0, None), (1, "holds 5"), (-1, "holds 3"), (99, "missing")]
)
def test_the_width_of_a_window(wider, told):
    torch.manual_seed(0)
    model = Windowed()
    params = {"w": model.qkv.weight.detach().numpy().T, "b": model.qkv.bias.detach().numpy()}
    x = np.random.default_rng(0).standard_normal((2, 9, 12)).astype(np.float32)
    report = port.explain(model, port.Function(lambda p, x: windowed(p, x, wider), params), (x,))
    assert report.same == (told is None), report
    if told:
        assert [f.cause for f in report.findings] == ["mask_offset"], report
        assert report.explained and told in report.findings[0].text


@pytest.mark.parametrize("style", ["nnx", "linen"])
def test_a_wrong_base_is_seen_under_a_rounded_table(style):
    case = port_zoo.build("decoder", style, mutations=["rope_base"], rope_table=True)
    report = port.explain(case.torch_model, case.explainable(), case.inputs)
    kinds = {(f.kind, f.cause) for f in report.findings}
    assert kinds == {("cause", "rope_base"), ("precision", "")}, report
    assert report.explained and report.remaining < 1e-13
    base = next(f for f in report.findings if f.cause)
    assert len(base.places) == 2 and base.before > 1e-3 and base.after < 1e-6
