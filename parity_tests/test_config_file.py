"""--config holds any flags; those on the command line go before it, and it before the preset."""

import pytest

from shared_vit.errors import UserError
from shared_vit.run.command_line import parse

TOML = """
# A run of the digits.
preset = "digits"
steps = 30
lr = 1e-2
weight-decay = 0.5
clip = inf
randaug = "2,10"
keep = "all"
"""


@pytest.fixture
def config(tmp_path):
    def write(text: str):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return f"--config={path}"

    return write


def test_flags_go_before_the_file_and_it_before_the_preset(config):
    requested = parse([config(TOML), "--lr=0.25"], "x")
    assert (requested.lr, requested.weight_decay, requested.steps, requested.clip) == (
        0.25,
        0.5,
        30,
        float("inf"),
    )
    assert (requested.batch_size, requested.preset, requested.keep, requested.randaug) == (
        64,
        "digits",
        0,
        "2,10",
    )


def test_a_file_is_the_same_as_its_flags(config):
    flags = "--preset=digits --steps=30 --lr=1e-2 --weight_decay=0.5 --clip=inf --randaug=2,10"
    requested = parse([config(TOML)], "x")
    assert requested == parse([*flags.split(), "--keep=all"], "x")
    assert parse(requested.argv(), "x") == requested  # what is passed on to other processes


def test_a_length_on_the_command_line_replaces_that_of_the_file(config):
    assert parse([config(TOML), "--epochs=2"], "x").steps is None
    assert parse([config('preset = "digits"\nepochs = 2'), "--steps=5"], "x").steps == 5


def test_switches_take_true_or_false(config, tmp_path):
    with pytest.raises(UserError, match="--resume needs --run_dir"):
        parse([config("resume = true")], "x")
    assert not parse([config('preset = "digits"\nresume = false')], "x").resume


@pytest.mark.parametrize(
    "text, message",
    [
        ("lrr = 1", "unknown key 'lrr'; did you mean 'lr'"),
        ('config = "x"', "unknown key 'config'"),
        ('lr = "high"', "run.toml: argument --lr: invalid float value: 'high'"),
        ('device = "tpu"', "run.toml: argument --device: invalid choice"),
        ("lr = -1", "--lr must be above 0"),
        ("lr = [1]", "lr must be a text or a number, not"),
        ("lr = true", "lr must be a text or a number, not True"),
        ("[recipe]\nlr = 1", "unknown key 'recipe'"),
        ("resume = 1", "resume must be true or false, not 1"),
        ("lr = ", "is not TOML: Invalid value"),
    ],
)
def test_errors_name_file_and_key(config, text, message):
    with pytest.raises(UserError, match=message):
        parse([config(text), "--data=digits"], "x")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="absent.toml is not there"):
        parse([f"--config={tmp_path / 'absent.toml'}"], "x")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="binary.toml is not TOML"):
        parse([f"--config={tmp_path / 'binary.toml'}"], "x")
    with pytest.raises(UserError, match=str(tmp_path)):
        parse([f"--config={tmp_path}"], "x")
