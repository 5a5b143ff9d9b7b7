"""Claim: a checkpoint is intact or absent; what is on disk is what was saved, or is refused by
name."""

import dataclasses
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import random_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from whole_runs import EXTRA, ROOT, save, small_state

from shared_vit.checksummed import write_checksummed
from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.run.state import TrainState, first_state
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import checkpoints


def same(a: TrainState, b: TrainState) -> bool:
    rest = [f.name for f in dataclasses.fields(TrainState) if f.name not in ("params", "slots")]
    groups = [(a.params, b.params), *((a.slots[slot], b.slots.get(slot, {})) for slot in a.slots)]
    return (
        all(getattr(a, name) == getattr(b, name) for name in rest)
        and list(a.slots) == list(b.slots)
        and all(list(x) == list(y) for x, y in groups)
        and all(same_array(x[n], y[n]) for x, y in groups for n in x)
    )


def same_array(x: np.ndarray, y: np.ndarray) -> bool:
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("precision", ["fp32", "fp64", "fp16"])
def test_what_is_read_is_what_was_saved(tmp_path, precision):
    state = small_state(precision=precision)
    writer = checkpoint.Writer(tmp_path, 1)
    writer.save(7, lambda: state, EXTRA)
    writer.close()
    read, extra = checkpoint.load(tmp_path / "checkpoints/step_7")
    assert same(read, state) and extra == EXTRA
    assert ("scale" in read.scalars) == (precision == "fp16")
    assert not same(read, small_state(8, precision))


def test_another_slot_and_number_need_no_other_code(tmp_path):
    """What a new optimizer or average keeps is saved and read as Adam's moments are."""
    state = small_state()
    state.slots["velocity"] = {name: array + 1 for name, array in state.slots["exp_avg"].items()}
    state.scalars["friction"] = 0.999
    checkpoint.write(tmp_path, state, EXTRA)
    read, _ = checkpoint.load(tmp_path)
    assert same(read, state)
    assert "velocity.head.bias" in load_file(tmp_path / "optimizer.safetensors")
    del read.slots["velocity"]["head.bias"]
    checkpoint.write(tmp_path, read, EXTRA)
    with pytest.raises(UserError, match="does not fit the model: velocity.head.bias"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checkpoint_of_format_1(tmp_path, precision):
    """It had Adam's numbers by themselves, and Adam's slots only."""
    state = small_state(precision=precision)
    checkpoint.write(tmp_path, state, EXTRA)
    path = tmp_path / "state.json"
    document = json.loads(path.read_text())
    scaler = {k: v for k, v in document.pop("scalars").items() if k != "adam_count"}
    del document["slots"], document["checksum"]
    old = {"format": 1, "adam_count": state.scalars["adam_count"], "scaler": scaler or None}
    write_checksummed(path, document | old)
    read, extra = checkpoint.load(tmp_path)
    assert same(read, state) and extra == EXTRA


@settings(max_examples=50, deadline=None)
@given(
    depth=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    dropout=st.floats(0, 0.99),
    eps=st.floats(1e-300, 1, exclude_max=True),
    mean=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3),
    token=st.booleans(),
    gelu=st.sampled_from(["erf", "tanh"]),
    step=st.integers(0, 2**53),
    extra=st.dictionaries(
        st.text().map(lambda s: "x" + s), st.integers() | st.floats(allow_nan=False) | st.text()
    ),
)
def test_any_configuration_survives(
    tmp_path_factory, depth, heads, dropout, eps, mean, token, gelu, step, extra
):
    cfg = ModelConfig(
        image_size=4, patch_size=2, width=4, depth=depth, num_heads=heads, mlp_dim=3, num_classes=2,
        class_token=token,
        pool="token" if token else "mean", gelu=gelu, norm_eps=eps, dropout=dropout, mean=mean,
    )  # fmt: skip
    state = dataclasses.replace(first_state(cfg, random_arrays(cfg), "fp64"), step=step)
    folder = tmp_path_factory.mktemp("c")
    checkpoint.write(folder, state, extra)
    read, read_extra = checkpoint.load(folder)
    assert same(read, state) and read_extra == extra


def test_equal_states_are_equal_files_and_other_tools_read_them(tmp_path):
    for name in "ab":
        save(tmp_path / name, 7)
    files = ["model.safetensors", "optimizer.safetensors", "state.json"]
    a, b = (tmp_path / name / "checkpoints/step_7" for name in "ab")
    assert sorted(os.listdir(a)) == files
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)
    state = small_state(7)
    assert all(np.array_equal(v, state.params[k]) for k, v in load_file(a / files[0]).items())
    moments = load_file(a / files[1])
    assert np.array_equal(
        moments["exp_avg_sq.blocks.2.mlp.fc1.bias"],
        state.slots["exp_avg_sq"]["blocks.2.mlp.fc1.bias"],
    )
    assert len(moments) == 2 * len(state.params)


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 10, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_10", "step_3"]
    assert checkpoint.newest(tmp_path).step == 10


def test_folders_have_the_rights_that_the_umask_leaves(tmp_path, monkeypatch):
    """It is the process's, and threads that create files see every change of it."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
        save(tmp_path / "run", 3)
        monkeypatch.undo()
    finally:
        os.umask(before)
    folder = tmp_path / "run/checkpoints/step_3"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in folder.iterdir())


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes(tmp_path):
    save(tmp_path, 4)
    shutil.copytree(tmp_path / "checkpoints/step_4", tmp_path / "checkpoints/.step_9.abc.tmp")
    assert checkpoint.newest(tmp_path).step == 4
    save(tmp_path, 5)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_4", "step_5"]


FILES = (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_cut_or_altered_file_is_named_and_the_earlier_checkpoint_taken(tmp_path, name):
    save(tmp_path, 3, 5)
    path = tmp_path / "checkpoints/step_5" / name
    data = path.read_bytes()

    def refused() -> str:
        found = checkpoint.newest(tmp_path)
        assert found.step == 3 and len(found.skipped) == 1 and str(path) in found.skipped[0]
        return found.skipped[0]

    path.unlink()
    assert "No such file" in refused()
    path.mkdir()
    refused()
    path.rmdir()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused()
    for place in (0, 9, len(data) // 3, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        refused()
    path.write_bytes(data + b"\n")
    refused()
    path.write_bytes((tmp_path / "checkpoints/step_3" / name).read_bytes())
    assert checkpoint.newest(tmp_path).step == 3  # an intact file of another checkpoint
    path.write_bytes(data)
    found = checkpoint.newest(tmp_path)
    assert (found.path, found.step, found.skipped) == (path.parent, 5, [])


def test_without_any_intact_checkpoint_resume_stops_and_says_why(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 3, 5)
    for step in (3, 5):
        (tmp_path / f"checkpoints/step_{step}/state.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: step_5: .*; step_3: "):
        checkpoint.newest(tmp_path)


def test_the_checks_are_what_refuses(tmp_path, monkeypatch):
    """The test of the tests above: without the checksum of state.json, another step is believed."""
    save(tmp_path, 3)
    path = tmp_path / "checkpoints/step_3/state.json"
    path.write_text(path.read_text().replace('"adam_count": 2', '"adam_count": 1'))
    with pytest.raises(UserError, match="altered"):
        checkpoint.load(path.parent)
    monkeypatch.setattr(checkpoints, "read_checksummed", lambda path: json.loads(path.read_text()))
    assert checkpoint.load(path.parent)[0].scalars["adam_count"] == 1


def test_weights_that_are_not_finite_push_nothing_out(tmp_path):
    save(tmp_path, 3)
    writer = checkpoint.Writer(tmp_path, 1)
    state = small_state(5)
    state.params["head.bias"][1] = np.nan
    writer.save(5, lambda: state, EXTRA)
    with pytest.raises(
        UserError, match=r"head\.bias is no longer finite at step 5.*newest is .*step_3"
    ):
        writer.close()
    assert os.listdir(tmp_path / "checkpoints") == ["step_3"]


# Without the frameworks, which take ten times as long to import.
WRITE = """
import pickle, sys
from shared_vit.errors import run_main
from shared_vit.run import checkpoint
run_dir, states, step = sys.argv[1:]
def save():
    with open(states, "rb") as file:
        state, extra = pickle.load(file)[int(step)]
    writer = checkpoint.Writer(run_dir, 9)
    writer.save(int(step), lambda: state, extra)
    writer.close()
run_main(save)
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> Path:
    """A file of two small states."""
    path = tmp_path_factory.mktemp("states") / "states.pickle"
    path.write_bytes(pickle.dumps({step: (small_state(step), EXTRA) for step in (3, 5)}))
    return path


def write_in_process(run_dir, states, step, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WRITE, str(run_dir), str(states), str(step)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, states):
    """A real process whose files may not grow beyond 100 kB: the file system refuses the rest, as a
    full one does."""
    save(tmp_path, 3)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = write_in_process(tmp_path, states, 5, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: cannot save {tmp_path}/checkpoints/step_5: File too large. The earlier ones"
    )
    assert done.stderr.count("\n") == 1
    assert (
        os.listdir(tmp_path / "checkpoints") == ["step_3"] and checkpoint.newest(tmp_path).step == 3
    )
    assert write_in_process(tmp_path, states, 5).returncode == 0  # the test of the test
    assert checkpoint.newest(tmp_path).step == 5


@pytest.mark.parametrize("full", [True, False])
def test_a_full_or_read_only_file_system(tmp_path, states, full):
    """A file system of its own for one process, where the system lets a user mount one."""
    mount = f"mount -t tmpfs -o size=2m none {tmp_path} && "
    if subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount + "true"], capture_output=True
    ).returncode:
        pytest.skip("no name spaces for users here")
    groups = (small_state().params, *small_state().slots.values())
    state_bytes = sum(a.nbytes for arrays in groups for a in arrays.values())
    assert 2**20 < state_bytes < 2**21  # one fits, two do not
    write = f"{sys.executable} -c '{WRITE}' {tmp_path} {states}"
    change = "" if full else f"mount -o remount,ro {tmp_path}; "
    script = f"{mount} {write} 3; {change} {write} 5; echo status $?; ls -A {tmp_path}/checkpoints"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    reason = "No space left on device" if full else "Read-only file system"
    assert f"cannot save {tmp_path}/checkpoints/step_5: {reason}. The earlier ones" in done.stderr
    assert done.stdout == "status 2\nstep_3\n"


def test_lines_are_on_disk_before_the_checkpoint(tmp_path, monkeypatch):
    """metrics.jsonl is synced before the checkpoint's folder has its name, and the files of the
    checkpoint too."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    events, fsync, rename = [], os.fsync, os.rename

    def note_fsync(handle):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def note_rename(a, b):
        events.append("rename")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    save(tmp_path, 3)
    assert events[0] == "metrics.jsonl" and events[-2:] == ["rename", "checkpoints"]
    assert (
        sum("safetensors" in e for e in events) == 2 and sum("state.json" in e for e in events) == 1
    )
    assert events[-3].startswith(".step_3.")  # the folder itself
