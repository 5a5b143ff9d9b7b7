"""A run's folder: its configuration, its lock, and its two line files."""

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from shared_vit.errors import UserError, some
from shared_vit.files import whole_file
from shared_vit.run.record import Record, differences, has_record, read_record, write_record


class RunDir:
    """The folder of a run, for the one process that writes there.

    `with RunDir(path) as run_dir`, then `open_new` or `open_resume`, which take the folder's lock; leaving the context
    gives it back. Methods raise UserError where the folder cannot be used or written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock: BinaryIO | None = None
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_) -> None:
        for file in (*self._files.values(), self._lock):
            if file is not None:
                file.close()
        self._files, self._lock = {}, None

    def open_new(self, record: Record) -> Record:
        """Begin a run with this record. Raises UserError where there is a run already."""
        self._make()
        self._take_lock()
        if self._has_progress():
            if not has_record(self.path):
                raise UserError(
                    f"{self.path} holds metrics or checkpoints and no config.json: choose another "
                    "--run_dir"
                )
            changed = differences(read_record(self.path), record)
            if changed:
                raise UserError(
                    f"{self.path} holds another run ({some(changed)}): choose another --run_dir, or "
                    "continue that run with its own flags and --resume"
                )
            raise UserError(
                f"{self.path} holds this run already: --resume continues it, another --run_dir "
                "begins anew"
            )
        write_record(self.path, record)
        return record

    def open_resume(self, record: Record) -> tuple[Record, list[str]]:
        """Continue the run in this folder; its record, and notices about its length.

        Raises UserError for the settings of another run.
        """
        if not has_record(self.path):
            raise UserError(
                f"there is no run to resume in {self.path}: start it without --resume, or check "
                "--run_dir"
            )
        self._take_lock()
        known = read_record(self.path)
        changed = differences(known, record)
        if changed:
            raise UserError(
                f"cannot resume {self.path} with other settings than it has ({some(changed)}): only "
                "its length and what cannot change the curve may differ"
            )
        record = dataclasses.replace(record, id=known.id, first_version=known.first_version)
        write_record(self.path, record)
        was, now = known.recipe.steps, record.recipe.steps
        if was == now:
            return record, []
        return record, [
            f"the run's length was {was} steps and is {now}: the learning rate follows the new "
            "schedule from here on"
        ]

    def cut_metrics(self, step: int, keep_evaluation: bool = True) -> int:
        """Cut metrics.jsonl to the lines of steps <= `step`; returns the last step that is left (0: none).

        A torn line ends the file too. Without `keep_evaluation`, an evaluation at `step` is cut as well: it is to be done
        again.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return 0
        last, end = 0, 0
        with open(path, "rb") as file:
            for line in file:
                at = _step_of(line)
                if (
                    at is None
                    or at > step
                    or (at == step and not keep_evaluation and b'"val_loss"' in line)
                ):
                    break
                last, end = at, end + len(line)
            if end == os.fstat(file.fileno()).st_size:
                return last
            file.seek(0)
            with whole_file(path) as new:
                _copy(file, new, end)
        if path.name in self._files:  # it is open on the file that was replaced
            self._files.pop(path.name).close()
        return last

    def append_metrics(self, lines: Iterable[str]) -> None:
        """Append lines of JSON to metrics.jsonl: safe from the end of this process at once, and from the machine's from
        the next checkpoint on."""
        self._append("metrics.jsonl", lines)

    def append_timing(self, lines: Iterable[str]) -> None:
        """Append lines of JSON to timing.jsonl."""
        self._append("timing.jsonl", lines)

    def _append(self, name: str, lines: Iterable[str]) -> None:
        try:
            if name not in self._files:
                self._files[name] = open(self.path / name, "ab", buffering=0)
            data = "".join(line + "\n" for line in lines).encode()
            while data:
                data = data[self._files[name].write(data) :]
        except OSError as error:
            raise UserError(
                f"cannot write {self.path / name}: {error.strerror}; --resume goes on once it can"
            ) from error

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {self.path}: {error.strerror}; choose another --run_dir"
            ) from error

    def _take_lock(self) -> None:
        try:
            self._lock = open(self.path / ".lock", "a+b")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"another process is training in {self.path}: wait for it, or choose another --run_dir"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write in {self.path}: {error.strerror}; choose another --run_dir"
            ) from error

    def _has_progress(self) -> bool:
        metrics, checkpoints = self.path / "metrics.jsonl", self.path / "checkpoints"
        return (metrics.exists() and metrics.stat().st_size > 0) or any(checkpoints.glob("step_*"))


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics, or None for a line that is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        data = source.read(min(count, shutil.COPY_BUFSIZE))
        target.write(data)
        count -= len(data)
