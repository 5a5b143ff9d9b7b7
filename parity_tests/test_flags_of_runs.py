"""Claim: a run that is resumed or evaluated keeps what its record says where no flag says
otherwise, and messages name only flags."""

import pytest

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import named_model, parse
from shared_vit.run.plan import make_plan
from shared_vit.run.record import Record, differences, read_record, write_record
from shared_vit.spec import init
from shared_vit.spec.config import model_config
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig


def write_run(folder, preset: str | None = "digits", model: str = "vit_nano2", **recipe) -> None:
    recipe = dict(data="digits", batch_size=64, model=model_config(model, 10, 8)) | recipe
    folder.mkdir(exist_ok=True)
    data = {"name": "x", "fingerprint": "1234"}
    write_record(folder, Record(Recipe(**recipe), RuntimeConfig(compile="on"), preset, data))


@pytest.mark.parametrize("flag", ["--resume", "--mode=eval"])
def test_the_data_of_a_run_stay_where_only_their_place_is_given(flag, tmp_path):
    """Of a new run of cifar10 a --data_dir means a folder of images."""
    write_run(tmp_path, "cifar10", data="tfds:cifar10")
    requested = parse([flag, f"--run_dir={tmp_path}", "--data_dir=x"], "x")
    assert (requested.data, requested.data_dir) == ("tfds:cifar10", "x")
    requested = parse([flag, f"--run_dir={tmp_path}", "--data_dir=x", "--data=folder"], "x")
    assert requested.data == "folder"


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
    requested = parse(run, "x")
    assert (requested.device, requested.compile, requested.precision) == ("cpu", "on", "fp32")
    requested = parse([*run, "--device=auto", "--compile=auto", "--precision=auto"], "x")
    assert (requested.device, requested.compile, requested.precision) == (None, None, "fp32")
    assert requested.left_open == {"device", "compile"} and "device" not in requested.given
    assert parse(["--preset=digits", "--run_dir=auto"], "x").run_dir == "auto"


def test_a_mean_with_a_class_token_is_a_mean(tmp_path):
    """--pool=mean of a new model leaves the class token out; of weights it says nothing of it."""
    cfg = model_config("vit_nano2", 10, 8, pool="mean")
    weights.write(tmp_path / "w.safetensors", cfg, init.draw(cfg, 0))
    start = ["--preset=digits", f"--init_from={tmp_path / 'w.safetensors'}", "--pool=mean"]
    for flags in (start, [*start, "--mode=eval"]):
        requested = parse([*flags, "--device=cpu", "--world_size=1"], "x")
        assert make_plan(requested, "torch").model.class_token
    with pytest.raises(UserError, match="flags: --pool=token, and they have mean$"):
        make_plan(parse([*start, "--mode=eval", "--pool=token"], "x"), "torch")
    assert not named_model(parse(["--preset=digits", "--pool=mean"], "x"), 10).class_token

    write_run(tmp_path / "token")
    requested = parse(["--resume", f"--run_dir={tmp_path / 'token'}", "--pool=mean"], "x")
    found = make_plan(requested.replace(world_size=1), "torch").record()
    assert differences(read_record(tmp_path / "token"), found) == [
        "--pool is token there, mean here"
    ]
