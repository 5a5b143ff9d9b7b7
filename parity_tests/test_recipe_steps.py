"""Claim: every piece of a recipe is the same step in both twins, and the step that its formula
says."""

import dataclasses
import functools

import numpy as np
import pytest
import ranks
import torch
from helpers import TINY, jax_trainer, random_arrays, relative_l2, torch_trainer

import jax_vit.dropout
import jax_vit.objective
import jax_vit.optim
import jax_vit.trainer
import torch_vit.dropout
import torch_vit.objective
import torch_vit.optim
import torch_vit.trainer
from benchmarks.twin_pairs import state_distance, without_key_bias
from shared_vit.data.batch import Batch
from shared_vit.data.mixing import Mix, mix_of
from shared_vit.run.state import StepScalars, first_state
from shared_vit.spec import canonical
from shared_vit.spec.ema import ema_decay
from shared_vit.spec.lr_scales import lr_scales
from shared_vit.spec.mask_keys import path_site, site_keys
from shared_vit.spec.recipe import Recipe

LIMIT = 1e-11
ROWS, RATE = 16, 1e-2
MODEL = dataclasses.replace(TINY, depth=2, width=32, num_heads=2, mlp_dim=48)
DROPPED = dataclasses.replace(MODEL, drop_path=0.5)
RANDOM = dataclasses.replace(MODEL, drop_path=0.3, dropout=0.1)

WEIGHTS = tuple(0.2 + 0.3 * i for i in range(MODEL.num_classes))

PIECES = {
    "label smoothing": dict(label_smoothing=0.1),
    "sigmoid": dict(loss="sigmoid", label_smoothing=0.1),
    "class weights": dict(class_weights=WEIGHTS),
    "class weights, mixed": dict(class_weights=WEIGHTS, mixup=0.2, label_smoothing=0.1),
    "mixup": dict(mixup=0.2),
    "cutmix": dict(cutmix=1.0),
    "drop path": dict(model=DROPPED),
    "sgd": dict(optimizer="sgd", weight_decay=0.01),
    "layer decay": dict(layer_decay=0.5, weight_decay=0.1),
    "freeze": dict(freeze="1"),
    "linear probe": dict(freeze="trunk", optimizer="sgd", weight_decay=0.0),
    "ema": dict(ema=0.99),
    "sam": dict(sam_rho=0.1),
    "sam groups": dict(sam_rho=0.1, sam_groups=2),
}
TOGETHER = dict(
    model=RANDOM, mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema=0.9, layer_decay=0.7, clip=0.5,
)  # fmt: skip
SHARP = TOGETHER | dict(optimizer="sgd", weight_decay=0.01, sam_rho=0.05, sam_groups=2, freeze="1")


def recipe_of(**changes) -> Recipe:
    settings = dict(model=MODEL, batch_size=ROWS, precision="fp64", steps=10, weight_decay=0.1)
    return Recipe(**(settings | changes))


def state_of(recipe: Recipe, seed: int = 0):
    return first_state(recipe.model, random_arrays(recipe.model, seed), "fp64", recipe)


def batch_of(recipe: Recipe, step: int = 0, mix: Mix | None = None) -> Batch:
    rng, side = np.random.default_rng([7, step]), recipe.model.image_size
    images = rng.integers(0, 256, (recipe.batch_size, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, recipe.model.num_classes, recipe.batch_size).astype(np.int32)
    rows = np.arange(recipe.batch_size)
    weight = np.ones(recipe.batch_size, np.float32)
    return Batch(images, labels, weight, rows, step, mix or mix_of(recipe, step))


def taken(trainer, recipe: Recipe, steps: int = 3) -> list:
    """The metrics of some steps."""
    found = []
    for step in range(steps):
        batch = batch_of(recipe, step)
        found.append(trainer.train_step(trainer.to_device(batch), StepScalars(RATE)).get())
    return found


def distance_of(a, b, recipe: Recipe, steps: int = 3) -> float:
    """The largest distance of gradients, metrics, moments and averages over some steps."""
    worst = 0.0
    for step in range(steps):
        batch, found = batch_of(recipe, step), []
        for trainer in (a, b):
            metrics, grads = trainer.gradients(trainer.to_device(batch))
            moved = trainer.train_step(trainer.to_device(batch), StepScalars(RATE)).get()
            assert moved.loss == pytest.approx(metrics.get().loss, rel=1e-12)
            found.append((moved, without_key_bias(recipe.model, grads)))
        (m, g), (n, h) = found
        assert list(g) == list(h) and min(np.abs(array).max() for array in g.values()) > 0
        worst = max(worst, *(relative_l2(g[name], h[name]) for name in g))
        worst = max(worst, abs(m.loss - n.loss), abs(m.grad_norm / n.grad_norm - 1))
    return max(worst, state_distance(a.state(), b.state())[0])


@pytest.mark.parametrize("piece", PIECES)
def test_pieces_are_the_same_step(piece, x64):
    recipe = recipe_of(**PIECES[piece])
    state = state_of(recipe)
    assert distance_of(jax_trainer(state, recipe, 2), torch_trainer(state, recipe), recipe) < LIMIT
    # And a step that is not the plain one.
    plain = recipe_of()
    a, b = torch_trainer(state_of(plain), plain), torch_trainer(state, recipe)
    taken(a, plain, 1), taken(b, recipe, 1)
    moved = [t.state().params for t in (a, b)]
    if piece != "ema":
        assert max(relative_l2(moved[0][n], moved[1][n]) for n in moved[0]) > 1e-6


@pytest.mark.parametrize("settings", [TOGETHER, SHARP], ids=["everything", "with sam and sgd"])
@pytest.mark.parametrize(
    "devices, parts, memory",
    [(1, 1, {}), (2, 2, {}), (4, 1, {}), (2, 1, dict(shard=True, remat=True))],
    ids=str,
)
def test_everything_at_once_on_any_devices(settings, devices, parts, memory, x64):
    base = recipe_of(**settings)
    recipe = dataclasses.replace(base, grad_accum=parts)
    state = state_of(base)
    twins = jax_trainer(state, recipe, devices, **memory), torch_trainer(state, base)
    assert distance_of(*twins, base) < LIMIT


@pytest.mark.parametrize("memory", [{}, dict(shard=True, remat=True)], ids=str)
@pytest.mark.parametrize("settings", [TOGETHER, SHARP], ids=["everything", "with sam and sgd"])
def test_two_torch_processes_with_everything(settings, memory, tmp_path):
    recipe = recipe_of(**settings, grad_accum=2)
    data = [batch_of(recipe, step) for step in range(4)]
    out = tmp_path / "result.npz"
    job = ranks.Job(state_of(recipe), data, batch_of(recipe, 9, Mix()), out, memory=memory)
    flags = ranks.requested(recipe, world_size=2, device="cpu")
    assert ranks.launch_torch(flags, functools.partial(ranks.torch_rank, job, recipe)) == 0
    found, alone = np.load(job.out), dataclasses.replace(recipe, grad_accum=1)
    expected = ranks.train(torch_trainer(job.state, alone), alone, job)
    for name in ("loss", "grad_norm", "counts", "averaged"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)


TWINS = {"torch": torch_trainer, "jax": jax_trainer}


@pytest.fixture(params=TWINS)
def twin(request, x64):
    return TWINS[request.param]


def test_sgd(twin):
    """p <- p - lr s (buf + wd p), buf <- 0.9 buf + g, with g clipped."""
    recipe = recipe_of(optimizer="sgd", weight_decay=0.1, layer_decay=0.5, clip=0.5)
    scales, trainer = lr_scales(MODEL, 0.5), twin(state_of(recipe), recipe)
    p, buf = dict(trainer.state().params), None
    for step in range(3):
        batch = batch_of(recipe, step)
        metrics, g = trainer.gradients(trainer.to_device(batch))
        scale = min(1, 0.5 / metrics.get().grad_norm)
        g = {n: scale * a for n, a in g.items()}
        buf = g if buf is None else {n: 0.9 * buf[n] + a for n, a in g.items()}
        for n in p:
            decay = 0.1 * p[n] if canonical.is_decayed(n) else 0
            p[n] = p[n] - RATE * scales[n] * (buf[n] + decay)
        trainer.train_step(trainer.to_device(batch), StepScalars(RATE)).get()
    state = trainer.state()
    assert max(relative_l2(state.params[n], p[n]) for n in p) < 1e-13
    assert max(relative_l2(state.slots["momentum_buffer"][n], buf[n]) for n in p) < 1e-12


def test_layer_decay_scales_the_entire_update(twin):
    """Adam's first update of a tensor, decay included, is that of the plain recipe times s."""
    scaled, plain = recipe_of(layer_decay=0.5), recipe_of()
    states, scales = [], lr_scales(MODEL, 0.5)
    for recipe in (scaled, plain):
        trainer = twin(state_of(recipe), recipe)
        taken(trainer, recipe, 1)
        states.append(trainer.state().params)
    start = state_of(plain).params
    for n in start:
        moved, full = (s[n] - start[n] for s in states)
        np.testing.assert_allclose(moved, scales[n] * full, rtol=1e-9, atol=1e-15)


def test_frozen_tensors(twin):
    """They stay bit for bit, have no slots and no part in the norm."""
    recipe = recipe_of(freeze="1", clip=0.5)
    state = state_of(recipe)
    trainer = twin(state, recipe)
    metrics, grads = trainer.gradients(trainer.to_device(batch_of(recipe)))
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert metrics.get().grad_norm == pytest.approx(norm, rel=1e-12)
    taken(trainer, recipe)
    after = trainer.state()
    still = {n for n in state.params if n.startswith(("cls_", "pos_", "patch_", "blocks.0."))}
    assert (
        still == set(state.params) - set(grads) == set(state.params) - set(after.slots["exp_avg"])
    )
    for n in state.params:
        assert (after.params[n] == state.params[n]).all() == (n in still)


def test_moving_average(twin):
    recipe = recipe_of(ema=0.2)  # so that both branches of the warm-up are taken
    trainer = twin(state_of(recipe), recipe)
    average = dict(trainer.state().params)
    assert [ema_decay(0.2, n) for n in (1, 2, 3)] == [2 / 11, 0.2, 0.2]
    for step in range(3):
        trainer.train_step(trainer.to_device(batch_of(recipe, step)), StepScalars(RATE)).get()
        d, p = ema_decay(0.2, step + 1), trainer.state().params
        average = {n: e + (1 - d) * (p[n] - e) for n, e in average.items()}
    state = trainer.state()
    assert max(relative_l2(state.slots["ema"][n], e) for n, e in average.items()) < 1e-13
    # Evaluation by the average is that of a model with its weights.
    other = twin(dataclasses.replace(state, params=average), recipe)
    batch = batch_of(recipe)
    counts = [
        t.eval_step(t.to_device(batch), averaged=averaged).get()
        for t, averaged in ((trainer, True), (other, False), (trainer, False))
    ]
    assert counts[0].loss_sum == pytest.approx(counts[1].loss_sum, rel=1e-12)
    assert abs(counts[0].loss_sum - counts[2].loss_sum) > 1e-6


def test_sharpness_aware_minimization(twin):
    """Each group's gradient at w + rho g / |g|, g its own gradient at w; summed over the groups."""
    recipe, plain = recipe_of(sam_rho=0.1, sam_groups=2), recipe_of(batch_size=ROWS // 2)
    state, batch = state_of(recipe), batch_of(recipe)
    trainer, half = twin(state, recipe), twin(state_of(plain), plain)
    metrics, found = trainer.gradients(trainer.to_device(batch))
    sums, losses = dict.fromkeys(found, 0.0), []
    for group in range(2):
        own = batch.rows // 2 % 2 == group
        cut = {n: getattr(batch, n)[own] for n in ("images", "labels", "weight", "rows")}
        half.load_params(state.params)
        first, g = half.gradients(half.to_device(dataclasses.replace(batch, **cut)))
        losses.append(first.get().loss)
        norm = np.sqrt(sum((a**2).sum() for a in g.values()))
        half.load_params({n: p + 0.1 * g[n] / norm for n, p in state.params.items()})
        _, g = half.gradients(half.to_device(dataclasses.replace(batch, **cut)))
        sums = {n: s + g[n] / 2 for n, s in sums.items()}
    assert max(relative_l2(found[n], sums[n]) for n in found if "qkv.bias" not in n) < 1e-12
    assert metrics.get().loss == pytest.approx(np.mean(losses), rel=1e-12)
    after = trainer.state().params
    assert all((after[n] == p).all() for n, p in state.params.items())  # put back exactly


def test_nothing_climbs_where_the_gradient_is_zero(x64):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    torch_vit.optim.ascent_step([p], 0.1)
    up = jax_vit.optim.ascent_step([np.ones(3)], [np.zeros(3)], 0.1)
    assert p.tolist() == up[0].tolist() == [1, 1, 1]


def test_paths_are_dropped_by_rows_and_scaled(x64):
    """Mask of the row's number alone; the rest divided by 1 - rate; rates from 0 to the last."""
    keys, rows = site_keys(3, 4, depth=5, paths=True), np.arange(4000)
    assert [DROPPED.path_rate(i) for i in range(2)] == [0.0, 0.5]
    deep = dataclasses.replace(MODEL, depth=5, drop_path=0.4)
    assert np.allclose([deep.path_rate(i) for i in range(5)], np.linspace(0, 0.4, 5))
    site, x = path_site(5, 4) + 1, np.ones((4000, 3, 2))
    a = jax_vit.dropout.drop_path(x, (keys, rows.astype(np.int32)), site, 0.4)
    drop = torch_vit.dropout.to_keys(keys), torch.from_numpy(rows)
    b = torch_vit.dropout.drop_path(torch.from_numpy(x), drop, site, 0.4).numpy()
    assert np.array_equal(np.asarray(a), b)
    assert set(np.unique(b)) == {0, 1 / 0.6} and (b == b[:, :1, :1]).all()
    assert abs((b > 0).mean() - 0.6) < 0.03
    later = torch_vit.dropout.drop_path(
        torch.from_numpy(x[:100]), (drop[0], drop[1][100:200]), site, 0.4
    )
    assert np.array_equal(later.numpy(), b[100:200])


def test_old_masks_keep_their_keys():
    assert np.array_equal(site_keys(3, 4, depth=5, paths=True)[:16], site_keys(3, 4, depth=5))


# Each planted mutation is caught by the comparison above.


def smoothing_over_the_others(monkeypatch):
    """Smoothing that leaves the label its whole share: s / K for the other classes only."""
    sound = torch_vit.objective.losses

    def losses(logits, labels, kind, smoothing=0.0, mixing=None):
        k = logits.shape[1]
        return sound(logits, labels, kind, smoothing * (1 - 1 / k), mixing)

    monkeypatch.setattr(torch_vit.objective, "losses", losses)


def mean_over_classes(monkeypatch):
    sound = torch_vit.objective.losses
    monkeypatch.setattr(torch_vit.objective, "losses", lambda z, *a: sound(z, *a) / z.shape[1])


def rolled_partner(monkeypatch):
    monkeypatch.setattr(torch_vit.objective, "swap_pairs", lambda x: x.roll(1, 0))


def labels_not_mixed(monkeypatch):
    sound = torch_vit.objective.losses

    def losses(logits, labels, kind, smoothing=0.0, mixing=None):
        return sound(logits, labels, kind, smoothing or 1e-30)

    monkeypatch.setattr(torch_vit.objective, "losses", losses)


def box_one_row_short(monkeypatch):
    sound = torch_vit.objective.mix
    monkeypatch.setattr(
        torch_vit.objective,
        "mix",
        lambda x, m: sound(x, m._replace(box=m.box - torch.tensor([0, 0, 1, 0]))),
    )


def path_not_scaled(monkeypatch):
    def drop_path(x, dropout, site, rate):
        return torch_vit.dropout.drop_path(x, dropout, site, rate) * (1 - rate)

    monkeypatch.setattr(torch_vit.model, "drop_path", drop_path)


def path_site_of_the_other_branch(monkeypatch):
    def drop_path(x, dropout, site, rate):
        first = path_site(MODEL.depth, 0)
        return torch_vit.dropout.drop_path(x, dropout, first + (site - first ^ 1), rate)

    monkeypatch.setattr(torch_vit.model, "drop_path", drop_path)


def coupled_decay(monkeypatch):
    """torch's own: decay through the momentum."""

    def make(groups, momentum):
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)

    monkeypatch.setattr(torch_vit.optim, "DecoupledSGD", make)


def nesterov(monkeypatch):
    sound = torch_vit.optim.DecoupledSGD.__init__

    def init(self, groups, momentum):
        sound(self, groups, momentum)
        for group in self.param_groups:
            group["nesterov"] = True

    monkeypatch.setattr(torch_vit.optim.DecoupledSGD, "__init__", init)


def norm_in_the_last_block(monkeypatch):
    """timm's layer-wise rates."""

    def scales(cfg, decay):
        found = lr_scales(cfg, decay)
        return found | {n: decay for n in ("norm.weight", "norm.bias")}

    monkeypatch.setattr(torch_vit.optim, "lr_scales", scales)


def frozen_in_the_norm(monkeypatch):
    """As if a frozen tensor had a gradient of norm 0.1."""
    sound, other = torch_vit.trainer.clip_by_global_norm, torch.tensor([0.1], dtype=torch.float64)
    monkeypatch.setattr(
        torch_vit.trainer, "clip_by_global_norm", lambda g, clip: sound([*g, other.clone()], clip)
    )


def average_before_the_update(monkeypatch):
    monkeypatch.setattr(torch_vit.trainer, "ema_decay", lambda d, n: ema_decay(d, n - 1))


def norm_with_epsilon(monkeypatch):
    """Foret's reference adds 1e-12; 1e-6 is what a careless port adds."""
    sound = torch_vit.optim.global_norm
    monkeypatch.setattr(torch_vit.optim, "global_norm", lambda grads: sound(grads) + 1e-6)


def whole_batch_climbs(monkeypatch):
    """One group: m is the batch, whatever was asked for."""
    monkeypatch.setattr(torch_vit.trainer, "group_of", lambda x, group, groups: x)


MUTATIONS = {
    smoothing_over_the_others: "label smoothing",
    mean_over_classes: "sigmoid",
    rolled_partner: "mixup",
    labels_not_mixed: "mixup",
    box_one_row_short: "cutmix",
    path_not_scaled: "drop path",
    path_site_of_the_other_branch: "drop path",
    coupled_decay: "sgd",
    nesterov: "sgd",
    norm_in_the_last_block: "layer decay",
    frozen_in_the_norm: "freeze",
    average_before_the_update: "ema",
    norm_with_epsilon: "sam",
    whole_batch_climbs: "sam groups",
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_mutations_are_caught(mutation, x64, monkeypatch):
    recipe = recipe_of(**PIECES[MUTATIONS[mutation]])
    state = state_of(recipe)
    sound = jax_trainer(state, recipe, 2)
    mutation(monkeypatch)
    assert distance_of(sound, torch_trainer(state, recipe), recipe) > 100 * LIMIT
