"""Flags to a TrainConfig, the same for both trainers."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from shared_vit.data.sources.imagenet import find_imagenet, imagenet_places
from shared_vit.errors import UserError, nearest
from shared_vit.spec.config import model_config
from shared_vit.spec.recipe import PRESETS, TrainConfig, validate


def parse(argv: list[str], prog: str) -> TrainConfig:
    """The TrainConfig of a command line. Fields that only data or devices can tell stay None.

    A run that is resumed, or evaluated without --init_from, takes what the flags leave open from its own config.json.
    Raises UserError for impossible values; exits with status 2, naming near flags, for unknown ones.
    """
    import tyro

    default, notice = _defaults(argv)
    cfg = tyro.cli(TrainConfig, args=argv, default=default, prog=prog, use_underscores=True)
    if cfg.preset == "cifar10" and cfg.data_dir and _flag(argv, "data") is None:
        cfg = dataclasses.replace(cfg, data="folder")
    if (
        cfg.data == "digits"
        and _flag(argv, "model")
        and _flag(argv, "image_size") is None
        and not cfg.resume
    ):
        patch = model_config(cfg.model).patch_size
        cfg = dataclasses.replace(cfg, image_size=8 if 8 % patch == 0 else 2 * patch)
    if cfg.optimizer == "adam" and _flag(argv, "weight_decay") is None:
        cfg = dataclasses.replace(cfg, weight_decay=0.0)
    if cfg.resume and _flag(argv, "init_from"):
        raise UserError(
            "--resume and --init_from exclude each other: a resumed run has its weights"
        )
    validate(cfg)
    if (
        notice and os.environ.get("RANK", "0") == "0"
    ):  # torchrun starts every rank with the same flags
        print(notice, file=sys.stderr, flush=True)
    return cfg


def _defaults(argv: list[str]) -> tuple[TrainConfig, str | None]:
    """What the flags change, and a notice where the choice was not the user's."""
    preset, data, run_dir = (_flag(argv, name) for name in ("preset", "data", "run_dir"))
    evaluates = _flag(argv, "mode") == "eval" and _flag(argv, "init_from") is None
    if "--resume" in argv or (evaluates and run_dir):
        if not run_dir:
            raise UserError("--resume needs --run_dir: the directory of the run to continue")
        return dataclasses.replace(
            read_run_config(Path(run_dir)), run_dir=run_dir, resume=False, stop_at=None
        ), None
    if preset:
        if preset not in PRESETS:
            raise UserError(
                f"unknown preset {preset!r}{nearest(preset, PRESETS)} Presets: {', '.join(PRESETS)}."
            )
        return PRESETS[preset], None
    if data or _flag(argv, "data_dir"):
        return PRESETS["digits" if data == "digits" else "imagenet"], None
    if find_imagenet():
        return PRESETS["imagenet"], None
    looked = ", ".join(str(p) for p in imagenet_places())
    return PRESETS["digits"], (
        f"notice: no data set was named and no ImageNet found (looked for a train folder in {looked}), so this run trains "
        "the digits preset: a small ViT on 1,797 handwritten digits. For ImageNet: --preset=imagenet --data_dir=DIR"
    )


def read_run_config(run_dir: Path) -> TrainConfig:
    """The TrainConfig that a run directory was made with. Raises UserError where there is none."""
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text())["train"]
    except FileNotFoundError:
        raise UserError(f"{run_dir} holds no run: {path} is not there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config of a run: {error}") from None
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    if set(values) - known:
        raise UserError(
            f"{path} has fields that this version does not know: {sorted(set(values) - known)}"
        )
    return TrainConfig(**values)


def _flag(argv: list[str], name: str) -> str | None:
    """The value of --name=value or --name value."""
    for i, arg in enumerate(argv):
        if arg == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if arg.startswith(f"--{name}="):
            return arg.split("=", 1)[1]
    return None
