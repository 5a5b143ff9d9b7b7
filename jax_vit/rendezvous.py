"""How the processes of a JAX run find one another, before `jax.distributed`, which ends the program without a traceback
where a peer stays away, and cannot tell who shares a GPU with whom."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import Any, NamedTuple

from shared_vit.errors import UserError
from shared_vit.run.asked import Asked

TIMEOUT_SECONDS = 120.0  # changed by the environment variable TWINVIT_TIMEOUT


class Place(NamedTuple):
    """A process among its peers."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int


def find_place(asked: Asked) -> Place | None:
    """From --coordinator, --num_processes and --process_id, else from SLURM's job step; None for a run of one process.

    Raises UserError where the flags are incomplete or impossible.
    """
    if asked.num_processes == 1:
        return None
    given = {n: getattr(asked, n) for n in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{n}" for n, value in given.items() if value is None]
    if len(missing) == 3:
        return _slurm_place()
    if missing:
        raise UserError(f"several processes need --coordinator, --num_processes and --process_id: {missing} not given")
    place = Place(**given)
    if not re.fullmatch(r"\S+:\d+", place.coordinator):
        raise UserError(f"--coordinator must be host:port of process 0, such as node1:12345, not {place.coordinator!r}")
    if place.process_id >= place.num_processes:
        raise UserError(f"--process_id={place.process_id} must be below --num_processes={place.num_processes}")
    return place


def _slurm_place() -> Place | None:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(n in os.environ for n in names) or int(os.environ["SLURM_STEP_NUM_TASKS"]) == 1:
        return None
    job, nodes, tasks, task = (os.environ[n] for n in names)
    prefix, number = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes).groups()  # node[03-05,07],other -> node03
    port = 61440 + (int(job) + int(os.environ.get("SLURM_STEP_ID", 0))) % 4096
    return Place(f"{prefix}{number or ''}:{port}", int(tasks), int(task))


def meet(place: Place, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Tell all processes one's facts and return everyone's, by process id. Raises UserError after the time-out."""
    timeout = float(os.environ.get("TWINVIT_TIMEOUT", TIMEOUT_SECONDS))
    deadline = time.monotonic() + timeout
    own = {"num_processes": place.num_processes, "process_id": place.process_id, "facts": facts}
    try:
        return _gather(place, own, deadline) if place.process_id == 0 else _report(place, own, deadline)
    except TimeoutError as error:
        raise UserError(
            f"{error} within {timeout:g} s (the environment variable TWINVIT_TIMEOUT changes that)"
        ) from None


def _gather(place: Place, own: dict, deadline: float) -> list[dict[str, Any]]:
    """Process 0: hear everyone, then answer everyone, with the facts or with what is wrong."""
    port = int(place.coordinator.rsplit(":", 1)[1])
    try:
        server = socket.create_server(("", port), backlog=place.num_processes)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port} of --coordinator={place.coordinator}: {error}"
        ) from None
    peers: dict[int, tuple[socket.socket, dict]] = {}
    problem = None
    with server:
        while len(peers) < place.num_processes - 1 and problem is None:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = server.accept()
            except TimeoutError:
                missing = [i for i in range(1, place.num_processes) if i not in peers]
                raise TimeoutError(f"processes {missing} did not come to {place.coordinator}") from None
            hello = _receive(peer, deadline)
            if hello is None:
                peer.close()
                continue
            process_id = hello["process_id"]
            if hello["num_processes"] != place.num_processes:
                problem = f"process {process_id} has --num_processes={hello['num_processes']}, process 0 {place.num_processes}"
            elif process_id in peers or process_id == 0:
                problem = f"two processes have --process_id={process_id}"
            peers[-1 if problem else process_id] = (peer, hello)
    everyone = [own["facts"]] + [peers[i][1]["facts"] for i in sorted(peers) if i > 0]
    for peer, _ in peers.values():
        with peer:
            peer.sendall(json.dumps({"problem": problem, "facts": everyone}).encode() + b"\n")
    if problem:
        raise UserError(problem)
    return everyone


def _report(place: Place, own: dict, deadline: float) -> list[dict[str, Any]]:
    """Another process: tell process 0, and hear from it."""
    host, port = place.coordinator.rsplit(":", 1)
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, int(port)), timeout=max(0.01, deadline - time.monotonic())) as peer:
                peer.sendall(json.dumps(own).encode() + b"\n")
                answer = _receive(peer, deadline)
        except OSError as error:
            reason = str(error)
            time.sleep(0.2)
            continue
        if answer is not None:
            if answer["problem"]:
                raise UserError(answer["problem"])
            return answer["facts"]
        time.sleep(0.2)
    raise TimeoutError(f"the coordinator {place.coordinator} (process 0) did not answer ({reason})")


def _receive(peer: socket.socket, deadline: float) -> dict | None:
    """One line of JSON; None from a stranger, or from a peer that has gone."""
    peer.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        with peer.makefile("rb") as lines:
            message = json.loads(lines.readline(1_000_000))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
