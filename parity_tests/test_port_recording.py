"""What the recorder follows that no operation says, and random numbers as the model draws them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from twinvit import port
from twinvit.port.record import jax_internals

X = np.random.default_rng(0).standard_normal((5, 6))


def net(forward) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, x)

    return Net().eval()


def told(model: nn.Module, fn) -> port.Report:
    p = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    def call(p: dict, x: jax.Array) -> jax.Array:
        return fn(x @ p["fc.weight"].T + p["fc.bias"]) @ p["out.weight"].T + p["out.bias"]

    return port.explain(model, port.Function(call, p), (X,))


def test_data_that_is_assigned_is_followed():
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(5, 8)
        y.data = m.fc(x)
        return m.out(y.tanh())

    assert told(net(forward), jnp.tanh).same
    wrong = told(net(forward), lambda h: jnp.tanh(h * 1.001))
    assert wrong.verdict == "different"


def test_a_seeded_draw_is_that_of_the_models_own_type():
    def draw() -> torch.Tensor:
        return torch.randn(5, 8, generator=torch.Generator().manual_seed(3))

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.out(m.fc(x) + draw())

    drawn = draw().numpy()
    assert told(net(forward), lambda h: h + drawn).same
    assert told(net(forward), lambda h: h + np.roll(drawn, 1)).verdict == "different"


def test_a_part_that_this_jax_lacks_is_said_with_its_version():
    with pytest.raises(port.PortError, match=rf"jax {jax.__version__} has no jax._src.core.gone"):
        jax_internals._part("core", "gone")


def test_private_modules_of_jax_are_named_in_one_file():
    root = Path(port.__file__).parent
    named = {p.name for p in root.rglob("*.py") if "_src" in p.read_text()}
    assert named == {"jax_internals.py"}
