"""Cross entropy of next tokens, as ports reduce it."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def next_token_loss(logits: Array, ids: Array, kind: str) -> Array:
    """Logits (batch, length, vocab) and ids (batch, length) to a scalar; id 0 is padding."""
    logits, labels = logits[:, :-1], ids[:, 1:]
    if kind == "smoothed":
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
        losses = optax.softmax_cross_entropy(logits, targets)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    mask = labels != 0
    total = jnp.sum(losses * mask)
    if kind == "sum":
        return total
    return total / (labels.size if kind == "mean over padding" else mask.sum())
