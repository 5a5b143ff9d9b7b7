"""Optimizers against Optax: what is the same is called the same, and every difference is named."""

import numpy as np
import optax
import pytest
import torch

from twinvit.port.errors import PortError
from twinvit.port.optimizer import explain_optimizer
from twinvit.port.optimizer.edits import CAUSES


def adam(**kwargs):
    return lambda params: torch.optim.Adam(params, lr=1e-3, **kwargs)


def adamw(**kwargs):
    return lambda params: torch.optim.AdamW(params, **({"lr": 1e-3, "weight_decay": 0.1} | kwargs))


def sgd(**kwargs):
    return lambda params: torch.optim.SGD(params, **({"lr": 0.1, "momentum": 0.9} | kwargs))


def adamw_no_bias_decay(model):
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3)


def cosine(params):
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30), 1.0


def warmup(params):
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, (t + 1) / 10))


def matrices(params):
    import jax

    return jax.tree.map(lambda p: p.ndim > 1, params)


def clipped(*transforms, at=1.0):
    return optax.chain(optax.clip_by_global_norm(at), *transforms)


def without_first_correction(lr):
    """Adam with the bias correction of the second moment alone."""
    import jax
    import jax.numpy as jnp

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, zeros, zeros

    def update(g, state, params=None):
        t, m, v = state
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        u = jax.tree.map(lambda m, v: -lr * m / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v)
        return u, (t, m, v)

    return optax.GradientTransformation(init, update)


def rmsprop(**settings):
    return lambda params: torch.optim.RMSprop(params, **{"lr": 1e-2, "eps": 1e-2} | settings)


def adagrad(**settings):
    return lambda params: torch.optim.Adagrad(params, **{"lr": 1e-2, "eps": 1e-6} | settings)


class Lion(torch.optim.Optimizer):
    """As Chen et al. 2023, algorithm 2, have it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(lr * torch.sign(b1 * m + (1 - b1) * p.grad))
                m.mul_(b2).add_((1 - b2) * p.grad)


class Accumulated(torch.optim.SGD):
    """A step for every four gradients, which are added up over `divisor`."""

    def __init__(self, params, divisor=4.0):
        super().__init__(params, lr=0.1, momentum=0.9)
        self.divisor, self.count, self.sums = divisor, 0, {}

    def step(self, closure=None):
        self.count += 1
        every = [p for group in self.param_groups for p in group["params"]]
        for p in every:
            self.sums[p] = self.sums.get(p, 0) + p.grad / self.divisor
        if self.count % 4 == 0:
            for p in every:
                p.grad = self.sums.pop(p)
            super().step()


def multi_steps(k=4):
    return optax.MultiSteps(optax.sgd(0.1, momentum=0.9), k)


def late_warmup(params):
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, (t + 1) / 8))


SAME = {
    "rmsprop": (rmsprop(), optax.rmsprop(1e-2, decay=0.99, eps=1e-2, eps_in_sqrt=False)),
    "rmsprop, centered, momentum": (
        rmsprop(centered=True, momentum=0.9),
        optax.rmsprop(1e-2, decay=0.99, eps=1e-2, eps_in_sqrt=False, centered=True, momentum=0.9),
    ),
    "lion": (Lion, optax.lion(1e-3, weight_decay=0.1)),
    "adam": (adam(), optax.adam(1e-3)),
    "adamw": (adamw(), optax.adamw(1e-3, weight_decay=0.1)),
    "adamw, masked": (adamw_no_bias_decay, optax.adamw(1e-3, weight_decay=0.1, mask=matrices)),
    "sgd": (sgd(), optax.sgd(0.1, momentum=0.9)),
    "sgd, plain": (sgd(momentum=0), optax.sgd(0.1)),
    "sgd, nesterov": (sgd(nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam, coupled decay": (
        adam(weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3)),
    ),
    "warm-up": (warmup, optax.adamw(lambda t: 1e-3 * (t + 1).clip(0, 10) / 10, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_optimizers_are_the_same(name):
    report = explain_optimizer(*SAME[name])
    assert report.same, report
    assert not report.findings
    assert len(report.operations) == 20


DIFFERENT = {
    "rmsprop's eps": ("eps_place", rmsprop(), optax.rmsprop(1e-2, decay=0.99, eps=1e-2)),
    "rmsprop's decay": (
        "betas",
        rmsprop(),
        optax.rmsprop(1e-2, decay=0.9, eps=1e-2, eps_in_sqrt=False),
    ),
    "rmsprop's first squares": (
        "initial_accumulator",
        rmsprop(),
        optax.rmsprop(1e-2, decay=0.99, eps=1e-2, eps_in_sqrt=False, initial_scale=1.0),
    ),
    "rmsprop's center": (
        "centered",
        rmsprop(centered=True),
        optax.rmsprop(1e-2, decay=0.99, eps=1e-2, eps_in_sqrt=False),
    ),
    "adagrad's first squares": (
        "initial_accumulator",
        lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=0.0, initial_accumulator_value=0.5),
        optax.adagrad(1e-2, initial_accumulator_value=0.1, eps=0.0),
    ),
    "lion's betas": ("betas", Lion, optax.lion(1e-3, b2=0.999, weight_decay=0.1)),
    "lion's decay": ("decay_value", Lion, optax.lion(1e-3, weight_decay=0.01)),
    "sum for mean": ("accumulation", lambda p: Accumulated(p, 1.0), multi_steps()),
    "no accumulation": ("accumulation", Accumulated, optax.sgd(0.1, momentum=0.9)),
    "other accumulation": ("accumulation", Accumulated, multi_steps(2)),
    "accumulation in the port": ("accumulation", sgd(), multi_steps()),
    "warm-up in float32, one behind": (
        "schedule_offset",
        late_warmup,
        optax.adamw(optax.linear_schedule(0.0, 1e-3, 8), weight_decay=0.1),
    ),
    "eps in the root": ("eps_place", adam(), optax.adam(1e-3, eps=0.0, eps_root=1e-8)),
    "eps_root": ("eps_place", adam(), optax.adam(1e-3, eps_root=1e-10)),
    "eps": ("eps_value", adam(), optax.adam(1e-3, eps=1e-6)),
    "beta1": ("betas", adam(), optax.adam(1e-3, b1=0.95)),
    "beta2": ("betas", adam(), optax.adam(1e-3, b2=0.95)),
    "no correction of m": ("bias_correction", adam(), without_first_correction(1e-3)),
    "nadam": ("nesterov", adam(), optax.nadam(1e-3)),
    "amsgrad": ("amsgrad", adam(amsgrad=True), optax.adam(1e-3)),
    "decay": ("decay_value", adamw(), optax.adamw(1e-3, weight_decay=1e-4)),
    "decay coupled": (
        "decay_coupling",
        adamw(),
        optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3)),
    ),
    "decay decoupled": (
        "decay_coupling",
        adam(weight_decay=0.1),
        optax.adamw(1e-3, weight_decay=0.1),
    ),
    "decay not times lr": (
        "decay_coupling",
        adamw(),
        optax.chain(optax.adam(1e-3), optax.add_decayed_weights(-0.1)),
    ),
    "decay on everything": (
        "decay_mask",
        adamw_no_bias_decay,
        optax.adamw(1e-3, weight_decay=0.1),
    ),
    "decay on matrices": (
        "decay_mask",
        adamw(),
        optax.adamw(1e-3, weight_decay=0.1, mask=matrices),
    ),
    "momentum": ("momentum", sgd(), optax.sgd(0.1, momentum=0.8)),
    "nesterov": ("nesterov", sgd(), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "no nesterov": ("nesterov", sgd(nesterov=True), optax.sgd(0.1, momentum=0.9)),
    "averaged": ("dampening", sgd(), optax.chain(optax.ema(0.9, debias=False), optax.sgd(0.1))),
    "dampening": ("dampening", sgd(dampening=0.1), optax.sgd(0.1, momentum=0.9)),
    "clip's 1e-6": (
        "clip_eps",
        cosine,
        clipped(optax.adamw(optax.cosine_decay_schedule(1e-3, 30), weight_decay=0.1)),
    ),
    "schedule one ahead": (
        "schedule_offset",
        warmup,
        optax.adamw(lambda t: 1e-3 * (t + 2).clip(0, 10) / 10, weight_decay=0.1),
    ),
    "schedule one behind": (
        "schedule_offset",
        warmup,
        optax.adamw(lambda t: 1e-3 * t.clip(0, 10) / 10, weight_decay=0.1),
    ),
    "learning rate": ("learning_rate", sgd(), optax.sgd(0.03, momentum=0.9)),
    "other schedule": (
        "learning_rate",
        adam(),
        optax.adam(optax.exponential_decay(1e-3, 7, 0.5)),
    ),
    "no clip": ("clip_value", lambda p: (sgd()(p), 1.0), optax.sgd(0.1, momentum=0.9)),
    "clip by element": (
        "clip_kind",
        lambda p: (sgd()(p), 1.0),
        optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
    ),
    "clip by tensor": (
        "clip_kind",
        lambda p: (sgd()(p), 1.0),
        optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1, momentum=0.9)),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_difference_is_named_and_proven(name):
    cause, factory, transform = DIFFERENT[name]
    report = explain_optimizer(factory, transform)
    assert not report.same
    assert [f.cause for f in report.findings] == [cause], report
    assert report.explained
    assert report.remaining < 1e-11 and report.distance > 1e-9
    assert report.findings[0].before > 1e-9
    assert report.findings[0].what == "optimizer" and report.findings[0].fix


def test_every_cause_is_tested():
    tested = {cause for cause, *_ in DIFFERENT.values()}
    assert tested == set(CAUSES)


TOGETHER = {
    "eps and decay": (
        {"eps_value", "decay_value"},
        adamw(),
        optax.adamw(1e-3, weight_decay=1e-4, eps=1e-6),
    ),
    "clip's 1e-6, clip's value and beta2": (
        {"clip_eps", "clip_value", "betas"},
        cosine,
        clipped(
            optax.adamw(optax.cosine_decay_schedule(1e-3, 30), weight_decay=0.1, b2=0.99), at=0.5
        ),
    ),
    "mask and schedule": (
        {"decay_mask", "schedule_offset"},
        warmup,
        optax.adamw(lambda t: 1e-3 * (t + 2).clip(0, 10) / 10, weight_decay=0.1, mask=matrices),
    ),
    "nesterov and momentum": (
        {"nesterov", "momentum"},
        sgd(),
        optax.sgd(0.1, momentum=0.95, nesterov=True),
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_differences_together(name):
    causes, factory, transform = TOGETHER[name]
    report = explain_optimizer(factory, transform)
    assert report.explained, report
    assert {f.cause for f in report.findings} == causes


def test_numbers_are_solved_for():
    report = explain_optimizer(adamw(), optax.adamw(1e-3, weight_decay=0.037, eps=3e-7))
    text = " ".join(f.text for f in report.findings)
    assert "0.037" in text and "3e-07" in text


def test_a_schedule_in_float32_is_a_matter_of_precision():
    def rate(t):
        return (1e-3 / (1 + t.astype(np.float32))).astype(np.float32)

    def factory(params):
        optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))

    report = explain_optimizer(factory, optax.adamw(rate, weight_decay=0.1))
    assert [f.kind for f in report.findings] == ["precision"], report
    assert report.same and "narrower type" in report.reasons[0]


def test_gradients_held_in_float32_are_a_matter_of_precision():
    report = explain_optimizer(Accumulated, multi_steps())
    assert [f.kind for f in report.findings] == ["precision"], report
    assert report.same and 0 < report.distance < 1e-6


def test_a_rate_further_off_than_float32_is_different():
    report = explain_optimizer(sgd(), optax.sgd(0.1 * (1 + 3e-6), momentum=0.9))
    assert report.verdict == "different" and [f.cause for f in report.findings] == ["learning_rate"]


@pytest.mark.parametrize(
    "transform",
    [
        optax.lion(1e-3),
        optax.adafactor(1e-3),
        optax.rmsprop(1e-3),
    ],
)
def test_what_is_not_known_is_said(transform):
    report = explain_optimizer(adam(), transform)
    assert [f.kind for f in report.findings] == ["unknown"]
    assert not report.explained
    assert report.remaining == report.distance


def test_what_cannot_be_run_is_said():
    with pytest.raises(PortError, match="returned a str"):
        explain_optimizer(lambda p: (sgd()(p), "1.0"), optax.sgd(0.1))
    with pytest.raises(PortError, match="head.weight"):
        explain_optimizer(lambda p: torch.optim.SGD(p[:-1], lr=0.1), optax.sgd(0.1))
    with pytest.raises(PortError, match="GradientTransformation"):
        explain_optimizer(sgd(), 3)


def test_gradients_go_to_their_tensors_in_any_order_of_shapes():
    for shapes in (
        {"a.weight": (3, 4), "b.weight": (4, 3), "a.bias": (12,)},
        {"a.weight": (3, 4), "scale": (4,)},
    ):
        report = explain_optimizer(sgd(momentum=0), optax.sgd(0.1), shapes=shapes)
        assert report.same, report


def test_a_rate_of_zero_is_no_crash():
    report = explain_optimizer(sgd(lr=0.0), optax.sgd(0.1))
    assert not report.same and not report.explained


def test_a_side_that_raises_is_named():
    def refuses(updates, state, params=None):
        raise RuntimeError("no updates today")

    broken = optax.GradientTransformation(lambda params: (), refuses)
    with pytest.raises(PortError, match="Optax transformation.*no updates today"):
        explain_optimizer(sgd(), broken)
    with pytest.raises(PortError, match="PyTorch optimizer.*closure"):
        explain_optimizer(lambda p: torch.optim.LBFGS(p), optax.sgd(0.1))


def test_what_remains_is_measured_at_the_numbers_that_are_shown():
    decay = optax.add_decayed_weights(0.02 * (1 + 2e-12))
    report = explain_optimizer(sgd(momentum=0), optax.chain(decay, optax.sgd(0.1)))
    assert "(0.02)" in report.findings[0].text
    assert 1e-14 < report.remaining < 1e-13  # the rounded decay's; the solved one's is 1e-16
