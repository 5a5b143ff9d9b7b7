"""Claim: what a run reports elsewhere is what metrics.jsonl holds, however often it is resumed; the
terminal says what takes long, and no line breaks into the bar's."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from whole_runs import ROOT, metrics, train_here, wait_for

from shared_vit.errors import UserError
from shared_vit.run import tensorboard
from shared_vit.run.directory import RunDir
from shared_vit.run.interrupt import Interrupt
from shared_vit.run.tracking import _Bar

TINY_RUN = ("--preset=digits", "--depth=2", "--device=cpu", "--steps=6", "--batch_size=32",
            "--warmup_steps=2",
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


def test_the_last_update_of_a_start_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shared_vit.run.tracking._Bar.SECONDS_PER_LINE", 0.0)
    assert train_here("torch", tmp_path, *TINY_RUN, "--log_every=4", "--stop_at=5") == 0
    assert "\nstep 5/6  loss" in capsys.readouterr().out


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


class Terminal:
    """A terminal of 100 columns: what stands on it, and what was ever written to it."""

    def __init__(self, monkeypatch):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.file, self.written = open(slave, "w"), b""
        threading.Thread(target=self._read, daemon=True).start()
        monkeypatch.setattr(sys, "stderr", self.file)
        monkeypatch.setattr(sys, "stdout", self.file)

    def _read(self):
        while True:
            self.written += os.read(self.master, 1 << 16)

    def echo(self, text: str):
        """What a terminal itself writes when keys are pressed."""
        os.write(self.file.fileno(), text.encode())

    def lines(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[K|\x1b\[A|.", self.written.decode(), re.DOTALL):
            if token == "\r":
                column = 0
            elif token == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif token == "\x1b[A":
                row -= 1
            elif token == "\x1b[K":
                rows[row] = rows[row][:column]
            else:
                if column == 100:  # wraps
                    row, column = row + 1, 0
                    rows += [""] * (row + 1 - len(rows))
                rows[row] = rows[row].ljust(column)[:column] + token + rows[row][column + 1 :]
                column += 1
        return [row.rstrip() for row in rows]


@pytest.mark.parametrize("room", [True, False])  # for ^C behind the bar, which else wraps
def test_ctrl_c_does_not_break_into_the_bar(monkeypatch, room):
    terminal = Terminal(monkeypatch)
    bar = _Bar(0, 10, 32)
    if room:
        bar.bar.clear()
        bar.bar.bar_format = "{n_fmt}/{total_fmt}"
    bar.update(3, 2.3)
    bar.bar.refresh()
    assert wait_for(lambda: any("3/10" in row for row in terminal.lines()), timeout=5)
    terminal.echo("^C")
    assert wait_for(lambda: "^" in "".join(terminal.lines()), timeout=5)
    assert ("3/10^C" in terminal.lines()) == room
    with Interrupt() as interrupt:
        interrupt.say = bar.warn
        os.kill(os.getpid(), signal.SIGINT)
        assert wait_for(lambda: interrupt.requested, timeout=5)
    bar.say("step 3: top-1")
    bar.close()
    assert wait_for(lambda: terminal.written.endswith(b"\n"), timeout=5)
    rows = terminal.lines()
    said = next(i for i, row in enumerate(rows) if "SIGINT" in row)
    assert rows[said].startswith("SIGINT: finishing the step")
    assert "step 3: top-1" in rows and "3/10" in rows[-2] and "^C" not in "".join(rows[said:])
    assert all("3/10" not in row or "SIGINT" not in row for row in rows)


def test_compilation_is_told_while_it_lasts(monkeypatch, capsys):
    monkeypatch.setattr(_Bar, "SECONDS_PER_TICK", 0.05)
    with monkeypatch.context() as patch:
        terminal = Terminal(patch)
        bar = _Bar(0, 10, 32)
        bar.busy("compiling the training step")
        assert wait_for(lambda: b"compiling the training step: 1 s" in terminal.written, timeout=5)
        bar.idle()
        assert not [t for t in threading.enumerate() if t.name == "elapsed"]
        bar.say("compiled in 1.2 s")
        bar.close()
        assert wait_for(lambda: terminal.written.endswith(b"\n"), timeout=5)
        assert terminal.lines()[0] == "compiled in 1.2 s"
        assert "compiling" not in "".join(terminal.lines())
    bar = _Bar(0, 10, 32)  # no terminal
    bar.busy("compiling the training step")
    time.sleep(0.2)
    bar.idle()
    assert capsys.readouterr().out == "compiling the training step ...\n"


def test_an_error_is_a_line_of_its_own(monkeypatch, tmp_path):
    """Also one that ends the run while the step is being compiled."""
    terminal = Terminal(monkeypatch)

    def refuse_meanwhile(*_, **__):
        assert wait_for(lambda: b"compiling the training step" in terminal.written, timeout=60)
        refuse()

    monkeypatch.setattr("torch_vit.trainer.Trainer.train_step", refuse_meanwhile)
    monkeypatch.setattr("torch_vit.trainer.Trainer.versions", lambda _: {"framework": "jax"})
    try:
        train_here("torch", tmp_path, *TINY_RUN)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    assert wait_for(lambda: "error: the message" in terminal.lines(), timeout=5)
    assert not [t for t in threading.enumerate() if t.name == "elapsed"]


def refuse(*_, **__):
    raise UserError("the message")
