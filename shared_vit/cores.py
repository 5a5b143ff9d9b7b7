"""How many processor cores there are to use."""

import os


def cores() -> int:
    """Processor cores for this process.

    Those that the system lets it use, divided by the number of ranks that share the host
    (LOCAL_WORLD_SIZE, which torchrun sets for each).
    """
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
