"""Where something cannot work, the message names the cause: locks of worker processes, a killed
fork server, a full disk, files that are no weights, a target that exists."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time

import fork_server
import numpy as np
import pytest
import torch
from data_helpers import image_folder
from helpers import random_arrays
from whole_runs import environment, train_here

from jax_vit.rendezvous import find_place
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.requested import RequestedConfig
from shared_vit.spec.config import model_config
from shared_vit.weights import open_weights
from torch_vit.pth import open_pth
from twinvit.convert import libraries
from twinvit.convert.command import convert
from twinvit.training.command import evaluate

CFG = model_config("vit_nano2", num_classes=5, image_size=8, depth=1)
TINY = ("--preset=digits", "--depth=2", "--steps=2", "--batch_size=32", "--warmup_steps=1")


def state_dict(path, cfg=CFG):
    weights.write(path, cfg, random_arrays(cfg), format="timm")
    path.with_name(path.name + ".json").unlink()
    return torch.load(path)


@pytest.mark.filterwarnings("ignore:timm")
def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    a, b = tmp_path / "a.pth", tmp_path / "b.safetensors"
    state_dict(a)
    before = a.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"a\.pth is what is read: write to another name"):
            convert(str(a), str(a), "timm", num_heads=4, overwrite=overwrite)
        os.link(a, tmp_path / "same.pth") if not overwrite else None
        with pytest.raises(UserError, match="is what is read"):
            convert(str(a), str(tmp_path / "same.pth"), "timm", num_heads=4, overwrite=overwrite)
    assert a.read_bytes() == before
    b.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"b\.safetensors exists already: .* --overwrite"):
        convert(str(a), str(b), "torch", num_heads=4)
    assert b.read_bytes() == b"precious"
    assert convert(str(a), str(b), "torch", num_heads=4, overwrite=True) == 0
    assert open_weights(b).cfg.depth == 1


@pytest.mark.filterwarnings("ignore:timm")
@pytest.mark.parametrize("shape", ["model", "module.", "flags"])
def test_verify_builds_the_library_s_model_of_a_training_checkpoint(tmp_path, shape):
    state = state_dict(tmp_path / "bare.pth")
    if shape == "module.":
        content = {"state_dict": {f"module.{name}": t for name, t in state.items()}}
    elif shape == "flags":
        content = {"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    else:
        content = {"model": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, tmp_path / "checkpoint.pth")
    cfg = open_weights(tmp_path / "checkpoint.pth", num_heads=4).cfg
    one, two = (libraries.load("timm", tmp_path / f"{n}.pth", cfg) for n in ("bare", "checkpoint"))
    assert all(torch.equal(t, two.state_dict()[name]) for name, t in one.state_dict().items())


@pytest.mark.parametrize("room", [0, 40], ids=["none", "some"])
def test_worker_processes_without_shared_memory_name_the_way_out(tmp_path, monkeypatch, room):
    """room: how many locks /dev/shm holds, of which two workers need about fifty."""
    import _multiprocessing

    import joblib  # noqa: F401 - which looks at locks itself when it is imported

    made, lock = [], _multiprocessing.SemLock

    def no_room(*args, **named):
        made.append(lock)
        if len(made) > room:
            raise OSError(28, "No space left on device")
        return lock(*args, **named)

    monkeypatch.setattr(_multiprocessing, "SemLock", no_room)
    with pytest.raises(UserError, match="--workers=2: processes cannot share a lock here .*No space"
                                        ".*use --workers=0"):  # fmt: skip
        train_here("torch", tmp_path / "run", *TINY, "--workers=2")


def descendants(parent: int) -> dict[int, str]:
    """Command lines of the processes below one, by number."""
    shown = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True
    ).stdout
    rows = [line.split(None, 2) for line in shown.splitlines()[1:]]
    below: dict[int, str] = {}
    found = {parent}
    while found:
        found = {int(pid) for pid, ppid, _ in rows if int(ppid) in found} - set(below)
        below |= {int(pid): args for pid, _, args in rows if int(pid) in found}
    return below


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may not have been waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_fork_server_ends_the_run_with_one_message(tmp_path):
    argv = [
        "--framework=torch", "--preset=digits", "--depth=2", "--device=cpu", "--world_size=2",
        "--steps=100000",
        "--workers=0",
    ]  # fmt: skip
    code = "from twinvit.cli import main; main()"
    run = fork_server.Popen(
        [sys.executable, "-c", code, "train", *argv, f"--run_dir={tmp_path}/r"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment() | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        end = time.monotonic() + 180
        metrics = tmp_path / "r/metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
            time.sleep(0.2)
        below = descendants(run.pid)
        server = next(pid for pid, args in below.items() if "forkserver import main" in args)
        os.kill(server, signal.SIGKILL)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1 and said.count("error:") == 1
    assert "was lost: the process that started it (Python's fork server) was killed" in said
    end = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not [args for pid, args in below.items() if alive(pid)]


def test_room_on_the_disk_is_looked_at_before_the_first_step(tmp_path, monkeypatch, capsys):
    real = shutil.disk_usage

    def with_free(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=free))

    with_free(1 << 20)
    told = r"a checkpoint of this run takes \d+\.\d MB, and the disk of .* has 1\.0 MB free: make"
    with pytest.raises(UserError, match=told):
        train_here("torch", tmp_path / "run", *TINY)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    with_free(9 << 19)  # for two; --keep=2 needs three at once
    assert train_here("torch", tmp_path / "other", *TINY) == 0
    assert "has space for 2 checkpoints" in capsys.readouterr().out
    with_free(1 << 30)
    assert train_here("torch", tmp_path / "third", *TINY) == 0
    assert "has space for" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><head>", "it is a web page"),
        (b'{"error": "not found"}', "it is JSON"),
        (b"garbage" * 9, "its first bytes are of none of them"),
    ],
)
def test_a_file_that_is_no_weights_is_called_what_it_is(tmp_path, content, told):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told):
        open_weights(path)


def test_a_trainer_s_folder_points_to_its_newest_checkpoint(tmp_path):
    for step in (500, 1000, 90):
        (tmp_path / f"out/checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "out/training_args.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"name one of them, .*/checkpoint-1000"):
        open_weights(tmp_path / "out")


def test_evaluate_names_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^nothere is not there: expected a run"):
        evaluate(["nothere"])


@pytest.mark.filterwarnings("ignore:timm")
def test_tied_tensors_are_read(tmp_path):
    state = state_dict(tmp_path / "a.pth")
    tied = state | {"blocks.0.norm1.weight": state["norm.weight"]}
    tied["blocks.0.norm2.weight"] = state["norm.weight"]
    torch.save(tied, tmp_path / "tied.pth")
    source = open_weights(tmp_path / "tied.pth", num_heads=4)
    both = (np.asarray(source.arrays[f"blocks.0.norm{i}.weight"]) for i in (1, 2))
    assert all(np.array_equal(array, state["norm.weight"]) for array in both)
    wide = torch.zeros(1).expand(4096, 4096)  # claims what is not in the file
    torch.save(state | {"x": wide, "y": wide}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match="claim .* bytes, more than the file has"):
        open_pth(tmp_path / "wide.pth")


def test_pickled_models_and_parameters_say_so(tmp_path):
    model = torch.nn.Linear(3, 2)
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(UserError, match="complete model as Python objects.*state_dict"):
        open_pth(tmp_path / "whole.pth")
    torch.save(list(model.parameters()), tmp_path / "parameters.pth")
    with pytest.raises(UserError, match="a list of 2 tensors without their names"):
        open_pth(tmp_path / "parameters.pth")


def test_a_full_disk_while_a_pth_is_written_says_so(tmp_path):
    code = (
        "import resource, signal, numpy as np; from torch_vit.pth import write_pth; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)); "
        f"write_pth({str(tmp_path / 'w.pth')!r}, {{'a': np.zeros(1 << 18, np.float32)}})"
    )
    done = fork_server.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert "UserError: cannot write" in done.stderr and "File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_jax_under_torchrun_says_one_process(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"torchrun started 4 processes.*--world_size=4"):
        find_place(RequestedConfig())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_place(parse(["--preset=digits"], "train")) is None


def test_changed_data_at_resume_names_the_files(tmp_path):
    photos = image_folder(tmp_path / "photos")
    flags = ("--data=folder", f"--data_dir={photos}", "--model=vit_nano2", "--image_size=8")
    length = ("--batch_size=8", "--steps=4", "--stop_at=2", "--workers=0", "--warmup_steps=1")
    assert train_here("torch", tmp_path / "run", *flags, *length) == 0
    (photos / "train/n01/n01_3.JPEG").unlink()
    (photos / "val/n02/new.jpg").write_bytes((photos / "val/n02/n02_0.JPEG").read_bytes())
    with open(photos / "train/n03/n03_1.JPEG", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError) as caught:
        train_here("torch", tmp_path / "run", "--resume", "--stop_at=4")
    said = str(caught.value)
    assert "train/n01/n01_3.JPEG is missing; val/n02/new.jpg is new; " in said
    assert "train/n03/n03_1.JPEG has another size or class" in said
