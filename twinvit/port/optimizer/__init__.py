"""Optimizers of PyTorch against transformations of Optax."""

from twinvit.port.optimizer.explain import explain_optimizer

__all__ = ["explain_optimizer"]
