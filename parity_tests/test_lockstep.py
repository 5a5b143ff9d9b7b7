"""Claim: from the same state both twins take the same step; a wrong one is caught and named."""

import dataclasses
import json
import math
import shlex
import shutil
import signal
from fnmatch import fnmatchcase
from pathlib import Path

import helpers
import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from helpers import random_state
from whole_runs import train_here, wait_for

import jax_vit.trainer
import torch_vit.objective
import torch_vit.trainer
from jax_vit.optim import global_norm
from shared_vit.checksummed import read_checksummed, write_checksummed
from shared_vit.data import batches
from shared_vit.data.sources import open_dataset
from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.run.interrupt import EXIT_INTERRUPTED
from shared_vit.run.plan import Plan, make_plan
from shared_vit.run.record import Record, read_record, write_record
from shared_vit.run.state import StepMetrics, StepScalars
from shared_vit.spec.runtime import RuntimeConfig
from twinvit import lockstep
from twinvit.lockstep import Measured, audit, record, trainer_run
from twinvit.lockstep.jax_update import HostTrainer
from twinvit.lockstep.twins import (
    Pair,
    judged_by_reference,
    optimizer_quantities,
    quantities,
    relative_to,
)
from twinvit.parity import proofs as proof_pages
from twinvit.parity.command import parity
from twinvit.parity.noise_rule import machine_epsilon

OLD = Path(__file__).parent / "fixtures" / "v0.1"
EPS = {"fp32": 2.0**-23, "fp64": 2.0**-52}


def pair_of(leader, precision, runtime, **changes):
    """Both twins on digits, from weights that hide nothing, and their plan."""
    recipe = helpers.train_config(precision, steps=100, **changes)
    plan = Plan(recipe, runtime, None, "train", False, open_dataset("digits"), Path("none"))
    return Pair(plan, random_state(recipe.model, precision, recipe=recipe), leader), plan


def steps_in_lockstep(leader="torch", steps=4, precision="fp32", **changes):
    """Lines of a short lockstep, JAX on two devices."""
    runtime = RuntimeConfig(workers=0, world_size=2)
    return steps_of(*pair_of(leader, precision, runtime, **changes), steps)


def steps_of(pair, plan, steps):
    stream = batches(plan.recipe, "train", dataset=plan.dataset, runtime=plan.runtime)
    lines = []
    for i in range(steps):
        scalars = StepScalars(plan.lr(i))
        step = pair.step(next(stream), scalars, noise=i % 2 == 0)
        lines.append(record.from_json(record.to_json(record.line_of(step, scalars))))
    stream.close()
    return lines


def verdict_of(lines, precision="fp32"):
    gradients, maps = record.judge(lines, machine_epsilon(precision))
    return gradients.joined(maps)


@pytest.mark.parametrize("leader", ["torch", "jax"])
def test_twins_take_the_same_steps(leader, precision):
    """With dropout and accumulation, JAX on two devices."""
    lines = steps_in_lockstep(leader, precision=precision, dropout=0.1, grad_accum=2)
    verdict = verdict_of(lines, precision)
    assert verdict.line() == "lockstep: decided 4 of 4 steps, same" and verdict.exit_status == 0
    limit = {"fp32": 1e-5, "fp64": 1e-12}[precision]
    assert all(line.gradients.gaps["whole"] <= limit for line in lines)
    assert len({line.loss for line in lines}) == 4
    # Another computation, not the same one twice:
    assert all(line.gradients.gaps["whole"] > 0 for line in lines)


RECIPES = {
    "everything": dict(
        mixup=0.2, cutmix=1.0, label_smoothing=0.1, randaug="2,10", drop_path=0.2, ema=0.9,
        layer_decay=0.7, grad_accum=2,
    ),
    "sam": dict(sam_rho=0.05, sam_groups=2, mixup=0.2),
    "sgd": dict(optimizer="sgd", weight_decay=0.01, loss="sigmoid"),
    "frozen": dict(freeze="2"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("leader", ["torch", "jax"])
def test_recipes_take_the_same_steps(leader, name):
    lines = steps_in_lockstep(leader, steps=3, **RECIPES[name])
    assert verdict_of(lines).line() == "lockstep: decided 3 of 3 steps, same"
    assert all(0 < line.gradients.gaps["whole"] <= 1e-5 for line in lines)


@pytest.mark.parametrize("name", ["everything", "sam"])
def test_recipes_take_the_same_steps_in_bf16(name):
    lines = steps_in_lockstep(precision="bf16", steps=3, **RECIPES[name])
    assert verdict_of(lines).line() == "lockstep: decided 3 of 3 steps, same"


@pytest.mark.parametrize(
    "devices, leader, shard, remat",
    [
        (2, "jax", "none", "block"),
        pytest.param(2, "torch", "params", "none", marks=pytest.mark.slow),
        (4, "jax", "params", "block"),
        pytest.param(4, "torch", "none", "none", marks=pytest.mark.slow),
        (4, "torch", "params", "block"),
    ],
)
def test_jax_on_several_devices(devices, leader, shard, remat, x64):
    """PyTorch is on one. With dropout, of which each device draws its own rows' masks."""
    runtime = RuntimeConfig(workers=0, world_size=devices, shard=shard, remat=remat)
    pair, plan = pair_of(leader, "fp64", runtime, dropout=0.1)
    jax_trainer = pair.twins["jax"].trainer
    assert jax_trainer.mesh.size == devices and jax_trainer.sharded == (shard == "params")
    verdict = verdict_of(lines := steps_of(pair, plan, 3), "fp64")
    assert verdict.line() == "lockstep: decided 3 of 3 steps, same"
    assert all(0 < line.gradients.gaps["whole"] <= 1e-12 for line in lines)


def test_twins_take_the_same_steps_in_bf16():
    lines = steps_in_lockstep(precision="bf16")
    assert verdict_of(lines).line() == "lockstep: decided 4 of 4 steps, same"
    assert all(1e-3 < max(line.gradients.distances["whole"]) < 0.1 for line in lines)


def test_the_leader_draws_its_own_curve():
    """Being watched changes no bit of a torch run."""
    recipe = helpers.train_config("fp32", dropout=0.1)
    state = random_state(recipe.model, "fp32")
    alone = helpers.run(helpers.torch_trainer(state, recipe), recipe, 4, total=100)
    lines = steps_in_lockstep(dropout=0.1)
    assert [line.loss for line in lines] == alone.loss.tolist()
    assert [line.grad_norm for line in lines] == alone.grad_norm.tolist()


# Faults planted in the PyTorch twin.


def late_rate(monkeypatch):
    """The schedule off by one: each update uses the rate of the one before."""
    sound = torch_vit.trainer.Trainer._update

    def update(self, scalars):
        late, self.late = getattr(self, "late", scalars), scalars
        return sound(self, late)

    monkeypatch.setattr(torch_vit.trainer.Trainer, "_update", update)


def decay_on_norms(monkeypatch):
    def make_optimizer(named, recipe):
        groups = [
            {"params": [p for n, p in named.items() if n.endswith(".weight") == decayed],
             "weight_decay": recipe.weight_decay * decayed, "lr_scale": 1.0}
            for decayed in (True, False)
        ]  # fmt: skip
        return torch.optim.AdamW(groups, lr=0.0, fused=True)

    monkeypatch.setattr(torch_vit.trainer, "make_optimizer", make_optimizer)


def clip_with_eps(monkeypatch):
    """As `torch.nn.utils.clip_grad_norm_` does it."""

    def clip_by_global_norm(grads, clip):
        norm = torch.nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1))
        return norm

    monkeypatch.setattr(torch_vit.trainer, "clip_by_global_norm", clip_by_global_norm)


def other_dropout_site(monkeypatch):
    """The last block's second MLP product takes the mask of its attention output."""
    sound = torch_vit.trainer.to_keys

    def to_keys(keys, *args):
        keys = keys.copy()
        keys[-1] = keys[-3]
        return sound(keys, *args)

    monkeypatch.setattr(torch_vit.trainer, "to_keys", to_keys)


def mean_of_means(monkeypatch):
    """Accumulation as a running mean, (so far + part) / 2, which weighs the last part most."""

    def _backward(self, batch):
        parts = [t.chunk(self.train.grad_accum) for t in (batch.images, batch.labels)]
        params = list(self.model.parameters())
        total, mean = 0.0, None
        for images, labels in zip(*parts):
            loss = self.compute_loss(images, labels) / len(labels)
            grads = torch.autograd.grad(loss, params)
            mean = grads if mean is None else [(m + g) / 2 for m, g in zip(mean, grads)]
            total = total + loss.detach() / self.train.grad_accum
        for p, g in zip(params, mean):
            p.grad = g.clone()
        return total

    monkeypatch.setattr(torch_vit.trainer.Trainer, "_backward", _backward)


def stale_batch(monkeypatch):
    sound = torch_vit.trainer.Trainer.to_device

    def to_device(self, batch):
        last, self.last = getattr(self, "last", batch), batch
        return sound(self, last)

    monkeypatch.setattr(torch_vit.trainer.Trainer, "to_device", to_device)


def average_one_update_late(monkeypatch):
    sound = torch_vit.trainer.ema_decay
    monkeypatch.setattr(torch_vit.trainer, "ema_decay", lambda d, n: sound(d, n - 1))


def climb_too_far(monkeypatch):
    """A hundredth more of the ascent of sharpness-aware minimization than was asked for."""
    sound = torch_vit.trainer.ascent_step
    monkeypatch.setattr(
        torch_vit.trainer, "ascent_step", lambda params, rho: sound(params, 1.01 * rho)
    )


def partner_of_another_pair(monkeypatch):
    monkeypatch.setattr(torch_vit.objective, "swap_pairs", lambda x: x.roll(2, 0))


FAULTS = {  # fault: settings, the first step it shows in, what names its place
    late_rate: (dict(), 2, "params."),
    decay_on_norms: (dict(weight_decay=0.3), 1, "params.*norm*.weight"),
    clip_with_eps: (dict(clip=0.1), 1, "exp_avg_sq."),
    other_dropout_site: (dict(dropout=0.1), 1, ""),
    mean_of_means: (dict(grad_accum=4), 1, ""),
    stale_batch: (dict(), 2, ""),
    average_one_update_late: (dict(ema=0.9), 1, "ema."),
    climb_too_far: (dict(sam_rho=0.1), 1, ""),
    partner_of_another_pair: (dict(mixup=0.2), 1, ""),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_faults_are_caught_in_float32(fault, monkeypatch):
    settings, step, place = FAULTS[fault]
    fault(monkeypatch)
    leader = "jax" if fault is stale_batch else "torch"  # nudged steps draw no batch of their own
    verdict = verdict_of(steps_in_lockstep(leader, steps=3, **settings))
    assert verdict.exit_status == 1
    first = verdict.differences[0]
    assert f"different (first at step {step}, {first.name})" in verdict.line()
    assert first.step == step and fnmatchcase(first.name, place + "*"), str(first)
    assert first.name not in ("loss", "grad_norm", "whole")
    assert first.gap > 100 * first.bound


def uncounted(monkeypatch):
    """An update that Adam's bias correction does not count."""
    sound = jax_vit.trainer.Trainer.update

    def update(self, *args):
        sound(self, *args)
        self.adam_count -= 1

    monkeypatch.setattr(jax_vit.trainer.Trainer, "update", update)


def no_clipping(monkeypatch):
    monkeypatch.setattr(
        jax_vit.trainer, "clip_by_global_norm", lambda grads, _: (grads, global_norm(grads))
    )


@pytest.mark.parametrize(
    "fault, place", [(uncounted, "scalars.adam_count"), (no_clipping, "exp_avg_sq.*")]
)
@pytest.mark.parametrize("leader", ["torch", "jax"])
def test_faults_of_the_jax_optimizer_are_caught(fault, place, leader, monkeypatch):
    fault(monkeypatch)
    verdict = verdict_of(steps_in_lockstep(leader, steps=1, clip=0.1))
    assert verdict.exit_status == 1 and fnmatchcase(verdict.differences[0].name, place)


@pytest.mark.parametrize("variant", ["token", "gap, sincos, tanh"])
def test_the_optimizer_on_the_host_is_the_trainers(variant, x64):
    """The same but for rounding, and the caller's arrays stay as they are."""
    cfg = helpers.VARIANTS[variant]
    recipe = helpers.train_config("fp64", clip=0.1)
    state, grads = random_state(cfg, "fp64"), helpers.random_arrays(cfg, seed=1)
    grads = {n: grads[n].astype(np.float64) for n in state.slots["exp_avg"]}
    before = record.digest(state.params), record.digest(grads)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    found = []
    for kind in jax_vit.trainer.Trainer, HostTrainer:
        trainer = kind(state, recipe, mesh)
        for rate in (1e-2, 1e-3):
            trainer.update(grads, StepScalars(rate))
        found.append(trainer.state())
    usual, on_host = found
    assert usual.step == on_host.step == 2 and usual.scalars == on_host.scalars
    a, b = (optimizer_quantities(s) for s in found)
    assert list(a) == list(b) and max(lockstep.gaps(b, a).values()) < 1e-14
    assert (record.digest(state.params), record.digest(grads)) == before
    assert record.digest(on_host.params) != before[0]


def test_faults_are_caught_in_bf16(monkeypatch):
    """Also where the faulty twin is too far off for its distance alone to be judged."""
    other_dropout_site(monkeypatch)
    verdict = verdict_of(steps_in_lockstep(steps=2, precision="bf16", dropout=0.1))
    assert verdict.exit_status == 1 and verdict.differences[0].step == 1


# The rules, on numbers.


def measured(step, gap, noise=None, **distances):
    gaps = {"loss": gap, "whole": gap, "w": gap}
    noise = None if noise is None else dict.fromkeys(gaps, noise)
    return Measured(step, gaps, noise, {n: distances.get(n, (gap, gap)) for n in gaps})


def test_noise_is_that_of_the_nearest_measured_steps():
    rows = [measured(i, 1e-6, n) for i, n in enumerate([1e-7, None, 3e-6, None, None, 2e-7], 1)]
    near = lockstep.nearest_noise(rows, ["w"])[:, 0]
    assert near.tolist() == [3e-6, 3e-6, 3e-6, 3e-6, 3e-6, 3e-6]
    rows[2] = measured(3, 1e-6, 1e-8)
    assert lockstep.nearest_noise(rows, ["w"])[:, 0].tolist() == [
        1e-7,
        1e-7,
        2e-7,
        2e-7,
        2e-7,
        2e-7,
    ]


def test_noise_rule_bounds_and_decides():
    eps = EPS["fp32"]
    for noise, gap, line in [
        (1e-6, 1.1e-5, "decided 1 of 1 steps, same"),
        (1e-6, 1.3e-5, "decided 1 of 1 steps, different (first at step 1, w)"),
        (0.0, 1.8e-6, "decided 1 of 1 steps, same"),
        (0.0, 2.0e-6, "decided 1 of 1 steps, different (first at step 1, w)"),
        (2e-3, 1.0, "decided 0 of 1 steps, undecided"),
    ]:
        verdict = lockstep.judge_by_noise([measured(1, gap, noise)], eps)
        assert verdict.line().startswith(f"lockstep: {line}"), (noise, gap)
    assert verdict.exit_status == 2 and not verdict.matched


@pytest.mark.parametrize(
    "steps, whole, w, status",
    [
        (1, (0.01, 0.024), (0.01, 0.039), 0),
        (1, (0.01, 0.026), (0.01, 0.01), 1),
        (1, (0.026, 0.01), (0.01, 0.01), 1),
        (1, (0.01, 0.01), (0.01, 0.041), 1),
        (16, (0.01, 0.012), (0.01, 0.019), 0),
        (16, (0.01, 0.013), (0.01, 0.01), 1),
        (16, (0.01, 0.01), (0.021, 0.01), 1),
        (15, (0.01, 0.0125), (0.01, 0.019), 0),
        (15, (0.01, 0.013), (0.01, 0.01), 1),
        (15, (0.01, 0.01), (0.01, 0.021), 1),
        (4, (0.01, 0.0155), (0.01, 0.023), 0),
        (4, (0.01, 0.022), (0.01, 0.01), 1),
        (2, (0.01, 0.022), (0.01, 0.01), 1),
        (1, (0.31, 0.31), (0.01, 0.01), 2),
        (1, (0.01, 0.9), (0.01, 0.01), 1),
    ],
)
def test_reference_rule_compares_distances(steps, whole, w, status):
    rows = [measured(i, 0.001, whole=whole, w=w) for i in range(1, steps + 1)]
    verdict = lockstep.judge_by_reference(rows, EPS["fp32"])
    assert verdict.exit_status == status
    assert status != 1 or verdict.differences[0].step <= steps


def test_one_bad_rounding_is_held_against_the_nearest_steps():
    """Five times the other's distance there, twice the largest of those nearby."""
    usual, twice = (0.01, 0.011), (0.011, 0.022)
    rows = [measured(i, 0.001, whole=usual, w=usual) for i in range(1, 8)]
    rows[3] = measured(4, 0.001, whole=usual, w=(0.05, 0.01))
    assert lockstep.judge_by_reference(rows, EPS["fp32"]).line().endswith("(first at step 4, w)")
    rows[4] = measured(5, 0.001, whole=twice, w=twice)
    assert lockstep.judge_by_reference(rows, EPS["fp32"]).matched


def test_arrays_without_a_true_value():
    """In bf16 their size is bounded by the rounding of the array they are measured against."""
    for size, status in (0.019, 0), (0.021, 1):
        row = measured(1, 0.001, whole=(0.01, 0.01), w=(0.001, size), loss=(0, 0))
        row = dataclasses.replace(
            row, gaps=row.gaps | {"v": 0.01}, distances=row.distances | {"v": (0.01, 0.01)}
        )
        assert lockstep.judge_by_reference([row], EPS["fp32"], {"w": "v"}).exit_status == status


def test_nothing_to_compare_is_no_match():
    zero = {"w": np.zeros(3, np.float32), "v": np.ones(3, np.float32)}
    row = lockstep.measure(1, zero, zero, [zero])
    verdict = lockstep.judge_by_noise([row], EPS["fp32"])
    assert verdict.exit_status == 2 and "w zero at every step" in verdict.line()


def test_gaps_of_hostile_arrays():
    ones, other = {"w": np.ones(3)}, {"w": np.array([1, np.nan, 1])}
    assert lockstep.gaps(other, ones)["w"] > 1e300 and math.isfinite(
        lockstep.gaps(other, ones)["w"]
    )
    with pytest.raises(UserError, match="other arrays: v"):
        lockstep.gaps({"v": np.ones(3), "w": np.ones(3)}, ones)
    with pytest.raises(UserError, match="shape"):
        lockstep.gaps({"w": np.ones(4)}, ones)
    key = lockstep.gaps(
        {"b": np.ones(2), "b[keys]": np.full(2, 2e-9)},
        {"b": np.ones(2), "b[keys]": np.full(2, 1e-9)},
        {"b[keys]": "b"},
    )
    assert key["b[keys]"] == pytest.approx(1e-9)


def test_what_is_written_is_no_better_than_what_was_measured():
    values = np.random.default_rng(0).uniform(1, 10, 300) * 1e-7
    for x in (0.0, 1e308, *values.tolist(), 1.0004e-6, 9.9996e-6):
        row = Measured(1, {"whole": x}, {"whole": x}, {"whole": (x, x)})
        line = record.from_json(record.to_json(record.Line(1, 0.1, 1.0, 1.0, row, row)))
        for gap in line.gradients.gaps["whole"], line.optimizer.gaps["whole"]:
            assert x <= gap <= x * 1.001
        assert x * 0.999 <= line.gradients.noise["whole"] <= x
        assert line.gradients.distances["whole"] == pytest.approx((x, x), rel=5.01e-4)


# The commands, in this process.


@pytest.fixture
def here(monkeypatch):
    """Plans for this process, of which JAX has its devices already."""

    def resolve(requested):
        settled = dict(
            device="cpu",
            world_size=requested.world_size or 1,
            precision=requested.precision or "fp32",
            compile="off",
        )
        return make_plan(requested.replace(**settled), "lockstep")

    monkeypatch.setattr(trainer_run, "resolve", resolve)


RUN = (
    "--preset=digits", "--depth=2", "--steps=6", "--batch_size=32", "--warmup_steps=3",
    "--checkpoint_every=2",
    "--keep=all", "--eval_every=0", "--workers=0", "--model=vit_nano2",
)  # fmt: skip


def test_a_resumed_lockstep_is_that_of_one_go(here, tmp_path, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert trainer_run.run([*RUN, "--lockstep", f"--run_dir={whole}"]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("lockstep: decided 6 of 6 steps, same")
    assert trainer_run.run([*RUN, "--lockstep=1", "--stop_at=4", f"--run_dir={halves}"]) == 0
    with open(halves / record.LINES, "a") as file:
        file.write('{"step": 5, "torn')  # of a process that was killed
    assert trainer_run.run(["--lockstep", "--resume", f"--run_dir={halves}"]) == 0
    assert (whole / record.LINES).read_text() == (halves / record.LINES).read_text()
    found = json.loads((halves / record.RESULT).read_text())
    assert found["decided"] == 6 and found["exit_status"] == 0 and found["versions"]["jax"]
    assert found["weights"] == json.loads((whole / record.RESULT).read_text())["weights"]
    assert found["weights"]["step"] == 0
    assert (halves / record.FIGURE).read_bytes().startswith(b"\x89PNG")
    # One that has ended stays as it was measured.
    before = (halves / record.RESULT).read_bytes()
    capsys.readouterr()
    assert trainer_run.run(["--lockstep", "--resume", f"--run_dir={halves}"]) == 0
    assert (halves / record.RESULT).read_bytes() == before
    assert capsys.readouterr().out.rstrip().endswith("lockstep: decided 6 of 6 steps, same")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_lockstep_says_how_it_goes_on(number, here, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "a run"
    sound = Pair.step

    def step(self, batch, *args, **settings):
        if batch.step == 2:
            signal.raise_signal(number)
            wait_for(lambda: "saving and leaving" in capsys.readouterr().err)
        return sound(self, batch, *args, **settings)

    flags = [*RUN, "--lockstep=2", "--framework=jax", f"--run_dir={run_dir}"]
    with monkeypatch.context() as interrupted:
        interrupted.setattr(Pair, "step", step)
        assert parity(flags) == EXIT_INTERRUPTED
    said = capsys.readouterr().out.splitlines()[-1]
    start, command = said.split("`")[:2]
    assert start == "lockstep: interrupted, no verdict yet; " and "line" not in record.read_json(
        run_dir / record.RESULT
    )
    words = shlex.split(command)
    assert words[:2] == ["twinvit", "parity"] and parity(words[2:]) == 0
    assert [line.step for line in record.read_lines(run_dir)] == [1, 3, 5]


@pytest.mark.slow
def test_a_lockstep_of_shards_is_that_of_whole_arrays(here, tmp_path, x64):
    """JAX leads on two devices; it saves and goes on, in one process that has the whole state."""
    flags = [*RUN, "--lockstep", "--framework=jax", "--precision=fp64", "--world_size=2"]
    found = {}
    for shard in ("none", "params"):
        run_dir = tmp_path / shard
        own = [*flags, f"--shard={shard}", f"--run_dir={run_dir}"]
        assert trainer_run.run([*own, "--stop_at=4"]) == 0
        go_on = ["--lockstep", "--framework=jax", "--resume", f"--run_dir={run_dir}"]
        assert trainer_run.run([*go_on, "--world_size=2", f"--shard={shard}"]) == 0
        lines = record.read_lines(run_dir)
        assert [line.step for line in lines] == [1, 2, 3, 4, 5, 6]
        state, _ = checkpoint.load(checkpoint.newest(run_dir, read_record(run_dir)))
        found[shard] = [line.loss for line in lines], state
    (losses, state), (of_shards, sharded) = found.values()
    np.testing.assert_allclose(of_shards, losses, rtol=1e-12)
    whole, shards = optimizer_quantities(state), optimizer_quantities(sharded)
    assert max(lockstep.gaps(shards, whole).values()) < 1e-9


def test_tf32_on_a_cpu_is_judged_as_fp32(here, tmp_path, capsys):
    run_dir = tmp_path / "run"
    flags = [*RUN, "--lockstep", "--precision=tf32", "--device=cpu", "--steps=2"]
    assert trainer_run.run([*flags, f"--run_dir={run_dir}"]) == 0
    said = capsys.readouterr().out
    assert "tf32 on a CPU is fp32, and is compared by noise" in said
    found, line = record.read_json(run_dir / record.RESULT), record.read_lines(run_dir)[0]
    assert found["rule"] == "noise" and line.gradients.distances is None
    assert 0 < line.gradients.gaps["whole"] < 1e-5 and line.gradients.noise
    assert judged_by_reference("tf32", "gpu") and not judged_by_reference("fp32", "gpu")


def test_every_step_and_leader(here, tmp_path):
    run_dir = tmp_path / "run"
    flags = [*RUN, "--lockstep=3", "--framework", "jax", f"--run_dir={run_dir}"]
    assert trainer_run.run(flags) == 0
    assert [line.step for line in record.read_lines(run_dir)] == [1, 4]
    assert json.loads((run_dir / record.RESULT).read_text())["leader"] == "jax"
    with pytest.raises(UserError, match="number of steps"):
        trainer_run.run(["--lockstep=0"])
    with pytest.raises(UserError, match="--framework is one of torch, jax, not 'flax'"):
        trainer_run.run(["--lockstep", "--framework=flax"])


def test_an_interrupted_lockstep_goes_on_as_it_began(here, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    path, go_on = run_dir / record.RESULT, ["--resume", f"--run_dir={run_dir}"]
    with monkeypatch.context() as killed:
        killed.setattr(trainer_run, "conclude", lambda *_: 0)
        trainer_run.run([*RUN, "--lockstep=2", "--stop_at=2", f"--run_dir={run_dir}"])
    begun = record.read_json(path)
    assert begun["weights"]["step"] == 0 and "line" not in begun
    with pytest.raises(UserError, match="not ended.*--lockstep=2 --framework=torch --resume"):
        proof_pages.report((run_dir,))
    with pytest.raises(UserError, match="leader was torch, is jax; every was 2, is 1. Go on"):
        trainer_run.run(["--lockstep", "--framework=jax", *go_on])
    record.write_json(path, begun | {"versions": begun["versions"] | {"numpy": "1.0"}})
    with pytest.raises(UserError, match=f"numpy was 1.0, is {np.__version__}. Go on"):
        trainer_run.run(["--lockstep=2", *go_on])
    assert "line" not in record.read_json(path)
    record.write_json(path, begun)
    assert trainer_run.run(["--lockstep=2", *go_on]) == 0
    found = record.read_json(path)
    assert found["steps"] == 3 and found["weights"] == begun["weights"]


@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_audit_of_a_run_by_either_twin(twin, here, tmp_path, capsys):
    run_dir = tmp_path / twin
    train_here(twin, run_dir, *RUN)
    capsys.readouterr()
    assert audit.audit(run_dir, steps=2) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("step_")] == [
        f"step_{n}: lockstep: decided 2 of 2 steps, same" for n in (2, 4, 6)
    ]
    found = json.loads((run_dir / record.AUDIT).read_text())
    assert {c["written_by"]["framework"] for c in found["checkpoints"]} == {twin}
    model = run_dir / "checkpoints" / "step_4" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    assert audit.audit(run_dir) == 2
    assert "step_4: lockstep: undecided" in capsys.readouterr().out


def test_audit_of_an_old_run_says_what_is_new(here, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(OLD / "run_jax_fp32", run_dir)
    assert audit.audit(run_dir) == 0
    assert "step_6: lockstep: decided 1 of 1 steps, same" in capsys.readouterr().out
    state = run_dir / "checkpoints" / "step_6" / "state.json"
    document = read_checksummed(state)
    document["versions"] = document["versions"] | {"version": "0.4.0", "device": "TPU v4"}
    write_checksummed(state, {k: v for k, v in document.items() if k != "checksum"})
    assert audit.audit(run_dir) == 0
    said = capsys.readouterr().out
    assert "note: step_6 was written with version 0.4.0" in said and "TPU v4" in said


# The library form, on a model that is not a ViT: the example of docs/lockstep.md, and JAX's.

TEXT = (Path(__file__).parents[1] / "docs" / "lockstep.md").read_text()
EXAMPLE: dict = {}
exec(TEXT.split("```python\n")[1].split("```")[0].rsplit("\nstates, batches", 1)[0], EXAMPLE)
mlp_numpy, mlp_torch, training = (EXAMPLE[n] for n in ("by_numpy", "by_torch", "training"))


def mlp_jax(state, batch):
    """The same by jax.grad."""
    import jax
    import jax.numpy as jnp

    def loss(w):
        x, y = batch
        return ((jax.nn.relu(x @ w["w1"] + w["b1"]) @ w["w2"] - y) ** 2).mean()

    with jax.default_matmul_precision("highest"):
        value, grads = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, state))
    return {"loss": np.asarray(value)} | {n: np.asarray(g) for n, g in grads.items()}


@pytest.mark.parametrize("step", [mlp_torch, mlp_jax])
def test_library_on_another_model(step):
    states, data = zip(*training())
    verdict = lockstep.run(mlp_numpy, step, states, data, lockstep.nudges(mlp_numpy))
    assert verdict.line() == "lockstep: decided 12 of 12 steps, same"

    def wrong(state, batch):
        result = step(state, batch)
        return result | {"b1": result["b1"] * np.float32(1 + 1e-4)}

    verdict = lockstep.run(mlp_numpy, wrong, states, data, lockstep.nudges(mlp_numpy))
    assert verdict.line() == "lockstep: decided 12 of 12 steps, different (first at step 1, b1)"


def test_library_yardsticks():
    states, data = zip(*training(3))
    with pytest.raises(UserError, match="one yardstick"):
        lockstep.run(mlp_numpy, mlp_torch, states, data)

    def double(state, batch):
        wide = {n: a.astype(np.float64) for n, a in state.items()}
        return mlp_numpy(wide, [a.astype(np.float64) for a in batch])

    assert lockstep.run(mlp_numpy, mlp_torch, states, data, limit=1e-5).matched
    assert not lockstep.run(mlp_numpy, mlp_torch, states, data, limit=0.0).matched
    assert lockstep.run(double, double, states, data, reference=double).matched


@pytest.mark.parametrize("yardstick", ["noise", "reference", "limit"])
def test_library_with_nothing_to_compare(yardstick):
    def step(state, batch):
        return {n: a * batch for n, a in state.items()}

    def line(state, batches):
        how = dict(noise=lockstep.nudges(step), reference=step, limit=1e-9)[yardstick]
        states = [state] * len(batches)
        return lockstep.run(step, step, states, batches, **{yardstick: how}).line()

    weights = {"w": np.ones(3, np.float32), "v": np.ones(3, np.float32)}
    none = "lockstep: decided 0 of 0 steps, undecided (there was no step)"
    assert line(weights, []) == none
    assert line(weights, [1, 1]) == "lockstep: decided 2 of 2 steps, same"
    zero = weights | {"v": np.zeros(3, np.float32)}
    assert line(zero, [1, 1]).endswith("undecided (v zero at every step)")
    half = weights | {"w": np.ones(3, ml_dtypes.bfloat16)}
    with pytest.raises(UserError, match="bfloat16"):
        line(half, [1])


def test_nudges_of_other_dtypes():
    for dtype in (ml_dtypes.bfloat16, np.float16, np.int64):
        with pytest.raises(UserError, match=f"w is {np.dtype(dtype)}.*nudges"):
            lockstep.nudge({"w": np.ones(3, dtype)}, 1)


# The pages, from what is on disk.


def test_report_pages(here, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert trainer_run.run([*RUN, "--lockstep", "--steps=2", f"--run_dir={run_dir}"]) == 0
    assert audit.audit(run_dir) == 0
    assert proof_pages.report((run_dir,)) == 0
    page, audited = ((run_dir / n).read_text() for n in ("lockstep.html", "audit.html"))
    assert "decided 2 of 2 steps, same" in page and "warm-up" in page
    assert page.count("<svg") >= 8 and "16 eps" in page and "fingerprint" not in page
    assert "audit of 1 checkpoints: decided 1 of 1 steps" in audited and "written by" in audited
    for text in (page, audited):
        assert torch.__version__ in text and "http" not in text.replace("http://www.w3.org", "")
    lines = record.read_lines(run_dir)
    (run_dir / record.LINES).unlink()
    out = record.Writer(run_dir)
    for line in lines:
        own = dataclasses.replace(line.own, gaps={"torch's own <b>": 1e3})
        out.write(dataclasses.replace(line, own=own))
    assert proof_pages.report((run_dir,)) == 0
    page = (run_dir / "lockstep.html").read_text()
    assert "DIFFERENT" in page and "own &lt;b&gt;: 1e+03 at step 1, bound 64" in page
    with pytest.raises(UserError, match="holds no proof"):
        proof_pages.report((tmp_path,))


@pytest.mark.parametrize(
    "name, content",
    [
        (record.RESULT, b"[]"),
        (record.RESULT, b"{}"),
        (record.RESULT, b"\xff\xfe"),
        (record.RESULT, b'{"line": 1, "exit_status": 0}'),
        (record.LINES, b"\xff\n"),
        (record.LINES, b"[1]\n"),
        (record.LINES, b'{"step": 1, "gaps": {}, "optimizer": {}, "distances": []}\n'),
        (record.AUDIT, b"3"),
        (record.AUDIT, b'{"checkpoints": []}'),
        (record.AUDIT, b'{"checkpoints": [1]}'),
    ],
)
def test_broken_files_of_a_proof_are_refused(name, content, tmp_path):
    if name == record.LINES:
        (tmp_path / record.RESULT).write_text('{"line": "", "exit_status": 0}')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        proof_pages.report((tmp_path,))


def test_page_of_two_curves(tmp_path):
    """The page of `twinvit parity`, on runs made by hand."""
    recipe = helpers.train_config("fp32", steps=60)
    data = {"name": "digits", "fingerprint": "0123"}
    for name, gap in {"jax": 1e-7, "torch": 0, **{f"torch-nudge-{i}": 1e-7 for i in "123"}}.items():
        run = tmp_path / name
        run.mkdir()
        own = dataclasses.replace(recipe, nudge=int(name[-1]) if name[-1].isdigit() else None)
        write_record(run, Record(own, RuntimeConfig(), "digits", data))
        rows = [{"step": t, "loss": 3 - t / 60 + gap, "grad_norm": 1 + gap} for t in range(1, 61)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert proof_pages.report((tmp_path,)) == 0
    page = (tmp_path / "parity.html").read_text()
    assert "SAME" in page and "same for steps 1 to 60 of 60" in page and page.count("<svg") >= 8


@pytest.mark.parametrize(
    "changes, unseen",
    [
        ({}, True),
        (dict(rope="axial", rope_base=100.0), False),  # the bias of keys is of the function
        (dict(qk_norm=True), False),
        (dict(no_bias=("k",)), False),  # and must stay zero
    ],
    ids=str,
)
def test_key_biases_are_apart_only_where_they_are_not_of_the_function(changes, unseen):
    cfg = dataclasses.replace(helpers.TINY, **changes)
    grads = {"blocks.0.attn.qkv.bias": np.ones(3 * cfg.width)}
    found = quantities(cfg, StepMetrics(1.0, 1.0, False, False), grads)
    assert ("blocks.0.attn.qkv.bias[keys]" in found) == unseen == bool(relative_to(cfg))
    assert found["blocks.0.attn.qkv.bias"].size == (2 if unseen else 3) * cfg.width
