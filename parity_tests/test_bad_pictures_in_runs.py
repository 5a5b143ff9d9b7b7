"""An image that cannot be decoded ends a run with everything before it saved, and is named."""

import os
import socket
import subprocess
import sys

import fork_server
import numpy as np
import pytest
from data_helpers import encoded, photo
from whole_runs import TWINS, environment, metrics, train_here

from shared_vit.data import open_dataset
from shared_vit.data.order import permutation
from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.weights.checkpoints import steps

BATCH, STEPS, BAD_STEP = 4, 14, 9  # the bad image is in the batch of that step, counted from 0
MODEL = ("--model=vit_nano2", "--image_size=8", "--data=folder")
FLAGS = (
    *MODEL, f"--batch_size={BATCH}", f"--steps={STEPS}", "--warmup_steps=2", "--workers=0",
    "--checkpoint_every=100", "--eval_every=100",
)  # fmt: skip


def folder(root, bad: str = "", row: int = 1):
    """40 training and 12 validation images; one of a split is no image, in this row of its
    batch."""
    for split, count in (("train", 20), ("val", 6)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = photo(i + len(name) * count, 20, 24)
                (root / split / name / f"{i:02d}.jpg").write_bytes(encoded(pixels))
    dataset = open_dataset("folder", str(root))
    shuffle_seed = int(np.random.SeedSequence(0).generate_state(2)[0])
    order = permutation(40, shuffle_seed, epoch=0)
    index = {"train": int(order[BAD_STEP * BATCH + row]), "val": BATCH + row}.get(bad)
    where = "" if index is None else getattr(dataset, bad).where(index)
    if where:
        with open(where, "wb") as file:
            file.write(b"<html>")
    return where


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def refused(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        train_here(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("twin", TWINS)
def test_a_bad_training_picture_saves_and_then_stops(tmp_path, twin):
    bad = folder(tmp_path / "photos", "train")
    good = f"--data_dir={tmp_path}/photos"
    said = refused(twin, tmp_path / "run", good, *FLAGS)
    assert f"cannot decode {bad}" in said
    assert f"The run is saved at step {BAD_STEP}: --resume continues it" in said
    assert steps(tmp_path / "run/checkpoints") == [BAD_STEP]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, BAD_STEP + 1))
    again = ("--resume", "--on_bad_image=skip")
    assert train_here(twin, tmp_path / "run", *again) == 0
    whole = ("--on_bad_image=skip", good, *FLAGS)
    assert train_here(twin, tmp_path / "whole", *whole) == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_bad_validation_picture_costs_no_update(tmp_path, capsys):
    bad = folder(tmp_path / "photos", "val")
    flags = (f"--data_dir={tmp_path}/photos", *FLAGS, "--eval_every=6")
    said = refused("torch", tmp_path / "run", *flags)
    assert f"cannot decode {bad}" in said and "saved at step 6" in said
    found = checkpoint.newest(tmp_path / "run")
    assert found.step == 6 and checkpoint.load(found)[1]["pending_evaluation"] is True
    said = refused("torch", tmp_path / "run", "--resume")  # the evaluation is done first
    assert "saved at step 6" in said and len(metrics(tmp_path / "run")) == 6
    assert train_here("torch", tmp_path / "run", "--resume", "--on_bad_image=skip") == 0
    assert sum("val_loss" in line for line in metrics(tmp_path / "run")) == 3


def test_a_bad_picture_among_the_first_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "BAD_STEP", 1)
    bad = folder(tmp_path / "photos", "train")
    said = refused("torch", tmp_path / "run", f"--data_dir={tmp_path}/photos", *FLAGS)
    assert f"cannot decode {bad}" in said and "saved" not in said
    assert steps(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_several_processes_stop_and_save_together(tmp_path, split):
    bad = folder(tmp_path / "photos", split)
    argv = [
        f"--data_dir={tmp_path}/photos", *FLAGS, "--eval_every=6", "--device=cpu", "--world_size=2",
        f"--run_dir={tmp_path}/run",
    ]  # fmt: skip
    code = "import sys; from twinvit.cli import main; main()"
    done = fork_server.run(
        [sys.executable, "-c", code, "train", "--framework=torch", *argv],
        capture_output=True, text=True, timeout=300, env=environment() | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    step = BAD_STEP if split == "train" else 6
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("error:") == 1 and f"error: cannot decode {bad}" in done.stderr
    assert f"saved at step {step}" in done.stderr
    assert checkpoint.newest(tmp_path / "run").step == step


@pytest.mark.parametrize("split, process", [("train", 1), ("val", 0)])
def test_several_processes_of_jax_save_and_then_stop(tmp_path, split, process):
    """Also where the one that writes has no bad image: each ends with status 2, one says why."""
    bad = folder(tmp_path / "photos", split, row=1 + 2 * process)
    argv = [
        f"--data_dir={tmp_path}/photos", *FLAGS, "--eval_every=6", "--device=cpu",
        f"--run_dir={tmp_path}/run", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "twinvit", "train", "--framework=jax", *argv]
    running = [
        fork_server.Popen(
            [*command, f"--process_id={i}"], text=True, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [each.communicate(timeout=300) for each in running]
    step = BAD_STEP if split == "train" else 6
    assert [each.returncode for each in running] == [2, 2], outputs
    errors = [err for _, err in outputs]
    assert f"error: cannot decode {bad}" in errors[process]
    assert f"The run is saved at step {step}: --resume continues it" in errors[process]
    assert "error" not in errors[1 - process] and "Check failure" not in "".join(errors)
    assert f"stopped at step {step}" in outputs[0][0]
    assert checkpoint.newest(tmp_path / "run").step == step


def test_all_images_can_be_checked_before_the_first_step(tmp_path, capsys):
    bad = folder(tmp_path / "photos", "val")
    flags = (f"--data_dir={tmp_path}/photos", *FLAGS, "--check_images=on")
    said = refused("torch", tmp_path / "run", *flags)
    assert f"1 of 52 images cannot be decoded: {bad}" in said
    assert not (tmp_path / "run").exists()
    assert train_here("torch", tmp_path / "run", *flags, "--on_bad_image=skip") == 0
    assert "notice: 1 of 52 images cannot be decoded" in capsys.readouterr().err
    os.remove(bad)
    assert train_here("torch", tmp_path / "other", *flags) == 0
