"""Claim: --keep_best keeps the checkpoint of the best evaluation, a resumed run knows it, and
it is used only on request."""

import json
import shutil

import pytest
from whole_runs import metrics, train_here

from shared_vit.errors import UserError
from shared_vit.run import loop
from shared_vit.run.best import Best, better, read_best
from shared_vit.run.checkpoint import STATE, newest
from shared_vit.weights import read

RUN = ("--preset=digits", "--depth=2", "--device=cpu", "--steps=6", "--batch_size=32",
       "--warmup_steps=2",
       "--eval_every=1", "--checkpoint_every=6", "--keep=1", "--workers=0")  # fmt: skip
RISES_AND_FALLS = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.1, 6: 0.3}


@pytest.fixture
def scores(monkeypatch):
    """Evaluations give these, `{step: top1}`, and a loss that falls with the score."""
    given = RISES_AND_FALLS | {0: 0.0}  # 0: of --mode=eval

    def evaluate(plan, trainer, interrupt):
        top1 = given[trainer.step]
        return {"val_loss": 2 - top1, "val_top1": top1, "val_top5": 0.9, "val_count": 360}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return given


def kept(run_dir) -> list[str]:
    return sorted(p.name for p in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("metric, value", [("val_top1", 0.5), ("val_loss", 1.5)])
def test_the_best_is_kept_beside_the_newest(scores, tmp_path, capsys, metric, value):
    assert train_here("torch", tmp_path, *RUN, f"--keep_best={metric}") == 0
    assert kept(tmp_path) == ["step_2", "step_6"]  # of the equal ones, 2 and 4, the earlier
    document = json.loads((tmp_path / "best.json").read_text())
    assert {n: document[n] for n in ("metric", "value", "step", "path")} == {
        "metric": metric, "value": value, "step": 2, "path": "checkpoints/step_2",
    }  # fmt: skip
    assert read_best(tmp_path) == Best(metric, value, 2)
    assert (
        f"{metric} {value:.4f} at step 2, {tmp_path}/checkpoints/step_2" in capsys.readouterr().out
    )


def test_without_the_flag_nothing_is_kept(scores, tmp_path):
    assert train_here("torch", tmp_path, *RUN) == 0
    assert kept(tmp_path) == ["step_6"] and not (tmp_path / "best.json").exists()
    assert "best" not in json.loads((tmp_path / "checkpoints/step_6" / STATE).read_text())


def test_a_better_one_takes_its_place(scores, tmp_path):
    scores[5] = 0.6
    assert train_here("torch", tmp_path, *RUN, "--keep_best=val_top1") == 0
    assert kept(tmp_path) == ["step_5", "step_6"] and read_best(tmp_path).step == 5


def test_a_resumed_run_knows_the_best(scores, tmp_path):
    """0.4 at step 3 would be the best of what comes after the start."""
    del scores[4]
    flags = ("--keep_best=val_top1", "--keep=2", "--checkpoint_every=1")
    with pytest.raises(KeyError):  # stopped dead in the evaluation at step 4
        train_here("torch", tmp_path, *RUN, *flags)
    assert kept(tmp_path) == ["step_2", "step_3"]
    (tmp_path / "best.json").unlink()  # as if it had ended before this was written
    scores |= {4: 0.3, 5: 0.45}
    assert train_here("torch", tmp_path, "--resume") == 0
    assert kept(tmp_path) == ["step_2", "step_5", "step_6"]
    assert read_best(tmp_path) == Best("val_top1", 0.5, 2)
    scores |= {7: 0.7, 8: 0.65}
    assert train_here("torch", tmp_path, "--resume", "--steps=8") == 0
    assert kept(tmp_path) == ["step_7", "step_8"] and read_best(tmp_path).step == 7


def test_what_is_resumed_from_decides_what_is_known(scores, tmp_path, capsys):
    """The best checkpoint, the newest as well, is damaged: the run goes on from before it."""
    scores[3] = 0.6
    flags = ("--keep_best=val_top1", "--keep=all", "--checkpoint_every=1", "--stop_at=3")
    assert train_here("torch", tmp_path, *RUN, *flags) == 0
    assert read_best(tmp_path).step == 3
    (tmp_path / "checkpoints/step_3" / STATE).write_text("{}")
    scores[3] = 0.45
    assert train_here("torch", tmp_path, "--resume", "--stop_at=3") == 0
    assert read_best(tmp_path) == Best("val_top1", 0.5, 2)
    shutil.rmtree(tmp_path / "checkpoints/step_2")
    assert train_here("torch", tmp_path, "--resume", "--stop_at=4") == 0
    assert "the best checkpoint is missing" in capsys.readouterr().out
    assert read_best(tmp_path) == Best("val_top1", 0.5, 4)


def test_an_evaluation_done_on_resuming_can_be_the_best(scores, tmp_path, monkeypatch):
    flags = ("--keep_best=val_top1", "--eval_every=2", "--checkpoint_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: None)  # a stop was asked for
        assert train_here("torch", tmp_path, *RUN, *flags) == 75
    assert read_best(tmp_path) is None and newest(tmp_path).step == 2
    assert train_here("torch", tmp_path, "--resume") == 0
    assert [r["step"] for r in metrics(tmp_path) if "val_top1" in r] == [2, 4, 6]
    assert kept(tmp_path) == ["step_2", "step_6"] and read_best(tmp_path).step == 2


def test_switched_off_it_stays_and_another_metric_begins_anew(scores, tmp_path):
    flags = ("--keep_best=val_top1", "--checkpoint_every=1")
    assert train_here("torch", tmp_path, *RUN, *flags, "--stop_at=3") == 0
    scores[4] = 0.9
    assert train_here("torch", tmp_path, "--resume", "--keep_best=off", "--stop_at=4") == 0
    assert kept(tmp_path) == ["step_2", "step_4"] and read_best(tmp_path).step == 2
    assert train_here("torch", tmp_path, "--resume", "--keep_best=val_loss", "--stop_at=5") == 0
    assert kept(tmp_path) == ["step_5"] and read_best(tmp_path).metric == "val_loss"


def test_a_run_means_its_newest_checkpoint_and_says_that_it_has_a_best(scores, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train_here("torch", run_dir, *RUN, "--keep_best=val_top1") == 0
    capsys.readouterr()
    notice = (
        f"notice: this is the newest checkpoint of {run_dir}, step 6; its best is named by "
        f"{run_dir}/checkpoints/step_2 (val_top1 0.5000 at step 2)\n"
    )
    assert train_here("torch", run_dir, "--mode=eval") == 0
    said = capsys.readouterr()
    assert said.err == notice and "checkpoints/step_6/model.safetensors (step 6)" in said.out
    start = (*RUN, f"--init_from={run_dir}", "--stop_at=1")
    assert train_here("torch", tmp_path / "next", *start) == 0
    said = capsys.readouterr()
    assert notice in said.err and "step_6" in said.out and "step_2" not in said.out
    named = run_dir / read_best(run_dir).path
    assert train_here("torch", run_dir, "--mode=eval", f"--init_from={named}") == 0
    said = capsys.readouterr()
    assert not said.err and "(step 2)" in said.out
    assert read(run_dir)[1].keys() == read(named)[1].keys()
    text = (run_dir / "best.json").read_text()
    (run_dir / "best.json").write_text(text.replace("0.5", "0.6"))
    assert train_here("torch", run_dir, "--mode=eval") == 0  # the newest needs no best.json
    assert "best.json was altered" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ("--keep_best=val_top1_ema",),
            "has no average of its weights; use --keep_best=val_top1",
        ),
        (("--keep_best=val_top1", "--nudge=1"), "with --nudge is not evaluated"),
    ],
)
def test_a_metric_that_the_run_does_not_have_is_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        train_here("torch", tmp_path / "run", *RUN, *flags)
    assert not (tmp_path / "run").exists()


def test_the_best_by_averaged_weights(tmp_path):
    flags = ("--ema=0.5", "--keep_best=val_top1_ema", "--lr=0.01")
    assert train_here("torch", tmp_path, *RUN, *flags) == 0
    lines = [m for m in metrics(tmp_path) if "val_top1_ema" in m]
    values = [m["val_top1_ema"] for m in lines]
    first = values.index(max(values))
    assert read_best(tmp_path) == Best("val_top1_ema", values[first], lines[first]["step"])
    assert any(m["val_top1"] != m["val_top1_ema"] for m in lines)


def test_no_number_is_no_best():
    assert better(None, "val_loss", 1, {"val_loss": float("nan")}) is None
    best = Best("val_loss", 1.0, 1)
    assert better(best, "val_loss", 2, {"val_loss": float("nan")}) == best
    assert better(best, "val_loss", 2, {"val_loss": 1.0}) == best
    assert better(best, "val_loss", 2, {"val_loss": 0.9}).step == 2
