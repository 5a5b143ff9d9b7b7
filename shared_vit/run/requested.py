"""`RequestedConfig`: the flags of a user, before data and devices decide what is left open."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shared_vit.cores import cores
from shared_vit.errors import UserError
from shared_vit.run.flag_types import FlagTypes
from shared_vit.run.presets import PRESETS
from shared_vit.run.record import Record
from shared_vit.spec.config import IMAGENET_MEAN, IMAGENET_STD
from shared_vit.spec.input import colours
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from shared_vit.spec.settings import Kind, Setting, kinds_of, setting, settings_of
from shared_vit.spec.sides import Sides, parse_sides


@dataclass(frozen=True)
class LaunchArguments:
    """Flags about one start of a run, and those that decide fields of other names."""

    preset: str | None = setting(
        None,
        f"{', '.join(PRESETS)}: settings, which the other flags then change; `twinvit presets` "
        "describes them.",
        group="run",
        open="that of --data (of a folder: finetune with --init_from), else imagenet where it is "
        "found, else digits",
    )
    config: str | None = setting(
        None,
        "TOML file of flags by name, a line each (lr = 1e-3). Flags given here go before it, it "
        "goes before the preset.",
        group="run",
        metavar="FILE",
    )
    mode: Literal["train", "eval"] = setting(
        "train",
        "eval evaluates --init_from, or the newest checkpoint of --run_dir, on the validation "
        "split.",
        group="run",
    )
    resume: bool = setting(
        False, "Continue the run in --run_dir, whichever twin wrote it.", group="run"
    )
    epochs: float = setting(
        300.0,
        "Length of the run and of the schedule in passes over the training split.",
        group="length",
        gt=0,
        le=1e9,
    )
    model: str | None = setting(
        None,
        "vit_ti16, vit_s16, vit_s32, vit_b16 (also: vit), vit_b32, vit_l16, vit_l32, vit_h14, "
        "vit_g14, vit_gg14, vit_ti4, vit_mini4, vit_nano2.",
        group="model",
        open="that of the preset or of the weights, else vit_b16",
    )
    image_size: Sides = setting(
        224,
        "Side of the square input in pixels, or height and width as in 32,96; the patch must "
        "divide them.",
        group="model",
        ge=1,
        parse=parse_sides,
        metavar="N",
        open="that of the preset or of the weights, else 224",
    )
    num_classes: int = setting(
        1000, "Classes of the head.", group="model", ge=1, open="those of the data"
    )
    pool: Literal["token", "mean"] = setting(
        "token",
        "token: class token; mean: no class token, mean over the patches.",
        group="model",
        open="token, or that of the weights",
    )
    pos_embed: Literal["learned", "sincos2d"] = setting(
        "learned",
        "Position embedding, learned or fixed 2-D sines and cosines.",
        group="model",
        open="learned, or that of the weights",
    )
    gelu: Literal["erf", "tanh"] = setting(
        "erf", "Form of GELU.", group="model", open="erf, or that of the weights"
    )
    patch_size: int = setting(
        16,
        "Side of a patch in pixels, where it is not that of --model.",
        group="model",
        ge=1,
        open="that of --model",
    )
    width: int = setting(
        768,
        "Width of a model without a name; heads and MLP follow from it where they are not given.",
        group="model",
        ge=1,
        open="that of --model",
    )
    depth: int = setting(
        12, "Blocks of a model without a name.", group="model", ge=1, open="those of --model"
    )
    num_heads: int = setting(
        12,
        "Heads of a model without a name, or of one read by --init_from from a file that does not "
        "say.",
        group="model",
        ge=1,
        open="those of --model or of the file; with --width, width / 64",
    )
    mlp_dim: int = setting(
        3072,
        "Width of the MLPs of a model without a name.",
        group="model",
        ge=1,
        open="that of --model; with --width, 4 x width",
    )
    dropout: float = setting(
        0.0,
        "Dropout after the position embedding, the attention's output, GELU and the second MLP "
        "product.",
        group="model",
    )
    drop_path: float = setting(
        0.0,
        "Stochastic depth: the rate at which a row skips a branch of the last block, linear from 0 "
        "in the first.",
        group="model",
    )
    eval_resize: float = setting(
        256 / 224,
        "Evaluation: the shorter side is resized to this times --image_size, then the centre is "
        "cropped; 1: no margin; 0: squash to a square.",
        group="model",
        open="1.143, or that of the weights",
    )
    mean: tuple[float, float, float] = setting(
        IMAGENET_MEAN,
        "Mean of red, green and blue in [0, 1], R,G,B or one number, which is taken off pixels.",
        group="model",
        open="ImageNet's, or that of the weights",
        parse=colours,
        metavar="R,G,B",
    )
    std: tuple[float, float, float] = setting(
        IMAGENET_STD,
        "Standard deviation of red, green and blue, by which the pixels are divided.",
        group="model",
        open="ImageNet's, or that of the weights",
        parse=colours,
        metavar="R,G,B",
    )
    interpolation: Literal["bilinear", "bicubic"] = setting(
        "bilinear",
        "Filter of the resize in evaluation.",
        group="model",
        open="bilinear, or that of the weights",
    )
    exif: Literal["ignore", "turn"] = setting(
        "ignore",
        "Orientation in a photograph's EXIF: ignore it, or turn the image upright. It goes with "
        "the weights.",
        group="model",
        open="ignore, or that of the weights",
    )


CPU_DEVICES_PER_CORE = 8  # more are refused: each is a process of torch, or threads of JAX
TABLES: tuple[type, ...] = (LaunchArguments, Recipe, RuntimeConfig)


def flags() -> dict[str, tuple[Setting, Kind, Any]]:
    """`{name: (Setting, Kind, default)}` of every flag; a default of None is left open."""
    found: dict[str, tuple[Setting, Kind, Any]] = {}
    for table in TABLES:
        about, kinds = settings_of(table), kinds_of(table)
        for f in dataclasses.fields(table):
            if f.name in about:
                found[f.name] = (about[f.name], kinds[f.name], f.default)
    return found


_DEFAULTS = {name: None if s.open else default for name, (s, _, default) in flags().items()}


@dataclass(frozen=True)
class RequestedConfig(FlagTypes):
    """Flags by name, as attributes: given ones, else those of the preset or of the run that is
    continued, else defaults; None where data or devices decide.

    given: on the command line. base: of the preset, or of `record`, the run continued or evaluated.
    left_open: settings of the machine that nobody has chosen.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    record: Record | None = None
    left_open: frozenset[str] = frozenset()

    if not TYPE_CHECKING:  # checkers know the flags by FlagTypes, and report any other name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name in ("given", "base", "record", "left_open"):
                raise AttributeError(name)  # while it is unpickled
            for values in (self.given, self.base, _DEFAULTS):
                if name in values:
                    return values[name]
            raise AttributeError(f"there is no flag --{name}")

    def replace(self, **changes: Any) -> RequestedConfig:
        """The same with other flags given."""
        return dataclasses.replace(self, given={**self.given, **changes})

    def argv(self, *without: str) -> list[str]:
        """The given flags as a command line, some left out."""
        given = {n: v for n, v in self.given.items() if n not in without}
        if given.get("keep") == 0:
            given["keep"] = "all"
        return [f"--{n}" if v is True else f"--{n}={_as_text(v)}" for n, v in given.items()]

    def values_of(self, table: type) -> dict[str, Any]:
        """`{field: value}` of a table of settings, open ones left out."""
        values = {name: getattr(self, name) for name in settings_of(table)}
        return {name: value for name, value in values.items() if value is not None}


def _as_text(value: Any) -> str:
    return ",".join(map(repr, value)) if isinstance(value, tuple) else f"{value}"


def check_processes(world_size: int) -> None:
    """Raise UserError for many more devices on the CPU than it has cores."""
    if os.environ.get("LOCAL_WORLD_SIZE"):
        return  # torchrun has started them, on however many hosts
    most = CPU_DEVICES_PER_CORE * cores()
    if world_size > most:
        raise UserError(
            f"--world_size={world_size} with --device=cpu: this machine has {cores()} "
            f"cores, and at most {most} devices make sense on it: use --world_size={most} or less"
        )


def check_divides(requested: RequestedConfig, world_size: int, processes: int = 1) -> None:
    """Raise UserError unless every device and part takes the same number of rows of the batch.

    With mixing these are pairs of rows, and with groups of SAM each has as many of every group.
    """
    from shared_vit.data.mixing import check_mixing  # which import numpy, and flags do not
    from shared_vit.spec.sam import check_sam_groups

    parts = processes * world_size * requested.grad_accum
    if requested.batch_size % parts:
        several = f"{processes} processes x " if processes > 1 else ""
        raise UserError(
            f"--batch_size={requested.batch_size} is not divisible by {several}"
            f"--world_size={world_size} x --grad_accum={requested.grad_accum}: every device takes "
            "the same number of rows"
        )
    check_mixing(requested.batch_size, parts, requested.mixup, requested.cutmix)
    if requested.sam_rho:
        check_sam_groups(requested.batch_size, parts, requested.sam_groups)
