"""Claim: a run that is resumed or evaluated keeps what its record says where no flag says
otherwise, and messages name only flags."""

import pytest

from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.record import Record, write_record
from shared_vit.spec.config import model_config
from shared_vit.spec.machine import Machine
from shared_vit.spec.recipe import Recipe


def write_run(folder, preset: str | None = "digits", model: str = "vit_nano2", **recipe) -> None:
    recipe = dict(data="digits", batch_size=64, model=model_config(model, 10, 8)) | recipe
    data = {"name": "x", "fingerprint": "1234"}
    write_record(folder, Record(Recipe(**recipe), Machine(compile="on"), preset, data))


@pytest.mark.parametrize("flag", ["--resume", "--mode=eval"])
def test_the_data_of_a_run_stay_where_only_their_place_is_given(flag, tmp_path):
    """Of a new run of cifar10 a --data_dir means a folder of pictures."""
    write_run(tmp_path, "cifar10", data="tfds:cifar10")
    asked = parse([flag, f"--run_dir={tmp_path}", "--data_dir=x"], "x")
    assert (asked.data, asked.data_dir) == ("tfds:cifar10", "x")
    asked = parse([flag, f"--run_dir={tmp_path}", "--data_dir=x", "--data=folder"], "x")
    assert asked.data == "folder"


@pytest.mark.parametrize("flag", ["--resume", "--mode=eval"])
def test_another_preset_than_the_run_s_is_refused(flag, tmp_path):
    """It was ignored: a run has its settings."""
    write_run(tmp_path)
    run = [flag, f"--run_dir={tmp_path}"]
    with pytest.raises(UserError, match="unknown preset 'digit'; did you mean 'digits'"):
        parse([*run, "--preset=digit"], "x")
    with pytest.raises(UserError, match="--preset=folder, and the run in .* began with digits"):
        parse([*run, "--preset=folder"], "x")
    assert parse([*run, "--preset=digits"], "x").preset == "digits"


def test_auto_leaves_a_device_open_that_the_run_was_given(tmp_path):
    """Where it has a meaning; for text it is a text as any other."""
    write_run(tmp_path)
    run = ["--resume", f"--run_dir={tmp_path}"]
    asked = parse(run, "x")
    assert (asked.device, asked.compile, asked.precision) == ("cpu", "on", "fp32")
    asked = parse([*run, "--device=auto", "--compile=auto", "--precision=auto"], "x")
    assert (asked.device, asked.compile, asked.precision) == (None, None, "fp32")
    assert asked.left_open == {"device", "compile"} and "device" not in asked.given
    assert parse(["--preset=digits", "--run_dir=auto"], "x").run_dir == "auto"
