"""How the processes of a JAX run find one another, before `jax.distributed` does.

Measured with jax 0.10.2: where a peer stays away, `jax.distributed.initialize` ends the process by
SIGABRT with a C++ stack, which Python cannot catch; it does not report which processes use the same
GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

from shared_vit.errors import UserError
from shared_vit.run.requested import RequestedConfig

TIMEOUT_SECONDS = 120.0  # changed by the environment variable TWINVIT_TIMEOUT
SETTLE_SECONDS = 0.5
_DONE, _FAILED = b"d", b"f"  # how a process ends its run: as it should, or with an error
_LEAVING_SECONDS = 300.0  # for which a process that has ended its run waits for the others


class Place(NamedTuple):
    """A process among its peers."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int


def find_place(requested: RequestedConfig) -> Place | None:
    """The rendezvous that the flags name, else SLURM's job step; None for a run of one process.

    Raises UserError where --coordinator, --num_processes and --process_id are incomplete or
    impossible.
    """
    if requested.num_processes == 1:
        return None
    ranks = os.environ.get("WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" in os.environ and ranks.isdecimal() and int(ranks) > 1:
        raise UserError(
            f"torchrun started {ranks} processes, and in JAX one process drives all devices of a "
            f"host: start train_jax.py by itself, with --world_size={ranks}"
        )
    given = {n: getattr(requested, n) for n in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{n}" for n, value in given.items() if value is None]
    if len(missing) == 3:
        return _slurm_place()
    if missing:
        raise UserError(
            f"several processes need --coordinator, --num_processes and --process_id: {missing} "
            "not given"
        )
    place = Place(**given)
    found = re.fullmatch(r"\S+:(\d{1,5})", place.coordinator)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise UserError(
            "--coordinator must be host:port of process 0, such as node1:12345, with a port up to "
            f"65535, not {place.coordinator!r}"
        )
    if place.process_id >= place.num_processes:
        raise UserError(
            f"--process_id={place.process_id} must be below --num_processes={place.num_processes}"
        )
    return place


def _slurm_place() -> Place | None:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(n in os.environ for n in names) or int(os.environ["SLURM_STEP_NUM_TASKS"]) == 1:
        return None
    job, nodes, tasks, task = (os.environ[n] for n in names)
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)  # node[03-05,07],other -> node03
    if first is None:
        raise UserError(f"cannot read SLURM_STEP_NODELIST={nodes}: give --coordinator")
    prefix, number = first.groups()
    port = 61440 + (int(job) + int(os.environ.get("SLURM_STEP_ID", 0))) % 4096
    return Place(f"{prefix}{number or ''}:{port}", int(tasks), int(task))


class Peers:
    """The other processes of a run: what each of them said, and a connection that shows its end."""

    def __init__(self, everyone: list[dict[str, Any]], connections: dict[int, socket.socket]):
        self.everyone, self._connections = everyone, connections
        self._leaving = self._failed = False
        self._watching = threading.Thread(target=self._watch, name="peers", daemon=True)

    def watch(self) -> None:
        """End this process as soon as a peer ends before its run does.

        Without this a peer waits in a collective until JAX's coordination service misses the
        heartbeats, and then ends by SIGABRT (measured with jax 0.10.2: after 51 s).
        """
        self._watching.start()

    def leave(self, failed: bool = False) -> bool:
        """Send the peers how this process has ended its run, and receive how they have; whether any
        failed. All of them stop at the same step, and leave soon after one another.

        Process 0 receives the others' first and sends them all.
        """
        self._leaving, self._failed = True, self._failed or failed
        if 0 not in self._connections:
            self._watching.join(_LEAVING_SECONDS)
        for peer in self._connections.values():
            with contextlib.suppress(OSError):
                peer.sendall(_FAILED if self._failed else _DONE)
        self._watching.join(_LEAVING_SECONDS)
        return self._failed

    def _watch(self) -> None:
        waiting = dict(self._connections)
        while waiting:
            ready, _, _ = select.select(list(waiting.values()), [], [])
            for process_id, peer in list(waiting.items()):
                if peer not in ready:
                    continue
                try:
                    said = peer.recv(1)
                except OSError:
                    said = b""
                if not said and not self._leaving:
                    self._end(process_id)
                self._failed |= said == _FAILED
                del waiting[process_id]

    def _end(self, process_id: int) -> None:
        time.sleep(SETTLE_SECONDS)  # its own message first
        print(
            f"error: process {process_id} of the run has ended; the others end with it. "
            "--resume continues from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def exchange(place: Place, info: dict[str, Any]) -> Peers:
    """Send all processes this one's info and receive that of each, by process id.

    Raises UserError after the time-out.
    """
    text = os.environ.get("TWINVIT_TIMEOUT", TIMEOUT_SECONDS)
    try:
        timeout = float(text)
    except ValueError:
        raise UserError(f"TWINVIT_TIMEOUT={text!r} is not a number of seconds") from None
    deadline = time.monotonic() + timeout
    own = {"num_processes": place.num_processes, "process_id": place.process_id, "info": info}
    meet_as = _gather if place.process_id == 0 else _report
    try:
        return meet_as(place, own, deadline)
    except TimeoutError as error:
        raise UserError(
            f"{error} within {timeout:g} s (the environment variable TWINVIT_TIMEOUT changes that)"
        ) from None


def _gather(place: Place, own: dict[str, Any], deadline: float) -> Peers:
    """Process 0: receive from everyone, then reply to everyone, with the info or with what is
    wrong."""
    port = int(place.coordinator.rsplit(":", 1)[1])
    try:
        server = socket.create_server(("", port), backlog=place.num_processes)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port} of --coordinator={place.coordinator}: {error}"
        ) from None
    peers: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
    problem = None
    with server:
        while len(peers) < place.num_processes - 1 and problem is None:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = server.accept()
            except TimeoutError:
                missing = [i for i in range(1, place.num_processes) if i not in peers]
                raise TimeoutError(
                    f"processes {missing} did not come to {place.coordinator}"
                ) from None
            hello = _receive(peer, deadline)
            if hello is None:
                peer.close()
                continue
            process_id = hello["process_id"]
            if hello["num_processes"] != place.num_processes:
                problem = (
                    f"process {process_id} has --num_processes={hello['num_processes']}, process 0 "
                    f"{place.num_processes}"
                )
            elif process_id in peers or process_id == 0:
                problem = f"two processes have --process_id={process_id}"
            peers[-1 if problem else process_id] = (peer, hello)
    everyone = [own["info"]] + [peers[i][1]["info"] for i in sorted(peers) if i > 0]
    for peer, _ in peers.values():
        peer.sendall(json.dumps({"problem": problem, "info": everyone}).encode() + b"\n")
    if problem:
        raise UserError(problem)
    connections = {i: peer for i, (peer, _) in peers.items()}
    return Peers(everyone, _unlimited(connections))


def _report(place: Place, own: dict[str, Any], deadline: float) -> Peers:
    """Another process: send to process 0, and receive its reply."""
    host, port = place.coordinator.rsplit(":", 1)
    reason = "no answer"
    while time.monotonic() < deadline:
        left = max(0.01, deadline - time.monotonic())
        try:
            peer = socket.create_connection((host, int(port)), timeout=left)
            peer.sendall(json.dumps(own).encode() + b"\n")
            answer = _receive(peer, deadline)
        except OSError as error:
            reason = str(error)
            time.sleep(0.2)
            continue
        if answer is not None:
            if answer["problem"]:
                raise UserError(answer["problem"])
            return Peers(answer["info"], _unlimited({0: peer}))
        peer.close()
        time.sleep(0.2)
    raise TimeoutError(f"the coordinator {place.coordinator} (process 0) did not answer ({reason})")


def _unlimited(connections: dict[int, socket.socket]) -> dict[int, socket.socket]:
    """Without time-outs, and with keep-alive probes, by which the loss of a host is noticed."""
    for peer in connections.values():
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    return connections


def _receive(peer: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One line of JSON, byte for byte; None from another program, or from a peer that has ended."""
    line = bytearray()
    try:
        while not line.endswith(b"\n") and len(line) < 1_000_000:
            peer.settimeout(max(0.01, deadline - time.monotonic()))
            data = peer.recv(1)  # no more: what follows belongs to `Peers`
            if not data:
                return None
            line += data
        message = json.loads(bytes(line))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
