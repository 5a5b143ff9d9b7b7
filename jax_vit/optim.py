"""AdamW and SGD with weight decay and learning rates by canonical name, clipping, averaging and
SAM's ascent step.

Twin of `torch_vit/optim.py`.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from shared_vit.spec import canonical
from shared_vit.spec.lr_scales import lr_scales
from shared_vit.spec.optimizers import BETA1, BETA2, EPS, optimizer_slots
from shared_vit.spec.recipe import Recipe


def make_optimizer(names: optax.Params, recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a recipe, over parameters given as a tree of their canonical names.

    adamw: p -= lr s (m_hat / (sqrt(v_hat) + eps) + wd p) (Loshchilov and Hutter 2019), adam without
    wd; sgd: p -= lr s (buf + wd p), buf = momentum buf + gradient. s is the `lr_scale` of the
    tensor's layer, wd acts on the weights of products. The state is {slot: tree like the
    parameters}. The update takes `lr` and, for Adam, `corrections`, (1 - beta1^n, 1 - beta2^n) as
    the host computes them in float64: optax's, in float32, are 1.3e-5 off at the first step.
    """
    by_name = lr_scales(recipe.model, recipe.layer_decay)
    decays = jax.tree.map(lambda name: recipe.weight_decay * canonical.is_decayed(name), names)
    scales = jax.tree.map(lambda name: by_name[name], names)

    def init(params: optax.Params) -> dict[str, optax.Params]:
        return {slot: jax.tree.map(jnp.zeros_like, params) for slot in optimizer_slots(recipe)}

    def updated(lr: Array, direction: Array, p: Array, decay: float, lr_scale: float) -> Array:
        lr = lr if lr_scale == 1 else lr * lr_scale
        return -lr * (direction + decay * p if decay else direction)

    def adam(grads, slots, params=None, *, lr, corrections, **_):
        c1, c2 = corrections

        def move(m: Array, v: Array, p: Array, decay: float, lr_scale: float) -> Array:
            return updated(lr, (m / c1) / (jnp.sqrt(v / c2) + EPS), p, decay, lr_scale)

        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, slots["exp_avg"], grads)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, slots["exp_avg_sq"], grads)
        return jax.tree.map(move, m, v, params, decays, scales), {"exp_avg": m, "exp_avg_sq": v}

    def sgd(grads, slots, params=None, *, lr, **_):
        def add(buf: Array, g: Array) -> Array:
            return recipe.momentum * buf + g

        buf = jax.tree.map(add, slots["momentum_buffer"], grads)
        updates = jax.tree.map(lambda *leaf: updated(lr, *leaf), buf, params, decays, scales)
        return updates, {"momentum_buffer": buf}

    return optax.GradientTransformationExtraArgs(init, sgd if recipe.optimizer == "sgd" else adam)


def global_norm(grads: optax.Params) -> Array:
    """The L2 norm over all gradients together."""
    return optax.global_norm(grads)


def clip_by_global_norm(grads: optax.Params, clip: float) -> tuple[optax.Params, Array]:
    """The gradients times min(1, clip / norm), nothing added, and the norm before."""
    norm = global_norm(grads)
    scale = jnp.minimum(1, clip / norm)
    return jax.tree.map(lambda g: g * scale, grads), norm


def ascent_step(params: optax.Params, grads: optax.Params, rho: float) -> optax.Params:
    """The ascent of sharpness-aware minimization (Foret et al. 2021): p + rho g / |g|.

    |g| is over all gradients together; nothing is added to it, and where it is 0 nothing changes.
    """
    norm = global_norm(grads)
    scale = jnp.where(norm > 0, rho / norm, 0)
    return jax.tree.map(lambda p, g: p + g * scale, params, grads)


def average(averages: optax.Params, params: optax.Params, weight: Array) -> optax.Params:
    """The moving average of the weights: e + weight (p - e)."""
    return jax.tree.map(lambda e, p: e + weight * (p - e), averages, params)


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
