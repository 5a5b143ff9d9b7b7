"""Claim: a run starts on the devices asked for or says why not, and ends whole: no rank is left
behind, no error twice."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time

import fork_server
import pytest
import ranks
import torch

from benchmarks.runs import environment
from jax_vit import devices as jax_devices
from jax_vit import rendezvous
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.record import Record, write_record
from shared_vit.run.requested import RequestedConfig
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from torch_vit import devices as torch_devices
from torch_vit.ranks import launch

CFG = RequestedConfig(dict(batch_size=64, device="cpu"))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Nothing of a surrounding torchrun, SLURM or thread setting."""
    for name in list(os.environ):
        if name.startswith("OMP_") or of_a_cluster(name):
            monkeypatch.delenv(name)


def of_a_cluster(name: str) -> bool:
    return name.startswith("SLURM_") or name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
    )


NEW = {"FORK_SERVER": "0"}  # a new interpreter, of which any import may print something


def alone(**more: str) -> dict[str, str]:
    """The environment of a process."""
    return {n: v for n, v in environment().items() if not of_a_cluster(n)} | more


@pytest.fixture
def gpus(monkeypatch):
    """PyTorch and JAX made to see two old GPUs."""

    class Gpu:
        device_kind, compute_capability = "Old", "7.5"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old")
    monkeypatch.setattr(jax_devices, "_local_gpus", lambda: [Gpu(), Gpu()])
    monkeypatch.setattr(jax_devices.jax.config, "update", lambda *_: None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(tmp_path, function, *args, **env) -> subprocess.Popen:
    command = ranks.write_script(
        tmp_path / f"script{len(list(tmp_path.iterdir()))}", function, *args
    )
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return fork_server.Popen(command, env=alone(**env), start_new_session=True, **pipes)


def train(twin: str, *flags: str, **env: str) -> subprocess.Popen:
    """`twinvit train` in a process of its own."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-m", "twinvit", "train", f"--framework={twin}", *flags]
    return fork_server.Popen(command, env=alone(TWINVIT_TIMEOUT="30", **env), **pipes)


def rank_pids(process: subprocess.Popen, number: int) -> list[int]:
    """Of the ranks of a launcher, which print them."""
    lines = [process.stdout.readline() for _ in range(number)]
    return [int(line.rsplit(" ", 1)[1]) for line in lines]


def assert_gone(pids: list[int]) -> None:
    def running(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    deadline = time.monotonic() + 5
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if running(pid)]


# What is asked for against what is there.


@pytest.mark.parametrize(
    "resolve", [torch_devices.resolve, jax_devices.resolve], ids=["torch", "jax"]
)
@pytest.mark.parametrize(
    "change, words",
    [
        (dict(device=None, world_size=8), ["--world_size=2", "--device=cpu"]),
        (dict(device=None, precision="bf16"), ["Old", "bfloat16", "--precision="]),
        (dict(device=None, batch_size=63), ["--batch_size=63", "2"]),
        (dict(world_size=3), ["--batch_size=64", "3"]),
        (dict(world_size=4, grad_accum=32), ["--grad_accum=32"]),
    ],
    ids=["more devices than GPUs", "no bf16", "batch over all GPUs", "batch", "accumulation"],
)
def test_impossible_devices_are_refused(resolve, change, words, gpus):
    with pytest.raises(UserError) as error:
        resolve(CFG.replace(**change))
    assert all(w in str(error.value) for w in words), error.value


@pytest.mark.parametrize(
    "resolve", [torch_devices.resolve, jax_devices.resolve], ids=["torch", "jax"]
)
def test_defaults_are_every_gpu_and_the_precision_it_has(resolve, gpus):
    cfg = resolve(CFG.replace(device=None))
    assert (cfg.device, cfg.world_size, cfg.precision) == ("gpu", 2, "fp32")
    cfg = resolve(CFG)
    assert (cfg.device, cfg.world_size, cfg.precision) == ("cpu", 1, "fp32")


def test_new_gpus_get_bf16_and_torch_compile(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    cfg = torch_devices.resolve(CFG.replace(device=None))
    assert (cfg.precision, cfg.compile) == ("bf16", "on")
    assert torch_devices.resolve(CFG).compile == "off"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    "resolve", [torch_devices.resolve, jax_devices.resolve], ids=["torch", "jax"]
)
def test_no_gpu(resolve):
    with pytest.raises(UserError, match="--device=cpu"):
        # As many CPU devices as JAX has in these tests: their number is fixed once its back end
        # runs.
        resolve(CFG.replace(device="gpu", world_size=8))


def test_fp16_is_refused_in_jax():
    with pytest.raises(UserError, match="bf16"):
        jax_devices.resolve(CFG.replace(precision="fp16"))


def test_torchrun_decides_the_world_size(monkeypatch, gpus):
    for name, value in dict(RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2").items():
        monkeypatch.setenv(name, value)
    assert torch_devices.resolve(CFG.replace(device=None)).world_size == 4  # two nodes of two GPUs
    with pytest.raises(UserError, match="--world_size"):
        torch_devices.resolve(CFG.replace(world_size=2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="--nproc_per_node=2"):
        torch_devices.resolve(CFG.replace(device=None))


def test_a_signal_before_the_run_asks_for_another_start():
    program = (
        "import os, signal, twinvit.training.command as t\n"
        "t.parse = lambda *a: os.kill(os.getpid(), signal.SIGTERM)\n"
        "t.run('torch', [], 'x')"
    )
    command = [sys.executable, "-c", program]
    done = fork_server.run(command, capture_output=True, text=True, env=alone())
    assert (done.returncode, done.stderr.count("\n")) == (75, 1), done.stderr


# PyTorch's ranks.


@pytest.mark.parametrize(
    "how, status, cause",
    [
        ("killed", 137, "rank 1 of 3 was killed by SIGKILL"),
        ("raises", 1, "ZeroDivisionError: the reason"),
        ("mistake", 2, "error: what to do"),
        ("stuck", 1, "rank 2 of 3 failed"),
    ],
)
def test_a_failing_rank_ends_the_run(how, status, cause, tmp_path):
    cfg = CFG.replace(world_size=3, batch_size=3)
    process = start(
        tmp_path, ranks.launch_torch, cfg, functools.partial(ranks.torch_rank_fails, how)
    )
    pids = rank_pids(process, 3)
    begin = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    assert process.returncode == status
    assert err.count("error:") == 1 and err.count(cause) == 1, err
    assert err.count("Traceback") == (0 if how in ("killed", "mistake") else 1), err
    assert_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_once(number, tmp_path):
    """And their agreed status is the run's.

    To the whole session, as a terminal's Ctrl-C goes to all of its processes.
    """
    process = start(tmp_path, ranks.launch_torch, CFG.replace(world_size=2), ranks.torch_rank_waits)
    pids = rank_pids(process, 2)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 71, err
    assert "Traceback" not in err
    assert_gone(pids)


def test_a_signal_while_the_ranks_start_is_not_lost(tmp_path):
    process = start(tmp_path, ranks.launch_torch_signalled, CFG.replace(world_size=2))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err


def test_ranks_start_without_a_warning(tmp_path):
    """Of a deprecated argument of DDP, for one, which each rank would print over the progress."""
    flags = ("--preset=digits", "--device=cpu", "--world_size=2", "--steps=1")
    process = train("torch", *flags, f"--run_dir={tmp_path / 'run'}", **NEW)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert "Warning" not in out + err


def test_a_second_ctrl_c_kills(tmp_path):
    process = start(tmp_path, ranks.launch_torch, CFG.replace(world_size=2), ranks.torch_rank_waits)
    pids = rank_pids(process, 2)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert_gone(pids)


def test_ranks_end_with_a_parent_that_is_killed(tmp_path):
    process = start(tmp_path, ranks.launch_torch, CFG.replace(world_size=2), ranks.torch_rank_waits)
    pids = rank_pids(process, 2)
    process.kill()
    process.communicate(timeout=30)
    assert_gone(pids)


def test_ranks_share_the_cores():
    runtime = ranks.settle(torch_devices.resolve, CFG.replace(world_size=2))
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert launch(runtime, ranks.torch_rank_counts_threads) == 10 + threads


def test_torchrun(tmp_path):
    """Its processes join, and a mistake is told once."""
    cfg = CFG.replace(world_size=None)
    port = free_port()

    def torchrun(function, *args):
        command = ranks.write_script(tmp_path / "script", function, *args)
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
             f"--master_port={port}", *command[1:]],
            capture_output=True, text=True, timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    done = torchrun(
        ranks.launch_torch, cfg, functools.partial(ranks.torch_rank_fails, "not at all")
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"rank \d is", done.stdout)) == 2
    done = torchrun(ranks.launch_torch, cfg.replace(batch_size=3), ranks.torch_rank_waits)
    assert done.stderr.count("error: ") == 1 and "--batch_size=3" in done.stderr, done.stderr


# JAX's processes.


def test_a_coordinator_that_does_not_answer(tmp_path):
    cfg = CFG.replace(coordinator=f"127.0.0.1:{free_port()}", num_processes=2, process_id=1)
    for process_id, words in ((1, "did not answer"), (0, "processes [1] did not come")):
        own = cfg.replace(process_id=process_id)
        process = start(tmp_path, ranks.jax_process, None, None, own, TWINVIT_TIMEOUT="1", **NEW)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert words in err and cfg.coordinator in err and "within 1 s" in err


@pytest.mark.parametrize(
    "changes, words",
    [
        ([{}, dict(process_id=0)], "two processes have --process_id=0|cannot listen"),
        ([{}, dict(num_processes=4)], "--num_processes=4"),
        ([{}, dict(world_size=2)], "same --world_size"),
    ],
)
def test_processes_that_disagree(changes, words, tmp_path):
    port = free_port()
    base = CFG.replace(coordinator=f"127.0.0.1:{port}", num_processes=2)
    own = [base.replace(**({"process_id": i} | change)) for i, change in enumerate(changes)]
    running = [
        start(tmp_path, ranks.jax_process, None, None, cfg, TWINVIT_TIMEOUT="5") for cfg in own
    ]
    errors = [p.communicate(timeout=60)[1] for p in running]
    assert [p.returncode for p in running] == [2, 2]
    assert any(re.search(words, e) for e in errors), errors


@pytest.mark.parametrize("how, status", [("killed", 1), ("mistake", 1), ("not at all", 0)])
def test_a_failing_process_ends_the_others(how, status, tmp_path):
    """At once, not when the coordination service misses its heartbeats, and with one message."""
    port = free_port()
    flags = CFG.replace(coordinator=f"127.0.0.1:{port}", num_processes=2)
    running = [
        start(tmp_path, ranks.jax_process_fails, how, flags.replace(process_id=i)) for i in (0, 1)
    ]
    errors = [p.communicate(timeout=50)[1] for p in running]
    failed = {"killed": -signal.SIGKILL, "mistake": 2, "not at all": 0}[how]
    assert [p.returncode for p in running] == [status, failed], errors
    assert ("process 1 of the run has ended" in errors[0]) == (how != "not at all")
    assert errors[1].count("error: what to do") == (how == "mistake")
    assert not any("Traceback" in e or "SIGABRT" in e for e in errors)


def test_a_process_that_fails_before_training_ends_the_others(tmp_path):
    """Data or weights may be missing on one host alone."""
    flags = [
        *("--preset=digits", "--device=cpu", "--steps=1", f"--run_dir={tmp_path / 'run'}"),
        *(f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"),
    ]
    own = (["--process_id=0"], ["--process_id=1", "--init_from=absent.safetensors"])
    running = [train("jax", *flags, *more) for more in own]
    errors = [p.communicate(timeout=60)[1] for p in running]
    assert [p.returncode for p in running] == [1, 2], errors
    assert "process 1 of the run has ended" in errors[0] and "absent.safetensors" in errors[1]
    assert not any("Traceback" in e for e in errors)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(coordinator="host:1"), "--num_processes"),
        (dict(coordinator="host", num_processes=2, process_id=0), "host:port"),
        (dict(coordinator="host:99999", num_processes=2, process_id=0), "port up to 65535"),
        (dict(coordinator="host:1", num_processes=2, process_id=2), "below"),
        (dict(process_id=1), "--coordinator"),
    ],
)
def test_incomplete_flags_of_processes(change, words):
    with pytest.raises(UserError, match=words):
        rendezvous.find_place(CFG.replace(**change))


def test_a_time_out_that_is_no_number(monkeypatch):
    monkeypatch.setenv("TWINVIT_TIMEOUT", "2m")
    with pytest.raises(UserError, match="TWINVIT_TIMEOUT='2m' is not a number of seconds"):
        rendezvous.exchange(rendezvous.Place("127.0.0.1:1", 2, 1), {})


@pytest.mark.parametrize(
    "nodes, host",
    [("n7", "n7"), ("n7,n9", "n7"), ("gpu[03-05,9],n1", "gpu03"), ("a-b[1,7-9]", "a-b1")],
)
def test_slurm(nodes, host, monkeypatch):
    for name, value in dict(
        JOB_ID="4097", STEP_ID="2", STEP_NODELIST=nodes, STEP_NUM_TASKS="4", PROCID="3"
    ).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert rendezvous.find_place(CFG) == rendezvous.Place(f"{host}:61443", 4, 3)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert rendezvous.find_place(CFG) is None


@pytest.mark.parametrize("flag", ["--resume", "--mode=eval"])
def test_slurm_decides_the_place_in_a_run_that_goes_on(flag, tmp_path, monkeypatch):
    """The record of a run holds the place of no start of it."""
    known = Record(Recipe(), RuntimeConfig(), None, {"name": "digits", "fingerprint": "1234"})
    write_record(tmp_path, known)
    requested = parse([flag, f"--run_dir={tmp_path}"], "x")
    assert rendezvous.find_place(requested) is None
    for name, value in dict(
        JOB_ID="4097", STEP_NODELIST="n7", STEP_NUM_TASKS="4", PROCID="3"
    ).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert rendezvous.find_place(requested) == rendezvous.Place("n7:61441", 4, 3)
    requested = parse([flag, f"--run_dir={tmp_path}", "--num_processes=1"], "x")
    assert rendezvous.find_place(requested) is None


def test_processes_of_one_host_share_its_gpus():
    def info(host, gpus, world_size=None):
        return {"host": host, "gpus": gpus, "world_size": world_size}

    assert jax_devices._share_of_gpus([info("a", list("wxyz")), info("b", list("wxyz"))], 1) is None
    assert jax_devices._share_of_gpus([info("a", list("wxyz"))] * 2, 1) == [2, 3]
    assert jax_devices._share_of_gpus([info("a", list("wxyz"), 1)] * 3, 2) == [2]
    # given out by SLURM
    assert jax_devices._share_of_gpus([info("a", ["w"]), info("a", ["x"])], 1) is None
    assert jax_devices._share_of_gpus([info("a", [])] * 2, 1) is None
    for impossible in ([info("a", ["w"])] * 8, [info("a", ["w", "x"]), info("a", ["w"])]):
        with pytest.raises(UserError, match="--device=cpu"):
            jax_devices._share_of_gpus(impossible, 1)
