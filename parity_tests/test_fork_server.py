"""Claim: a process that the fork server starts is what a new interpreter would be."""

import os
import signal
import subprocess
import sys

import fork_server
import pytest
from whole_runs import environment

SAID = """
import atexit, json, os, signal, sys, threading
atexit.register(lambda: os.write(1, b" at the end"))
print(json.dumps([
    __name__, sys.argv, sys.path[0], os.getcwd(), os.environ["WORD"], "OTHER" in os.environ,
    sys.stdin.read(), [str(signal.getsignal(n)) for n in (2, 13, 15)],
    os.getsid(0) == os.getpid(), threading.active_count(), sys.flags.safe_path,
    sys.stdout.line_buffering, sys.stderr.errors, len(os.listdir("/proc/self/fd")),
    sys.modules["__main__"].__dict__ is globals(), "fork_server" in sys.path[0],
]))
print("an error", file=sys.stderr)
"""


def both(command, **options):
    """What `subprocess` and the server give for a command: (status, output, errors)."""
    options = dict(capture_output=True, text=True) | options
    found = [run(command, **options) for run in (subprocess.run, fork_server.run)]
    return [(done.returncode, done.stdout, done.stderr) for done in found]


@pytest.fixture(params=["-c", "-m", "script"])
def command(request, tmp_path):
    def of(code: str, *arguments: str) -> list[str]:
        if request.param == "-c":
            return [sys.executable, "-c", code, *arguments]
        (tmp_path / "program.py").write_text(code)
        where = ["-m", "program"] if request.param == "-m" else [str(tmp_path / "program.py")]
        return [sys.executable, *where, *arguments]

    return of


@pytest.fixture(params=[signal.SIG_IGN, signal.default_int_handler])
def interrupts(request):
    """SIGINT ignored, as by what a shell starts in the background, and not."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_is_given_what_a_new_process_is_given(command, tmp_path, interrupts):
    options = dict(input="a line\n", cwd=tmp_path, start_new_session=True)
    options |= dict(env=environment() | {"WORD": "x"})
    assert fork_server.forks(command(SAID), options["env"])
    new, forked = both(command(SAID, "a", "--b=1"), **options)
    assert new == forked
    assert new[0] == 0 and "at the end" in new[1] and new[2] == "an error\n"


ENDS = {
    "pass": 0,
    "import sys; sys.exit(75)": 75,
    "import sys; sys.exit('why')": 1,
    "1 / 0": 1,
    "import os; os._exit(3)": 3,
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
}


@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_a_new_process_ends(command, code, tmp_path):
    assert fork_server.forks(command(code), environment())
    new, forked = both(command(code), cwd=tmp_path, env=environment())
    assert new[0] == forked[0] == ENDS[code]
    assert new[1] == forked[1] and new[2].splitlines()[-1:] == forked[2].splitlines()[-1:]


def test_it_is_awaited_signalled_and_killed():
    code = "import time; print('on', flush=True); time.sleep(60)"
    process = fork_server.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "on\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    os.kill(process.pid, 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == process.poll() == -signal.SIGTERM
    process.stdout.close()


def test_what_it_starts_is_forked_too(tmp_path, monkeypatch):
    """By `subprocess` and this Python, also with a variable that the server did not have."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    code = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', {!r}]).returncode)"
    inner = "import json, sys; print('torch' in sys.modules, flush=True); sys.exit(4)"
    done = fork_server.run(
        [sys.executable, "-c", code.format(inner)],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "True\n4\n" and done.returncode == 0


def test_a_device_and_threads_are_its_own():
    """The server has started neither: each fork may ask for other devices."""
    code = """
import os, sys, jax, torch
assert len(os.listdir("/proc/self/task")) == 1
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
print(len(jax.devices()))
"""
    command = [sys.executable, "-c", code]
    options = dict(env=environment(), capture_output=True, text=True)
    found = [fork_server.run([*command, str(n)], **options).stdout for n in (1, 2)]
    assert found == ["1\n", "2\n"]


@pytest.mark.parametrize(
    "args, changes",
    [
        (["python3", "-c", "pass"], {}),
        ([sys.executable, "-I", "-c", "pass"], {}),
        ([sys.executable, "-c", "pass"], {"XLA_FLAGS": "--other"}),
        ([sys.executable, "-c", "pass"], {"OMP_NUM_THREADS": "2"}),
        ([sys.executable, "-c", "pass"], {"PYTHONPATH": "elsewhere"}),
        ([sys.executable, "-c", "pass"], {"FORK_SERVER": "0"}),
    ],
)
def test_others_are_new_processes(args, changes):
    assert not fork_server.forks(args, environment() | changes)
