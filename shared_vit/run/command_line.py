"""Flags to `RequestedConfig`, the same for both trainers."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared_vit.cli.parser import Parser
from shared_vit.errors import UserError, nearest
from shared_vit.run.config_file import read_config
from shared_vit.run.presets import FROM_WEIGHTS, PRESETS
from shared_vit.run.record import (
    MODEL_FLAGS,
    PER_LAUNCH_FIELDS,
    SIZE_FLAGS,
    NotARun,
    read_record,
    run_of,
)
from shared_vit.run.requested import RequestedConfig, check_divides, check_processes, flags
from shared_vit.spec.config import DEFAULT_MODEL, ModelConfig, model_config
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from shared_vit.spec.settings import Kind, Setting, check_range, settings_of
from shared_vit.spec.sides import image_fields, plain

GROUPS = {
    "run": "the run",
    "data": "data",
    "model": "model",
    "length": "length",
    "optimizer": "optimizer",
    "machine": "devices and precision",
    "hosts": "several hosts",
    "proof": "proofs",
}
# What every start of a run decides anew where nobody chose it: another machine has other devices.
LEFT_OPEN = ("device", "world_size", "compile")
# What other programs call our flags, where the nearest spelling would mislead.
ELSEWHERE = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "heads": "num_heads",
    "bs": "batch_size",
    "warmup": "warmup_steps",
    "output": "run_dir",
    "out": "run_dir",
    "output_dir": "run_dir",
    "gpus": "world_size",
    "amp": "precision=bf16",
    "bf16": "precision=bf16",
    "fp16": "precision=fp16",
    "pretrained": "init_from",
    "checkpoint": "init_from",
    "evaluate": "mode=eval",
}
HEAD_WIDTH = 64  # of all published ViTs but the largest


def parse(argv: list[str], prog: str) -> RequestedConfig:
    """The requested config of a command line. Hyphens in names of flags equal underscores.

    Flags go before those of --config, and these before the preset's.
    A run that is resumed or evaluated takes from its own config.json what the flags leave open.
    Raises UserError for impossible values; exits with status 2, naming near flags, for unknown
    ones.
    """
    return _settled(vars(_parser(prog).parse_args(argv)))


def ask(argv: list[str], prog: str) -> RequestedConfig:
    """`parse` of flags from a program: what is wrong with them raises UserError."""
    return _settled(vars(_parser(prog, raises=True).parse_args(argv)))


def _settled(given: dict[str, Any]) -> RequestedConfig:
    if given.get("config"):
        of_file = _of_file(given.pop("config"))
        if "epochs" in given:
            of_file.pop("steps", None)  # which would override them
        given = of_file | given
    auto = {n for n, value in given.items() if value == "auto" and flags()[n][1].choices}
    requested, notice = _with_base({n: value for n, value in given.items() if n not in auto})
    requested = _implied(requested, auto.intersection(LEFT_OPEN))
    check(requested)
    requested = dataclasses.replace(
        requested, left_open=frozenset(n for n in LEFT_OPEN if getattr(requested, n) is None)
    )
    if notice and os.environ.get("RANK", "0") == "0":  # torchrun starts every rank with the same
        print(notice, file=sys.stderr, flush=True)
    return requested


def help_of_flags(without: tuple[str, ...]) -> str:
    """The groups of flags as `--help` shows them, some left out."""
    parser = _Parser(usage=argparse.SUPPRESS, add_help=False, formatter_class=_Formatter)
    _add_flags(parser, without)
    return parser.format_help()


def check(requested: RequestedConfig) -> None:
    """Check everything about flags that needs neither data nor devices. Raises UserError."""
    for name, (about, _, _) in flags().items():
        value = getattr(requested, name)
        check_range(name, value, about, "--{}")
        if isinstance(value, float) and (math.isnan(value) or math.isinf(value) and name != "clip"):
            raise UserError(f"--{name} must be a number, not {value}")
    _check_data(requested.data)
    if requested.data == "digits" and "data_dir" in requested.given:
        raise UserError(
            "--data_dir is given, and the digits are part of the package: use --data=folder "
            "--data_dir=DIR, or leave --data_dir out"
        )
    if requested.class_order != "name" and requested.data != "folder":
        raise UserError(
            f"--class_order={requested.class_order} is for class folders, --data=folder: the "
            f"classes of {requested.data} have an order of their own"
        )
    if requested.resume and "init_from" in requested.given:
        raise UserError(
            "--resume and --init_from exclude each other: a resumed run has its weights"
        )
    if requested.resume and requested.mode == "eval":
        raise UserError("--resume continues training: leave it out of --mode=eval")
    if requested.device == "cpu":
        check_processes(requested.world_size or 1)
    check_divides(requested, requested.world_size or 1)
    Recipe(**{k: v for k, v in requested.values_of(Recipe).items() if k != "steps"})
    if requested.record is None and requested.mode == "train" and not requested.init_from:
        named_model(requested, requested.num_classes or 1)


def _check_data(data: str) -> None:
    from shared_vit.data.sources import NAMES  # --help does not need the data's modules

    if data in NAMES[:3] or data.startswith("tfds:"):
        return
    name = data.lower().replace("-", "")
    hint = nearest(data, NAMES)
    if name in PRESETS and name not in NAMES:
        hint = f"; did you mean --preset={name}, or --data={PRESETS[name]['data']}?"
    raise UserError(f"unknown data set {data!r}{hint} Data sets: {', '.join(NAMES)}.")


def model_changes(requested: RequestedConfig, only_given: bool = False) -> dict[str, Any]:
    """Fields of ModelConfig that flags set: all flags, or only those on the command line.

    Sizes of a continued run do not change a model that is named on the command line.
    """
    named = SIZE_FLAGS if "model" in requested.given else ()
    names = [
        n for n in sorted(MODEL_FLAGS) if n in requested.given or not (only_given or n in named)
    ]
    found = {n: getattr(requested, n) for n in names if getattr(requested, n) is not None}
    return found | (image_fields(found["image_size"]) if "image_size" in found else {})


def named_model(requested: RequestedConfig, num_classes: int) -> ModelConfig:
    """The ModelConfig of --model with the sizes that flags change. Raises UserError."""
    changes = {"num_classes": num_classes} | model_changes(requested)
    if changes.get("pool") == "mean":
        changes["class_token"] = False
    if "width" in changes:
        changes = {"mlp_dim": 4 * changes["width"]} | changes
        if "num_heads" not in changes:
            if changes["width"] > HEAD_WIDTH and changes["width"] % HEAD_WIDTH:
                raise UserError(
                    f"--width={changes['width']} is not a multiple of {HEAD_WIDTH}: set --num_heads"
                )
            changes["num_heads"] = max(1, changes["width"] // HEAD_WIDTH)
    return model_config(requested.model or DEFAULT_MODEL, **changes)


def _of_file(path: str) -> dict[str, Any]:
    """The flags of --config=`path`."""
    switches = [name for name, (_, kind, _) in flags().items() if kind.type is bool]
    parser = _parser(f"--config={path}", raises=True)
    return vars(parser.parse_args(read_config(path, flags(), switches)))


def _with_base(given: dict[str, Any]) -> tuple[RequestedConfig, str | None]:
    """The flags and what they change, and a notice where the choice was not the user's."""
    if (preset := given.get("preset")) and preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"unknown preset {preset!r}{nearest(preset, PRESETS)} Presets: {known}.")
    if given.get("resume") and not given.get("run_dir"):
        raise UserError("--resume needs --run_dir: the directory of the run to continue")
    if given.get("resume"):
        try:
            return _of_run(given, Path(given["run_dir"])), None
        except NotARun as error:
            raise UserError(f"{error}: leave --resume out to begin a run there") from error
    if given.get("mode") == "eval":
        named = [path for path in (given.get("init_from"), given.get("run_dir")) if path]
        if not named:
            raise UserError("--mode=eval needs --init_from=WEIGHTS or --run_dir=RUN")
        from shared_vit.weights.choice import split_choice

        runs = (run_of(split_choice(path)[0]) for path in named)
        run = next((run for run in runs if run is not None), None)
        for path in named[:1]:  # with weights given, the folder of a run need not exist
            if not path.startswith("hf:") and not split_choice(path)[0].exists():
                raise UserError(
                    f"{path} is not there: expected a run, a checkpoint, a weight file, a model "
                    "folder, or hf:OWNER/NAME of the Hugging Face hub"
                )
        if run is not None:
            return _of_run(given, run), None
        if not given.get("init_from"):
            read_record(given["run_dir"])  # says what is wrong with it
    preset, notice = _preset(given)
    if notice and given.get("mode") == "eval":
        raise UserError(
            f"--init_from={given['init_from']} does not say what data to evaluate on: add --data "
            "and --data_dir, or --preset=digits"
        )
    if preset in FROM_WEIGHTS and not given.get("init_from"):
        raise UserError(f"--preset={preset} starts from weights: add --init_from")
    return RequestedConfig(given, PRESETS[preset] | {"preset": preset}), notice


def _preset(given: dict[str, Any]) -> tuple[str, str | None]:
    if preset := given.get("preset"):
        return preset, None
    data = given.get("data")
    if data == "folder":
        preset = "finetune" if given.get("init_from") else "folder"
        return preset, None if given.get("mode") == "eval" else _folder_notice(preset, given)
    if data or given.get("data_dir"):
        return "digits" if data == "digits" else "imagenet", None
    from shared_vit.data.sources.imagenet import find_imagenet, imagenet_places

    if find_imagenet():
        return "imagenet", None
    looked = ", ".join(str(p) for p in imagenet_places())
    return "digits", (
        "notice: no data set was named and no ImageNet found (looked for a train folder in "
        f"{looked}), so this run trains the digits preset: a small ViT on 1,797 handwritten "
        "digits. For ImageNet: --preset=imagenet --data_dir=DIR"
    )


def _folder_notice(preset: str, given: dict[str, Any]) -> str:
    base = PRESETS[preset]
    shown = {n: v for n, v in (base | given).items() if n in base and n != "data" and v is not None}
    settings = ", ".join(f"{n} {v}" for n, v in shown.items())
    if "warmup_steps" not in given:
        settings += ", warm-up a twentieth of the steps"
    return (
        f"notice: no preset was named, so this run has those of {preset} ({settings}); "
        "flags change them, `twinvit presets` lists others"
    )


def _of_run(given: dict[str, Any], run: Path) -> RequestedConfig:
    """The flags, and the settings of a run as their base."""
    record = read_record(run)
    if given.get("preset") not in (None, record.preset):
        raise UserError(
            f"--preset={given['preset']}, and the run in {run} began with {record.preset or 'none'}"
            ": leave --preset out, or set single flags (--data, --data_dir, ...)"
        )
    own = dataclasses.asdict(record.recipe) | dataclasses.asdict(record.runtime)
    base = {n: own[n] for table in (Recipe, RuntimeConfig) for n in settings_of(table)}
    base |= {n: getattr(record.recipe.model, n) for n in MODEL_FLAGS}
    base["image_size"] = plain(record.recipe.model.image_shape)
    base |= dict.fromkeys((*PER_LAUNCH_FIELDS, *record.left_open))
    base |= {"preset": record.preset, "run_dir": given.get("run_dir")}
    if given.get("mode") == "eval":  # of the run's newest checkpoint, on whatever devices are here
        base |= dict.fromkeys(("init_from", *LEFT_OPEN))
    return RequestedConfig(given, base, record)


def _implied(requested: RequestedConfig, auto: Iterable[str]) -> RequestedConfig:
    """What some flags mean for others that were left open; `auto` are left open by their value."""
    base = dict(requested.base) | dict.fromkeys(auto)
    new = requested.record is None
    if (
        new
        and requested.preset == "cifar10"
        and requested.data_dir
        and "data" not in requested.given
    ):
        base["data"] = "folder"
    model = requested.given.get("model")
    if new and requested.data == "digits" and model is not None:
        if "image_size" not in requested.given:
            patch = requested.patch_size or model_config(model).patch_size
            base["image_size"] = 8 if 8 % patch == 0 else 2 * patch
    if requested.optimizer == "adam" and "weight_decay" not in requested.given:
        base["weight_decay"] = 0.0
    if "epochs" in requested.given and "steps" not in requested.given:
        base["steps"] = None
    return dataclasses.replace(requested, base=base)


class _Parser(Parser):
    """The flags of training, whose help has groups."""

    elsewhere = ELSEWHERE
    format_help = argparse.ArgumentParser.format_help


def _parser(prog: str, raises: bool = False) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--flag=value ...]",
        argument_default=argparse.SUPPRESS,
        formatter_class=_Formatter,
        description="Train or evaluate a Vision Transformer. Both twins take the same flags.",
    )
    parser.raises = raises
    _add_flags(parser)
    return parser


def _add_flags(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    groups = {key: parser.add_argument_group(title) for key, title in GROUPS.items()}
    for name, (about, kind, default) in flags().items():
        if name not in without:
            groups[about.group].add_argument(f"--{name}", **_argument(about, kind, default))


def _argument(about: Setting, kind: Kind, default: Any) -> dict[str, Any]:
    by_default = about.open or _shown(default)
    text = about.help + (f" Default: {by_default}." if by_default else "")
    text = text.replace("%", "%%")
    if kind.type is bool:
        return {"action": "store_true", "help": text}
    if kind.choices:
        choices = (*kind.choices, "auto") if about.open else kind.choices
        return {"choices": choices, "help": text, "metavar": "{" + ",".join(choices) + "}"}
    metavar = about.metavar or {int: "N", float: "X", str: "TEXT"}[kind.type]
    return {"type": about.parse or kind.type, "help": text, "metavar": metavar}


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return ""
    return f"{default:g}" if isinstance(default, float) else f"{default}"


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        width = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=26, width=width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width)
