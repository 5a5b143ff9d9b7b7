"""SIGTERM and SIGINT as a request to save and leave; a second SIGINT ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: not done, try again (with --resume)
SAME_SECONDS = 0.3  # signals within it are one request: the terminal's, and a parent's copy of it
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While this context is open, SIGTERM and SIGINT set `requested` and print one line, and the
    process goes on.

    Python runs signal handlers in the main thread between two bytecodes, so not while that thread
    is in a compiler or waits for a device. Here the C handler writes the signal's number to a
    socket (`signal.set_wakeup_fd`) that a thread reads: the line is printed, and a second SIGINT
    obeyed, at any time. Open it in the main thread, after anything else that sets handlers
    (`jax.distributed.initialize` does). `quiet` prints nothing: for all processes of a run but one.
    `say` prints the line; code that draws on the terminal passes its own function.
    """

    def __init__(self, quiet: bool = False):
        self.requested = False
        self.say: Callable[[str], None] = _say
        self._quiet, self._when = quiet, 0.0

    def __enter__(self) -> Interrupt:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._writer.close()  # ends the thread
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while number := self._reader.recv(1):
            if number[0] in _SIGNALS:
                self._on_signal(signal.Signals(number[0]))

    def _on_signal(self, number: signal.Signals) -> None:
        if self.requested:
            if number == signal.SIGINT and time.monotonic() - self._when > SAME_SECONDS:
                os._exit(128 + signal.SIGINT)
            return
        self.requested, self._when = True, time.monotonic()
        if not self._quiet:
            self.say(
                f"{number.name}: finishing the step, evaluation batch or compilation in progress, "
                f"then saving and leaving with status {EXIT_INTERRUPTED}. Ctrl-C (again) ends at "
                "once and saves nothing."
            )


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)  # the terminal echoes ^C
