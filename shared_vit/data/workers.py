"""How many threads and processes decode images, and how the processes behave."""

import os
import shutil
import signal
import threading

THREADS_PER_WORKER = 4  # as many as Python's lock lets decode without waiting for one another
_MANY_CORES = 8


def cores() -> int:
    """Processor cores for this process: those of the host, shared by LOCAL_WORLD_SIZE processes (torchrun's name)."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def plan(workers: int | None, photographs: bool) -> tuple[int, int]:
    """Processes, and threads in each (0 processes: threads of this one).

    By default threads alone where there is nothing to decode or there are few cores, else a process for each
    `THREADS_PER_WORKER` cores.
    """
    available = cores()
    if workers is None:
        workers = available // THREADS_PER_WORKER if photographs and available >= _MANY_CORES else 0
    if not photographs:
        return workers, 1
    return workers, max(1, available // max(1, workers))


def shared_memory_fits(num_bytes: int) -> bool:
    """Whether /dev/shm has room: a container often has 64 MB of it, and a write beyond kills the process."""
    try:
        return shutil.disk_usage("/dev/shm").free > num_bytes
    except OSError:
        return False


def start_worker(number: int, of: int) -> None:
    """Runs first in a worker process: signals to the whole group (Ctrl-C, a scheduler's) are the parent's to handle, and
    where the parent is killed, so is this."""
    import multiprocessing

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()
