"""`config.json`: what a run is, the one reader and writer of it.

Version 2 holds the recipe and the machine apart, an identity, and a checksum. Version 1, which the
first release wrote, held one flat table of flags and neither identity nor checksum.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_vit.checksummed import ChecksumMismatch, parse_object, verified, write_checksummed
from shared_vit.errors import UserError
from shared_vit.files import read_limited
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import FREE_FIELDS, Recipe
from shared_vit.spec.runtime import RuntimeConfig
from shared_vit.spec.settings import settings_of, written

VERSION = 2
_KEY = "twinvit_run"  # its value is the version
_MOST = 1 << 24
CONTENT = ("content", "content_full")
# Fields of RuntimeConfig that belong to one start of a run and not to the run.
PER_LAUNCH_FIELDS = ("run_dir", "stop_at", "coordinator", "num_processes", "process_id")


class NotARun(UserError):
    """A folder has no config.json, or that of another program."""


def new_id() -> str:
    """A random identity."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Record:
    """A run's recipe, machine, data and identity.

    id: random, the same in every checkpoint of the run; empty as read from a file of version 1.
    data: {"name", "fingerprint"}, and "content" and "content_full", checksums of what files hold,
    where they are known. first_version: the version of config.json that the run began
    with; checkpoints of version 1 have no id. left_open: settings of the machine that nobody chose,
    which each start of the run decides anew. origin: {"revision", "sha256" by file} of an init_from
    that was downloaded.
    """

    recipe: Recipe
    runtime: RuntimeConfig
    preset: str | None
    data: dict[str, str]
    id: str = field(default_factory=new_id)
    first_version: int = VERSION
    left_open: frozenset[str] = frozenset()
    origin: dict[str, Any] | None = None


def path_of(run_dir: str | Path) -> Path:
    return Path(run_dir) / "config.json"


def write_record(run_dir: str | Path, record: Record) -> None:
    """Write a run's config.json. Raises UserError where that fails."""
    fresh = {
        f.name: f.default for f in dataclasses.fields(RuntimeConfig) if f.name in PER_LAUNCH_FIELDS
    }
    write_checksummed(
        path_of(run_dir),
        {
            _KEY: VERSION,
            "id": record.id,
            "first_version": record.first_version,
            "preset": record.preset,
            "data": record.data,
            "left_open": sorted(record.left_open),
            "recipe": written(record.recipe),
            "machine": written(record.runtime) | fresh,
            **({} if record.origin is None else {"origin": record.origin}),
        },
    )


def read_record(run_dir: str | Path) -> Record:
    """The record of the run in a folder, of this version or an older one.

    Raises NotARun where there is none, and UserError where its config.json cannot be read, was
    altered, or is of a newer version.
    """
    path = path_of(run_dir)
    try:
        text = read_limited(path, _MOST)
    except FileNotFoundError:
        raise NotARun(f"{run_dir} holds no run: {path} is not there") from None
    document = parse_object(path, text)
    version = document.get(_KEY)
    if type(version) is not int or version < 1:
        raise NotARun(f"{path} is not the config of a run: it has no version ({_KEY})")
    if version > VERSION:
        raise UserError(
            f"{path} is of version {version}, this program reads up to {VERSION}: update it "
            "(pip install --upgrade twinvit)"
        )
    if version == 1:
        return _from_version_1(path, document)
    try:
        document = verified(path, text)
    except ChecksumMismatch as error:
        raise UserError(
            f"{error}: a run's settings never change. Restore the original file, or start a "
            f"new --run_dir with the settings you want (--init_from={run_dir} takes its weights)"
        ) from error
    try:
        return Record(
            recipe=Recipe.from_dict(document["recipe"], str(path)),
            runtime=RuntimeConfig.from_dict(document["machine"], str(path)),
            preset=_text(document["preset"]),
            data=_data(document["data"]),
            id=str(document["id"]),
            first_version=int(document["first_version"]),
            left_open=frozenset(document["left_open"]) & set(settings_of(RuntimeConfig)),
            origin=_origin(document.get("origin")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the config of a run: {error!r}") from error


def has_record(run_dir: str | Path) -> bool:
    """Whether a folder has a config.json, readable or not."""
    return path_of(run_dir).exists()


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, readable or not. Other programs have a config.json as well."""
    try:
        read_record(folder)
    except NotARun:
        return False
    except UserError:
        return (folder / "checkpoints").is_dir()
    return True


def run_of(path: str | Path) -> Path | None:
    """The folder of the run that a path is, or lies in as a checkpoint; None for other paths."""
    here, full = Path(path), Path(path).absolute()
    inner = [p.parent for p in (full, *full.parents) if p.name == "checkpoints"]
    return next((folder for folder in (here, *inner[:1]) if is_run(folder)), None)


def _from_version_1(path: Path, document: Mapping[str, Any]) -> Record:
    """Flags in one table, the model in another."""
    try:
        flags, model = dict(document["train"]), dict(document["model"])
        steps, data = document["total_steps"], _data(document["data"])
        preset = _text(flags.get("preset"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the config of a run: {error!r}") from error
    recipe = {name: flags[name] for name in settings_of(Recipe) if name in flags}
    runtime = {name: flags[name] for name in settings_of(RuntimeConfig) if name in flags}
    left_open = frozenset(n for n, value in runtime.items() if value in (None, "auto"))
    runtime = {n: value for n, value in runtime.items() if n not in left_open}
    where = str(path)
    return Record(
        recipe=Recipe.from_dict(recipe | {"model": model, "steps": steps}, where),
        runtime=RuntimeConfig.from_dict(dataclasses.asdict(RuntimeConfig()) | runtime, where),
        preset=preset,
        data=data,
        id="",
        first_version=1,
        left_open=left_open,
    )


def _data(value: Any) -> dict[str, str]:
    found = {"name": str(value["name"]), "fingerprint": str(value["fingerprint"])}
    return found | {n: str(value[n]) for n in CONTENT if n in value}


def _origin(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"revision": str(value["revision"]), "sha256": dict(value["sha256"])}


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"preset is {value!r:.80}")
    return value


def differences(known: Record, record: Record) -> list[str]:
    """What must be the same in two records of one run and is not, a line each.

    Where settings differ, the data that follow from them are left out.
    """
    found = []
    for f in dataclasses.fields(Recipe):
        a, b = getattr(known.recipe, f.name), getattr(record.recipe, f.name)
        if f.name == "model" or f.name in FREE_FIELDS or a == b:
            continue
        found.append(f"--{f.name} is {a} there, {b} here")
    a_model, b_model = known.recipe.model, record.recipe.model
    for f in dataclasses.fields(ModelConfig):
        a, b = getattr(a_model, f.name), getattr(b_model, f.name)
        if a != b:
            flag = "--" if f.name in MODEL_FLAGS else "the model's "
            found.append(f"{flag}{f.name} is {a} there, {b} here")
    if not found:
        found = [
            f"the data's {key} is {known.data[key]} there, {record.data[key]} here"
            for key in other_data(known.data, record.data)
        ]
    return found


def other_data(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """The keys by which two runs' data differ. A checksum that one of them does not have, as those
    of older versions, is not compared."""
    return [n for n in ("name", "fingerprint", *CONTENT) if n in a and n in b and a[n] != b[n]]


SIZE_FLAGS = ("patch_size", "width", "depth", "num_heads", "mlp_dim")
INPUT_FLAGS = ("eval_resize", "mean", "std", "interpolation", "exif")  # an image to the input
MODEL_FLAGS = frozenset(
    (
        "image_size",
        "num_classes",
        "pool",
        "pos_embed",
        "gelu",
        "dropout",
        "drop_path",
        *INPUT_FLAGS,
        *SIZE_FLAGS,
    )
)
