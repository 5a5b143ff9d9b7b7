"""Claim: what a run ends with is judged like its curve, and noise is that of the twin it is said to
be of: `twinvit parity` and `twinvit curves` cannot be made to say "same" of what differs there."""

import json
import shutil

import pytest
import torch
from whole_runs import train_here

import torch_vit.trainer
from shared_vit.errors import UserError
from shared_vit.run.state import Counts, StepScalars
from twinvit.parity import curves as curves_command
from twinvit.parity import page as parity_page
from twinvit.parity.curves import curves, judge

STEPS = 52
RUN = (
    "--preset=digits", f"--steps={STEPS}", "--batch_size=8", "--warmup_steps=5", "--precision=fp64",
    "--workers=0", "--width=16", "--depth=1", "--num_heads=2", "--mlp_dim=32", "--patch_size=4",
    "--image_size=8", "--ema=0.9", "--eval_every=26", "--checkpoint_every=0", "--seed=1",
)  # fmt: skip
NUDGED = ("nudge-1", "nudge-2", "nudge-3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five runs as `twinvit parity` makes them, of one block in float64."""
    import jax

    top = tmp_path_factory.mktemp("parity")
    jax.config.update("jax_enable_x64", True)
    try:
        train_here("jax", top / "jax", *RUN)
    finally:
        jax.config.update("jax_enable_x64", False)
    train_here("torch", top / "torch", *RUN)
    for name in NUDGED:
        train_here("torch", top / f"torch-{name}", *RUN, f"--nudge={name[-1]}")
    return top


def judged(runs, other=None):
    return judge(runs / "jax", other or runs / "torch", [runs / f"torch-{n}" for n in NUDGED])


def test_sound_twins_are_the_same_to_their_last_weights(runs):
    verdict = judged(runs)
    assert verdict.headline() == f"same for steps 1 to {STEPS} of {STEPS}"
    assert verdict.exit_status == 0 and len(verdict.compared) == 2
    assert "weights and averages at step 52" in verdict.compared[1]
    assert verdict.compared[0] == "evaluations at 2 steps, the last 52"


def large_last_update(monkeypatch):
    """One half larger than it should be: no point of the curve comes after it."""
    sound = torch_vit.trainer.Trainer._update

    def update(self, scalars):
        return sound(self, StepScalars((1.5 if self.step == STEPS - 1 else 1) * scalars.lr))

    monkeypatch.setattr(torch_vit.trainer.Trainer, "_update", update)


def half_the_share(monkeypatch):
    sound = torch_vit.trainer.average
    monkeypatch.setattr(torch_vit.trainer, "average", lambda e, p, share: sound(e, p, share / 2))


def larger_evaluation(monkeypatch):
    sound = torch_vit.trainer.Trainer._to_counts

    def to_counts(self, values):
        counts = sound(self, values)
        return counts._replace(loss_sum=1.05 * counts.loss_sum)

    assert Counts._fields[2] == "loss_sum"
    monkeypatch.setattr(torch_vit.trainer.Trainer, "_to_counts", to_counts)


def ties_count(monkeypatch):
    """Five examples more are right than should be."""
    sound = torch_vit.trainer.Trainer._to_counts

    def to_counts(self, values):
        counts = sound(self, values)
        return counts._replace(correct1=counts.correct1 + 1)

    monkeypatch.setattr(torch_vit.trainer.Trainer, "_to_counts", to_counts)


PLANTS = {
    large_last_update: "the weights at step 52",
    half_the_share: "ema.",
    larger_evaluation: "val_loss",
    ties_count: "val_top1",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda f: f.__name__)
def test_a_wrong_end_is_different(plant, runs, tmp_path, monkeypatch, capsys):
    plant(monkeypatch)
    train_here("torch", tmp_path / "torch", *RUN)
    verdict = judged(runs, tmp_path / "torch")
    assert (verdict.verdict, verdict.exit_status) == ("different", 1)
    assert any(reason.startswith(PLANTS[plant]) for reason in verdict.wrong), verdict.wrong
    noise = tuple(runs / f"torch-{n}" for n in NUDGED)
    figure = tmp_path / "x.png"
    assert curves((runs / "jax", tmp_path / "torch"), noise=noise, output=figure) == 1


def test_weights_that_are_gone_are_said_to_be_missing(runs, tmp_path):
    shutil.copytree(runs / "torch", tmp_path / "torch")
    shutil.rmtree(tmp_path / "torch" / "checkpoints")
    said = judged(runs, tmp_path / "torch").headline()
    assert said.startswith(
        f"same for steps 1 to {STEPS} of {STEPS}; the last update and the weights"
    )
    assert "were not compared" in said


def test_noise_is_of_the_second_run_s_twin(runs, tmp_path):
    """Noise of another program may hide a formula that differs."""
    noise = [runs / f"torch-{n}" for n in NUDGED]
    for name in ("jax", "torch"):  # a folder that does not say who trained there
        shutil.copytree(runs / name, tmp_path / name)
        (tmp_path / name / "timing.jsonl").unlink()
    path = tmp_path / "jax" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"loss": row["loss"] * (1 + 1e-9)} if "loss" in row else {}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert judge(runs / "torch", tmp_path / "jax", noise).verdict == "different"
    with pytest.raises(UserError, match="is of the torch twin, and .*jax of the jax twin"):
        judge(runs / "torch", runs / "jax", noise)
    with pytest.raises(UserError, match="was not nudged"):
        judge(runs / "jax", runs / "torch", [*noise[:2], runs / "torch"])
    shutil.copytree(noise[0], tmp_path / "again")
    with pytest.raises(UserError, match="both made with --nudge=1"):
        judge(runs / "jax", runs / "torch", [*noise[:2], tmp_path / "again"])
    with pytest.raises(UserError, match="was nudged itself"):
        judge(runs / "jax", noise[0], noise)


def test_the_verdict_needs_no_figure(runs, tmp_path, monkeypatch, capsys):
    """matplotlib is an extra."""
    monkeypatch.setattr(curves_command.plots, "can_plot", lambda: False)
    noise = tuple(runs / f"torch-{n}" for n in NUDGED)
    output = tmp_path / "x.png"
    assert curves((runs / "jax", runs / "torch"), noise=noise, output=output) == 0
    assert "pip install 'twinvit[plots]'" in capsys.readouterr().out and not output.exists()


def test_a_page_and_a_figure_say_up_to_which_step(runs, tmp_path, monkeypatch, capsys):
    """Chaos from step 51 on, by curves edited so."""
    for path in runs.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    for name in NUDGED:
        path = tmp_path / f"torch-{name}" / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if row["step"] > 50 and "loss" in row:
                row["loss"] += 0.1 * int(name[-1])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = []
    monkeypatch.setattr(curves_command.plots, "plot_curves", lambda *args: titles.append(args[3]))
    pair = tmp_path / "jax", tmp_path / "torch"
    noise = tuple(tmp_path / f"torch-{n}" for n in NUDGED)
    assert curves(pair, noise=noise, output=tmp_path / "x.png") == 0
    said = "same for steps 1 to 50 of 52; 51 to 52 undecided (rounding alone is above 0.001)"
    assert said in capsys.readouterr().out
    assert titles[0].endswith("curves same up to step 50 of 52")
    page = parity_page.parity_page(tmp_path).read_text()
    assert "SAME UP TO STEP 50" in page and said in page
    assert "twinvit parity --lockstep --preset=digits --precision=fp64 decides them" in page
    assert torch.__version__ in page
