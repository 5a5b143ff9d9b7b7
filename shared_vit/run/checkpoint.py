"""A run's checkpoints on disk: written in the background, whole or absent, verified when read.

checkpoints/step_N/model.safetensors       canonical arrays and their ModelConfig; loads with nothing else
                   optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>
                   state.json              everything else, and the checksums of all three files
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import whole_file
from shared_vit.run.state import TrainState
from shared_vit.spec import canonical
from shared_vit.weights.containers import safetensors as native

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_FORMAT = 1
_OPTIMIZER_FORMAT = "twinvit_optimizer"
_OWN_KEYS = ("format", "checksum", "checksums", "step", "adam_count", "scaler")
_ZEROS = "0" * 64
_TEMPORARY = ".tmp"


class Writer:
    """Writes the checkpoints of one run, one after another, in a thread; keeps the newest `keep` (0: all).

    A failure to write (UserError) leaves the earlier checkpoints as they were and is raised by the next call.
    """

    def __init__(self, run_dir: Path, keep: int):
        self.folder, self.keep = Path(run_dir) / "checkpoints", keep
        self._metrics = Path(run_dir) / "metrics.jsonl"
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None
        _remove_leftovers(self.folder)

    def save(self, step: int, snapshot: Callable[[], TrainState], extra: dict[str, Any]) -> None:
        """Start writing the state at `step`, which `snapshot` gives in the thread; `extra` (for JSON) is kept with it.

        Lines of metrics.jsonl written before this call are on disk before the checkpoint is. Waits for the checkpoint
        before it and raises that one's failure.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, step, snapshot, dict(extra))

    def poll(self) -> None:
        """Raise the failure of a write that has ended; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on disk. Raises UserError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """`wait`, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, step: int, snapshot: Callable[[], TrainState], extra: dict[str, Any]) -> None:
        final = self.folder / f"step_{step}"
        state = snapshot()
        temporary = None
        try:
            _check_finite(state)
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._metrics.exists():
                _sync(self._metrics)
            temporary = Path(
                tempfile.mkdtemp(prefix=f".{final.name}.", suffix=_TEMPORARY, dir=self.folder)
            )
            temporary.chmod(0o777 & ~_umask())
            write(temporary, state, extra)
            _replace_folder(temporary, final)
            _sync(self.folder)
            if self.keep:
                for old in [s for s in _steps(self.folder) if s <= step][self.keep :]:
                    _remove(self.folder / f"step_{old}")
        except (OSError, UserError) as error:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            reason = error if isinstance(error, OSError) else error.__cause__ or error
            raise UserError(
                f"cannot save {final}: {_reason(reason)}. {self._what_is_left()}"
            ) from error

    def _what_is_left(self) -> str:
        whole = [s for s in _steps(self.folder) if (self.folder / f"step_{s}" / STATE).exists()]
        if not whole:
            return "No checkpoint was saved before it."
        return (
            f"The earlier ones are as they were: the newest is {self.folder / f'step_{whole[0]}'}, and --resume "
            "continues from it"
        )


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a run; `skipped` has a line for each newer one that is not whole."""

    path: Path
    step: int
    skipped: list[str]


def newest(run_dir: Path) -> Found | None:
    """The newest checkpoint whose files are all there and unaltered, or None where there is not one checkpoint.

    Raises UserError if there are checkpoints and none of them is whole.
    """
    folder = Path(run_dir) / "checkpoints"
    skipped = []
    for step in _steps(folder):
        path = folder / f"step_{step}"
        try:
            state, _ = _open(path)
            if state.step != step:
                raise UserError(f"{path} holds step {state.step}: it was renamed")
            return Found(path, step, skipped)
        except UserError as error:
            skipped.append(f"{path.name}: {error}")
    if skipped:
        raise UserError(
            f"no checkpoint of {run_dir} is whole: {'; '.join(skipped)}. Put copies in their place, or remove {folder} to "
            "begin again at step 0"
        )
    return None


def load(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """The state in a checkpoint's folder, and the `extra` saved with it. Raises UserError unless it is whole."""
    state, extra = _open(Path(path))
    for arrays in (state.params, state.exp_avg, state.exp_avg_sq):
        arrays.update({name: np.asarray(array) for name, array in arrays.items()})
    return state, extra


def write(folder: Path, state: TrainState, extra: dict[str, Any]) -> None:
    """Write the three files into an existing folder. Raises UserError where that fails."""
    native.write(folder / MODEL, state.config, state.params)
    moments = {
        f"{kind}.{name}": array
        for kind in ("exp_avg", "exp_avg_sq")
        for name, array in getattr(state, kind).items()
    }
    metadata = {"format": _OPTIMIZER_FORMAT, "model_config": state.config.to_json()}
    native.write_safetensors(folder / OPTIMIZER, moments, metadata)
    document = {
        **extra,
        "format": _FORMAT,
        "step": state.step,
        "adam_count": state.adam_count,
        "scaler": state.scaler,
        "checksums": {name: _stated_checksum(folder / name) for name in (MODEL, OPTIMIZER)},
        "checksum": _ZEROS,
    }
    text = json.dumps(document, indent=1).encode()
    with whole_file(folder / STATE) as file:
        file.write(_with_checksum(text, hashlib.sha256(text).hexdigest()))


def _open(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """`load` with arrays that are read when asked for. Every byte of the three files has been verified."""
    document = _read_state(path / STATE)
    cfg, params = native.open_model(path / MODEL)
    moments, metadata = native.open_safetensors(path / OPTIMIZER, own=True)
    for name in (MODEL, OPTIMIZER):
        if _stated_checksum(path / name) != document["checksums"].get(name):
            raise UserError(
                f"{path / name} belongs to another checkpoint: its checksum is not the one in {STATE}"
            )
    names = canonical.trained(cfg, params)
    split = {
        kind: {n: moments.pop(f"{kind}.{n}", None) for n in names}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    wrong = [
        f"{k}.{n}"
        for k, arrays in split.items()
        for n, a in arrays.items()
        if a is None or a.shape != params[n].shape
    ]
    if wrong or moments or metadata.get("format") != _OPTIMIZER_FORMAT:
        raise UserError(
            f"{path / OPTIMIZER} does not fit the model: {', '.join([*wrong, *moments][:4])}"
        )
    state = TrainState(
        cfg,
        document["step"],
        params,
        **split,
        adam_count=document["adam_count"],
        scaler=document["scaler"],
    )
    return state, {key: value for key, value in document.items() if key not in _OWN_KEYS}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    stated = re.search(rb'"checksum": "([0-9a-f]{64})"\s*}\Z', text)
    if not stated:
        raise UserError(f"{path} is not whole: it does not end with its checksum")
    if hashlib.sha256(_with_checksum(text, _ZEROS)).hexdigest().encode() != stated[1]:
        raise UserError(f"{path} was altered after it was written (its checksum differs)")
    document = json.loads(text)
    if document["format"] != _FORMAT:
        raise UserError(
            f"{path} is of format {document['format']}; this version reads {_FORMAT}: update the program"
        )
    return document


def _with_checksum(text: bytes, checksum: str) -> bytes:
    """The text of state.json, whose last value is its checksum, with another checksum."""
    return text[: -len(_ZEROS) - 3] + checksum.encode() + text[-3:]


def _stated_checksum(path: Path) -> str:
    """The checksum in a weight file's metadata; whether it is right is for `native` to verify."""
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        return file.metadata()["twinvit_checksum"]


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(
        (int(n[5:]) for n in names if re.fullmatch(r"step_(0|[1-9]\d*)", n)), reverse=True
    )


def _check_finite(state: TrainState) -> None:
    """Raise UserError for weights that are of no use: they would push the last good ones out."""
    for arrays in (state.params, state.exp_avg, state.exp_avg_sq):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(
                    f"{name} is no longer finite at step {state.step}; try a lower --lr in a new --run_dir"
                )


def _replace_folder(temporary: Path, final: Path) -> None:
    """Put a new folder in place, synced. One that is there already (a checkpoint that was skipped) goes."""
    _sync(temporary)
    if final.exists():
        _remove(final)
    os.rename(temporary, final)


def _remove(path: Path) -> None:
    """Remove a checkpoint; stopped halfway, it leaves nothing that looks like one."""
    aside = path.with_name(f".{path.name}.old{_TEMPORARY}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    shutil.rmtree(aside)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for path in folder.glob(f".step_*{_TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
