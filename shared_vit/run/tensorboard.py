"""Event files for TensorBoard, in RUN/tensorboard; in process 0."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shared_vit.errors import UserError
from shared_vit.run.directory import RunDir

FOLDER = "tensorboard"


def check_installed() -> None:
    """Raise UserError where the library that writes event files is missing; imports nothing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            '--tensorboard=on needs tensorboardX: pip install "twinvit[tensorboard]" (or pip '
            "install tensorboardX), or leave it out with --tensorboard=off"
        )


class EventFile:
    """Scalars by update. Methods raise UserError where the file cannot be written.

    Written in the calling thread, and not by tensorboardX's SummaryWriter: its thread ends where a
    disk is full, and the training then waits for ever.
    """

    def __init__(self, run: RunDir, start: int):
        with _without_torch():
            from tensorboardX import RecordWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        self._event, self._summary, self._run = Event, Summary, run
        self._folder = run.folder / FOLDER
        with run.errors(self._folder):
            self._folder.mkdir(exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names. The step tells
            # apart starts within one second.
            name = (
                f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{start:011d}"
            )
            self._file = RecordWriter(str(self._folder / name))
        self._write(file_version="brain.Event:2")
        # A reader drops the points from this step on that an earlier start of the run has written.
        self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record metrics after update number `step`."""
        values = [self._summary.Value(tag=n, simple_value=v) for n, v in scalars.items()]
        self._write(step=step, summary=self._summary(value=values))

    def flush(self) -> None:
        """Flush what was added so far to the operating system."""
        with self._run.errors(self._folder):
            self._file.flush()

    def close(self) -> None:
        with self._run.errors(self._folder):
            self._file.close()

    def _write(self, **fields: Any) -> None:
        with self._run.errors(self._folder):
            self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports torch where it finds it, for tensors that are never given here. In a
    process of JAX that takes seconds, and a second set of CUDA libraries."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import raises ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]
