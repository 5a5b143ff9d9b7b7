"""Claim: SIGTERM and SIGINT save and leave with their own status, soon; and what goes wrong leaves
the last checkpoint."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from whole_runs import (
    ROOT,
    SMALL_RUN,
    environment,
    log_of,
    metrics,
    reference,
    start,
    train_here,
    wait_for,
)

from shared_vit.errors import UserError
from shared_vit.run import checkpoint, loop
from shared_vit.run.directory import RunDir
from shared_vit.run.interrupt import EXIT_INTERRUPTED, Interrupt
from shared_vit.run.record import read_record

BUSY = """
import hashlib, sys
from shared_vit.run.interrupt import EXIT_INTERRUPTED, Interrupt
with Interrupt() as interrupt:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", int(sys.argv[1]))  # one call into C, lock released
    print(interrupt.requested, flush=True)
    sys.exit(EXIT_INTERRUPTED if interrupt.requested else 0)
"""


def busy(rounds: int) -> subprocess.Popen:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(rounds)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_signal_is_answered_while_the_main_thread_is_in_a_long_call():
    process = busy(10**8)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith(
        "SIGTERM: finishing the step, evaluation batch or compilation in progress"
    )
    process.send_signal(signal.SIGTERM)  # a scheduler repeats it: patience
    process.send_signal(signal.SIGINT)  # told twice at once, by a terminal and by a parent
    time.sleep(0.5)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130 and time.monotonic() - begin < 1
    assert process.stdout.read() == process.stderr.read() == ""


def test_the_call_in_hand_is_finished_first():
    process = busy(3 * 10**6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("True\n", EXIT_INTERRUPTED)
    assert err.count("SIGINT") == 1


def test_handlers_are_given_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt(quiet=True) as interrupt:
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] != before
        os.kill(os.getpid(), signal.SIGINT)
        assert wait_for(lambda: interrupt.requested, timeout=5)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_during_jax_compilation(tmp_path):
    """The compilation is finished and at most three steps are made."""
    run_dir = tmp_path / "run"
    cold = {name: value for name, value in environment().items() if not name.startswith("JAX_")}
    process = start("jax", run_dir, *SMALL_RUN, env=cold)
    said = log_of(run_dir).read_text
    assert wait_for(lambda: "\ncompiling the training step ...\n" in said(), process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert wait_for(lambda: "SIGINT: finishing" in said(), process)
    assert "compiled in" not in said()
    assert process.wait(120) == EXIT_INTERRUPTED
    step = checkpoint.newest(run_dir).step
    assert (
        1 <= step <= 3 and f"interrupted at step {step}: {run_dir}; --resume continues it" in said()
    )
    assert metrics(run_dir) == metrics(reference("jax"))[:step]


class Requested:
    """An Interrupt that is requested from the n-th time on that the loop asks it."""

    def __init__(self, at: int):
        self.left = at

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("at", [1, 7, 13, 20])
def test_within_three_steps_or_evaluation_batches(tmp_path, monkeypatch, at):
    """The loop asks once a step and once an evaluation batch (12 of them): 10 steps, then the 13th
    is in an evaluation."""
    run_dir = tmp_path / "run"
    requested = Requested(at)
    monkeypatch.setattr(loop, "Interrupt", lambda quiet: requested)
    assert train_here("torch", run_dir, *SMALL_RUN) == EXIT_INTERRUPTED
    assert -2 <= requested.left <= 0
    lines, step = metrics(run_dir), checkpoint.newest(run_dir).step
    assert min(at, 10) <= step <= min(at + 2, 10) and lines == metrics(reference("torch"))[:step]
    monkeypatch.setattr(loop, "Interrupt", Interrupt)
    assert train_here("torch", run_dir, "--resume") == 0
    assert (run_dir / "metrics.jsonl").read_bytes() == (
        reference("torch") / "metrics.jsonl"
    ).read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    from torch_vit.trainer import Trainer

    finish, calls = Trainer._to_metrics, []

    def broken(self, values):
        calls.append(values)
        return finish(self, [float("nan"), *values[1:]] if len(calls) == 8 else values)

    monkeypatch.setattr(Trainer, "_to_metrics", broken)
    run_dir = tmp_path / "run"
    with pytest.raises(UserError) as error:
        train_here("torch", run_dir, *SMALL_RUN, "--checkpoint_every=3")
    text = str(error.value)
    good = metrics(reference("torch"))[6]
    assert text.startswith(
        f"step 8: loss nan, grad norm {calls[7][-1]}, not finite (last good: loss "
        f"{good['loss']:.6g}"
    )
    assert (
        f"at step 7). The newest checkpoint, from before, is {run_dir}/checkpoints/step_6" in text
    )
    assert "--lr" in text and f"--init_from={run_dir}/checkpoints/step_6" in text
    assert [line["step"] for line in metrics(run_dir)] == [*range(1, 8)]
    assert sorted(os.listdir(run_dir / "checkpoints")) == ["step_3", "step_6"]


def test_a_skipped_step_of_fp16_does_not_stop_the_run(tmp_path):
    """A scale that is too large for float16: the gradient overflows, the step is skipped and says
    so, the run goes on."""
    state_path = tmp_path / "run/checkpoints/step_2"
    flags = (*SMALL_RUN[:5], "--precision=fp16")
    train_here("torch", tmp_path / "run", *flags, "--stop_at=2")
    state, extra = checkpoint.load(state_path)
    state.scalars["scale"] = 2.0**40
    run_dir = RunDir(tmp_path / "run")
    run_dir.record = read_record(run_dir.path)
    writer = checkpoint.Writer(run_dir, 2)
    writer.save(state.step, lambda: state, extra)
    writer.close()
    assert train_here("torch", tmp_path / "run", "--resume", "--stop_at=5") == 0
    lines = metrics(tmp_path / "run")
    assert [line.get("skipped", False) for line in lines] == [False, False, True, True, True]
    state, _ = checkpoint.load(tmp_path / "run/checkpoints/step_5")
    assert (state.step, state.scalars["adam_count"], state.scalars["scale"]) == (5, 2, 2.0**37)


def test_a_data_file_that_vanishes_is_named_and_the_checkpoint_stays(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    for split, count in (("train", 8), ("val", 2)):
        for label in ("a", "b"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(
                    str(folder / f"{i}.png"),
                    np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8),
                )
    flags = (
        "--preset=digits",
        "--data=folder",
        f"--data_dir={tmp_path / 'data'}",
        "--batch_size=8",
        "--workers=0",
    )
    run_dir = tmp_path / "run"
    file, save = tmp_path / "data/train/a/3.png", checkpoint.Writer.save

    def save_and_lose(self, *args):
        save(self, *args)
        if file.exists():
            shutil.move(file, tmp_path)

    monkeypatch.setattr(checkpoint.Writer, "save", save_and_lose)
    with pytest.raises(UserError, match=r"train/a/3\.png"):
        train_here("torch", run_dir, *flags, "--steps=100", "--checkpoint_every=2")
    found = checkpoint.newest(run_dir)
    assert found.step >= 2 and not found.skipped
    with pytest.raises(UserError, match="the data's fingerprint is .* there, .* here"):
        train_here("torch", run_dir, "--resume")
    monkeypatch.undo()
    shutil.move(tmp_path / "3.png", file)
    assert train_here("torch", run_dir, "--resume", f"--stop_at={found.step + 2}") == 0
