"""Claim: the number of devices, processes and accumulated parts changes no curve, and no
evaluation."""

import dataclasses
import functools
import pickle
import socket
import subprocess

import fork_server
import numpy as np
import pytest
import ranks
from helpers import (
    TINY,
    first_batches,
    jax_trainer,
    nudged_runs,
    random_state,
    run,
    torch_trainer,
    train_config,
)

from benchmarks.runs import environment
from shared_vit.data.batch import Batch
from twinvit.parity.noise_rule import Curve, Verdict, gap, machine_epsilon, noise_rule

STEPS = 50
slow = pytest.mark.slow
TRAIN = train_config("fp64", dropout=0.1, clip=1.0)  # dropout, so that masks of the wrong rows show
MODEL = dataclasses.replace(TINY, dropout=0.1, depth=2)


@pytest.fixture(scope="module")
def data() -> list[Batch]:
    return first_batches(TRAIN, STEPS)


@pytest.fixture(scope="module")
def held_out(data) -> Batch:
    """Padded in its last rows only, so that the devices' shares of it differ in weight."""
    weight = np.ones(TRAIN.batch_size, np.float32)
    weight[-11:] = 0
    return dataclasses.replace(data[-1], weight=weight)


@pytest.fixture(scope="module")
def state():
    return random_state(MODEL, "fp64")


@pytest.fixture
def job(state, data, held_out, tmp_path) -> ranks.Job:
    return ranks.Job(state, data, held_out, tmp_path / "result.npz")


@pytest.fixture(scope="module")
def base(state, data, held_out):
    """PyTorch's run in one process and one part."""
    return ranks.train(torch_trainer(state, TRAIN), TRAIN, ranks.Job(state, data, held_out, None))


@pytest.fixture(scope="module")
def nudged(state):
    return nudged_runs(state, TRAIN, STEPS)


@pytest.fixture
def judge(base, nudged):
    """The verdict on a result, against PyTorch's run in one process."""

    def judged(result) -> Verdict:
        return noise_rule(curve(result), curve(base), curve(base), nudged, machine_epsilon("fp64"))

    return judged


def curve(result) -> Curve:
    return Curve(np.arange(1, STEPS + 1), result["loss"], result["grad_norm"])


def run_torch(job: ranks.Job, world_size: int, grad_accum: int = 1, train=TRAIN):
    cfg = dataclasses.replace(train, grad_accum=grad_accum)
    flags = ranks.requested(cfg, world_size=world_size, device="cpu")
    assert ranks.launch_torch(flags, functools.partial(ranks.torch_rank, job, cfg)) == 0
    return np.load(job.out)


def run_jax_processes(job: ranks.Job, cfg, flags, folder, processes: int = 2):
    """`processes` of them, with as many devices each as `flags.world_size`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = []
    for i in range(processes):
        place = dict(coordinator=f"127.0.0.1:{port}", num_processes=processes, process_id=i)
        own = flags.replace(**place)
        command = ranks.write_script(folder / f"process{i}", ranks.jax_process, job, cfg, own)
        running.append(fork_server.Popen(command, env=environment(), **pipes))
    outputs = [p.communicate(timeout=300)[0] for p in running]
    assert [p.returncode for p in running] == [0] * processes, outputs
    return np.load(job.out)


@pytest.mark.parametrize(
    "world_size, grad_accum",
    [
        (2, 2),
        pytest.param(4, 1, marks=slow),
        pytest.param(8, 1, marks=slow),
        pytest.param(1, 2, marks=slow),
        pytest.param(1, 4, marks=slow),
        pytest.param(2, 4, marks=slow),
    ],
)
def test_torch(world_size, grad_accum, job, judge, base):
    result = run_torch(job, world_size, grad_accum)
    verdict = judge(result)
    assert verdict.matched and verdict.decided_until == STEPS, verdict.describe()
    np.testing.assert_allclose(result["counts"], base["counts"], rtol=1e-10)


@pytest.mark.parametrize(
    "devices, grad_accum",
    [
        (8, 1),
        (2, 4),
        pytest.param(1, 1, marks=slow),
        pytest.param(2, 1, marks=slow),
        pytest.param(4, 1, marks=slow),
        pytest.param(1, 2, marks=slow),
        pytest.param(1, 4, marks=slow),
        pytest.param(4, 2, marks=slow),
    ],
)
def test_jax(devices, grad_accum, job, judge, base, x64):
    train = dataclasses.replace(TRAIN, grad_accum=grad_accum)
    result = ranks.train(jax_trainer(job.state, train, devices), train, job)
    verdict = judge(result)
    assert verdict.matched and verdict.decided_until == STEPS, verdict.describe()
    np.testing.assert_allclose(result["counts"], base["counts"], rtol=1e-10)


@pytest.mark.parametrize("grad_accum", [1, pytest.param(2, marks=slow)])
def test_jax_in_two_processes_of_two_devices(grad_accum, job, judge, base, tmp_path):
    cfg = dataclasses.replace(TRAIN, grad_accum=grad_accum)
    result = run_jax_processes(job, cfg, ranks.requested(cfg, world_size=2, device="cpu"), tmp_path)
    verdict = judge(result)
    assert verdict.matched and verdict.decided_until == STEPS, verdict.describe()
    np.testing.assert_allclose(result["counts"], base["counts"], rtol=1e-10)


def test_evaluation_gathers_no_batch_in_jax(state, held_out, x64):
    """Each device evaluates its own rows, in the layout of accumulation as well."""
    trainer = jax_trainer(state, dataclasses.replace(TRAIN, grad_accum=2), 4)
    args = (trainer.params, trainer.fixed, trainer.to_device(held_out)[:4], trainer._flag(False))
    program = trainer.compute_counts.lower(*args).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program


def test_the_held_out_batch_tells_a_mean_of_means_apart(state, held_out, base):
    """Had devices averaged their own means, the evaluation above would have differed."""
    trainer = torch_trainer(state, TRAIN)
    correct1, _, loss_sum, count = base["counts"]
    halves = [
        trainer.eval_step(trainer.to_device(ranks.rows_of(held_out, i, 2))).get() for i in range(2)
    ]
    whole = trainer.eval_step(trainer.to_device(held_out)).get()
    assert sum(h.examples for h in halves) == whole.examples == count
    mean_of_means = np.mean([h.loss_sum / h.examples for h in halves])
    assert abs(mean_of_means - whole.loss_sum / whole.examples) > 1e-3


@pytest.mark.parametrize("mutation", ["local rows", "mean of ranks"])
def test_mutations_are_caught(mutation, job, judge):
    """Masks of a rank's own rows instead of the batch's; gradients divided once too often, which
    Adam and clipping hide."""
    result = run_torch(job._replace(mutation=mutation), world_size=2)
    verdict = judge(result)
    assert not verdict.matched
    assert any("grad_norm" in reason for reason in verdict.reasons)


def test_a_rank_drawing_the_same_masks_is_caught_in_jax(job, judge, x64):
    """`rows` counted from 0 in each half of the batch, as a device that did not know its place
    would."""
    halved = [dataclasses.replace(b, rows=b.rows % (TRAIN.batch_size // 2)) for b in job.data]
    verdict = judge(ranks.train(jax_trainer(job.state, TRAIN, 2), TRAIN, job._replace(data=halved)))
    assert not verdict.matched


@pytest.mark.parametrize("mutation", ["", "unsettled buckets"])
def test_four_torch_processes_resume_bit_for_bit(mutation, job, state):
    """DDP sums in the order of its buckets, which it forms anew after the first backward pass of a
    process."""
    cfg = train_config("fp32", dropout=0.1)
    flags = ranks.requested(cfg, world_size=4, device="cpu")
    job = job._replace(state=random_state(MODEL, "fp32"), data=job.data[:8], mutation=mutation)
    assert ranks.launch_torch(flags, functools.partial(ranks.torch_rank_resumes, job, cfg)) == 0
    whole, resumed = pickle.loads(job.out.read_bytes())
    assert whole.step == resumed.step == 8
    same = all((whole.params[n] == resumed.params[n]).all() for n in whole.params)
    assert same == (mutation == "")


def test_parts_add_up_to_the_batch(state, data):
    """Parts of a batch are the batch: their losses add up to its own."""
    first = [dataclasses.replace(TRAIN, grad_accum=n) for n in (1, 4)]
    curves = [run(torch_trainer(state, train), train, 3) for train in first]
    assert gap(*curves, "loss")[-1] < 1e-12 and gap(*curves, "grad_norm")[-1] < 1e-12
