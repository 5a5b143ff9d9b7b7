"""Both twins as functions of a state, and a Trainer that takes each step by both.

The state is handed over as the leader's own arrays, through memory. The float64 map of the
optimizer and, in bf16 and tf32, the float64 step widen it, which is exact; nothing is rounded.
"""

from __future__ import annotations

import dataclasses
import importlib
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from shared_vit.data.batch import Batch
from shared_vit.run.plan import Plan
from shared_vit.run.state import Lazy, StepMetrics, StepScalars, Trainer, TrainState
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.recipe import Recipe
from twinvit import lockstep
from twinvit.frameworks import FRAMEWORKS, Framework
from twinvit.lockstep import Measured

T = TypeVar("T")
OPTIMIZER_LIMIT = 1e-11  # of a tensor, in float64: the same arithmetic on the same numbers
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
            self.trainer = make()
        self._holds: Mapping[str, np.ndarray] | None = None  # the parameters last loaded

    def gradients(
        self, params: Mapping[str, np.ndarray], batch: Batch
    ) -> tuple[StepMetrics, dict[str, np.ndarray]]:
        """The metrics and unclipped gradients at `params`, loaded unless they are held."""
        with self.context():
            if self._holds is not params:
                self.trainer.load_params(params)
                self._holds = params
            metrics, grads = self.trainer.gradients(self.trainer.put(batch))
            return metrics.get(), grads

    def updated(
        self, state: TrainState, grads: Mapping[str, np.ndarray], scalars: StepScalars
    ) -> TrainState:
        """The state after the optimizer's step on given gradients."""
        with self.context():
            self.trainer.load(state)
            self.trainer.update(dict(grads), scalars)
            self._holds = None
            return self.trainer.state()

    def go_on(self, grads: dict[str, np.ndarray], scalars: StepScalars) -> TrainState:
        """`updated` from the state that the trainer holds."""
        self.trainer.update(grads, scalars)
        state = self.trainer.state()
        self._holds = state.params
        return state

    def forget(self) -> None:
        """What the trainer holds has moved."""
        self._holds = None


def quantities(
    cfg: ModelConfig, metrics: StepMetrics, grads: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Loss, grad norm and each gradient; the key part of a qkv.bias is a quantity by itself."""
    result: dict[str, np.ndarray] = {
        "loss": np.asarray(metrics.loss, np.float64),
        "grad_norm": np.asarray(metrics.grad_norm, np.float64),
    }
    keys = slice(cfg.width, 2 * cfg.width)
    for name, grad in grads.items():
        if name.endswith(_QKV):
            result[name] = np.delete(grad, keys)
            result[name + KEYS] = grad[keys]
        else:
            result[name] = grad
    return result


def relative_to(cfg: ModelConfig) -> dict[str, str]:
    """The key part has no true gradient: its size is measured against that of the other rows."""
    names = (f"blocks.{i}.{_QKV}" for i in range(cfg.depth))
    return {name + KEYS: name for name in names}


def optimizer_quantities(state: TrainState) -> dict[str, np.ndarray]:
    """Parameters, moments and numbers of the optimizer."""
    found = {f"params.{n}": a for n, a in state.params.items()}
    for slot, arrays in state.slots.items():
        found |= {f"{slot}.{n}": a for n, a in arrays.items()}
    return found | {f"scalars.{n}": np.atleast_1d(float(v)) for n, v in state.scalars.items()}


def widened(state: TrainState) -> TrainState:
    """The same numbers in float64."""
    return dataclasses.replace(
        state, params=_wide(state.params), slots={s: _wide(a) for s, a in state.slots.items()}
    )


def _wide(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.asarray(a, np.float64) for n, a in arrays.items()}


@dataclass(frozen=True)
class Step:
    """One step by both twins: metrics of the leader, gradients and optimizer maps compared."""

    metrics: StepMetrics
    gradients: Measured
    optimizer: Measured


class Pair:
    """Both trainers on one run; `leader` moves, the other takes the same steps."""

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
        self.by_reference = judged_by_reference(precision, plan.machine.device)
        self.relative_to = relative_to(self.cfg)
        self._state: TrainState | None = None
        self._thread = ThreadPoolExecutor(1, "jax")

    def load(self, state: TrainState) -> None:
        """Go on from another state of the same model."""
        self.leader.trainer.load(state)
        self.leader.forget()
        self._state = None

    def free_step(self, batch: Any, scalars: StepScalars, stop: bool) -> Lazy:
        """A step of the leader alone, of a batch that it has `put`."""
        self._state = None
        self.leader.forget()
        return self.leader.trainer.train_step(batch, scalars, stop)

    def step(self, batch: Batch, scalars: StepScalars, noise: bool) -> Step:
        """A step by both from the leader's state, which moves on; `noise` measures that as well."""
        before = self._state or self.leader.trainer.state()
        self.leader._holds = before.params
        (metrics, grads), (b_metrics, b_grads) = self._by_both(
            lambda: self.leader.gradients(before.params, batch),
            lambda: self.follower.gradients(before.params, batch),
        )
        a, b = quantities(self.cfg, metrics, grads), quantities(self.cfg, b_metrics, b_grads)
        nudged = self._nudged(before.params, batch) if noise and not self.by_reference else None
        reference = None
        if self.by_reference:
            wide = _wide(before.params)
            reference = quantities(self.cfg, *self._double["torch"].gradients(wide, batch))
        number = batch.step + 1
        compared = lockstep.measure(number, a, b, nudged, reference, self.relative_to)
        if self.leader._holds is not before.params:
            self.leader.trainer.load_params(before.params)
        self._state = after = self.leader.go_on(grads, scalars)
        maps = self._maps(before, after, grads, scalars)
        return Step(metrics, compared, lockstep.measure(number, *maps))

    def versions(self) -> dict[str, str]:
        """Versions of both frameworks, and their devices."""
        found = {"python": platform.python_version(), "numpy": np.__version__}
        for name, twin in self.twins.items():
            versions = twin.trainer.versions()
            found[name] = versions["version"]
            found[f"{name} devices"] = f"{versions['devices']} x {versions['device']}"
        return found

    def _nudged(
        self, params: Mapping[str, np.ndarray], batch: Batch
    ) -> Iterator[dict[str, np.ndarray]]:
        for seed in lockstep.SEEDS:
            moved = lockstep.nudge(params, seed)
            yield quantities(self.cfg, *self.leader.gradients(moved, batch))

    def _maps(
        self,
        before: TrainState,
        after: TrainState,
        grads: Mapping[str, np.ndarray],
        scalars: StepScalars,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The optimizer's results in float64 by leader and follower, on the leader's gradients."""
        if self.in_double:
            states = after, self.follower.updated(before, grads, scalars)
        else:
            wide, wide_grads = widened(before), _wide(grads)
            leader, follower = self._double[self.leading], self._double[_other(self.leading)]
            states = self._by_both(
                lambda: leader.updated(wide, wide_grads, scalars),
                lambda: follower.updated(wide, wide_grads, scalars),
            )
        a, b = map(optimizer_quantities, states)
        return a, b

    def _by_both(self, leader: Callable[[], T], follower: Callable[[], T]) -> tuple[T, T]:
        """Both results; JAX works in a thread of its own, beside torch in this one."""
        if self.leading == "jax":
            pending = self._thread.submit(leader)
            of_follower = follower()
            return pending.result(), of_follower
        pending = self._thread.submit(follower)
        of_leader = leader()
        return of_leader, pending.result()


def judged_by_reference(precision: str, device: str) -> bool:
    """Whether the twins may round differently. TF32 exists on GPUs alone: elsewhere it is fp32."""
    policy = PRECISIONS[precision]
    return policy.compute != policy.param or (policy.tf32 and device == "gpu")


def _other(framework: Framework) -> Framework:
    return "jax" if framework == "torch" else "torch"


def _twin(
    framework: Framework, plan: Plan, recipe: Recipe, state: TrainState, one: bool = False
) -> Twin:
    """A twin on the plan's devices: JAX on all, torch and float64's (`one`) on the first."""
    devices = importlib.import_module(f"{framework}_vit.devices")
    trainer = importlib.import_module(f"{framework}_vit.trainer").Trainer
    remat = plan.machine.remat == "block"
    if framework == "torch":
        compiles = plan.machine.compile == "on" and not one
        device = devices.device_of(plan.machine, 0)
        return Twin(lambda: trainer(state, recipe, device, compile=compiles, remat=remat))
    import jax

    mesh = devices.start(plan.machine)
    if one:
        from twinvit.lockstep_jax_map import HostTrainer as trainer

        mesh = jax.sharding.Mesh(mesh.devices.reshape(-1)[:1], ("data",))
    # float64 exists in JAX where x64 is on; a float32 run has it off, as users have.
    double = recipe.precision == "fp64" and not jax.config.jax_enable_x64
    shard = plan.machine.shard == "params" and not one
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

    `record(step, scalars)` is called for each of these.
    """

    def __init__(self, pair: Pair, every: int, record: Callable[[Step, StepScalars], None]):
        self.pair, self.every, self.record = pair, every, record
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

    def put(self, batch: Batch) -> Any:
        # An evaluation's batches come this way too: the copy is made when it is asked for.
        return _Fed(batch, None if self._is_due(batch) else self.leader.put(batch))

    def train_step(self, batch: _Fed, scalars: StepScalars, stop: bool = False) -> Lazy:
        if batch.own is not None:
            return self.pair.free_step(batch.own, scalars, stop)
        due = batch.batch.step // self.every % lockstep.NOISE_EVERY == 0
        step = self.pair.step(batch.batch, scalars, noise=due)
        self.record(step, scalars)
        return _Done(step.metrics._replace(stop=stop))

    def gradients(self, batch: _Fed) -> tuple[Lazy, dict[str, np.ndarray]]:
        return self.leader.gradients(self._own(batch))

    def update(self, grads: dict[str, np.ndarray], scalars: StepScalars) -> None:
        self.pair.load(self.leader.state())
        self.leader.update(grads, scalars)

    def eval_step(self, batch: _Fed, stop: bool = False, averaged: bool = False) -> Lazy:
        return self.leader.eval_step(self._own(batch), stop, averaged)

    def versions(self) -> dict[str, str]:
        return self.leader.versions()

    def _is_due(self, batch: Batch) -> bool:
        return batch.step % self.every == 0

    def _own(self, batch: _Fed) -> Any:
        return self.leader.put(batch.batch) if batch.own is None else batch.own
