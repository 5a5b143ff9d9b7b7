"""A run's checkpoints on disk: written in the background, intact or absent, verified when read.

checkpoints/step_N/
    model.safetensors       canonical arrays and their ModelConfig; loads with nothing else
    ema.safetensors         the averaged weights of a run with --ema, as such a file too
    optimizer.safetensors   <slot>.<name>: exp_avg.<name>, exp_avg_sq.<name>; momentum_buffer.<name>
    state.json              everything else, the run's identity, and the checksums
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.checksummed import write_checksummed
from shared_vit.errors import UserError
from shared_vit.files import sync, temporary_path
from shared_vit.run.best import Best, write_best
from shared_vit.run.directory import METRICS, RunDir
from shared_vit.run.record import Record
from shared_vit.run.state import TrainState
from shared_vit.spec import canonical
from shared_vit.spec.optimizers import ADAM_SLOTS, EMA
from shared_vit.weights import checkpoints
from shared_vit.weights.checkpoints import MODEL, STATE, Found
from shared_vit.weights.containers.safetensors import write_safetensors
from shared_vit.weights.formats import twinvit
from shared_vit.weights.lazy import in_memory
from shared_vit.weights.locate import AVERAGE

__all__ = ["MODEL", "OPTIMIZER", "STATE", "Found", "Writer", "load", "newest", "write"]

OPTIMIZER = "optimizer.safetensors"
_FORMAT = 2  # 1 had `adam_count` and `scaler` instead of `scalars`, and Adam's slots unnamed
_OPTIMIZER_FORMAT = "twinvit_optimizer"
_OWN_KEYS = (
    "format", "run", "checksums", "step", "slots", "frozen", "scalars", "adam_count", "scaler",
)  # fmt: skip
_TEMPORARY = ".tmp"


class Writer:
    """Writes the checkpoints of one run, one after another, in a thread; retains the newest `keep`
    (0: all).

    A failure to write (UserError) leaves the earlier checkpoints as they were and is raised by the
    next call. Nothing is written or removed in a folder that has replaced an open
    `RunDir`. `class_names` are written with the weights.
    """

    def __init__(
        self, run_dir: RunDir | Path, keep: int, class_names: tuple[str, ...] | None = None
    ):
        self.run_dir = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
        self.folder, self.keep = self.run_dir.folder / "checkpoints", keep
        self.class_names = class_names
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        _remove_leftovers(self.folder)

    def save(
        self,
        step: int,
        snapshot: Callable[[], TrainState],
        extra: dict[str, Any],
        best: Best | None = None,
    ) -> None:
        """Start writing the state at `step`, which `snapshot` gives in the thread; `extra` (for
        JSON) is saved with it. The checkpoint of `best` is not removed, and best.json names it.

        Lines of metrics.jsonl written before this call are on disk before the checkpoint is. Waits
        for the checkpoint before it and raises that one's failure.
        """
        self.wait()
        record = self.run_dir.record
        extra = extra | ({"run": record.id} if record else {})
        extra |= {"best": dataclasses.asdict(best)} if best else {}
        self._pending = self._thread.submit(self._write, step, snapshot, extra, best)

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

    def _write(
        self,
        step: int,
        snapshot: Callable[[], TrainState],
        extra: dict[str, Any],
        best: Best | None,
    ) -> None:
        final = self.folder / f"step_{step}"
        state = snapshot()
        temporary = temporary_path(final)
        try:
            self.run_dir.check()
            _check_finite(state)
            self.folder.mkdir(parents=True, exist_ok=True)
            metrics = self.run_dir.folder / METRICS
            if metrics.exists():
                sync(metrics)
            temporary.mkdir()
            write(temporary, state, extra, self.class_names)
            _replace_folder(temporary, final)
            sync(self.folder)
            if best is not None and best.step == step:
                write_best(self.run_dir, best)
            if self.keep:
                for old in [s for s in checkpoints.steps(self.folder) if s <= step][self.keep :]:
                    if best is None or old != best.step:
                        _remove(self.folder / f"step_{old}")
            self.run_dir.check()
        except (OSError, UserError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self.run_dir.check()
            reason = error if isinstance(error, OSError) else error.__cause__ or error
            raise UserError(
                self.run_dir.named(
                    f"cannot save {final}: {_reason(reason)}. {self._what_is_left()}"
                )
            ) from error

    def _what_is_left(self) -> str:
        steps = checkpoints.steps(self.folder)
        intact = [s for s in steps if (self.folder / f"step_{s}" / STATE).exists()]
        if not intact:
            return "No checkpoint was saved before it."
        return (
            f"The earlier ones are as they were: the newest is "
            f"{self.folder / f'step_{intact[0]}'}, and --resume continues from it"
        )


def newest(run_dir: Path, run: Record | None = None) -> Found | None:
    """The newest checkpoint with all files there and unaltered, or None where there is none at all.

    With `run`, one of another run is skipped like a damaged one. Raises UserError if there are
    checkpoints and none of them is intact.
    """
    accept = None if run is None else checkpoints.of_run(run.id, run.first_version)
    return checkpoints.newest_in(Path(run_dir) / "checkpoints", accept)


def load(found: Path | Found) -> tuple[TrainState, dict[str, Any]]:
    """The state in a checkpoint's folder, and the `extra` saved with it.

    What `newest` found is not verified again. Raises UserError unless it is intact.
    """
    if not isinstance(found, Found):
        found = Found(Path(found), 0, [], checkpoints.opened(Path(found)))
    path, opened = found.path, found.opened
    document = dict(opened.document)
    if document["format"] not in (1, _FORMAT):
        raise UserError(
            f"{path} is of format {document['format']}; this version reads {_FORMAT}: update the "
            "program"
        )
    cfg, params = twinvit.model_of(path / MODEL, opened.files[MODEL])
    moments, metadata, _ = opened.files[OPTIMIZER]
    frozen = set(document.get("frozen", ()))
    names = [n for n in canonical.trained(cfg, params) if n not in frozen]
    slots: dict[str, Any] = {
        slot: {n: moments.pop(f"{slot}.{n}", None) for n in names}
        for slot in document.get("slots", ADAM_SLOTS)
        if slot != EMA
    }
    if AVERAGE in opened.files:
        _, average = twinvit.model_of(path / AVERAGE, opened.files[AVERAGE])
        slots[EMA] = {n: average.get(n) for n in names}
    wrong: list[str] = [
        f"{slot}.{n}"
        for slot, arrays in slots.items()
        for n, a in arrays.items()
        if a is None or a.shape != params[n].shape
    ]
    if wrong or moments or metadata.get("format") != _OPTIMIZER_FORMAT:
        raise UserError(
            f"{path / OPTIMIZER} does not fit the model: {', '.join([*wrong, *moments][:4])}"
        )
    if document["format"] == 1:
        document["scalars"] = {"adam_count": document["adam_count"]} | (document["scaler"] or {})
    state = TrainState(
        cfg,
        document["step"],
        in_memory(params),
        {slot: in_memory(arrays) for slot, arrays in slots.items()},
        document["scalars"],
    )
    return state, {key: value for key, value in document.items() if key not in _OWN_KEYS}


def write(
    folder: Path,
    state: TrainState,
    extra: dict[str, Any],
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Write the files into an existing folder. Raises UserError where that fails."""
    moments = {
        f"{slot}.{name}": array
        for slot, arrays in state.slots.items()
        for name, array in arrays.items()
        if slot != EMA
    }
    frozen = set(canonical.trained(state.config, state.params)).difference(*state.slots.values())

    def written(name: str, arrays: dict[str, np.ndarray]) -> str:
        return twinvit.write(folder / name, state.config, arrays, class_names=class_names)

    checksums = {MODEL: written(MODEL, state.params)}
    if EMA in state.slots:
        checksums[AVERAGE] = written(AVERAGE, state.params | state.slots[EMA])
    metadata = {"format": _OPTIMIZER_FORMAT, "model_config": state.config.to_json()}
    document = {
        **extra,
        "format": _FORMAT,
        "step": state.step,
        "slots": list(state.slots),
        "scalars": state.scalars,
        "checksums": checksums
        | {OPTIMIZER: write_safetensors(folder / OPTIMIZER, moments, metadata)},
    }
    if frozen:  # they have no slots
        document["frozen"] = sorted(frozen)
    write_checksummed(folder / STATE, document)


def _check_finite(state: TrainState) -> None:
    """Raise UserError for useless weights: they would push the last good ones out."""
    for arrays in (state.params, *state.slots.values()):
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(
                    f"{name} is no longer finite at step {state.step}; try a lower --lr in a new "
                    "--run_dir"
                )


def _replace_folder(temporary: Path, final: Path) -> None:
    """Rename a new folder to its final name, synced. A skipped checkpoint that is there already is
    removed."""
    sync(temporary)
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
    """Remove what a process left that was killed while it wrote."""
    for path in folder.glob(f".step_*{_TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
