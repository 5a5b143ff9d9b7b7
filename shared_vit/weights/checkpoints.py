"""A run's checkpoints as files: which are intact, and which of them is the newest.

checkpoints/step_N/model.safetensors   canonical arrays with their ModelConfig
                   *.safetensors       the optimizer's state
                   state.json          everything else, and the checksums of all files
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_vit.checksummed import read_checksummed
from shared_vit.errors import UserError, some
from shared_vit.weights.containers.safetensors import OwnFile, open_own

MODEL, STATE = "model.safetensors", "state.json"


@dataclass(frozen=True)
class Opened:
    """A checkpoint with every byte of every file verified; arrays are read on access."""

    document: dict[str, Any]  # state.json
    files: dict[str, OwnFile]


@dataclass(frozen=True)
class Found:
    """The newest intact checkpoint, opened; a line for each newer one that was skipped."""

    path: Path
    step: int
    skipped: list[str]
    opened: Opened = field(compare=False, repr=False)


Accept = Callable[[Path, Opened], None]


def of_run(run_id: object, first_version: object) -> Accept:
    """Accepts the checkpoints of the run with this identity, and none that was copied in.

    Those of version 1 do not say which run they are of; a run that began with it has such.
    """

    def accept(path: Path, checkpoint: Opened) -> None:
        found = checkpoint.document.get("run")
        if found != run_id and not (found is None and first_version == 1):
            raise UserError(
                f"{path} was written by another run (--init_from={path} starts a new run from its "
                "weights)"
            )

    return accept


def newest_in(folder: Path, accept: Accept | None = None) -> Found | None:
    """The newest checkpoint in a folder of `step_N` that is intact; None without any checkpoint.

    All its files are there and unaltered. `accept` raises UserError for one to be skipped. Raises
    UserError if there are checkpoints and none of them is intact.
    """
    skipped: list[str] = []
    for step in steps(folder):
        path = folder / f"step_{step}"
        try:
            checkpoint = opened(path)
            found = checkpoint.document.get("step")
            if found != step:
                raise UserError(f"{path} holds step {found}: it was renamed")
            if accept is not None:
                accept(path, checkpoint)
            return Found(path, step, skipped, checkpoint)
        except UserError as error:
            skipped.append(f"{path.name}: {error}")
    if skipped:
        raise UserError(
            f"no checkpoint in {folder} is intact: {some(skipped)}. Replace them by copies, or "
            "remove the folder to begin again at step 0"
        )
    return None


def opened(path: Path) -> Opened:
    """Open a checkpoint.

    Raises UserError for a file that is missing, altered, or of another checkpoint.
    """
    try:
        document = read_checksummed(path / STATE)
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path / STATE}: {error.strerror}") from error
    checksums = document.get("checksums")
    if not isinstance(checksums, dict) or MODEL not in checksums:
        raise UserError(f"{path / STATE} does not say which files belong to it")
    files = {}
    for name, stated in checksums.items():
        if Path(name).name != name:
            raise UserError(f"{path / STATE}: its list of files leaves the folder")
        files[name] = open_own(path / name)
        if files[name].checksum != stated:
            raise UserError(
                f"{path / name} belongs to another checkpoint: its checksum is not the one in "
                f"{STATE}"
            )
    return Opened(document, files)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first, intact or not."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(
        (int(n[5:]) for n in names if re.fullmatch(r"step_(0|[1-9]\d{0,17})", n)), reverse=True
    )
