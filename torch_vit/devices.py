"""The processes of a PyTorch run: checks of the devices, DDP's ranks, their signals and their end."""

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
from typing import NamedTuple

import torch
import torch.distributed as dist

from shared_vit.errors import UserError
from shared_vit.run.asked import Asked, check_divides
from shared_vit.spec.machine import Machine

Worker = Callable[[torch.device], int | None]
GRACE_SECONDS = 5  # between asking ranks to end and killing them
SETTLE_SECONDS = 0.5  # in which a failing rank's peers may report too; the first cause is printed


def resolve(asked: Asked) -> Asked:
    """`asked` with device ("cpu" or "gpu"), world_size, precision and compile ("on" or "off") filled in.

    world_size counts processes; under torchrun it is torchrun's, over all nodes. Raises UserError for devices that are
    not there, a precision that they do not have, and a batch that they do not divide.
    """
    with _one_voice():
        return _resolve(asked)


def _resolve(asked: Asked) -> Asked:
    gpus = torch.cuda.device_count() if asked.device != "cpu" and torch.cuda.is_available() else 0
    if asked.device == "gpu" and not gpus:
        raise UserError(
            f"--device=gpu: PyTorch {torch.__version__} sees no GPU. Train with --device=cpu, or install a PyTorch built "
            "for this machine's GPU driver (pytorch.org/get-started)."
        )
    world_size, local = asked.world_size or max(gpus, 1), asked.world_size or max(gpus, 1)
    if _under_torchrun():
        world_size, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if asked.world_size not in (None, world_size):
            raise UserError(
                f"--world_size={asked.world_size}, but torchrun started {world_size} processes: leave --world_size out"
            )
    if gpus and local > gpus:
        raise UserError(
            f"{local} processes need {local} GPUs, and this machine has {gpus}: use --world_size={gpus} "
            f"(torchrun: --nproc_per_node={gpus}), or --device=cpu for {local} processes on the CPU"
        )
    check_divides(asked.batch_size, asked.grad_accum, world_size)
    bf16 = bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked.precision == "bf16" and gpus and not bf16:
        raise UserError(
            f"--precision=bf16: {torch.cuda.get_device_name()} has no bfloat16 (compute capability 8.0 or newer has): "
            "use --precision=fp16 or fp32"
        )
    return asked.replace(
        device="gpu" if gpus else "cpu",
        world_size=world_size,
        precision=asked.precision or ("bf16" if bf16 else "fp32"),
        compile=asked.compile or ("on" if gpus else "off"),
    )


def launch(machine: Machine, worker: Worker) -> int:
    """Run `worker(device)` in every process of a resolved run; return the run's exit status.

    Joins torchrun's processes where it started this one; else runs inline for one process, else starts `world_size`
    processes (gloo on CPUs, NCCL on GPUs). `worker` is a function of a module; it returns a status or raises SystemExit.
    SIGINT and SIGTERM are passed on to the ranks once; a second Ctrl-C kills them. A rank that fails ends the run: its
    UserError is raised here, any other failure is printed once, with status 1.
    """
    if _under_torchrun():
        with _one_voice():
            return _join(machine, worker)
    if machine.world_size == 1:
        return _status(worker, _device(machine, 0))
    return _Ranks(machine, worker).run()


def _under_torchrun() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


@contextmanager
def _one_voice():
    """Under torchrun every rank makes the same mistake: rank 0 tells it, and the others have time to be stopped."""
    try:
        yield
    except UserError as error:
        if _under_torchrun() and (rank := os.environ["RANK"]) != "0":
            time.sleep(3)
            raise UserError(f"rank {rank}: {error}") from error
        raise


def _join(machine: Machine, worker: Worker) -> int:
    device = _device(machine, int(os.environ["LOCAL_RANK"]))
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


def _device(machine: Machine, local_rank: int) -> torch.device:
    if machine.device != "gpu":
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join_group(device: torch.device, **place) -> None:
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device, **place)
    else:
        dist.init_process_group("gloo", **place)


class _Report(NamedTuple):
    """How a rank ended: with a status, or with an error (`user`: a UserError's message, else a traceback) at a time."""

    rank: int
    status: int
    error: str = ""
    user: bool = False
    when: float = 0.0
    silent: bool = False


class _Ranks:
    """The processes of one run on this machine, watched by their parent."""

    def __init__(self, machine: Machine, worker: Worker):
        self.machine, self.worker = machine, worker
        self.processes, self.readers = [], []
        self.signals: list[int] = []

    def run(self) -> int:
        """Start the ranks and wait for them; returns the run's status, or raises a rank's UserError."""
        with self._signals_passed_on():
            try:
                self._start()
                reports = self._watch()
            except BaseException:
                self._kill()
                raise
            failures = [r for r in reports if r.error]
            if failures or len(reports) < self.machine.world_size:
                self._kill()
        if not failures:
            return next((r.status for r in reports if r.status), 0)
        first = min(failures, key=lambda r: r.when)
        if self.signals and first.silent:  # stopped before the training loop listened, or killed by a second Ctrl-C
            return 128 + self.signals[0]
        if first.user:
            raise UserError(first.error)
        print(f"error: rank {first.rank} of {self.machine.world_size} {first.error}", file=sys.stderr, flush=True)
        return first.status

    def _start(self) -> None:
        # The parent holds the store, so that nobody else can take its port.
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        # A fork server imports torch once for all ranks; it starts no threads and touches no GPU.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch_vit.trainer"])
        for rank in range(self.machine.world_size):
            reader, writer = context.Pipe(duplex=False)
            args = (self.machine, self.worker, rank, self.store.port, writer)
            process = context.Process(target=_rank_main, args=args, name=f"rank {rank}")
            process.start()
            writer.close()
            self.processes.append(process)
            self.readers.append(reader)

    def _watch(self) -> list[_Report]:
        """Wait for every rank; once one has failed, ask the others to end and give them GRACE_SECONDS."""
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
        """What a rank that has ended said. One that said nothing ended before all that its end caused."""
        self.processes[rank].join()
        try:
            return self.readers[rank].recv()
        except EOFError:
            code = self.processes[rank].exitcode
            if code < 0:
                return _Report(rank, 128 - code, f"was killed by {signal.Signals(-code).name}", silent=True)
            return _Report(rank, code or 1, f"left without a word, with exit status {code}", silent=True)

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
            if process.exitcode is None:
                _quietly(os.kill, process.pid, number)

    def _kill(self) -> None:
        """Kill what is left of the ranks and of their own processes, which decode images."""
        self._signal(signal.SIGKILL)
        for process in self.processes:
            _quietly(os.killpg, process.pid, signal.SIGKILL)


def _quietly(call: Callable, *args) -> None:
    try:
        call(*args)
    except ProcessLookupError:
        pass


def _rank_main(machine: Machine, worker: Worker, rank: int, port: int, writer) -> None:
    """A rank's whole life; its last word goes to the parent."""
    os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, which passes it on once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))  # until the training loop has its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if machine.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, _cores() // machine.world_size))
        os.environ["LOCAL_WORLD_SIZE"] = str(machine.world_size)  # by which the input pipeline shares the cores
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would look the machine's name up
        device = _device(machine, rank)
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        _join_group(device, store=store, rank=rank, world_size=machine.world_size)
        status = _status(worker, device)
        dist.destroy_process_group()
        writer.send(_Report(rank, status))
    except BaseException as error:
        user = isinstance(error, UserError)
        text = str(error) if user else f"failed:\n{traceback.format_exc()[-20_000:]}"
        writer.send(_Report(rank, 2 if user else 1, text, user, time.monotonic()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # at once: the end of a process group can hang where a peer is gone


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.killpg(0, signal.SIGKILL)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
