"""AdamW with the weight decay chosen by canonical name, and clipping.

Twin of `torch_vit/optim.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from shared_vit.spec import canonical
from shared_vit.spec.adam import BETA1, BETA2, EPS


class AdamState(NamedTuple):
    """First and second moments, trees like the parameters."""

    exp_avg: optax.Params
    exp_avg_sq: optax.Params


def make_optimizer(
    names: optax.Params, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov and Hutter 2019) over a tree like `names`, the canonical names of the
    parameters:
    p -= lr (m_hat / (sqrt(v_hat) + eps) + wd p).

    `weight_decay=0` is Adam. Its update takes `lr` and `corrections`, (1 - beta1^n, 1 - beta2^n)
    from the host.
    """
    mask = jax.tree.map(canonical.is_decayed, names)
    return optax.chain(
        scale_by_adam(), optax.add_decayed_weights(weight_decay, mask), scale_by_minus_lr()
    )


def scale_by_adam() -> optax.GradientTransformationExtraArgs:
    """Adam's direction (Kingma and Ba 2015). Unlike optax's own, whose float32 bias correction is
    1.3e-5 off at the first
    step, it takes the corrections as computed in float64."""

    def init(params):
        return AdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None, *, corrections, **_):
        c1, c2 = corrections
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state.exp_avg, grads)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state.exp_avg_sq, grads)
        direction = jax.tree.map(lambda m, v: (m / c1) / (jnp.sqrt(v / c2) + EPS), m, v)
        return direction, AdamState(m, v)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_minus_lr() -> optax.GradientTransformationExtraArgs:
    """Multiply by minus the learning rate that the update is given."""

    def update(updates, state, params=None, *, lr, **_):
        return jax.tree.map(lambda u: -lr * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def clip_by_global_norm(grads, clip: float):
    """The gradients times min(1, clip / norm), nothing added, and the norm before."""
    norm = optax.global_norm(grads)
    scale = jnp.minimum(1, clip / norm)
    return jax.tree.map(lambda g: g * scale, grads), norm


def nudge(params, seed: int, step):
    """Multiply each weight by 1 + eps (2 r - 1), r uniform in [0, 1): the noise that the noise rule
    measures against."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), len(leaves))
    factors = [
        1 + jnp.finfo(p.dtype).eps * (2 * jax.random.uniform(k, p.shape, p.dtype) - 1)
        for k, p in zip(keys, leaves)
    ]
    return jax.tree.unflatten(tree, [p * f for p, f in zip(leaves, factors)])
