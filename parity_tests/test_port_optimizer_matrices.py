"""Adafactor and Muon: what is the same is called the same, what differs is named and read off."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from optax.contrib import MuonDimensionNumbers, muon

from twinvit.port.optimizer import explain_optimizer
from twinvit.port.optimizer.matrix_edits import CAUSES

SHAPES = {"linear.weight": (4, 3), "linear.bias": (4,), "head.weight": (3, 5)}
NAMES = {
    "linear.weight": "linear/kernel", "linear.bias": "linear/bias", "head.weight": "head/kernel",
}  # fmt: skip


def explained(factory, transform, **kwargs):
    return explain_optimizer(
        factory, transform, **({"shapes": SHAPES, "jax_names": NAMES, "steps": 6} | kwargs)
    )


def adafactor(**settings):
    return lambda params: torch.optim.Adafactor(params, **{"eps": (1e-30, 1e-3)} | settings)


def port_adafactor(rate=1e-2, **settings):
    return optax.adafactor(rate, **{"min_dim_size_to_factor": 2, "eps": 0.0} | settings)


def muon_and_adamw(nesterov=False, adamw=(), **settings):
    """Muon for matrices and AdamW for the rest, no epsilon that these gradients reach."""
    own = {"lr": 0.02, "weight_decay": 0.1, "eps": 0.0, "nesterov": nesterov} | settings
    rest = {"lr": 0.02, "weight_decay": 0.0, "eps": 1e-30} | dict(adamw)

    def factory(params):
        matrices, others = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
        return torch.optim.Muon(matrices, **own), torch.optim.AdamW(others, **rest)

    return factory


def port_muon(rate=0.02, **settings):
    return muon(rate, **{"eps": 1e-30, "nesterov": False, "weight_decay": 0.1} | settings)


def written_out(power=0.8):
    """Adafactor for tensors of one or two axes, in float64, its squares' sums for means."""

    def init(params):
        zeros = jax.tree.map(lambda p: (jnp.zeros(p.shape[:-1]), jnp.zeros(p.shape[1:])), params)
        return 0, zeros

    def one(t, p, g, kept):
        beta = 1 - (t + 0.0) ** -power
        if p.ndim < 2:
            rows = columns = beta * kept[1] + (1 - beta) * g**2
            squares = columns
        else:
            rows = beta * kept[0] + (1 - beta) * (g**2).sum(1)
            columns = beta * kept[1] + (1 - beta) * (g**2).sum(0)
            squares = jnp.outer(rows, columns) / rows.sum()
        u = g / jnp.sqrt(squares)
        u = u * jnp.minimum(1, 1 / jnp.sqrt(jnp.mean(u**2)))
        kept = (kept[0], columns) if p.ndim < 2 else (rows, columns)
        return -1e-2 * jnp.maximum(1e-3, jnp.sqrt(jnp.mean(p**2))) * u, kept

    def update(gradients, state, params):
        t = state[0] + 1
        leaves, tree = jax.tree.flatten(params)
        kept = tree.flatten_up_to(state[1])
        done = [one(t, *x) for x in zip(leaves, jax.tree.leaves(gradients), kept)]
        return tree.unflatten([u for u, _ in done]), (t, tree.unflatten([k for _, k in done]))

    return optax.GradientTransformation(init, update)


def summed_momentum(half=False):
    """Muon with the momentum as a sum, Nesterov's as g + m * sum, the iteration in another order of
    products, in bfloat16 or not."""

    def orthogonal(x):
        x = x.astype(jnp.bfloat16) if half else x
        x = x / jnp.sqrt((x**2).sum())
        for _ in range(5):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * (gram @ gram))
        return x

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def one(p, g, m):
        # Flax's kernels are (inputs, outputs)
        scale = max(1, p.shape[1] / p.shape[0]) ** 0.5
        return -0.02 * (scale * orthogonal(g + 0.95 * m).astype(p.dtype) + 0.1 * p)

    def update(gradients, state, params):
        state = jax.tree.map(lambda m, g: 0.95 * m + g, state, gradients)
        return jax.tree.map(one, params, gradients, state), state

    return optax.GradientTransformation(init, update)


def only_matrices(params):
    return torch.optim.Muon(params, lr=0.02, eps=0.0)


MATRICES = {
    "shapes": {"linear.weight": (4, 3), "head.weight": (3, 5)},
    "jax_names": {n: x for n, x in NAMES.items() if "kernel" in x},
}
SAME = {
    "adafactor": (adafactor(), port_adafactor(), {}),
    "adafactor of another form": (adafactor(), written_out(), {}),
    "muon": (muon_and_adamw(), port_muon(), {}),
    "muon by root mean square": (
        muon_and_adamw(adjust_lr_fn="match_rms_adamw"), port_muon(consistent_rms=0.2), {},
    ),
    "muon of another form": (only_matrices, summed_momentum(), MATRICES),
    "muon in bfloat16 on both sides": (only_matrices, summed_momentum(half=True), MATRICES),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_sound_pairs_are_the_same(name):
    factory, transform, given = SAME[name]
    report = explained(factory, transform, **given)
    assert report.same, report
    assert all(f.kind == "precision" for f in report.findings), report


def test_a_type_of_16_bits_is_said():
    report = explained(only_matrices, summed_momentum(), **MATRICES)
    assert any("Muon computes in bfloat16" in note for note in report.notes)


def no_head(params):
    """Muon for all matrices but the head."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: (
            MuonDimensionNumbers() if p.ndim == 2 and "head" not in str(path[0]) else None
        ),
        params,
    )


DIFFERENT = {
    "threshold": ("clip_threshold", adafactor(d=2.0), port_adafactor(), "at 2"),
    "decay of squares": ("betas", adafactor(beta2_decay=-0.7), port_adafactor(), "-0.7"),
    "not factored": ("factored", adafactor(), port_adafactor(factored=False), "every element"),
    "too small to factor": ("factored", adafactor(), optax.adafactor(1e-2, eps=0.0), "element"),
    "momentum of adafactor": ("momentum", adafactor(), port_adafactor(momentum=0.9), "0.9"),
    "parameters' size": (
        "parameter_scale", adafactor(), port_adafactor(multiply_by_parameter_scale=False), "",
    ),
    "adafactor's decay": (
        "decay_coupling", adafactor(weight_decay=0.1), port_adafactor(weight_decay_rate=0.1),
        "not times the learning rate",
    ),
    "a rate above the cap": ("rate_cap", adafactor(lr=1.0), port_adafactor(1.0), "1 / sqrt"),
    "eps of squares": ("eps_place", adafactor(), port_adafactor(eps=1e-10), "1e-10"),
    "steps": ("ns_steps", muon_and_adamw(ns_steps=6), port_muon(), "5 Newton-Schulz steps"),
    "coefficients": (
        "ns_coefficients", muon_and_adamw(), port_muon(ns_coeffs=(2.0, -1.5, 0.5)), "2, -1.5, 0.5",
    ),
    "one coefficient": (
        "ns_coefficients", muon_and_adamw(), port_muon(ns_coeffs=(3.4445, -4.775, 2.01)), "2.01,",
    ),
    "scale": ("muon_scale", muon_and_adamw(), port_muon(consistent_rms=0.2), "0.2 * sqrt(max"),
    "norm": ("ns_norm", muon_and_adamw(), port_muon(preconditioning="spectral"), "spectral"),
    "momentum of muon": ("momentum", muon_and_adamw(), port_muon(beta=0.9), "0.9"),
    "muon's decay": ("decay_value", muon_and_adamw(), port_muon(weight_decay=0.01), "0.01"),
    "adam's rate": (
        "learning_rate", muon_and_adamw(adamw={"lr": 1e-3}), port_muon(), "20 times",
    ),
    "adam's decay": (
        "decay_value", muon_and_adamw(adamw={"weight_decay": 0.1}), port_muon(), "Adam's tensors",
    ),
    "head by adam": (
        "muon_tensors", muon_and_adamw(), port_muon(muon_weight_dimension_numbers=no_head), "Adam",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_difference_is_named_and_read_off(name):
    cause, factory, transform, said = DIFFERENT[name]
    report = explained(factory, transform)
    found = [f for f in report.findings if f.kind != "precision"]
    assert report.verdict == "different" and report.explained, report
    assert [f.cause for f in found] == [cause] and said in found[0].text, report
    assert found[0].fix and report.remaining < 1e-11


def test_nesterov_of_optax_differs_in_both_groups():
    """It corrects the momentum's bias, and updates the other tensors by NAdam."""
    report = explained(muon_and_adamw(nesterov=True), port_muon(nesterov=True))
    assert report.explained, report
    assert {f.cause for f in report.findings} == {"bias_correction", "nesterov"}


def test_every_cause_is_tested():
    tested = {cause for cause, *_ in DIFFERENT.values()}
    assert set(CAUSES) <= tested
