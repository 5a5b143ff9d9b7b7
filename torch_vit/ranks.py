"""The processes of a PyTorch run on one machine: DDP's ranks, their signals and their end.

torch.distributed's own launcher was measured (torch 2.13.0): ranks that agree on a status, such as
75 for an interrupted run, end with status 1 and 47 lines of output, and each rank imports torch
itself. A run over several machines is started with it all the same, and joined here.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from shared_vit.cores import cores
from shared_vit.errors import UserError
from shared_vit.run.interrupt import EXIT_INTERRUPTED
from shared_vit.spec.runtime import RuntimeConfig
from torch_vit.devices import device_of, report_from_rank_0, under_torchrun

Worker = Callable[[torch.device], int | None]
GRACE_SECONDS = 5  # between SIGTERM to the ranks and SIGKILL
_LOST = 255  # the exit code that multiprocessing gives where its fork server has ended
SETTLE_SECONDS = 0.5  # in which the peers of a failing rank report too; the first cause is printed


def launch(runtime: RuntimeConfig, worker: Worker) -> int:
    """Run `worker(device)` in every process of a resolved run; return the run's exit status.

    Joins torchrun's processes where it started this one; else runs inline for one process, else
    starts `world_size` processes (gloo on CPUs, NCCL on GPUs). `worker` is a function of a module;
    it returns a status or raises SystemExit. SIGINT and SIGTERM are passed on to the ranks once; a
    second Ctrl-C kills them. A rank that fails ends the run: its UserError is raised here, any
    other failure is printed once, with status 1.
    """
    if under_torchrun():
        with report_from_rank_0():
            return _join(runtime, worker)
    if runtime.world_size == 1:
        return _status(worker, device_of(runtime, 0))
    return _Ranks(runtime, worker).run()


def _join(runtime: RuntimeConfig, worker: Worker) -> int:
    device = device_of(runtime, int(os.environ["LOCAL_RANK"]))
    if int(os.environ["WORLD_SIZE"]) == 1:
        return _status(worker, device)
    _join_group(device)
    status = _status(worker, device)
    dist.destroy_process_group()
    return status


def _status(worker: Worker, device: torch.device) -> int:
    try:
        return worker(device) or 0
    except SystemExit as leave:
        if isinstance(leave.code, str):
            raise
        return leave.code or 0


def _join_group(device: torch.device, **place: Any) -> None:
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device, **place)
    else:
        dist.init_process_group("gloo", **place)


class _Report(NamedTuple):
    """How a rank ended: with a status, or with an error at a time.

    user: the error is the message of a UserError, else a traceback. silent: it sent no report.
    """

    rank: int
    status: int
    error: str = ""
    user: bool = False
    when: float = 0.0
    silent: bool = False


class _Ranks:
    """The processes of one run on this machine, watched by their parent."""

    def __init__(self, runtime: RuntimeConfig, worker: Worker):
        self.runtime, self.worker = runtime, worker
        self.processes: list[Any] = []
        self.readers: list[Any] = []
        self.signals: list[int] = []

    def run(self) -> int:
        """Start the ranks and wait for them; returns the run's status, or raises a rank's
        UserError."""
        with self._signals_passed_on():
            try:
                self._start()
                reports = self._watch()
            except BaseException:
                self._kill()
                raise
            failures = [r for r in reports if r.error]
            if failures or len(reports) < self.runtime.world_size:
                self._kill()
        if not failures:
            return next((r.status for r in reports if r.status), 0)
        first = min(failures, key=lambda r: r.when)
        if (
            self.signals and first.silent
        ):  # stopped before the training loop listened, or killed by a second Ctrl-C
            interrupted = self.signals == [signal.SIGTERM]
            return EXIT_INTERRUPTED if interrupted else 128 + self.signals[0]
        if first.user:
            raise UserError(first.error)
        print(
            f"error: rank {first.rank} of {self.runtime.world_size} {first.error}",
            file=sys.stderr,
            flush=True,
        )
        return first.status

    def _start(self) -> None:
        # The parent holds the store, so that nobody else can take its port.
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        # A fork server imports torch once for all ranks; it starts no threads and touches no GPU.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch_vit.trainer"])
        for rank in range(self.runtime.world_size):
            reader, writer = context.Pipe(duplex=False)
            args = (self.runtime, self.worker, rank, self.store.port, writer)
            process = context.Process(target=_rank_main, args=args, name=f"rank {rank}")
            process.start()
            writer.close()
            self.processes.append(process)
            self.readers.append(reader)
            for number in self.signals[:1]:  # one that came before this rank was in the list
                _quietly(os.kill, process.pid, number)

    def _watch(self) -> list[_Report]:
        """Wait for every rank; once one has failed, signal the others to end and give them
        GRACE_SECONDS."""
        reports: list[_Report] = []
        running = {process.sentinel: rank for rank, process in enumerate(self.processes)}
        deadline = None
        while running:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            ended = multiprocessing.connection.wait(list(running), left)
            if not ended:
                break
            reports += [self._report(running.pop(sentinel)) for sentinel in ended]
            if deadline is None and any(r.error for r in reports):
                time.sleep(SETTLE_SECONDS)
                self._signal(signal.SIGTERM)
                deadline = time.monotonic() + GRACE_SECONDS
        return reports

    def _report(self, rank: int) -> _Report:
        """The report of a rank that has ended.

        A silent one ended before everything its end caused. Where the fork server was killed, its
        processes seem to have ended and have not: told to stop by a signal, they still report; else
        they are killed with the run.
        """
        self.processes[rank].join()
        while not self.readers[rank].poll(SETTLE_SECONDS):
            if self.signals:  # which ends a fork server, too, where it goes to the whole group
                continue
            return _Report(
                rank, 1, "was lost: the process that started it (Python's fork server) was killed",
                silent=True,
            )  # fmt: skip
        try:
            return self.readers[rank].recv()
        except EOFError:
            code = self.processes[rank].exitcode
            if code < 0:
                return _Report(
                    rank, 128 - code, f"was killed by {signal.Signals(-code).name}", silent=True
                )
            return _Report(
                rank, code or 1, f"ended with exit status {code} and no message", silent=True
            )

    @contextmanager
    def _signals_passed_on(self):
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(number, frame):
            self.signals.append(number)
            if len(self.signals) == 1:
                self._signal(number)
            elif number == signal.SIGINT:
                self._kill()

        old = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _signal(self, number: int) -> None:
        for process in self.processes:
            if process.exitcode in (None, _LOST):
                _quietly(os.kill, process.pid, number)

    def _kill(self) -> None:
        """Kill what is left of the ranks and of their child processes, which decode images."""
        self._signal(signal.SIGKILL)
        for process in self.processes:
            _quietly(os.killpg, process.pid, signal.SIGKILL)


def _quietly(call: Callable[..., object], *args: object) -> None:
    try:
        call(*args)
    except ProcessLookupError:
        pass


def _rank_main(runtime: RuntimeConfig, worker: Worker, rank: int, port: int, writer: Any) -> None:
    """All that a rank does; its result or error goes to the parent."""
    os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, which passes it on once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, lambda number, frame: os._exit(128 + number)
        )  # until the training loop has its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if runtime.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, cores() // runtime.world_size))
        os.environ["LOCAL_WORLD_SIZE"] = str(
            runtime.world_size
        )  # by which the input pipeline shares the cores
        if sys.platform == "linux":
            os.environ.setdefault(
                "GLOO_SOCKET_IFNAME", "lo"
            )  # gloo would look the machine's name up
        device = device_of(runtime, rank)
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        _join_group(device, store=store, rank=rank, world_size=runtime.world_size)
        status = _status(worker, device)
        dist.destroy_process_group()
        writer.send(_Report(rank, status))
    except BaseException as error:
        user = isinstance(error, UserError)
        text = str(error) if user else f"failed:\n{traceback.format_exc()[-20_000:]}"
        writer.send(_Report(rank, 2 if user else 1, text, user, time.monotonic()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # at once: the end of a process group can hang where a peer has ended


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
