"""Claim: what a run reports elsewhere is what metrics.jsonl holds, however often it is resumed; the
terminal says what takes long, and no line breaks into the bar's."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from whole_runs import ROOT, metrics, train_here

from shared_vit.errors import UserError
from shared_vit.run import tensorboard
from shared_vit.run.directory import RunDir

TINY_RUN = ("--preset=digits", "--device=cpu", "--steps=6", "--batch_size=32", "--warmup_steps=2",
            "--eval_every=4", "--checkpoint_every=2", "--workers=0")  # fmt: skip


def points(run_dir) -> dict[str, dict[int, float]]:
    """`{tag: {step: value}}` as TensorBoard reads a folder: files by name, and a start drops the
    points from its own step on. A point that is there twice fails."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, float]] = {}
    for path in sorted((run_dir / tensorboard.FOLDER).glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {t: {s: v for s, v in p.items() if s < event.step}
                         for t, p in found.items()}  # fmt: skip
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {}), "doubled"
                found[value.tag][event.step] = value.simple_value
    return found


def lines(run_dir, name: str) -> dict[int, float]:
    """`{step: value}` of metrics.jsonl, in the float32 of event files."""
    return {r["step"]: float(np.float32(r[name])) for r in metrics(run_dir) if name in r}


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_tensorboard_has_the_numbers_of_the_run(twin, tmp_path):
    assert train_here(twin, tmp_path, *TINY_RUN, "--tensorboard=on") == 0
    found = points(tmp_path)
    for tag in ("loss", "grad_norm", "lr", "val_loss", "val_top1", "val_top5"):
        assert found[tag] == lines(tmp_path, tag) and found[tag]
    assert found["loss"].keys() == set(range(1, 7)) and found["val_loss"].keys() == {4, 6}
    assert found["images_per_second"].keys() and min(found["images_per_second"].values()) > 0


def test_a_resumed_run_has_no_point_twice(tmp_path):
    """It was killed after step 5 and goes on from the checkpoint of step 4: step 5 is there once,
    and so is what comes after."""
    flags = ("--tensorboard=on", "--checkpoint_every=4")
    assert train_here("torch", tmp_path, *TINY_RUN, *flags, "--stop_at=5") == 0
    shutil.rmtree(tmp_path / "checkpoints" / "step_5")
    assert points(tmp_path)["loss"].keys() == set(range(1, 6))
    assert train_here("torch", tmp_path, "--resume") == 0
    found = points(tmp_path)
    assert len(list((tmp_path / tensorboard.FOLDER).iterdir())) == 2
    assert found["loss"] == lines(tmp_path, "loss") and len(found["loss"]) == 6
    assert found["val_loss"] == lines(tmp_path, "val_loss")


def test_tensorboard_that_is_not_installed_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "twinvit\[tensorboard\]"'):
        train_here("torch", tmp_path / "run", *TINY_RUN, "--tensorboard=on")
    assert not (tmp_path / "run").exists()
    assert train_here("torch", tmp_path / "run", *TINY_RUN, "--stop_at=1") == 0  # off: not asked


def test_event_files_bring_no_framework_into_the_process(tmp_path):
    """tensorboardX imports torch by itself."""
    code = (
        "import sys; from pathlib import Path; from shared_vit.run.directory import RunDir\n"
        "from shared_vit.run.tensorboard import EventFile\n"
        f"EventFile(RunDir(Path({str(tmp_path)!r})), 0).close()\n"
        "print([m for m in ('torch', 'jax', 'tensorflow') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_event_file_that_cannot_be_written_is_one_message(tmp_path):
    events = tensorboard.EventFile(RunDir(tmp_path), 0)
    events._file._writer.close()
    events._file._writer = open("/dev/full", "wb")
    with pytest.raises(UserError, match="No space left on device; --resume"):
        events.add(1, {"loss": 1.0})
        events.flush()
    shutil.rmtree(tmp_path / tensorboard.FOLDER)
    (tmp_path / tensorboard.FOLDER).write_text("a file")
    with pytest.raises(UserError, match="cannot write .*tensorboard: File exists"):
        tensorboard.EventFile(RunDir(tmp_path), 0)


def test_log_every_thins_what_is_shown_and_not_the_metrics(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shared_vit.run.tracking._Bar.SECONDS_PER_LINE", 0.0)
    flags = ("--tensorboard=on", "--log_every=4", "--eval_every=3")
    assert train_here("torch", tmp_path, *TINY_RUN, *flags) == 0
    assert [r["step"] for r in metrics(tmp_path) if "loss" in r] == list(range(1, 7))
    found = points(tmp_path)
    assert found["loss"].keys() == {4, 6} and found["val_loss"].keys() == {3, 6}
    said = capsys.readouterr().out
    shown = [line.split("/")[0] for line in said.splitlines() if line.startswith("step ")]
    assert [s for s in shown if ":" not in s] == ["step 4", "step 6"]
    assert "\nstep 3: top-1" in said


def test_log_every_holds_for_wandb(tmp_path, monkeypatch):
    sent = []

    class Run:
        def log(self, values, step):
            sent.append((step, *values))

        def finish(self):
            pass

    monkeypatch.setattr("shared_vit.run.tracking._start_wandb", lambda plan, run: Run())
    assert train_here("torch", tmp_path, *TINY_RUN, "--log_every=4") == 0
    assert [(step, name) for step, _, name, *_ in sent] == [
        (4, "loss"), (4, "val_top1"), (6, "loss"), (6, "val_top1"),
    ]  # fmt: skip
    timing = (tmp_path / "timing.jsonl").read_text().splitlines()
    assert json.loads(timing[-1])["step"] == 6
