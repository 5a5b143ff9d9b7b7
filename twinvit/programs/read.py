"""Running a program that `twinvit.export` wrote, by its card."""

from __future__ import annotations

import os
from pathlib import Path

from shared_vit.errors import UserError
from shared_vit.files import open_regular
from shared_vit.weights.locate import card_path, checksum, read_json
from twinvit.programs.target import Run, target_of
from twinvit.programs.write import FORMAT, VERSION


def load_program(path: str | os.PathLike) -> Run:
    """The program at `path`, on the CPU: uint8 [B, S, S, 3] -> probabilities float32 [B, classes],
    or features [B, width], as its card says.

    Without this package, the framework's own call loads it (docs/export.md). Raises UserError for a
    file without its card, one that was altered since, and a missing package.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is not there: expected a program that `twinvit export` wrote")
    card = read_json(card_path(path))
    if card.get("format") != FORMAT or not isinstance(card.get("target"), str):
        raise UserError(f"{card_path(path)} is no card of a program: `twinvit export` writes one")
    if card.get("format_version") != VERSION:
        raise UserError(
            f"{card_path(path)} is of version {card.get('format_version')!r:.40}, and this program "
            f"reads {VERSION}: pip install --upgrade twinvit"
        )
    if card.get("sha256") != checksum(path):
        raise UserError(
            f"{path} was altered after it was written ({card_path(path).name} has its checksum): "
            "export it again"
        )
    target = target_of(card["target"])
    data = target.data_path(path)
    if isinstance(card.get("data"), dict) and not (
        data.is_file() and card["data"].get("sha256") == checksum(data)
    ):
        raise UserError(
            f"{data}, which has the weights of {path.name}, is not there or was altered: keep the "
            "two together, or export it again"
        )
    target.require(target.to_run)
    with open_regular(path) as file:
        return target.code().load(file, path.absolute().parent)
