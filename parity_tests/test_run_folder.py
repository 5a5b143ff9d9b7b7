"""Claim: one run writes a folder; what has another identity, place or form there is refused in one
message and left alone."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil

import pytest
from whole_runs import EXTRA, small_state, train_here

from shared_vit import checksummed
from shared_vit.errors import UserError
from shared_vit.run import checkpoint, record
from shared_vit.run.checkpoint import Writer
from shared_vit.run.command_line import parse
from shared_vit.run.directory import RunDir
from shared_vit.run.record import Record, read_record, run_of, write_record
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from twinvit.parity.noise_rule import read_curve

DATA = {"name": "digits", "fingerprint": "1234"}
TINY_RUN = ("--preset=digits", "--depth=2", "--device=cpu", "--steps=6", "--batch_size=32",
            "--warmup_steps=2",
            "--eval_every=3", "--checkpoint_every=2", "--keep=all", "--workers=0")  # fmt: skip


def new_record(**changes) -> Record:
    return dataclasses.replace(Record(Recipe(), RuntimeConfig(), None, DATA), **changes)


def write_checkpoints(run_dir: RunDir, *steps: int) -> None:
    writer = Writer(run_dir, keep=2)
    try:
        for step in steps:
            writer.save(step, lambda step=step: small_state(step), EXTRA)
            writer.wait()
    finally:
        writer.close()


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps, never changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train_here("torch", run_dir, *TINY_RUN) == 0
    return run_dir


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_whose_folder_was_removed_touches_nothing_of_the_next_one(tmp_path):
    path = tmp_path / "run"
    with RunDir(path) as a, RunDir(path) as b:
        a.open_new(new_record())
        write_checkpoints(a, 1, 2)
        writer = Writer(a, keep=1)
        shutil.rmtree(path)
        b.open_new(new_record())
        write_checkpoints(b, 1, 2)
        before = contents(path)
        with pytest.raises(UserError, match="run was removed while the run trained.*left alone"):
            a.append_metrics(['{"step": 3}'])
        writer.save(3, lambda: small_state(3), EXTRA)
        with pytest.raises(UserError, match="run was removed while the run trained"):
            writer.close()
        assert contents(path) == before
        assert checkpoint.newest(path, b.record).step == 2


def test_a_folder_replaced_between_check_and_write_is_not_touched(tmp_path, monkeypatch):
    """The run writes through the folder that it locked, whatever its path leads to."""
    path = tmp_path / "run"
    with RunDir(path) as a, RunDir(path) as b:
        a.open_new(new_record())
        write_checkpoints(a, 1)
        a.append_metrics(['{"step": 1}'])
        shutil.rmtree(path)
        b.open_new(new_record())
        write_checkpoints(b, 1, 2)
        before = contents(path)
        monkeypatch.setattr(a, "check", lambda: None)  # it has just looked
        a.append_metrics(['{"step": 2}'])
        for write in (lambda: write_checkpoints(a, 3, 4), a.write_record, lambda: a.cut_metrics(0)):
            with contextlib.suppress(UserError):
                write()
        assert contents(path) == before


def test_a_run_whose_folder_was_moved_says_where_it_is(tmp_path):
    path, moved = tmp_path / "run", tmp_path / "moved"
    with RunDir(path) as a:
        a.open_new(new_record())
        write_checkpoints(a, 1)
        path.rename(moved)
        with pytest.raises(UserError, match=f"moved to {moved} .*--run_dir={moved} continues it"):
            write_checkpoints(a, 2)
        assert not path.exists() and checkpoint.newest(moved, a.record).step == 1
        moved.rename(path)
        a.check()


@pytest.mark.parametrize("name", [".lock", "config.json"])
def test_a_run_without_its_lock_or_configuration_stops(tmp_path, name):
    with RunDir(tmp_path / "run") as a:
        a.open_new(new_record())
        a.append_metrics(['{"step": 1}'])
        (tmp_path / "run" / name).unlink()
        with pytest.raises(UserError, match="were removed while the run trained"):
            a.append_metrics(['{"step": 2}'])


def test_a_folder_removed_in_mid_run_is_not_done(tmp_path, monkeypatch):
    run_dir, save = tmp_path / "run", Writer.save

    def save_and_remove(self, step, *args):
        save(self, step, *args)
        self.wait()
        if step == 6:  # the last: nothing is written after it
            shutil.rmtree(run_dir)

    monkeypatch.setattr(Writer, "save", save_and_remove)
    with pytest.raises(UserError, match="removed while the run trained: nothing of it is left"):
        train_here("torch", run_dir, *TINY_RUN)


def test_two_processes_in_one_folder(tmp_path):
    with RunDir(tmp_path) as a, RunDir(tmp_path) as b:
        a.open_new(new_record())
        with pytest.raises(UserError, match="another process is training in"):
            b.open_new(new_record())
    with RunDir(tmp_path) as c:
        c.open_new(new_record())


def test_a_checkpoint_of_another_run_is_not_resumed(run, tmp_path, capsys):
    assert train_here("torch", tmp_path / "other", *TINY_RUN, "--seed=1") == 0
    copied = run / "checkpoints/step_6"
    shutil.rmtree(copied)
    shutil.copytree(tmp_path / "other/checkpoints/step_6", copied)
    assert train_here("torch", run, "--resume") == 0
    said = capsys.readouterr().out
    assert "skipped: step_6: " in said and "was written by another run (--init_from=" in said
    assert f"resuming from {run}/checkpoints/step_4" in said
    assert checkpoint.newest(run, read_record(run)).skipped == []


@pytest.mark.parametrize("first_version, accepted", [(1, True), (record.VERSION, False)])
def test_a_checkpoint_without_identity_is_of_the_first_version(tmp_path, first_version, accepted):
    write_checkpoints(RunDir(tmp_path), 3)
    known = new_record(first_version=first_version)
    if accepted:
        assert checkpoint.newest(tmp_path, known).step == 3
    else:
        with pytest.raises(UserError, match="written by another run"):
            checkpoint.newest(tmp_path, known)


def test_settings_edited_by_hand_are_refused(run):
    path = run / "config.json"
    text = path.read_text()
    assert '"lr": 0.003,' in text
    path.write_text(text.replace('"lr": 0.003,', '"lr": 0.004,'))
    for flags in (["--resume"], ["--mode=eval"]):
        with pytest.raises(UserError, match=f"was altered .*--init_from={run} takes its weights"):
            train_here("torch", run, *flags)
    path.write_text(text)
    assert read_record(run).recipe.lr == 0.003


def test_a_length_that_lies_behind_is_refused(run):
    before = contents(run)
    with pytest.raises(UserError, match="at step 6 already, past the length of 4 steps"):
        train_here("torch", run, "--resume", "--steps=4")
    assert contents(run) == before


def test_a_finished_run_says_so(run, capsys):
    before = contents(run)
    assert train_here("torch", run, "--resume") == 0
    said = capsys.readouterr().out
    assert f"done at step 6 already: {run}; more --epochs or --steps lengthen it\n" in said
    assert "continues it" not in said
    assert train_here("torch", run, "--resume", "--steps=8", "--stop_at=5") == 0
    assert "stopped at step 6 already, and --stop_at=5" in capsys.readouterr().out
    after = contents(run)
    assert before.keys() == after.keys()
    assert [n for n in before if before[n] != after[n]] == ["config.json"]


def test_each_file_is_hashed_once_on_resume(run, monkeypatch):
    from shared_vit.weights.containers import safetensors as native

    hashed, verify = [], native._verify
    monkeypatch.setattr(
        native, "_verify", lambda path, *rest: (hashed.append(path.name), verify(path, *rest))
    )
    assert train_here("torch", run, "--resume", "--steps=8", "--stop_at=7") == 0
    assert sorted(hashed) == ["model.safetensors", "optimizer.safetensors"]


def test_a_record_of_a_newer_version_asks_for_an_update(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "VERSION", record.VERSION + 1)
    write_record(tmp_path, new_record())
    monkeypatch.undo()
    with pytest.raises(UserError, match="of version 3, this program reads up to 2: update it"):
        read_record(tmp_path)


def test_a_record_is_read_once(tmp_path, monkeypatch):
    """So that what was verified is what is obeyed, also where the file is replaced meanwhile."""
    known = new_record()
    write_record(tmp_path, known)
    monkeypatch.setattr(checksummed, "read_limited", lambda *_: pytest.fail("read again"))
    assert read_record(tmp_path) == known


def test_devices_that_nobody_chose_are_chosen_anew(tmp_path):
    known = new_record(
        recipe=Recipe(batch_size=64),
        runtime=RuntimeConfig(device="gpu", world_size=8, compile="on"),
        left_open=frozenset(("device", "world_size")),
    )
    write_record(tmp_path, known)
    assert read_record(tmp_path).left_open == known.left_open
    requested = parse(["--resume", f"--run_dir={tmp_path}"], "x")
    assert (requested.device, requested.world_size, requested.compile) == (None, None, "on")
    assert requested.left_open == known.left_open
    requested = parse(["--resume", f"--run_dir={tmp_path}", "--device=gpu"], "x")
    assert (requested.device, requested.left_open) == ("gpu", {"world_size"})


def test_the_run_of_a_path(tmp_path, monkeypatch):
    run = tmp_path / "run"
    step = run / "checkpoints/step_2"
    step.mkdir(parents=True)
    assert run_of(run) is None
    write_record(run, new_record())
    assert all(run_of(p) == run for p in (run, step, step / "model.safetensors"))
    assert run_of(tmp_path) is None and run_of(run / "weights.npz") is None
    monkeypatch.chdir(step.parent)
    assert run_of("step_2") == run
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    assert run_of(tmp_path) is None


def make_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def version_1(**changes):
    document = {"twinvit_run": 1, "train": {}, "model": {}, "data": DATA, "total_steps": 3}
    return lambda path: path.write_text(json.dumps(document | changes))


CONFIGS = {
    "folder": make_folder,
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "empty": lambda path: path.write_text(""),
    "not text": lambda path: path.write_bytes(b"\xff\x00"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "list": lambda path: path.write_text("[1]"),
    "no version": lambda path: path.write_text("{}"),
    "version of wrong type": lambda path: path.write_text('{"twinvit_run": [2]}'),
    "unsealed": lambda path: path.write_text('{"twinvit_run": 2}'),
    "train a number": version_1(train=5),
    "model a list": version_1(model=[1]),
    "data a text": version_1(data="digits"),
    "steps a text": version_1(total_steps="3"),
    "steps a fraction": version_1(total_steps=1e400),
    "lr a long number": version_1(train={"lr": 10**400}),
    "preset a number": version_1(
        train=dataclasses.asdict(Recipe()) | {"preset": 5},
        model=dataclasses.asdict(Recipe().model),
    ),
    "mean of texts": version_1(model=dataclasses.asdict(Recipe().model) | {"mean": ["a", 1, 2]}),
}


@pytest.mark.parametrize("spoil", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("flags", ["--resume", "--mode=eval"])
def test_a_spoiled_configuration_is_one_message(tmp_path, spoil, flags):
    (tmp_path / "config.json").touch()
    (tmp_path / "checkpoints").mkdir()
    spoil(tmp_path / "config.json")
    with pytest.raises(UserError, match="config.json"):
        parse([flags, f"--run_dir={tmp_path}"], "x")


@pytest.mark.parametrize("flags", ["--preset=digits", "--resume", "--mode=eval"])
def test_a_run_folder_that_is_a_file_is_one_message(tmp_path, flags):
    path = tmp_path / "file"
    path.write_text("kept")
    for run_dir in (path, path / "run"):
        with pytest.raises(UserError, match=f"{path}"):
            train_here("torch", run_dir, flags)
    assert path.read_text() == "kept"


def test_the_configuration_of_another_program_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with RunDir(tmp_path) as run_dir, pytest.raises(UserError, match="another program.*--run_dir"):
        run_dir.open_new(new_record())
    assert "ViTModel" in (tmp_path / "config.json").read_text()


def test_metrics_that_are_a_folder_are_one_message(run):
    make_folder(run / "metrics.jsonl")
    with pytest.raises(UserError, match=r"run/metrics\.jsonl is not a file"):
        train_here("torch", run, "--resume")
    with pytest.raises(UserError, match="run/metrics.jsonl"):
        read_curve(run)


def test_a_deep_line_ends_the_metrics(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write("[" * 100_000 + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 9, is not a metrics line"):
        read_curve(run)
    with RunDir(run) as run_dir:
        assert run_dir.cut_metrics(6) == 6
    assert len(read_curve(run)) == 6


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_full_disk_and_lines(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with RunDir(tmp_path) as run_dir:
        run_dir.open_new(new_record())
        append = {"m": run_dir.append_metrics, "t": run_dir.append_timing}[name[0]]
        with pytest.raises(UserError) as error:
            append(['{"step": 1}'])
    full = f"cannot write {tmp_path / name}: No space left on device; --resume goes on once it can"
    assert str(error.value) == full


def test_a_full_disk_and_the_configuration(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with RunDir(tmp_path) as run_dir, pytest.raises(UserError) as error:
        run_dir.open_new(new_record())
    assert str(error.value) == f"cannot write {tmp_path}/config.json: No space left on device"


def test_a_wandb_id_that_is_no_file_is_one_message(tmp_path):
    (tmp_path / "wandb_id").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/wandb_id: it is not a regular"):
        train_here("torch", tmp_path, *TINY_RUN, "--wandb=offline")
