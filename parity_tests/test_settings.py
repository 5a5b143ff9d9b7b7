"""Claim: a new setting is one line, and every older file keeps its meaning."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import TINY, random_arrays

from shared_vit.errors import UserError
from shared_vit.run import requested
from shared_vit.run.command_line import parse
from shared_vit.run.flag_types import FlagTypes
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from shared_vit.spec.settings import restore, setting, settings_of, written
from shared_vit.weights.formats import twinvit

pytestmark = pytest.mark.quick


@dataclass(frozen=True)
class NewModel(ModelConfig):
    token_scale: float = setting(1e-5, "Scale of tokens.", group="model", historical=0.0)


@dataclass(frozen=True)
class NewRecipe(Recipe):
    token_mixing: float = setting(0.8, "Tokens mixed.", group="data", ge=0, historical=0.0)


@dataclass(frozen=True)
class NewMachine(RuntimeConfig):
    pin_memory: bool = setting(True, "Pin the memory.", group="machine", historical=False)


GROWN = {NewModel: "token_scale", NewRecipe: "token_mixing", NewMachine: "pin_memory"}


@pytest.mark.parametrize("new", GROWN)
def test_an_older_file_keeps_its_meaning(new):
    old, name = new.__base__, GROWN[new]
    values = dataclasses.asdict(old())
    grown = restore(new, values, "config.json")
    assert getattr(grown, name) == 0 != getattr(new(), name)
    assert restore(new, dataclasses.asdict(grown), "config.json") == grown
    assert {n: v for n, v in dataclasses.asdict(grown).items() if n != name} == values
    with pytest.raises(UserError, match=f"unknown fields .*{name}"):
        restore(old, dataclasses.asdict(grown), "config.json")  # read by the older program


# As version 0.2 wrote it.
B16 = (
    '{"class_token": true, "depth": 12, "drop_path": 0.0, "dropout": 0.0, "eval_resize": '
    '1.1428571428571428, "gelu": "erf", "image_size": 224, "interpolation": "bilinear", "mean": '
    '[0.485, 0.456, 0.406], "mlp_dim": 3072, "norm_after_pool": false, "norm_eps": 1e-06, '
    '"num_classes": 1000, "num_heads": 12, "patch_size": 16, "pool": "token", "pool_class_token": '
    'false, "pos_embed": "learned", "pre_logits": 0, "std": [0.229, 0.224, 0.225], "width": 768}'
)


def test_a_new_field_changes_no_file_that_does_not_use_it(tmp_path):
    """Weight files and records, byte for byte; what does use it is written."""
    assert ModelConfig().to_json() == NewModel(token_scale=0.0).to_json() == B16
    assert json.loads(NewModel().to_json())["token_scale"] == 1e-5
    for new, name in GROWN.items():
        old = written(new.__base__())
        grown = restore(new, old, "x")
        assert written(grown) == old and name in written(new())
    cfg = dataclasses.replace(TINY, depth=1)
    files = [tmp_path / "old.safetensors", tmp_path / "new.safetensors"]
    for file, kind in zip(files, (ModelConfig, NewModel)):
        twinvit.write(file, restore(kind, written(cfg), "x"), random_arrays(cfg))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_version_2_wrote_is_written():
    """Fields that it knew and that have a history, and none that it did not know."""
    config = json.loads((Path(__file__).parent / "fixtures" / "config_0.2.json").read_text())
    recipe, runtime = (config[name].keys() for name in ("recipe", "machine"))
    assert written(Recipe()).keys() == recipe
    assert written(RuntimeConfig()).keys() == runtime


def test_a_field_without_a_history_is_missed():
    values = dataclasses.asdict(ModelConfig())
    del values["eval_resize"], values["interpolation"]
    assert restore(ModelConfig, values, "x").interpolation == "bilinear"
    del values["width"]
    with pytest.raises(UserError, match=r"missing fields \['width'\]"):
        restore(ModelConfig, values, "x")


def test_a_new_setting_is_a_flag(monkeypatch, capsys):
    assert "token_mixing" not in requested.flags()
    monkeypatch.setattr(requested, "TABLES", (requested.LaunchArguments, NewRecipe, NewMachine))
    monkeypatch.setitem(requested._DEFAULTS, "token_mixing", 0.8)
    monkeypatch.setitem(requested._DEFAULTS, "pin_memory", True)
    assert {"token_mixing", "pin_memory"} <= requested.flags().keys()
    found = parse(["--preset=digits", "--token_mixing=0.5"], "x")
    assert found.token_mixing == 0.5 and found.pin_memory is True
    with pytest.raises(UserError, match="--token_mixing must be at least 0"):
        parse(["--preset=digits", "--token_mixing=-1"], "x")
    with pytest.raises(SystemExit):
        parse(["--help"], "x")
    assert "--token_mixing X" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("width", 1.5, "expected int"),
        ("width", True, "expected int"),
        ("norm_eps", "1e-6", "expected float"),
        ("norm_eps", float("nan"), "not a number"),
        ("norm_eps", 10**400, "expected float"),
        ("class_token", 1, "expected bool"),
        ("pool", "max", "expected one of"),
        ("mean", 0.5, "expected tuple"),
        ("mean", [0.5, "a", 0.5], r"mean\[1\]: expected float"),
        ("std", [0.5, 0.5], "must be three numbers"),
    ],
)
def test_wrong_types_are_named(name, value, message):
    with pytest.raises(UserError, match=message):
        restore(ModelConfig, dataclasses.asdict(ModelConfig()) | {name: value}, "x")


def test_type_checkers_know_every_flag():
    """Its own type, or also None where something else may decide it; any other name is refused."""
    of_settings = {}
    for table in requested.TABLES:
        hints = typing.get_type_hints(table)
        for name, about in settings_of(table).items():
            of_settings[name] = hints[name] | None if about.open else hints[name]
    assert typing.get_type_hints(FlagTypes) == of_settings, "bring flag_types.py up to date"
    assert not vars(FlagTypes).keys() & of_settings.keys()  # a value would hide the user's
    with pytest.raises(AttributeError, match="there is no flag --learning_rate"):
        parse(["--preset=digits"], "x").learning_rate  # noqa: B018
