"""Claim: what saves memory changes no curve: recomputed blocks and sharded parameters."""

import dataclasses
import functools
import math
import pickle

import jax
import numpy as np
import pytest
import ranks
import torch
from flax import nnx
from helpers import (
    SMALL,
    first_batches,
    jax_trainer,
    nudged_runs,
    random_arrays,
    random_images,
    random_state,
    run,
    to_torch,
    torch_trainer,
    train_config,
)
from test_topology import MODEL, STEPS, TRAIN, curve, run_jax_processes

import jax_vit
import torch_vit
from jax_vit.sharding import placement
from shared_vit import model_config
from shared_vit.data.batch import Batch
from shared_vit.errors import UserError
from shared_vit.run.state import StepScalars, TrainState
from shared_vit.spec import canonical
from twinvit.parity.noise_rule import Curve, Verdict, gap, machine_epsilon, noise_rule

slow = pytest.mark.slow
ELEMENTS = 3 * sum(a.size for a in random_arrays(MODEL).values())  # with Adam's two moments
BOTH = {"remat": True, "shard": True}


@pytest.fixture(scope="module")
def data() -> list[Batch]:
    return first_batches(TRAIN, STEPS)


@pytest.fixture(scope="module")
def state():
    return random_state(MODEL, "fp64")


@pytest.fixture
def job(state, data, tmp_path) -> ranks.Job:
    return ranks.Job(state, data, data[0], tmp_path / "result.npz", memory=BOTH)


@pytest.fixture(scope="module")
def base(state, data):
    """PyTorch's run in one process, without either."""
    return ranks.train(torch_trainer(state, TRAIN), TRAIN, ranks.Job(state, data, data[0], None))


@pytest.fixture(scope="module")
def nudged(state) -> list[Curve]:
    return nudged_runs(state, TRAIN, STEPS)


@pytest.fixture
def check(base, nudged):
    """Assert that a result's curve is that of PyTorch in one process, and its evaluation too."""

    def checked(result) -> None:
        eps = machine_epsilon("fp64")
        verdict: Verdict = noise_rule(curve(result), curve(base), curve(base), nudged, eps)
        assert verdict.matched and verdict.decided_until == STEPS, verdict.describe()
        np.testing.assert_allclose(result["counts"], base["counts"], rtol=1e-10)

    return checked


def run_torch(job: ranks.Job, world_size: int, rank=ranks.torch_rank, train=TRAIN):
    flags = ranks.requested(train, world_size=world_size, device="cpu")
    assert ranks.launch_torch(flags, functools.partial(rank, job, train)) == 0
    return job.out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_give_the_same_bits_in_torch(precision, data):
    train = train_config(precision, dropout=0.1, grad_accum=2)
    state = random_state(MODEL, precision)
    trainers = [torch_trainer(state, train, remat=remat) for remat in (False, True)]
    curves = [run(t, train, 4) for t in trainers]
    assert gap(*curves, "loss")[-1] == gap(*curves, "grad_norm")[-1] == 0
    a, b = (t.state() for t in trainers)
    assert all((a.params[n] == b.params[n]).all() for n in a.params)


def test_recomputed_blocks_in_jax(state, data, check, x64):
    trainer = jax_trainer(state, TRAIN, remat=True)
    check(ranks.train(trainer, TRAIN, ranks.Job(state, data, data[0], None)))


def test_recomputed_blocks_keep_less():
    """All that a block keeps for its backward pass is its input."""
    kept = {}
    for remat in (False, True):
        model = torch_vit.from_arrays(SMALL, random_arrays(SMALL))
        model.remat = remat
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            model(to_torch(random_images(SMALL)))
        kept[remat] = sum(sizes)
    assert kept[True] < kept[False] / 4
    kept = {}
    for remat in (False, True):
        model = jax_vit.from_arrays(SMALL, random_arrays(SMALL))
        model.remat = remat
        graphdef, params = nnx.split(model)
        images = random_images(SMALL, batch_size=32)

        def pull_back(params, graphdef=graphdef, images=images):
            return jax.vjp(lambda p: nnx.merge(graphdef, p)(images), params)[1]

        kept[remat] = sum(a.size for a in jax.tree.leaves(jax.eval_shape(pull_back, params)))
    assert kept[True] < kept[False] / 4


def test_a_model_that_recomputes_traces_alike():
    model = jax_vit.from_arrays(SMALL, random_arrays(SMALL))
    expected = model.trace(random_images(SMALL))
    model.remat = True
    found = model.trace(random_images(SMALL))
    assert list(found) == list(expected)
    assert all((found[n] == expected[n]).all() for n in found)


def test_where_arrays_lie():
    """Large ones along the largest axis that the devices divide, others everywhere."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    specs = {
        (64, 256): (None, "data"),
        (256, 64): ("data",),
        (66, 64): (None, "data"),
        (65, 127): (),
        (64,): (),
        (1, 197, 768): (None, None, "data"),
        (16, 16, 3, 768): (None, None, None, "data"),
    }
    for shape, spec in specs.items():
        assert tuple(placement(mesh, shape, True).spec) == spec
    assert placement(mesh, (64, 256), False).is_fully_replicated


@pytest.mark.parametrize("devices", [8, *(pytest.param(n, marks=slow) for n in (1, 2, 4))])
def test_sharded_in_jax(devices, job, check, x64):
    trainer = jax_trainer(job.state, TRAIN, devices, **BOTH)
    check(ranks.train(trainer, TRAIN, job))
    device = trainer.mesh.devices.flat[0]
    arrays = jax.tree.leaves((trainer.params, trainer.slots))
    shards = [s for a in arrays for s in a.addressable_shards if s.device == device]
    assert sum(s.data.size for s in shards) < (1 / devices + 0.06) * ELEMENTS


def test_what_a_device_holds_of_a_published_size():
    """An eighth: what stays on every device is small."""
    mesh = jax.make_mesh((8,), ("data",))
    shapes = canonical.shapes(model_config("vit_b16")).values()
    parts = [placement(mesh, shape, True).shard_shape(shape) for shape in shapes]
    held, whole = (sum(math.prod(shape) for shape in group) for group in (parts, shapes))
    assert 1 / 8 <= held / whole < 1 / 8 + 0.002


def test_sharded_in_two_jax_processes_of_two_devices(job, check, tmp_path):
    flags = ranks.requested(TRAIN, world_size=2, device="cpu")
    check(run_jax_processes(job, TRAIN, flags, tmp_path))


@pytest.mark.parametrize("world_size", [2, *(pytest.param(n, marks=slow) for n in (1, 4, 8))])
def test_sharded_in_torch(world_size, job, check):
    result = np.load(run_torch(job, world_size))
    check(result)
    assert result["held"] < (1 / world_size + 0.05) * ELEMENTS


def test_sharded_gradients_and_update(state, data, x64):
    """They go out and in as whole arrays by canonical name."""
    plain, sharded = torch_trainer(state, TRAIN), jax_trainer(state, TRAIN, 8, shard=True)
    grads = {}
    for trainer in (plain, sharded):
        metrics, grads[trainer] = trainer.gradients(trainer.to_device(data[0]))
        assert np.isfinite(metrics.get().grad_norm)
        trainer.update(grads[trainer], StepScalars(1e-3))
    assert list(grads[plain]) == list(grads[sharded])
    for name, expected in grads[plain].items():
        np.testing.assert_allclose(grads[sharded][name], expected, rtol=0, atol=1e-13)
    a, b = plain.state(), sharded.state()
    assert list(a.params) == list(b.params) and a.scalars == b.scalars
    for x, y in [(a.params, b.params), *((a.slots[s], b.slots[s]) for s in a.slots)]:
        # But for key biases, whose gradient is rounding and whose Adam update is not.
        names = [n for n in x if not n.endswith("qkv.bias")]
        assert max(np.abs(x[n] - y[n]).max() for n in names) < 1e-9


@pytest.mark.parametrize("mutation", ["", "the norm of one part"])
def test_the_norm_counts_each_element_once(mutation, job, base, data):
    job = job._replace(data=data[:2], mutation=mutation)
    norm = np.load(run_torch(job, 2))["grad_norm"][0]
    assert (abs(norm / base["grad_norm"][0] - 1) < 1e-13) == (mutation == "")


@pytest.mark.parametrize("mutation", ["", "the nudge of another part"])
def test_the_nudge_in_torch_is_of_whole_tensors(mutation, job):
    """Each process draws it for the whole tensor and takes its part."""
    train = dataclasses.replace(TRAIN, nudge=1)
    alone = torch_trainer(job.state, train)
    alone.update(zeros_like(job.state), StepScalars(0.0))
    job = job._replace(mutation=mutation, state=job.state)
    path = run_torch(job, 2, rank=ranks.torch_rank_nudges, train=train)
    expected, found = alone.state().params, pickle.loads(path.read_bytes()).params
    assert min((expected[n] != job.state.params[n]).mean() for n in expected) > 0.2
    assert all((expected[n] == found[n]).all() for n in expected) == (mutation == "")


def test_the_nudge_in_jax_is_of_whole_tensors(x64):
    train, cfg = dataclasses.replace(TRAIN, nudge=1), dataclasses.replace(MODEL, depth=1)
    state = random_state(cfg, "fp64")
    weights = []
    for devices in (1, 8):
        trainer = jax_trainer(state, train, devices, shard=True)
        trainer.update(zeros_like(state), StepScalars(0.0))
        weights.append(trainer.state().params)
    assert min((weights[0][n] != state.params[n]).mean() for n in state.params) > 0.2
    assert all((weights[0][n] == weights[1][n]).all() for n in state.params)


def zeros_like(state: TrainState) -> dict[str, np.ndarray]:
    """Gradients that move nothing."""
    return {n: np.zeros_like(a) for n, a in state.slots["exp_avg"].items()}


def test_torch_resumes_bit_for_bit_and_into_other_shardings(job, data):
    job = job._replace(data=data[:8])
    path = run_torch(job, 2, rank=ranks.torch_rank_resumes)
    whole, resumed = pickle.loads(path.read_bytes())
    assert whole.step == resumed.step == 8
    assert all((whole.params[n] == resumed.params[n]).all() for n in whole.params)
    assert list(whole.params) == list(job.state.params)
    plain = torch_trainer(job.state, TRAIN)
    for batch in job.data:
        plain.train_step(plain.to_device(batch), StepScalars(1e-3)).get()
    then = [plain.train_step(plain.to_device(data[8]), StepScalars(1e-3)).get().loss]
    other = torch_trainer(resumed, TRAIN, remat=True)
    then.append(other.train_step(other.to_device(data[8]), StepScalars(1e-3)).get().loss)
    assert then[0] == pytest.approx(then[1], abs=1e-12)


def test_jax_resumes_bit_for_bit_and_into_other_shardings(state, data, x64):
    def updates(trainer, taken) -> list[float]:
        return [
            trainer.train_step(trainer.to_device(b), StepScalars(1e-3)).get().loss for b in taken
        ]

    whole = jax_trainer(state, TRAIN, 8, **BOTH)
    updates(whole, data[:4])
    middle = whole.state()
    expected = updates(whole, data[4:8])
    again = jax_trainer(middle, TRAIN, 8, **BOTH)
    assert updates(again, data[4:8]) == expected
    a, b = whole.state(), again.state()
    assert all((a.params[n] == b.params[n]).all() for n in a.params)
    other = jax_trainer(middle, TRAIN)
    np.testing.assert_allclose(updates(other, data[4:8]), expected, atol=1e-12)


def test_fp16_is_refused_with_sharding(job):
    train = train_config("fp16")
    job = job._replace(state=random_state(MODEL, "fp16"))
    with pytest.raises(UserError, match="--shard=params has no gradient scaler"):
        run_torch(job, 2, train=train)
