"""A small encoder and its port with two mistakes, each in a file's half that needs one framework:
for the tests that record them in environments of their own."""

from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HIDDEN, CLASSES = 8, 16, 5


def inputs() -> np.ndarray:
    """Rows (6, 8), float32."""
    return np.random.default_rng(0).standard_normal((6, WIDTH)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """The weights by PyTorch's names, none constant."""
    rng = np.random.default_rng(1)
    shapes = {
        "fc1.weight": (HIDDEN, WIDTH), "fc1.bias": (HIDDEN,), "norm.weight": (HIDDEN,),
        "norm.bias": (HIDDEN,), "fc2.weight": (CLASSES, HIDDEN), "fc2.bias": (CLASSES,),
    }  # fmt: skip
    return {k: (0.4 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}


def make_torch() -> Any:
    """The reference."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, CLASSES)
            self.norm = nn.LayerNorm(HIDDEN)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(nn.functional.gelu(self.norm(self.fc1(x))))

    model = Net()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights().items()})
    return model.eval()


def make_jax() -> Any:
    """The port: another eps, and GELU's tanh form."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    held = weights()

    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.fc1, self.fc2 = (
                nnx.Linear(WIDTH, HIDDEN, rngs=rngs),
                nnx.Linear(HIDDEN, CLASSES, rngs=rngs),
            )
            self.norm = nnx.LayerNorm(HIDDEN, epsilon=1e-3, rngs=rngs)
            for name in ("fc1", "fc2"):
                layer = getattr(self, name)
                layer.kernel.value = jnp.asarray(held[f"{name}.weight"].T)
                layer.bias.value = jnp.asarray(held[f"{name}.bias"])
            self.norm.scale.value = jnp.asarray(held["norm.weight"])
            self.norm.bias.value = jnp.asarray(held["norm.bias"])

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.fc2(jax.nn.gelu(self.norm(self.fc1(x))))

    return Port()


def blocked(names: list[str]) -> None:
    """Make packages, and this file from now on, as good as not installed."""
    import importlib.abc
    import sys

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] in names:
                raise ImportError(f"{name} is not installed here", name=name)

    sys.meta_path.insert(0, Blocker())


def main(arguments: list[str]) -> int:
    """`twinvit port` with the packages of the first argument blocked; says what slipped in."""
    import sys

    names = arguments[0].split(",")
    blocked(names)
    from twinvit.port.cli import main as command

    status = command(arguments[1:])
    found = [n for n in names if n in sys.modules]
    if found:
        print(f"imported: {found}")
        return 99
    return status


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main(sys.argv[1:]))
