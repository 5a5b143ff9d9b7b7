"""The exception that means "the user can fix this". Any other is a bug and shows its traceback."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence


class UserError(Exception):
    """What was wrong, where, and what to do, in one message. `run_main` prints it without a
    traceback; the exit status is 2."""


class StoppedTogether(UserError):
    """What one process of a run found, once all of its processes have stopped at the same step:
    they end as they do after a complete run, each with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """How a sentence ends that refuses a name: `; did you mean 'x'?` where a known one is close to
    it, else a full stop."""
    close = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def some(items: Sequence[str], most: int = 4, separator: str = "; ") -> str:
    """The first few of many, for a message."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def run_main(main: Callable[[], int | None], failed: int = 2) -> None:
    """Run a command's main function and exit. A `UserError` becomes one line on stderr (of process
    0) and the exit status `failed`."""
    try:
        status = main()
    except UserError as error:
        if int(os.environ.get("RANK") or 0) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        status = failed
    except KeyboardInterrupt:
        status = 130  # 128 + SIGINT, as in shells
    sys.exit(status or 0)
