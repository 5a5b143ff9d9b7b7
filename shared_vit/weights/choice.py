"""Averaged or raw weights: `PATH#ema`, `PATH#raw`, and which of them a training checkpoint gives.

Many training programs save a moving average of the weights in addition to the weights. By default,
the set is taken that the loader of the program which wrote the file takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared_vit.errors import UserError, some

Which = Literal["ema", "raw"]
# Where training programs store the two. DINO's teacher is the average of its student.
RAW = (
    "model", "state_dict", "model_state_dict", "module", "student", "net", "network", "params",
    "weights", "target",
)  # fmt: skip
EMA = (
    "state_dict_ema", "model_ema", "teacher", "ema_state_dict", "model_state_dict_ema",
    "model_ema_state_dict", "ema_model", "params_ema", "ema_params", "ema",
)  # fmt: skip
# Keys that mean another thing next to each other: (averaged, raw) of Lightning's WeightAveraging,
# and of I-JEPA.
_PAIRS = (("state_dict", "current_model_state"), ("target_encoder", "encoder"))
# What the loaders of timm, DINO, Lightning and I-JEPA take, where it is an average.
_BY_ITSELF = ("state_dict_ema", "teacher", "state_dict", "target_encoder")
_NO_WEIGHTS = ("opt", "optimizer", "scaler", "scheduler", "loss", "args")
# The keys of checkpoints of DeiT's and MAE's programs.
_FACEBOOK = {"model", "optimizer", "epoch", "args", "scaler", "lr_scheduler", "model_ema"}
_DEEPEST = 4


@dataclass
class Said:
    """What was learnt on the way into a file: notices, and the family that its keys show."""

    notices: list[str] = field(default_factory=list)
    family: str | None = None  # of families.NAMES
    taken: Which | None = None  # the set that was requested, once it is found


def split_choice(path: str | os.PathLike) -> tuple[Path, Which | None]:
    """`(path, which)` of `PATH#ema`, `PATH#raw` or a path; one that is there is taken as it is."""
    text = os.fspath(path)
    for which in ("ema", "raw"):
        if text.endswith(f"#{which}") and not os.path.exists(text):
            return Path(text.removesuffix(f"#{which}")), which
    return Path(path), None


def chosen(
    content: Mapping[Any, Any],
    is_array: Callable[[Any], bool],
    which: Which | None,
    where: str | os.PathLike,
    said: Said,
    modules: bool = False,
) -> Mapping[Any, Any]:
    """The mapping with the weights, in the nested mappings of a training checkpoint.

    modules: mappings of names that are not known are modules of the model, as in Flax's trees.
    Adds to `said` which set was taken where there are two. Raises UserError where nothing tells
    which of several mappings holds the weights.
    """
    taken: Which | None = None
    for _ in range(_DEEPEST):
        holders = {str(k): v for k, v in content.items() if _holds(v, is_array)}
        ema, raw = _sets(holders)
        direct = any(is_array(v) for v in content.values())
        if direct and not (raw or ema):
            break
        if not holders or modules and not (raw or ema):
            break
        said.family = said.family or _family(content, holders)
        key, taken = _key(holders, ema, raw, which if taken is None else None, taken, where)
        if ema and raw:
            other = ema[0] if taken == "raw" else raw[0]
            kinds = ("raw", "averaged") if taken == "raw" else ("averaged", "raw")
            said.notices.append(
                f"the {kinds[0]} weights of {where} are taken ({key}); its {kinds[1]} ones "
                f"({other}) are {where}#{'ema' if taken == 'raw' else 'raw'}"
            )
        content = holders[key]
    said.taken = which if taken == which else None
    return content


def _sets(holders: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The keys of averaged and of raw weights."""
    for ema, raw in _PAIRS:
        if ema in holders and raw in holders:
            return [ema], [raw]
    return [k for k in EMA if k in holders], [k for k in RAW if k in holders]


def _key(
    holders: Mapping[str, Any],
    ema: list[str],
    raw: list[str],
    which: Which | None,
    taken: Which | None,
    where: str | os.PathLike,
) -> tuple[str, Which | None]:
    """The key to follow, and what it holds as far as it is known."""
    if which == "ema" and ema:
        return ema[0], "ema"
    if which != "raw":
        first = next((k for k in _BY_ITSELF if k in ema), None)
        if first is not None:
            return first, taken or "ema"
    if raw:
        return raw[0], taken or ("raw" if ema or which else None)
    if ema and which is None:
        return ema[0], taken or "ema"
    others = [k for k in holders if k not in ema and not k.lower().startswith(_NO_WEIGHTS)]
    if len(others) == 1:
        return others[0], taken
    raise UserError(
        f"{where} holds several sets of arrays, under the keys {some(sorted(holders), 8, ', ')}: "
        "save the model's state_dict by itself"
    )


def _holds(value: Any, is_array: Callable[[Any], bool], depth: int = 3) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(is_array(v) or (depth and _holds(v, is_array, depth - 1)) for v in value.values())


def _family(content: Mapping[Any, Any], holders: Mapping[str, Any]) -> str | None:
    if {"student", "teacher"} <= set(holders):
        return "dino"
    if {"encoder", "target_encoder"} <= set(holders):
        return "ijepa"
    keys = {str(key) for key in content}
    return "deit" if "model" in keys and keys <= _FACEBOOK else None
