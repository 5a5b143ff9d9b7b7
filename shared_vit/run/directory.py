"""A run's folder: its configuration, its lock, and its two line files."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared_vit.errors import UserError, some
from shared_vit.files import atomic_write
from shared_vit.run.record import (
    NotARun,
    Record,
    differences,
    has_record,
    read_record,
    write_record,
)

LOCK, METRICS, TIMING = ".lock", "metrics.jsonl", "timing.jsonl"
_CHUNK = 1 << 20


class RunDir:
    """The folder of a run, for the one process that writes there.

    `with RunDir(path) as run_dir`, then `open_new` or `open_resume`, which take the folder's lock;
    leaving the context gives it back. From then on `folder` is the locked folder itself, not its
    path: where the path leads to another folder later, nothing is written there. Methods raise
    UserError where the folder cannot be used or written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.folder = self.path
        self.record: Record | None = None  # what `open_new` or `open_resume` settled
        self._recorded = False
        self._absolute = Path(os.path.abspath(path))
        self._handle: int | None = None
        self._lock: BinaryIO | None = None
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), self._lock):
            if file is not None:
                file.close()
        if self._handle is not None:
            os.close(self._handle)
        self._files, self._lock, self._handle, self.folder = {}, None, None, self.path

    def open_new(self, record: Record) -> None:
        """Begin a run with this record. Raises UserError where there is a run already."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise UserError(
                f"cannot make the folder {self.path}: {reason}; choose another --run_dir"
            ) from error
        self._hold()
        if self._has_progress():
            if not has_record(self.folder):
                raise UserError(
                    f"{self.path} holds metrics or checkpoints and no config.json: choose another "
                    "--run_dir"
                )
            changed = differences(self._known(), record)
            if changed:
                raise UserError(
                    f"{self.path} holds another run ({some(changed)}): choose another --run_dir, "
                    "or continue that run with its own flags and --resume"
                )
            raise UserError(
                f"{self.path} holds this run already: --resume continues it, another --run_dir "
                "begins anew"
            )
        if has_record(self.folder):
            try:
                self._known()
            except NotARun as error:
                raise UserError(
                    f"{self.path} holds the config.json of another program: choose another "
                    "--run_dir"
                ) from error
        self.record = record
        self.write_record()

    def open_resume(
        self, record: Record, changes: Callable[[Path], str] = lambda folder: ""
    ) -> list[str]:
        """Continue the run in this folder; returns notices about its length. `write_record` then
        records what differs. `changes` says of the run's folder which files of the data differ.

        Raises UserError for the settings of another run.
        """
        if not has_record(self.path):
            raise UserError(
                f"there is no run to resume in {self.path}: start it without --resume, or check "
                "--run_dir"
            )
        self._hold()
        known = self._known()
        if known.id and known.id != record.id:
            raise UserError(f"another run was written to {self.path} just now: start again")
        changed = differences(known, record)
        if changed:
            if any(text.startswith("the data's") for text in changed):
                files = changes(self.folder)
                changed += [f"its files: {files}"] if files else []
            raise UserError(
                f"cannot resume {self.path} with other settings than it has ({some(changed)}): "
                "only its length and what cannot change the curve may differ"
            )
        self.record = record
        was, now = known.recipe.steps, record.recipe.steps
        if was == now:
            return []
        return [
            f"the run's length was {was} steps and is {now}: the learning rate follows the new "
            "schedule from here on"
        ]

    def write_record(self) -> None:
        """Write config.json."""
        assert self.record is not None
        with self.errors():
            write_record(self.folder, self.record)
        self._recorded = True

    def check(self) -> None:
        """Raise UserError unless the locked folder is still what its path leads to."""
        if self._handle is None or self._lock is None:
            return
        held = os.fstat(self._handle)
        if not _same(self._absolute, held):
            raise UserError(self._where_it_went(held))
        locked = _same(self.folder / LOCK, os.fstat(self._lock.fileno()))
        if not locked or self._recorded and not has_record(self.folder):
            raise UserError(
                f"files of {self.path} were removed while the run trained (.lock or config.json): "
                "it stops, and saves nothing more"
            )

    def named(self, text: str) -> str:
        """A message with the run's path instead of the handle by which it is written."""
        return text.replace(str(self.folder), str(self.path))

    @contextmanager
    def errors(self, path: Path | None = None) -> Iterator[None]:
        """Failures of the file system as UserError, by the names that users know: of `path`, or of
        the file that the error names."""
        try:
            yield
        except UserError as error:
            self.check()
            error.args = (self.named(str(error)),)
            raise
        except OSError as error:
            self.check()
            what = self.named(str(path or error.filename or self.path))
            raise UserError(
                f"cannot write {what}: {error.strerror or error}; --resume goes on once it can"
            ) from error

    def cut_metrics(self, step: int, keep_evaluation: bool = True) -> int:
        """Cut metrics.jsonl to the lines of steps <= `step`; returns the last step left (0: none).

        A torn line ends the file too. Without `keep_evaluation`, an evaluation at `step` is cut as
        well: it is to be done again.
        """
        path = self.folder / METRICS
        last, end = 0, 0
        with self.errors():
            if not path.exists():
                return 0
            if not stat.S_ISREG(path.stat().st_mode):
                raise UserError(
                    f"{path} is not a file: move it away, the run writes its lines there"
                )
            with open(path, "rb") as file:
                for line in file:
                    at = _step_of(line)
                    again = at == step and not keep_evaluation and b'"val_loss"' in line
                    if at is None or at > step or again:
                        break
                    last, end = at, end + len(line)
                if end == os.fstat(file.fileno()).st_size:
                    return last
                file.seek(0)
                with atomic_write(path) as new:
                    _copy(file, new, end)
        if path.name in self._files:  # it is open on the file that was replaced
            self._files.pop(path.name).close()
        return last

    def append_metrics(self, lines: Iterable[str]) -> None:
        """Append lines of JSON to metrics.jsonl: safe from the end of this process at once, and
        from the machine's from the next checkpoint on."""
        self._append(METRICS, lines)

    def append_timing(self, lines: Iterable[str]) -> None:
        """Append lines of JSON to timing.jsonl."""
        self._append(TIMING, lines)

    def _append(self, name: str, lines: Iterable[str]) -> None:
        self.check()
        path = self.folder / name
        with self.errors(path):
            if name not in self._files:
                self._files[name] = open(path, "ab", buffering=0)
            data = "".join(line + "\n" for line in lines).encode()
            while data:
                data = data[self._files[name].write(data) :]

    def _hold(self) -> None:
        """Open the folder, take the lock in it, and write by this handle from now on."""
        try:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            by_handle = Path(f"/proc/self/fd/{self._handle}")
            self.folder = by_handle if by_handle.is_dir() else self.path  # Linux has it
            self._lock = open(self.folder / LOCK, "a+b")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is training in {self.path}: wait for it, or choose another "
                "--run_dir"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write in {self.path}: {error.strerror}; choose another --run_dir"
            ) from error
        if not _same(self.folder / LOCK, os.fstat(self._lock.fileno())):
            raise UserError(f"{self.path} was removed while its lock was taken: start again")

    def _known(self) -> Record:
        """The record in the folder. Raises UserError in words of its path."""
        with self.errors():
            return read_record(self.folder)

    def _has_progress(self) -> bool:
        metrics, checkpoints = self.folder / METRICS, self.folder / "checkpoints"
        return (metrics.exists() and metrics.stat().st_size > 0) or any(checkpoints.glob("step_*"))

    def _where_it_went(self, held: os.stat_result) -> str:
        there = "; what is there now is left alone" if self._absolute.exists() else ""
        try:
            now = os.readlink(f"/proc/self/fd/{self._handle}")
        except OSError:
            return (
                f"{self.path} was moved or removed while the run trained: it stops, and saves "
                f"nothing more{there}"
            )
        if held.st_nlink == 0 or now.endswith(" (deleted)"):
            return f"{self.path} was removed while the run trained: nothing of it is left{there}"
        return (
            f"{self.path} was moved to {now} while the run trained: it stops{there}. --resume "
            f"--run_dir={now} continues it"
        )


def _same(path: Path, held: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), held)
    except OSError:
        return False


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics, or None for a line that is not intact."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        data = source.read(min(count, _CHUNK))
        target.write(data)
        count -= len(data)
