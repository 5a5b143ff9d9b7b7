"""AdamW with the weight decay chosen by canonical name, and clipping.

Twin of `torch_vit/optim.py`.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from shared_vit.spec import canonical
from shared_vit.spec.adam import ADAM_SLOTS, BETA1, BETA2, EPS

# The slots of a TrainState that the optimizer uses: its state is {slot: tree like the parameters}.
SLOTS = ADAM_SLOTS


def make_optimizer(
    names: optax.Params, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov and Hutter 2019): p -= lr (m_hat / (sqrt(v_hat) + eps) + wd p).

    `names` is a tree of the parameters' canonical names; `weight_decay=0` is Adam. The update takes
    `lr` and `corrections`, (1 - beta1^n, 1 - beta2^n) as the host computes them in float64: optax's
    own, in float32, are 1.3e-5 off at the first step.
    """
    decays = jax.tree.map(lambda name: weight_decay * canonical.is_decayed(name), names)

    def init(params: optax.Params) -> dict[str, optax.Params]:
        return {slot: jax.tree.map(jnp.zeros_like, params) for slot in SLOTS}

    def update(grads, slots, params=None, *, lr, corrections, **_):
        c1, c2 = corrections

        def move(m: Array, v: Array, p: Array, decay: float) -> Array:
            direction = (m / c1) / (jnp.sqrt(v / c2) + EPS)
            return -lr * (direction + decay * p if decay else direction)

        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, slots["exp_avg"], grads)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, slots["exp_avg_sq"], grads)
        return jax.tree.map(move, m, v, params, decays), {"exp_avg": m, "exp_avg_sq": v}

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(grads: optax.Params) -> Array:
    """The L2 norm over all gradients together."""
    return optax.global_norm(grads)


def clip_by_global_norm(grads: optax.Params, clip: float) -> tuple[optax.Params, Array]:
    """The gradients times min(1, clip / norm), nothing added, and the norm before."""
    norm = global_norm(grads)
    scale = jnp.minimum(1, clip / norm)
    return jax.tree.map(lambda g: g * scale, grads), norm


def nudge(params: optax.Params, seed: int, step: Array) -> optax.Params:
    """The noise that the noise rule measures against.

    Each weight is multiplied by 1 + eps (2 r - 1), r uniform in [0, 1), eps the machine epsilon.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), len(leaves))
    factors = [
        1 + jnp.finfo(p.dtype).eps * (2 * jax.random.uniform(k, p.shape, p.dtype) - 1)
        for k, p in zip(keys, leaves)
    ]
    return jax.tree.unflatten(tree, [p * f for p, f in zip(leaves, factors)])
