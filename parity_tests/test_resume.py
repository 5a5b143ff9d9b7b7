"""Claim: a run that was stopped, killed or moved to the other framework, and resumed, is the run
that was not."""

import fcntl
import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from whole_runs import (
    ROOT,
    SMALL_RUN,
    TWINS,
    digests,
    metrics,
    reference,
    start,
    train,
    train_here,
    wait_for,
)

from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.run.interrupt import EXIT_INTERRUPTED

SWITCHED = (
    *SMALL_RUN[:7], "--precision=fp64", "--grad_accum=2", "--eval_every=5", "--checkpoint_every=5",
)  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
def test_a_signal_and_a_kill_leave_no_trace(twin, tmp_path):
    run_dir = tmp_path / "run"
    process = start(twin, run_dir, *SMALL_RUN)
    assert wait_for((run_dir / "checkpoints/step_4").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_INTERRUPTED
    stopped_at = metrics(run_dir)[-1]["step"]
    assert 4 <= stopped_at < 20 and (run_dir / f"checkpoints/step_{stopped_at}").exists()

    process = start(twin, run_dir, "--resume")
    assert wait_for(
        (run_dir / f"checkpoints/step_{min(stopped_at + 4, 18) // 2 * 2}").exists, process
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL

    said = train(twin, run_dir, "--resume", "--workers=2")
    assert "resuming from" in said
    expected, found = digests(reference(twin)), digests(run_dir)
    assert len(expected) == 21
    assert {name: found.get(name) for name in expected} == expected


def test_a_run_that_differs_is_seen(tmp_path):
    """The test of the comparison: one bit of the seed moves every file."""
    train_here("torch", tmp_path / "run", *SMALL_RUN, "--seed=1")
    expected, found = digests(reference("torch")), digests(tmp_path / "run")
    assert set(expected) == set(found) and all(found[name] != expected[name] for name in expected)


def test_state_says_where_the_run_is():
    path = reference("torch") / "checkpoints/step_10"
    document = json.loads((path / "state.json").read_text())
    assert document["step"] == document["scalars"]["adam_count"] == 10 and document["seed"] == 0
    assert document["epoch"] == pytest.approx(10 * 32 / 1437)
    assert document["versions"]["framework"] == "torch"


def test_an_interrupted_evaluation_is_done_again(tmp_path, monkeypatch):
    """Stopped within the evaluation at step 10: no line of it, then one; also when killed right
    after it."""
    from shared_vit.run import loop

    twin, run_dir, evaluate = "torch", tmp_path / "run", loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda plan, trainer, interrupt: None)
    assert train_here(twin, run_dir, *SMALL_RUN) == EXIT_INTERRUPTED
    assert metrics(run_dir)[-1] == metrics(reference(twin))[9]
    monkeypatch.setattr(loop, "evaluate", evaluate)
    assert train_here(twin, run_dir, "--resume", "--stop_at=11") == 0
    for path in run_dir.glob("checkpoints/step_11"):  # as if killed before it was saved
        shutil.rmtree(path)
    assert checkpoint.newest(run_dir).step == 10
    assert train_here(twin, run_dir, "--resume") == 0
    assert [line["step"] for line in metrics(run_dir) if "val_loss" in line] == [10, 20]
    assert (run_dir / "metrics.jsonl").read_bytes() == (
        reference(twin) / "metrics.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("twin", TWINS)
def test_a_checkpoint_holds_its_own_step_however_late_it_is_written(twin, tmp_path, monkeypatch):
    """The writer fetches the state when training has gone on, and, in JAX, has given the buffers of
    then away."""
    flags = (*SMALL_RUN[:5], "--steps=6", "--dropout=0.1")
    write = checkpoint.Writer._write
    train_here(twin, tmp_path / "soon", *flags, "--checkpoint_every=3")
    monkeypatch.setattr(checkpoint.Writer, "_write", lambda *args: (time.sleep(1), write(*args)))
    train_here(twin, tmp_path / "late", *flags, "--checkpoint_every=3")
    a, b = digests(tmp_path / "soon"), digests(tmp_path / "late")
    assert a == b and len(a) == 5 and len(set(a.values())) == 5


def test_lines_after_the_checkpoint_and_a_torn_one_are_cut(tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(reference("torch"), run_dir)
    for step in range(14, 21, 2):
        shutil.rmtree(run_dir / f"checkpoints/step_{step}")
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "lo')
    assert train_here("torch", run_dir, "--resume") == 0
    assert [line["step"] for line in metrics(run_dir)] == [*range(1, 11), 10, *range(11, 21), 20]


def test_lines_that_are_lost_are_told(tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(reference("torch"), run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:7]) + "not a line\n" + "".join(lines[8:]))
    assert train_here("torch", run_dir, "--resume") == 0
    assert (
        "metrics.jsonl ends at step 7: the lines up to step 20 are lost" in capsys.readouterr().out
    )
    assert [line["step"] for line in metrics(run_dir)] == [*range(1, 8)]


def test_the_newest_intact_checkpoint_is_taken_and_the_others_are_named(tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(reference("torch"), run_dir)
    (run_dir / "checkpoints/step_20/optimizer.safetensors").unlink()
    path = run_dir / "checkpoints/step_18/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)
    assert train_here("torch", run_dir, "--resume") == 0
    said = capsys.readouterr().out
    assert "step_20: " in said and "step_18: " in said and "was altered" in said
    assert f"resuming from {run_dir / 'checkpoints/step_16'}" in said
    before, after = metrics(reference("torch")), metrics(run_dir)
    assert [line["step"] for line in after] == [line["step"] for line in before]
    assert checkpoint.newest(run_dir).step == 20 and not checkpoint.newest(run_dir).skipped


def test_other_settings_are_refused_and_another_length_is_noticed(tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(reference("torch"), run_dir)
    before = digests(run_dir)
    for flag, value in (
        ("lr", 1.0),
        ("dropout", 0.2),
        ("batch_size", 64),
        ("seed", 3),
        ("num_classes", 11),
    ):
        with pytest.raises(UserError, match=f"--{flag} is .* there, {value} here"):
            train_here("torch", run_dir, "--resume", f"--{flag}={value}")
    with pytest.raises(UserError, match="holds this run already: --resume"):
        train_here("torch", run_dir, *SMALL_RUN)
    with pytest.raises(UserError, match="holds another run .*--lr"):
        train_here("torch", run_dir, *SMALL_RUN, "--lr=1")
    assert digests(run_dir) == before
    assert train_here("torch", run_dir, "--resume", "--steps=22") == 0
    assert "length was 20 steps and is 22" in capsys.readouterr().out
    assert len(metrics(run_dir)) == 25


def test_a_run_begun_from_weights_resumes_without_them(tmp_path):
    run_dir, weights, flags = tmp_path / "run", tmp_path / "weights", SMALL_RUN[:5]
    shutil.copytree(reference("torch") / "checkpoints/step_20", weights)
    train_here("torch", tmp_path / "alone", *flags, f"--init_from={weights}")
    train_here("torch", run_dir, *flags, f"--init_from={weights}", "--stop_at=4")
    shutil.rmtree(weights)
    assert train_here("torch", run_dir, "--resume") == 0
    assert digests(run_dir)["metrics.jsonl"] == digests(tmp_path / "alone")["metrics.jsonl"]
    assert abs(metrics(run_dir)[0]["loss"] - metrics(reference("torch"))[0]["loss"]) > 0.01
    with pytest.raises(UserError, match="--resume and --init_from exclude each other"):
        train_here("torch", run_dir, "--resume", f"--init_from={weights}")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    run_dir = tmp_path / "run"
    process = start("torch", run_dir, *SMALL_RUN[:3], "--steps=100000", "--checkpoint_every=5")
    assert wait_for((run_dir / "checkpoints/step_5").exists, process)
    said = train("torch", run_dir, "--resume", status=2)
    assert f"another process is training in {run_dir}" in said
    assert process.poll() is None
    process.kill()
    process.wait()


def test_switching_frameworks_in_float64(tmp_path, x64):
    """jax -> torch -> jax -> torch, a switch each 5 steps, against torch alone; the rule proper is
    in the slow test."""
    train_here("torch", tmp_path / "alone", *SWITCHED)
    for i, twin in enumerate(TWINS * 2):
        more = ("--resume",) if i else SWITCHED
        assert train_here(twin, tmp_path / "run", *more, f"--stop_at={5 * i + 5}") == 0
    assert _largest_gap(tmp_path / "alone", tmp_path / "run") < 1e-13


def test_a_moment_that_is_lost_is_seen(tmp_path, x64, monkeypatch):
    """The test of the test above: a switch that forgets Adam's second moment by one part in 1e6
    does not pass."""
    train_here("torch", tmp_path / "alone", *SWITCHED)
    train_here("jax", tmp_path / "run", *SWITCHED, "--stop_at=5")
    load = checkpoint.load

    def forgetful(path):
        state, extra = load(path)
        second = state.slots["exp_avg_sq"]
        second.update({name: array * (1 - 1e-6) for name, array in second.items()})
        return state, extra

    monkeypatch.setattr(checkpoint, "load", forgetful)
    train_here("torch", tmp_path / "run", "--resume")
    assert _largest_gap(tmp_path / "alone", tmp_path / "run") > 1e-11


def _largest_gap(a, b) -> float:
    a, b = metrics(a), metrics(b)
    assert [line["step"] for line in a] == [line["step"] for line in b] and a[0]["loss"] - a[-2][
        "loss"
    ] > 0.01
    return max(
        abs(x[k] - y[k]) / max(1, abs(x[k]))
        for x, y in zip(a, b)
        for k in ("loss", "grad_norm")
        if k in x
    )


@pytest.mark.slow
def test_four_processes_of_torch(tmp_path):
    """Ranks of one run: asked to stop, then their parent killed, then resumed; against the same
    four undisturbed."""
    flags, run_dir = (*SMALL_RUN, "--world_size=4"), tmp_path / "run"
    process = start("torch", run_dir, *flags)
    assert wait_for((run_dir / "checkpoints/step_4").exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == EXIT_INTERRUPTED
    process = start("torch", run_dir, "--resume")
    assert wait_for((run_dir / "checkpoints/step_12").exists, process)
    process.kill()
    process.wait()
    assert wait_for(lambda: _lock_is_free(run_dir), timeout=30)  # its ranks have ended too
    train("torch", run_dir, "--resume", "--workers=1")
    assert digests(run_dir) | digests(reference("torch", "--world_size=4")) == digests(run_dir)
    assert (
        digests(run_dir)["metrics.jsonl"] != digests(reference("torch"))["metrics.jsonl"]
    )  # other sums, other rounding


@pytest.mark.slow
def test_four_processes_of_jax(tmp_path):
    """As hosts would: one of four processes is asked to stop, all stop at the same step; one is
    killed, all end."""
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    assert _end(_start_four(alone, *SMALL_RUN)) == [0] * 4
    processes = _start_four(run_dir, *SMALL_RUN)
    assert wait_for((run_dir / "checkpoints/step_4").exists, processes[0])
    processes[2].send_signal(signal.SIGTERM)
    assert _end(processes) == [EXIT_INTERRUPTED] * 4
    processes = _start_four(run_dir, "--resume")
    assert wait_for((run_dir / "checkpoints/step_12").exists, processes[0])
    processes[3].kill()
    assert 0 not in _end(processes)
    assert _end(_start_four(run_dir, "--resume")) == [0] * 4
    assert digests(run_dir) | digests(alone) == digests(run_dir)


def _start_four(run_dir, *flags):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = (f"--coordinator=localhost:{port}", "--num_processes=4")
    return [start("jax", run_dir, *flags, *where, f"--process_id={i}") for i in range(4)]


def _end(processes) -> list[int]:
    """The exit statuses; a process that does not end by itself fails the test."""
    try:
        return [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _lock_is_free(run_dir) -> bool:
    with open(run_dir / ".lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.slow
def test_switching_frameworks_by_the_noise_rule(tmp_path):
    """160 steps in float64 with AdamW, dropout and accumulation, a switch each 40:
    `benchmarks/switch_frameworks.py`."""
    script = ROOT / "benchmarks/switch_frameworks.py"
    done = subprocess.run(
        [sys.executable, str(script), f"--out={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("same for steps 1 to 160 of 160") == 2, (
        done.stdout + done.stderr
    )
