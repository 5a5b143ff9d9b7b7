"""Prove a training step of your own: PyTorch against JAX from the same state, at every step.

    python examples/prove_your_trainer.py

The model is a small convolutional network, the data are scikit-learn's handwritten digits. An epoch
ends with a short batch, which is padded because a compiled program wants one shape. A step in JAX
that divides by the size of the batch, not by the number of real examples, is right in 14 steps of
15: lockstep names the one where it is wrong.
"""

from collections.abc import Iterator

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from twinvit import lockstep

Arrays = dict[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # images [B, 1, 8, 8], labels [B], real: 1 or 0

jax.config.update("jax_default_matmul_precision", "highest")  # no TF32 where there is a GPU


def by_torch(state: Arrays, batch: Batch) -> Arrays:
    """The loss and its gradients."""
    images, labels, real = map(torch.from_numpy, batch)
    w = {name: torch.from_numpy(array).requires_grad_() for name, array in state.items()}
    hidden = F.relu(F.conv2d(images, w["conv"], w["conv_bias"])).mean((2, 3))
    losses = F.cross_entropy(hidden @ w["head"] + w["head_bias"], labels, reduction="none")
    loss = (real * losses).sum() / real.sum()
    loss.backward()
    return {"loss": loss.detach().numpy()} | {name: t.grad.numpy() for name, t in w.items()}


def losses_in_jax(w: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    maps = jax.lax.conv_general_dilated(images, w["conv"], (1, 1), "VALID")
    hidden = jax.nn.relu(maps + w["conv_bias"][:, None, None]).mean((2, 3))
    logits = hidden @ w["head"] + w["head_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@jax.jit
@jax.value_and_grad
def right(w: dict, images: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
    return (real * losses_in_jax(w, images, labels)).sum() / real.sum()


@jax.jit
@jax.value_and_grad
def mistaken(w: dict, images: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
    return (real * losses_in_jax(w, images, labels)).mean()


def by_jax(state: Arrays, batch: Batch) -> Arrays:
    loss, gradients = right(state, *batch)
    return {"loss": np.asarray(loss)} | {n: np.asarray(g) for n, g in gradients.items()}


def by_mistaken_jax(state: Arrays, batch: Batch) -> Arrays:
    loss, gradients = mistaken(state, *batch)
    return {"loss": np.asarray(loss)} | {n: np.asarray(g) for n, g in gradients.items()}


def batches(size: int = 128) -> Iterator[Batch]:
    """One epoch; the last batch is filled up with examples that do not count."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None] / 16
    for i in range(0, len(images), size):
        part, labels = images[i : i + size], digits.target[i : i + size]
        empty = size - len(part)
        yield (
            np.pad(part, ((0, empty), (0, 0), (0, 0), (0, 0))),
            np.pad(labels, (0, empty)),
            np.pad(np.ones(len(part), np.float32), (0, empty)),
        )


def training() -> Iterator[tuple[Arrays, Batch]]:
    """The states that a training in PyTorch visits, each with its batch."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (16, 1, 3, 3), "conv_bias": (16,), "head": (16, 10), "head_bias": (10,)}
    state = {n: 0.3 * rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    for batch in batches():
        yield state, batch
        gradients = by_torch(state, batch)
        state = {n: array - np.float32(0.5) * gradients[n] for n, array in state.items()}


def main() -> int:
    states, data = zip(*training())
    verdicts = []
    for name, step in (("right", by_jax), ("mistaken", by_mistaken_jax)):
        verdict = lockstep.run(by_torch, step, states, data, lockstep.nudges(by_torch))
        print(f"{name}: {verdict.line()}")
        for difference in verdict.differences[:3]:
            print(f"    {difference}")
        verdicts.append(verdict)
    return 0 if verdicts[0].matched and verdicts[1].differences else 1


if __name__ == "__main__":
    raise SystemExit(main())
