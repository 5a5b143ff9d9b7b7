"""Small pairs of models, right and wrong, for the laws of the verdict.

Parameters are float32 and drawn so that none is constant; the port holds them under PyTorch's
names. Nothing here knows how the comparison is made.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from twinvit import port


class Net(nn.Module):
    """A reference of the given parts, whose forward is `body(self, *inputs)`."""

    def __init__(self, body: Callable[..., Any], parts: dict[str, Any]) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                part = nn.Parameter(part)
            setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.body(self, *inputs)


def net(body: Callable[..., Any], seed: int = 0, **parts: Any) -> Net:
    """A reference in eval mode with weights of which none is constant; tensors given as parts are
    parameters and keep their values."""
    generator = torch.Generator().manual_seed(seed)
    model = Net(body, parts).eval()

    def draw(size: torch.Size) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    with torch.no_grad():
        for part in model.modules():
            for name, p in part.named_parameters(recurse=False):
                if part is model:
                    continue
                if p.ndim > 1:
                    p.copy_(draw(p.shape) / p[0].numel() ** 0.5)
                else:
                    p.copy_(
                        0.3 * draw(p.shape) + ("Norm" in type(part).__name__) * (name[0] == "w")
                    )
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.copy_(0.3 * draw(part.running_mean.shape))
                part.running_var.copy_(
                    0.5 + torch.rand(part.running_var.shape, generator=generator)
                )
    return model


def held(model: nn.Module) -> dict[str, Any]:
    """The port's parameters: copies of the reference's, under its names."""
    return {
        k: v.detach().numpy().copy()
        for k, v in model.state_dict().items()
        if v.ndim or v.is_floating_point()
    }


def draws(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normal numbers of this shape, float32."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def dense(p: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
    y = x @ p[name + ".weight"].T
    return y + p[name + ".bias"] if name + ".bias" in p else y


def layer_norm(p: dict[str, Any], name: str, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    root = jnp.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred / root * p[name + ".weight"] + p[name + ".bias"]


def gelu(x: jax.Array, wrong: bool = False) -> jax.Array:
    """GELU; the wrong one is the tanh form."""
    return jax.nn.gelu(x, approximate=wrong)


def perceptron(outputs: int = 6) -> dict[str, nn.Module]:
    """Parts of a perceptron of inputs of five numbers."""
    return {"fc1": nn.Linear(5, 9), "fc2": nn.Linear(9, outputs)}


def mlp(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.fc2(F.gelu(m.fc1(x)))


def mlp_port(p: dict[str, Any], x: jax.Array, wrong: bool = False) -> jax.Array:
    return dense(p, "fc2", gelu(dense(p, "fc1", x), wrong))


@dataclass
class Pair:
    """A reference, what its exact port and a wrong one compute, and their inputs.

    Attributes:
        torch: the reference.
        port: `port(params, *inputs, wrong)`.
        inputs: as the reference takes them.
        options: further arguments of `explain`.
        params: the port's parameters; by default the reference's.
    """

    torch: Any
    port: Callable[..., Any]
    inputs: Any
    options: dict[str, Any] = field(default_factory=dict)
    params: Any = None

    def told(self, wrong: Any = False, **more: Any) -> port.Report:
        """The report on the exact port, or on the wrong one that `wrong` names."""
        params = held(self.torch) if self.params is None else self.params

        def fn(p: Any, *inputs: jax.Array) -> Any:
            return self.port(p, *inputs, wrong=wrong)

        return port.explain(
            self.torch, port.Function(fn, params), self.inputs, **{**self.options, **more}
        )


def activation(theirs: str) -> Pair:
    """One side has GELU's tanh form: "torch", "jax" or none."""

    def body(m, x):
        h = m.norm(m.fc1(x))
        return m.fc2(F.gelu(h, approximate="tanh" if theirs == "torch" else "none"))

    def port(p, x, wrong):
        h = layer_norm(p, "norm", dense(p, "fc1", x))
        return dense(p, "fc2", gelu(h, theirs == "jax"))

    parts = {"fc1": nn.Linear(5, 9), "norm": nn.LayerNorm(9), "fc2": nn.Linear(9, 6)}
    return Pair(net(body, **parts), port, (draws(7, 5),))


def same(report: port.Report) -> None:
    assert report.verdict == "same", f"{report.verdict}, must be same\n{report}"
    assert report.same and report.explained and not report.findings


def different(report: port.Report, *words: str) -> None:
    """Told different, with a finding or a reason, and these words in the report."""
    assert report.verdict == "different", f"{report.verdict}, must be different\n{report}"
    assert not report.same and (report.findings or report.reasons)
    says(report, *words)


def undecided(report: port.Report, *words: str) -> None:
    """Told undecided, with a reason and these words in the report."""
    assert report.verdict == "undecided", f"{report.verdict}, must be undecided\n{report}"
    assert not report.same and report.reasons
    says(report, *words)


def says(report: port.Report, *words: str) -> None:
    text = str(report).lower()
    for word in words:
        assert word.lower() in text, f"nothing of {word!r} in\n{report}"
