"""Claim: a run that is resumed or evaluated keeps what its record says where no flag says
otherwise, and messages name only flags."""

import pytest

from shared_vit.run.command_line import parse
from shared_vit.run.record import Record, write_record
from shared_vit.spec.config import model_config
from shared_vit.spec.machine import Machine
from shared_vit.spec.recipe import Recipe


def write_run(folder, preset: str | None = "digits", model: str = "vit_nano2", **recipe) -> None:
    recipe = dict(data="digits", batch_size=64, model=model_config(model, 10, 8)) | recipe
    record = Record(Recipe(**recipe), Machine(), preset, {"name": "x", "fingerprint": "1234"})
    write_record(folder, record)


@pytest.mark.parametrize("flag", ["--resume", "--mode=eval"])
def test_the_data_of_a_run_stay_where_only_their_place_is_given(flag, tmp_path):
    """Of a new run of cifar10 a --data_dir means a folder of pictures."""
    write_run(tmp_path, "cifar10", data="tfds:cifar10")
    asked = parse([flag, f"--run_dir={tmp_path}", "--data_dir=x"], "x")
    assert (asked.data, asked.data_dir) == ("tfds:cifar10", "x")
    asked = parse([flag, f"--run_dir={tmp_path}", "--data_dir=x", "--data=folder"], "x")
    assert asked.data == "folder"
