"""Both twins as functions of a state, and a Trainer that takes each step by both.

The state is passed as the leader's own arrays, through memory. The float64 map of the
optimizer and, in bf16 and tf32, the float64 step widen it, which is exact; nothing is rounded.
"""

from __future__ import annotations

import dataclasses
import importlib
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.run.plan import Plan
from shared_vit.run.state import Lazy, StepMetrics, StepScalars, Trainer, TrainState
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.recipe import Recipe
from twinvit import lockstep
from twinvit.frameworks import FRAMEWORKS, Framework
from twinvit.lockstep import Measured
from twinvit.lockstep import batches as fed
from twinvit.lockstep.own_update import movement, own_update
from twinvit.parity.noise_rule import DECIDABLE, machine_epsilon

T = TypeVar("T")
U = TypeVar("U")
OWN_EVERY = 10  # the follower's own update is compared at one compared step of so many
OPTIMIZER_LIMIT = 1e-11  # of a tensor, in float64: the same arithmetic on the same values
KEYS = "[keys]"
_QKV = "attn.qkv.bias"


class Twin:
    """One trainer as functions of a state. `context` is what its framework must run in."""

    def __init__(
        self,
        make: Callable[[], Trainer],
        context: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.context = context
        with context():
            self.trainer: Any = make()
        self.altered: list[tuple[int, str]] = []  # what of which step's batch came otherwise
        self._holds: Mapping[str, np.ndarray] | None = None  # the parameters last loaded
        self._state: TrainState | None = None  # the state that is held, but for parameters

    def gradients(
        self, params: Mapping[str, np.ndarray], batch: Batch
    ) -> tuple[StepMetrics, dict[str, np.ndarray]]:
        """The metrics and unclipped gradients at `params`, loaded unless they are held."""
        with self.context():
            if self._holds is not params:
                self.trainer.load_params(params)
                self._holds = params
            metrics, grads = self.trainer.gradients(self.to_device(batch))
            return metrics.get(), grads

    def stepped(
        self, before: TrainState, batch: Batch, scalars: StepScalars
    ) -> tuple[StepMetrics, dict[str, np.ndarray], TrainState]:
        """The run's own step from a state, loaded unless it is loaded already: metrics, the
        unclipped gradients that it took, and the state after it, which the trainer goes on with."""
        with self.context():
            if self._state is before:
                self.restore()
            else:
                self.trainer.load(before)
            metrics, grads = self.trainer.watched_step(self.to_device(batch), scalars)
            after = self._state = self.trainer.state()
            self._holds = after.params
            return metrics.get(), grads, after

    def updated(
        self, state: TrainState, grads: Mapping[str, np.ndarray], scalars: StepScalars
    ) -> TrainState:
        """The state after the optimizer's step on given gradients."""
        with self.context():
            self.trainer.load(state)
            self.trainer.update(dict(grads), scalars)
            self.forget()
            return self.trainer.state()

    def to_device(self, batch: Batch) -> Any:
        """The batch on the trainer's device; notes what differs from what was passed."""
        own = self.trainer.to_device(batch)
        self.altered += [(batch.step + 1, name) for name in fed.altered(batch, own)]
        return own

    def state(self) -> TrainState:
        """What the trainer holds."""
        if self._state is None:
            self._state = self.trainer.state()
            self._holds = self._state.params
        return self._state

    def restore(self) -> None:
        """Load the state's own parameters again, after others were used."""
        if self._state is not None and self._holds is not self._state.params:
            with self.context():
                self.trainer.load_params(self._state.params)
            self._holds = self._state.params

    def forget(self) -> None:
        """The trainer's state has changed."""
        self._holds = self._state = None


def quantities(
    cfg: ModelConfig, metrics: StepMetrics, grads: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Loss, grad norm and each gradient; the key part of a qkv.bias is a quantity by itself where
    it is no part of the function."""
    result: dict[str, np.ndarray] = {
        "loss": np.asarray(metrics.loss, np.float64),
        "grad_norm": np.asarray(metrics.grad_norm, np.float64),
    }
    keys, unseen = slice(cfg.width, 2 * cfg.width), canonical.has_unseen_key_bias(cfg)
    for name, grad in grads.items():
        if unseen and name.endswith(_QKV):
            result[name] = np.delete(grad, keys)
            result[name + KEYS] = grad[keys]
        else:
            result[name] = grad
    return result


def relative_to(cfg: ModelConfig) -> dict[str, str]:
    """An unseen key part has no true gradient: its size is measured against that of the other
    rows."""
    if not canonical.has_unseen_key_bias(cfg):
        return {}
    names = (f"blocks.{i}.{_QKV}" for i in range(cfg.depth))
    return {name + KEYS: name for name in names}


def optimizer_quantities(state: TrainState) -> dict[str, np.ndarray]:
    """Parameters, moments and scalars of the optimizer."""
    found = {f"params.{n}": a for n, a in state.params.items()}
    for slot, arrays in state.slots.items():
        found |= {f"{slot}.{n}": a for n, a in arrays.items()}
    return found | {f"scalars.{n}": np.atleast_1d(float(v)) for n, v in state.scalars.items()}


def widened(state: TrainState) -> TrainState:
    """The same values in float64."""
    return dataclasses.replace(
        state, params=_wide(state.params), slots={s: _wide(a) for s, a in state.slots.items()}
    )


def _wide(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.asarray(a, np.float64) for n, a in arrays.items()}


@dataclass(frozen=True)
class Step:
    """One step by both twins.

    metrics: the leader's. gradients, optimizer: what they compare, of the optimizer the map in
    float64. own: each twin's own update against that map, in units in the last place. moved: the
    update of the parameters against their size. reference: of the float64 step that a bf16 step is
    held against, the twins' gradients, where they were compared.
    """

    metrics: StepMetrics
    gradients: Measured
    optimizer: Measured
    own: Measured
    moved: float
    reference: Measured | None = None


class Pair:
    """Both trainers on one run; `leader`'s steps are the run's, the other repeats each."""

    def __init__(self, plan: Plan, state: TrainState, leader: Framework):
        self.cfg, self.leading = state.config, leader
        recipe = dataclasses.replace(plan.recipe, nudge=None)
        double = dataclasses.replace(recipe, precision="fp64")
        precision = recipe.precision
        self.in_double = precision == "fp64"
        # A float64 torch trainer sets torch's switches for itself, so the run's own come last.
        self._double: dict[str, Twin] = {}
        if not self.in_double:
            wide = widened(state)
            self._double = {f: _twin(f, plan, double, wide, one=True) for f in FRAMEWORKS}
        self.twins = {f: _twin(f, plan, recipe, state) for f in FRAMEWORKS}
        self.leader = self.twins[leader]
        self.follower = self.twins[_other(leader)]
        self.by_reference = judged_by_reference(precision, plan.runtime.device)
        self.nudged_by = compute_epsilon(precision) if self.by_reference else None
        self.relative_to = relative_to(self.cfg)
        self.eps = machine_epsilon(precision)
        self.noise: dict[str, float] | None = None  # as it was measured last
        self._to_check = self.by_reference  # until the twins were compared in float64
        self._jax_in_double = cache(
            lambda: _twin("jax", plan, double, widened(state), one=True, whole=True)
        )
        self._thread = ThreadPoolExecutor(1, "jax")

    def load(self, state: TrainState) -> None:
        """Go on from another state of the same model."""
        self.leader.trainer.load(state)
        self.leader.forget()

    def free_step(self, batch: Any, scalars: StepScalars, stop: bool) -> Lazy:
        """A step of the leader alone, of a batch that it has `put`."""
        self.leader.forget()
        return self.leader.trainer.train_step(batch, scalars, stop)

    def step(
        self, batch: Batch, scalars: StepScalars, noise: bool, others_own: bool = False
    ) -> Step:
        """A step by both from the leader's state, which advances.

        `others_own` takes the follower's own update too. `noise` does, and measures that as well.
        It is measured all the same where a gap is above what the noise of an earlier step explains.
        """
        before, number = self.leader.state(), batch.step + 1
        own, others = self._by_both(
            lambda: self.leader.stepped(before, batch, scalars),
            lambda: self._of_follower(before, batch, scalars, noise or others_own),
        )
        (metrics, grads, after), (b_metrics, b_grads, b_after) = own, others
        a, b = quantities(self.cfg, metrics, grads), quantities(self.cfg, b_metrics, b_grads)
        reference = None
        if self.by_reference:
            wide = _wide(before.params)
            reference = quantities(self.cfg, *self._double["torch"].gradients(wide, batch))
        compared = lockstep.measure(number, a, b, None, reference, self.relative_to)
        if noise or self._is_new(compared):
            found = self._noise_of_both(compared, b, before.params, batch)
            compared = dataclasses.replace(compared, noise=found)
            self.noise = lockstep.latest(self.noise, found)
        exact = self._maps(before, after, grads, scalars)
        one, two = map(optimizer_quantities, exact)
        optimizer = lockstep.measure(number, one, two)
        mine = self._own_updates(number, before, (after, exact), (b_grads, b_after), scalars)
        moved = movement(before, exact[0])
        checked = None
        if (noise and self._to_check) or self._is_vague(compared):
            checked = self._in_double(before.params, batch)
            self._to_check &= bool(checked.zero)  # a zero hides something
        return Step(metrics, compared, optimizer, mine, moved, checked)

    def _of_follower(
        self, before: TrainState, batch: Batch, scalars: StepScalars, own: bool
    ) -> tuple[StepMetrics, dict[str, np.ndarray], TrainState | None]:
        """Its metrics and gradients, and its state after a step of its `own`."""
        if own:
            return self.follower.stepped(before, batch, scalars)
        return *self.follower.gradients(before.params, batch), None

    def _is_new(self, compared: Measured) -> bool:
        return not self.by_reference and lockstep.exceeds(compared, self.noise, self.eps)

    def _is_vague(self, compared: Measured) -> bool:
        """Whether rounding in float32 leaves a step undecided that float64 decides."""
        if self.by_reference or self.in_double:
            return False
        noise = (compared.noise or {}).values()
        return any(DECIDABLE < x <= lockstep.DECIDABLE_WITH_DOUBLE for x in noise)

    def _noise_of_both(
        self,
        compared: Measured,
        follower: Mapping[str, np.ndarray],
        params: Mapping[str, np.ndarray],
        batch: Batch,
    ) -> dict[str, float]:
        """The noise that limits a step's gaps, whose quantities by the other twin are `follower`.

        It is the leader's. That of its sums is held to the other twin's, by one nudge: a leader
        that rounds more than it should does not explain itself. Where it does not explain an
        array's gap the other twin's counts as well.
        """
        found = self._measured_noise(self.leader, params, batch)
        if self.by_reference:
            return found
        nudged = self.follower.gradients(lockstep.nudge(params, lockstep.SEEDS[0]), batch)
        one = lockstep.gaps(quantities(self.cfg, *nudged), follower, self.relative_to)
        found = lockstep.held(found, one)
        if lockstep.arrays_exceed(compared, found, self.eps):
            found = lockstep.of_both(found, self._measured_noise(self.follower, params, batch))
        return found

    def _measured_noise(
        self, twin: Twin, params: Mapping[str, np.ndarray], batch: Batch
    ) -> dict[str, float]:
        """Of a twin's gradients, by nudges; in a lower precision by nudges of its size.

        Against those that it computes in the same way: its own step may be wrong.
        """

        def found(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return quantities(self.cfg, *twin.gradients(params, batch))

        base = found(params)
        nudged = (found(lockstep.nudge(params, s, self.nudged_by)) for s in lockstep.SEEDS)
        noise = lockstep.noise_of(base, nudged, self.relative_to)
        twin.restore()
        return noise

    def _own_updates(
        self,
        number: int,
        before: TrainState,
        leader: tuple[TrainState, tuple[TrainState, TrainState]],
        follower: tuple[Mapping[str, np.ndarray], TrainState | None],
        scalars: StepScalars,
    ) -> Measured:
        """Each twin's own update against the float64 one on the gradients that it took."""
        after, (exact, of_follower) = leader
        other, (grads, other_after) = _other(self.leading), follower
        if self.in_double:  # the leader's own update is one side of the map
            exact = of_follower
        found = own_update(number, self.leading, before, after, exact, scalars.lr)
        if other_after is None:
            return found
        if self.in_double:
            exact = self.follower.updated(before, grads, scalars)
        else:
            exact = self._double[other].updated(widened(before), _wide(grads), scalars)
        second = own_update(number, other, before, other_after, exact, scalars.lr)
        return Measured(
            number,
            found.gaps | second.gaps,
            apart=found.apart + second.apart,
            vague=found.vague + second.vague,
        )

    def _in_double(self, params: Mapping[str, np.ndarray], batch: Batch) -> Measured:
        """The float64 step by both twins, with its noise."""
        wide, torch = _wide(params), self._double["torch"]
        a, b = (
            quantities(self.cfg, *twin.gradients(wide, batch))
            for twin in (torch, self._jax_in_double())
        )
        nudged = (
            quantities(self.cfg, *torch.gradients(lockstep.nudge(wide, seed), batch))
            for seed in lockstep.SEEDS
        )
        return lockstep.measure(batch.step + 1, a, b, nudged, None, self.relative_to)

    def altered(self) -> list[tuple[int, str]]:
        """What differed on a twin's device from what was passed, since the last call: (step,
        "torch's labels")."""
        found = []
        for name, twin in self.twins.items():
            found += [(step, f"{name}'s {what}") for step, what in twin.altered]
            twin.altered.clear()
        return sorted(found)

    def versions(self) -> dict[str, str]:
        """Versions of both frameworks, and their devices."""
        found = {"python": platform.python_version(), "numpy": np.__version__}
        for name, twin in self.twins.items():
            versions = twin.trainer.versions()
            found[name] = versions["version"]
            found[f"{name} devices"] = f"{versions['devices']} x {versions['device']}"
        return found

    def _maps(
        self,
        before: TrainState,
        after: TrainState,
        grads: Mapping[str, np.ndarray],
        scalars: StepScalars,
    ) -> tuple[TrainState, TrainState]:
        """The optimizer's results in float64 by leader and follower, on the leader's gradients."""
        if self.in_double:
            return after, self.follower.updated(before, grads, scalars)
        wide, wide_grads = widened(before), _wide(grads)
        leader, follower = self._double[self.leading], self._double[_other(self.leading)]
        return self._by_both(
            lambda: leader.updated(wide, wide_grads, scalars),
            lambda: follower.updated(wide, wide_grads, scalars),
        )

    def _by_both(self, leader: Callable[[], T], follower: Callable[[], U]) -> tuple[T, U]:
        """Both results; JAX works in its own thread, at the same time as torch in this one."""
        if self.leading == "jax":
            ahead = self._thread.submit(leader)
            of_follower = follower()
            return ahead.result(), of_follower
        pending = self._thread.submit(follower)
        of_leader = leader()
        return of_leader, pending.result()


class Due(NamedTuple):
    """What a compared step measures, whatever its gaps: see `Pair.step`."""

    noise: bool
    others_own: bool


def due(number: int) -> Due:
    """For the compared step of this number, from 1."""
    noise = lockstep.noise_is_due(number)
    return Due(noise, noise or (number - 1) % OWN_EVERY == 0)


def judged_by_reference(precision: str, device: str) -> bool:
    """Whether the twins may round differently. TF32 exists on GPUs alone: elsewhere it is fp32."""
    policy = PRECISIONS[precision]
    return policy.compute != policy.param or (policy.tf32 and device == "gpu")


def compute_epsilon(precision: str) -> float:
    """The machine epsilon of the products' inputs."""
    policy = PRECISIONS[precision]
    if policy.tf32:
        return 2.0**-10
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10}[str(policy.compute)]


def _other(framework: Framework) -> Framework:
    return "jax" if framework == "torch" else "torch"


def _twin(
    framework: Framework,
    plan: Plan,
    recipe: Recipe,
    state: TrainState,
    one: bool = False,
    whole: bool = False,
) -> Twin:
    """A twin on the plan's devices: JAX on all, torch and float64's (`one`) on the first.

    JAX's in float64 takes updates alone, unless it is a `whole` trainer.
    """
    devices = importlib.import_module(f"{framework}_vit.devices")
    trainer = importlib.import_module(f"twinvit.lockstep.{framework}_step").WatchedTrainer
    remat = plan.runtime.remat == "block"
    if framework == "torch":
        compiles = plan.runtime.compile == "on" and not one
        device = devices.device_of(plan.runtime, 0)
        return Twin(lambda: trainer(state, recipe, device, compile=compiles, remat=remat))
    import jax

    mesh = devices.start(plan.runtime)
    if one:
        if not whole:
            trainer = importlib.import_module("twinvit.lockstep.jax_update").HostTrainer
        mesh = jax.sharding.Mesh(mesh.devices.reshape(-1)[:1], ("data",))
    # float64 exists in JAX where x64 is on; a float32 run has it off, as users have.
    double = recipe.precision == "fp64" and not jax.config.jax_enable_x64
    shard = plan.runtime.shard == "params" and not one
    return Twin(
        lambda: trainer(state, recipe, mesh, remat=remat, shard=shard),
        (lambda: jax.enable_x64(True)) if double else nullcontext,
    )


class _Fed(NamedTuple):
    """A batch, and where the leader has it if it takes the step alone."""

    batch: Batch
    own: Any


@dataclass(frozen=True)
class _Done:
    """A result that is there."""

    value: Any

    def get(self) -> Any:
        return self.value


class LockstepTrainer:
    """The leader as the training loop's Trainer, of which each `every`-th step is taken by both.

    `record(step, scalars)` is called for each of these, and `alter(step, name)` for what of any
    step's batch differed on a twin's device from what was passed.
    """

    def __init__(
        self,
        pair: Pair,
        every: int,
        record: Callable[[Step, StepScalars], None],
        alter: Callable[[int, str], None],
    ):
        self.pair, self.every, self.record, self.alter = pair, every, record, alter
        self.leader = pair.leader.trainer
        self.process, self.num_processes = self.leader.process, self.leader.num_processes
        self.sharded = False  # one process holds the state

    @property
    def compile_seconds(self) -> float | None:
        return self.leader.compile_seconds

    def load(self, state: TrainState) -> None:
        self.pair.load(state)

    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        self.pair.load(dataclasses.replace(self.leader.state(), params=dict(params)))

    def state(self) -> TrainState:
        return self.leader.state()

    def snapshot(self) -> Callable[[], TrainState]:
        return self.leader.snapshot()

    def to_device(self, batch: Batch) -> Any:
        # An evaluation's batches come this way too: the copy is made on request.
        return _Fed(batch, None if self._is_due(batch) else self._put(batch))

    def _put(self, batch: Batch) -> Any:
        """The batch where the leader takes it; the follower has a look at it too."""
        self.pair.follower.to_device(batch)
        own = self.pair.leader.to_device(batch)
        self._note_altered()
        return own

    def _note_altered(self) -> None:
        for step, name in self.pair.altered():
            self.alter(step, name)

    def train_step(self, batch: _Fed, scalars: StepScalars, stop: bool = False) -> Lazy:
        if batch.own is not None:
            return self.pair.free_step(batch.own, scalars, stop)
        number = batch.batch.step // self.every + 1
        step = self.pair.step(batch.batch, scalars, *due(number))
        self._note_altered()
        self.record(step, scalars)
        return _Done(step.metrics._replace(stop=stop))

    def gradients(self, batch: _Fed) -> tuple[Lazy, dict[str, np.ndarray]]:
        return self.leader.gradients(self._own(batch))

    def update(self, grads: dict[str, np.ndarray], scalars: StepScalars) -> None:
        self.leader.update(grads, scalars)
        self.pair.leader.forget()

    def eval_step(self, batch: _Fed, stop: bool = False, averaged: bool = False) -> Lazy:
        return self.leader.eval_step(self._own(batch), stop, averaged)

    def versions(self) -> dict[str, str]:
        return self.leader.versions()

    def _is_due(self, batch: Batch) -> bool:
        return batch.step % self.every == 0

    def _own(self, batch: _Fed) -> Any:
        return self.leader.to_device(batch.batch) if batch.own is None else batch.own
