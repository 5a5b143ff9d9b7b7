"""How many threads and processes decode images, and how those processes start and end."""

from __future__ import annotations

import os
import shutil
import signal
import threading

from shared_vit.cores import cores
from shared_vit.errors import UserError

THREADS_PER_WORKER = 4  # more would wait for Python's global interpreter lock
_MANY_CORES = 8
_LOCKS = 32  # of a worker's queues and events, a page each; with Grain 0.2.18 they take 28


def plan(workers: int | None, photographs: bool) -> tuple[int, int]:
    """Processes, and threads in each (0 processes: threads of this one).

    By default there are only threads where nothing is decoded or cores are few, else a process for
    every `THREADS_PER_WORKER` cores.
    """
    available = cores()
    if workers is None:
        workers = available // THREADS_PER_WORKER if photographs and available >= _MANY_CORES else 0
    if not photographs:
        return workers, 1
    return workers, max(1, available // max(1, workers))


def shared_memory_fits(num_bytes: int) -> bool:
    """Whether /dev/shm has space: containers often give it 64 MB, and a write beyond it kills the
    process."""
    try:
        return shutil.disk_usage("/dev/shm").free > num_bytes
    except OSError:
        return False


def check_processes_can_talk(workers: int) -> None:
    """Raise UserError where worker processes cannot have a queue: its locks need /dev/shm."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    try:
        together = [context.Lock() for _ in range(workers * _LOCKS)]
        del together
    except OSError as error:
        raise UserError(
            f"--workers={workers}: processes cannot share a lock here ({error.strerror or error}; "
            "does /dev/shm exist, with free space and permission to write?): use --workers=0, "
            "which decodes in threads, or in a container --shm-size"
        ) from error


def start_worker(number: int, of: int) -> None:
    """What each worker process calls first.

    Signals to the whole group (Ctrl-C, a scheduler's) are left to the parent, and the worker ends
    when its parent is killed.
    """
    import multiprocessing

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
