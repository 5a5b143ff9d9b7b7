"""Claim: the noise rule passes what differs by rounding and nothing else."""

import concurrent.futures
import json
import time

import numpy as np
import pytest

from shared_vit.errors import UserError
from shared_vit.run.requested import flags
from twinvit.parity import command as parity_command
from twinvit.parity.command import OWN_FLAGS, parity
from twinvit.parity.curves import curves
from twinvit.parity.noise_rule import Curve, gap, noise_rule, read_curve

pytestmark = pytest.mark.quick

EPS = float(np.finfo(np.float64).eps)
STEPS = np.arange(1, 101)
RNG = np.random.default_rng(0)


def curve(noise=0.0, seed=0):
    r = np.random.default_rng(seed).standard_normal((2, 100)) * noise
    return Curve(STEPS, np.exp(-STEPS / 50) * (1 + r[0]), (1 + STEPS / 100) * (1 + r[1]))


def judge(a, b, noise=1e-12):
    return noise_rule(a, b, b, [curve(noise, seed) for seed in (1, 2, 3)], EPS)


def test_rounding_passes():
    verdict = judge(curve(1e-12, 9), curve())
    assert verdict.matched and verdict.decided_until == 100
    assert "same for steps 1 to 100 of 100" in verdict.describe()


@pytest.mark.parametrize("quantity", ["loss", "grad_norm"])
def test_a_wrong_step_fails(quantity):
    b = curve()
    values = {q: getattr(b, q).copy() for q in ("loss", "grad_norm")}
    values[quantity][60] *= 1 + 1e-9
    verdict = judge(Curve(STEPS, **values), b)
    assert not verdict.matched
    assert f"the {quantity} differs by" in verdict.reasons[0] and "at step 61" in verdict.reasons[0]


@pytest.mark.parametrize("steps", [2, 3, 5, 49])
def test_few_steps_are_undecided(steps):
    """However well they agree."""
    a, b, *noise = (
        Curve(c.steps[:steps], c.loss[:steps], c.grad_norm[:steps])
        for c in (curve(1e-12, 9), curve(), *(curve(1e-12, seed) for seed in (1, 2, 3)))
    )
    verdict = noise_rule(a, b, b, noise, EPS)
    assert (verdict.verdict, verdict.exit_status) == ("undecided", 2)
    assert f"{steps} steps are too few to decide, 50 are needed" in verdict.headline()


@pytest.mark.parametrize(
    "where, verdict", [("both", "undecided"), ("a", "different"), ("b", "different")]
)
@pytest.mark.parametrize("quantity", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_no_number(where, verdict, quantity, value):
    """Infinite from step 4 on: the same on both sides is not the same."""
    sides = {name: curve() for name in "ab"}
    for name in sides if where == "both" else where:
        getattr(sides[name], quantity)[3:] = value
    found = noise_rule(
        sides["a"], sides["b"], sides["b"], [curve(1e-12, s) for s in (1, 2, 3)], EPS
    )
    assert found.verdict == verdict and not found.matched


def test_undecided_before_50_fails():
    noisy = [
        Curve(STEPS, curve().loss + np.where(STEPS > 40, 0.1 * s, 0), curve().grad_norm)
        for s in (1, 2, 3)
    ]
    verdict = noise_rule(curve(), curve(), curve(), noisy, EPS)
    assert not verdict.matched and verdict.decided_until == 40
    later = [
        Curve(STEPS, curve().loss + np.where(STEPS > 60, 0.1 * s, 0), curve().grad_norm)
        for s in (1, 2, 3)
    ]
    verdict = noise_rule(curve(), curve(), curve(), later, EPS)
    assert verdict.matched and verdict.decided_until == 60
    said = "same for steps 1 to 60 of 100; 61 to 100 undecided (rounding alone is above 0.001)"
    assert verdict.headline() == said and said in verdict.describe()


def test_nothing_decided_after_noise_is_large():
    later = [
        Curve(STEPS, curve().loss + np.where(STEPS > 60, 0.1 * s, 0), curve().grad_norm)
        for s in (1, 2, 3)
    ]
    a = Curve(STEPS, curve().loss + np.where(STEPS > 80, 5.0, 0), curve().grad_norm)
    assert noise_rule(a, curve(), curve(), later, EPS).matched
    a = Curve(STEPS, curve().loss + np.where(STEPS > 50, 5.0, 0), curve().grad_norm)
    assert not noise_rule(a, curve(), curve(), later, EPS).matched


@pytest.mark.parametrize(
    "loss, grad_norm, reason",
    [
        (np.full(100, 2.3), 1 + STEPS, "the loss did not change"),
        (np.linspace(2, 1, 100), np.zeros(100), "a gradient is zero"),
        (np.where(STEPS > 70, np.nan, 2.0 / STEPS), 1.0 + STEPS, "the loss is not finite"),
    ],
)
def test_nothing_to_compare_fails(loss, grad_norm, reason):
    same = Curve(STEPS, loss, grad_norm.astype(float))
    verdict = noise_rule(same, same, same, [same] * 3, EPS)
    assert not verdict.matched and reason in verdict.describe()


def test_short_noise_runs_decide_as_far_as_they_go():
    short = [
        Curve(c.steps[:70], c.loss[:70], c.grad_norm[:70])
        for c in (curve(1e-12, seed) for seed in (1, 2, 3))
    ]
    verdict = noise_rule(curve(), curve(), curve(), short, EPS)
    assert verdict.matched and verdict.decided_until == 70
    said = "same for steps 1 to 70 of 100; 71 to 100 undecided (the nudged runs end at step 70)"
    assert verdict.headline() == said


def test_nan_is_no_match():
    loss = curve().loss
    loss[10] = np.nan
    assert gap(Curve(STEPS, loss, curve().grad_norm), curve(), "loss")[10:].min() == np.inf


def test_lengths_and_steps():
    short = Curve(STEPS[:80], curve().loss[:80], curve().grad_norm[:80])
    assert judge(curve(), short).reasons == ["one run has 100 updates, the other 80"]
    with pytest.raises(UserError, match="same steps"):
        gap(Curve(STEPS + 1, curve().loss, curve().grad_norm), curve(), "loss")
    with pytest.raises(UserError, match="three nudged"):
        noise_rule(curve(), curve(), curve(), [curve()], EPS)


def test_reading(tmp_path):
    rows = [
        {"step": 1, "epoch": 0.1, "loss": 2.0, "grad_norm": 1.5, "lr": 0.1},
        {"step": 1, "val_loss": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_curve(tmp_path).loss.tolist() == [2.0]
    with pytest.raises(UserError, match="not there"):
        read_curve(tmp_path / "absent")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss"')
    with pytest.raises(UserError, match="line 1"):
        read_curve(tmp_path)


def write_run(folder, name: str, noise: float, seed: int = 0):
    """A folder with the metrics of a curve."""
    c = curve(noise, seed)
    rows = [
        {"step": int(step), "loss": loss, "grad_norm": norm}
        for step, loss, norm in zip(c.steps, c.loss, c.grad_norm)
    ]
    (folder / name).mkdir()
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / name


def test_a_figure_has_no_empty_panel(tmp_path, monkeypatch, capsys):
    """One run: two panels. Several: the gaps below, of each to the first."""
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: seen.append(figure))
    runs = [write_run(tmp_path, name, 1e-12, i) for i, name in enumerate("abc")]
    equal = write_run(tmp_path, "d", 1e-12)
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    short = tmp_path / "e"
    short.mkdir()
    (short / "metrics.jsonl").write_text("".join(lines[:30]))
    chosen_of = (runs[:1], 2), (runs, 4), ([runs[0], equal], 4), ([runs[1], short], 4)
    for chosen, panels in chosen_of:
        assert curves(tuple(chosen), output=tmp_path / "x.png") == 0
        axes = seen.pop().axes
        assert len(axes) == panels
        assert axes[0].get_xlim() == axes[-2].get_xlim()  # a gap is below the steps it is of
        assert all(len(a.lines) == len(chosen) for a in axes[:2])
        assert all(len(a.lines) == len(chosen) - 1 for a in axes[2:])
        assert all(a.get_legend() is not None for a in axes)
    said = capsys.readouterr().out
    assert "a: 100 updates, loss 0.9802 to 0.1353" in said and "a and c:" in said
    assert "loss: largest gap 0.00e+00 over 100 steps" in said
    with pytest.raises(UserError, match="needs a run directory"):
        curves(())
    with pytest.raises(UserError, match="--noise compares two runs, not 3"):
        curves(tuple(runs), noise=tuple(runs))
    for twice, noise in ((runs[0], runs[0] / ".." / "a"), ()), (runs[:2], (equal, equal)):
        with pytest.raises(UserError, match="named twice: .*; name each run once"):
            curves(tuple(twice), noise=noise, output=tmp_path / "x.png")
    (tmp_path / "b.png").mkdir()
    for name, complaint in (
        ("none/x.png", "none is not a folder; make it"),
        ("x", "x must end in one of .* .png"),
        ("x.foo", r"x\.foo must end in one of .* .png"),
        ("b.png", "is a folder; name a file"),
    ):
        with pytest.raises(UserError, match=complaint):
            curves(tuple(runs), output=tmp_path / name)
    assert not seen


def test_a_change_of_framework_is_marked(tmp_path, monkeypatch, capsys):
    """The steps that a crash took back count as of the framework that trained them last."""
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: seen.append(figure))
    run = write_run(tmp_path, "a", 1e-12)
    starts = (0, "torch"), (30, "torch"), (60, "jax"), (50, "torch"), (70, "jax")
    lines = [json.dumps({"step": step, "framework": name}) for step, name in starts]
    lines.insert(1, json.dumps({"step": 10, "images_per_second": 1.0}))
    (run / "timing.jsonl").write_text("\n".join([*lines, '{"step": 9']))
    assert curves((run,), output=tmp_path / "x.png") == 0
    assert "a: 100 updates by torch, jax after step 70, loss 0.9802" in capsys.readouterr().out
    for axes in seen.pop().axes:
        curve, change = axes.lines
        assert len(curve.get_xdata()) == 100 and list(change.get_xdata()) == [70, 70]
        assert [text.get_text().strip() for text in axes.texts] == ["jax"]


def test_help_of_parity_is_about_parity(capsys):
    assert parity(["--preset=digits", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: twinvit parity")
    assert said.index("--lockstep") < said.index("--framework") < said.index("--preset ")
    assert all(f"  --{name} " in said for name in set(flags()) - {*OWN_FLAGS, "run_dir"})
    assert not any(f"  --{name} " in said for name in OWN_FLAGS)
    assert said.count("  --run_dir") == 1 and "Train or evaluate" not in said
    assert max(map(len, said.splitlines())) <= 100


def test_an_interrupted_parity_begins_no_further_run(monkeypatch):
    submitted, begun = [], []

    def as_completed(jobs):
        submitted.extend(jobs)
        raise KeyboardInterrupt

    def run_one(name, command, env):
        begun.append(name)
        for _ in range(200):
            if len(submitted) > 1 and submitted[1].cancelled():
                break
            time.sleep(0.01)

    monkeypatch.setattr(parity_command, "cores", lambda: 1)
    monkeypatch.setattr(parity_command, "_run_one", run_one)
    monkeypatch.setattr(concurrent.futures, "as_completed", as_completed)
    with pytest.raises(KeyboardInterrupt):
        parity_command._run_all([("jax", []), ("torch", [])])
    assert begun == ["jax"]


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_every_seed_and_step_nudges_otherwise(twin):
    """Three nudged runs need three noises: each (seed, step) moves the same weights differently."""
    import jax.numpy as jnp
    import torch

    import jax_vit.optim
    import torch_vit.optim

    seen = set()
    for seed, step in [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 160), (1000, 0)]:
        if twin == "jax":
            moved = np.asarray(jax_vit.optim.nudge([jnp.ones(64)], seed, step)[0])
        else:
            weights = torch.ones(64)
            torch_vit.optim.nudge([weights], seed, step)
            moved = weights.numpy()
        assert 0 < np.abs(moved - 1).max() <= np.finfo(np.float32).eps
        seen.add(moved.tobytes())
    assert len(seen) == 7
