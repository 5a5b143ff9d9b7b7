"""Processes of Python that begin with the frameworks imported.

To import PyTorch and JAX takes a process three seconds of a core, and the tests start hundreds. A
server, one to each process of pytest, imports them once, starts no thread and no device, and forks
for each command. The fork has the command's arguments, folder, environment, files and session, is
`__main__` of its own, and ends as any process does; what it starts by `subprocess` with this Python
comes from the server, too. What differs from a new interpreter: modules are there that it did not
ask for, and nothing is said while they are imported. So the tests of imports, of memory and of
warnings start new ones, as do the ranks of PyTorch, and FORK_SERVER=0 does so everywhere.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "torch", "torch.distributed", "jax", "flax.nnx", "optax", "cv2", "matplotlib.pyplot",
    "torch_vit.train", "jax_vit.train", "twinvit.cli", "twinvit.training.command",
    "twinvit.convert.command", "twinvit.parity.command",
)  # fmt: skip
# Read while modules are imported or libraries loaded: a command that changes them is not forked.
READ_AT_IMPORT = (
    "CUDA_", "FORK_SERVER", "JAX_", "LD_", "MKL_", "MPL", "NPY_", "OMP_", "OPENBLAS_", "PYTHON",
    "TORCH", "TF_", "XLA_",
)  # fmt: skip
# A new process ignores those of them that the one that starts it ignores.
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_SOCKET: str | None = None  # of the server, in the processes that it forks


class Popen(subprocess.Popen):
    """`subprocess.Popen`, of a fork of the server where the command is one of this Python."""

    _answers: socket.socket | None = None

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # As subprocess passes them on, in every version of Python from 3.11.
        (executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell, *fds_and_more) = rest
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *more = fds_and_more
        restore_signals, gid, gids, uid, umask, new_session, group = more
        usual = (executable, preexec_fn, shell, gid, gids, uid) == (None, None, False) + (None,) * 3
        usual = usual and not pass_fds and umask == -1 and group == -1
        if not (usual and forks(args, env)):
            return super()._execute_child(args, *rest)
        request = {
            "argv": [os.fspath(a) for a in args[1:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "session": bool(new_session),
            "ignored": [int(n) for n in SIGNALS if signal.getsignal(n) == signal.SIG_IGN],
        }
        files = enumerate((p2cread, c2pwrite, errwrite))
        own = [number if fd == -1 else fd for number, fd in files]
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_address())
        socket.send_fds(self._answers, [b"."], own)
        self._answers.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._answers.makefile("r")
        self.pid = int(self._lines.readline())
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._answers is None:
            return super()._try_wait(wait_flags)
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            if wait_flags == os.WNOHANG and not selector.select(0):
                return 0, 0
        line = self._lines.readline()
        self._lines.close()
        self._answers.close()
        return self.pid, int(line or signal.SIGKILL)  # where the server was killed

    def _internal_poll(self, _deadstate: int | None = None, **others: Any) -> int | None:
        if self._answers is None:
            return super()._internal_poll(_deadstate, **others)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(*args: Any, input: Any = None, check: bool = False, **options: Any):
    """`subprocess.run`, by `Popen` above."""
    timeout = options.pop("timeout", None)
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(*args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def forks(args: Any, env: Any) -> bool:
    """Whether a command is the server's to run."""
    if os.environ.get("FORK_SERVER") == "0" or not hasattr(os, "pidfd_open"):
        return False
    if not isinstance(args, list | tuple) or len(args) < 2 or args[0] != sys.executable:
        return False
    first = os.fspath(args[1])
    if not (first in ("-c", "-m") and len(args) > 2 or first.endswith(".py")):
        return False
    return _read_at_import(os.environ if env is None else env) == _read_at_import(_environment())


def _read_at_import(env: Any) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_IMPORT)}


def _environment() -> dict[str, str]:
    """That of the server, and in what it forks that of the fork."""
    if _SOCKET is not None:
        return _BEGUN_WITH
    from benchmarks.runs import environment

    return environment()


def _address() -> str:
    return _SOCKET or _server()


@functools.cache
def _server() -> str:
    """The path of the socket of this process's server, which ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="twinvit_fork_")
    path = f"{folder.name}/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'parity_tests')!r}); import fork_server"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; fork_server.main()", path, str(listener.fileno())],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=_environment(), cwd=ROOT,
        pass_fds=[listener.fileno()], start_new_session=True,
    )  # fmt: skip
    listener.close()

    def end() -> None:
        process.stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return path


# The server, and what it forks.

_BEGUN_WITH: dict[str, str] = {}  # the environment of a fork when it begins
_GIVEN: set[str] = set()  # the names of those that the server was given


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each request, until standard input ends; returns in each fork, with its request."""
    running: dict[int, socket.socket] = {}  # pidfd: who waits for its status
    pids: dict[int, int] = {}
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                os._exit(0)
            if key.fileobj is not listener:
                selector.unregister(fd := key.fd)
                _, status = os.waitpid(pids.pop(fd), 0)
                os.close(fd)
                _say(running.pop(fd), status)
                continue
            asked, _ = listener.accept()
            _, fds, _, _ = socket.recv_fds(asked, 1, 3)
            with asked.makefile("r") as lines:
                request = json.loads(lines.readline())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX has started no thread here
                pid = os.fork()
            if pid == 0:
                for other in (selector, listener, asked, *running.values()):
                    other.close()
                for fd in running:
                    os.close(fd)
                return request | {"fds": fds}
            for fd in fds:
                os.close(fd)
            asked.sendall(f"{pid}\n".encode())
            fd = os.pidfd_open(pid)
            running[fd], pids[fd] = asked, pid
            selector.register(fd, selectors.EVENT_READ)


def _say(waiting: socket.socket, status: int) -> None:
    try:
        waiting.sendall(f"{status}\n".encode())
    except OSError:
        pass  # nobody waits
    waiting.close()


def _become(request: dict[str, Any]) -> None:
    """Take over what a new process would have been given."""
    if request["session"]:
        os.setsid()
    for number, fd in enumerate(request["fds"]):
        os.dup2(fd, number)
    for fd in request["fds"]:
        if fd > 2:
            os.close(fd)
    os.chdir(request["cwd"])
    for name in _GIVEN - set(request["env"]):  # what an imported module has set stays
        os.environ.pop(name, None)
    os.environ.update(request["env"])
    _BEGUN_WITH.update(os.environ)
    for number in SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    subprocess.Popen = Popen  # type: ignore[misc]


def _work(argv: list[str]) -> None:
    """What `python ARGV` does."""
    sys.orig_argv = [sys.executable, *argv]
    first, *rest = argv
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """The server: `python -c ... PATH LISTENER`, the socket's path and its file descriptor."""
    global _SOCKET
    path, number = sys.argv[1:]
    _GIVEN.update(os.environ)
    sys.path[0] = str(ROOT)  # this folder is no command's to import from
    for name in PRELOADED:
        importlib.import_module(name)
    del sys.path[:2]
    _SOCKET = path
    gc.freeze()
    request = _serve(socket.socket(fileno=int(number)))
    _become(request)
    try:
        _work(request["argv"])
    finally:  # before what is registered for the end, as after any main program
        sys.stdout.flush()
