"""Trainer: the arithmetic of a training run in JAX. Read it next to `torch_vit/trainer.py`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_vit.bridge import Path, abstract_model, canonical_name, state_arrays, to_canonical, to_jax
from jax_vit.objective import Mixing, Objective, by_group, losses
from jax_vit.optim import (
    ascent_step,
    average,
    clip_by_global_norm,
    global_norm,
    make_optimizer,
    nudge,
)
from jax_vit.results import ResultFuture
from jax_vit.sharding import placement, whole
from shared_vit.data.batch import Batch
from shared_vit.run.state import Counts, StepMetrics, StepScalars, TrainState
from shared_vit.spec import canonical
from shared_vit.spec import mask_keys as dropout
from shared_vit.spec.ema import ema_decay
from shared_vit.spec.lr_scales import trained_names
from shared_vit.spec.optimizers import BETA1, BETA2, EMA
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.recipe import Recipe

_copies = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
Arrays: TypeAlias = tuple[Array, Array, Array, Array]  # of a DeviceBatch
Parts: TypeAlias = tuple[Array, Array, Array]  # images, labels and rows
Draws: TypeAlias = tuple[Array | np.ndarray | None, Mixing | None]  # keys of masks, mixing


class DeviceBatch(NamedTuple):
    """A global batch on the mesh: [parts, B / parts, ...], each device with its rows of a part."""

    images: Array
    labels: Array
    weight: Array
    rows: Array
    step: int
    mixing: Mixing | None


class Trainer:
    """One model and its optimizer, replicated over a mesh of devices that divide each batch, or
    sharded over it."""

    def __init__(
        self,
        state: TrainState,
        train: Recipe,
        mesh: Mesh,
        remat: bool = False,
        shard: bool = False,
    ):
        train = replace(train, model=state.config)
        self.cfg, self.train, self.mesh = state.config, train, mesh
        self.sharded = shard and mesh.size > 1
        self.process, self.num_processes = jax.process_index(), jax.process_count()
        self.compile_seconds: float | None = None
        self.dtype = np.dtype(PRECISIONS[train.precision].param)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.by_row = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.by_device = NamedSharding(mesh, PartitionSpec("data"))
        model = abstract_model(state.config, train.precision)
        model.remat = remat
        self.trained_names = trained_names(train)
        graphdef, params, fixed = nnx.split(model, self._is_trained, ...)
        kind = (train.loss, train.label_smoothing, train.class_weights)
        self.objective = Objective(graphdef, state.config, self.dtype, *kind)
        self.paths = [(path, canonical_name(path)) for path, _ in nnx.to_flat_state(params)]
        names = nnx.from_flat_state((path, nnx.Param(name)) for path, name in self.paths)
        self.fixed_paths = [(path, canonical_name(path)) for path, _ in nnx.to_flat_state(fixed)]
        self.kinds = {path: type(v) for path, v in nnx.to_flat_state(fixed)}
        self.optimizer = make_optimizer(names, train)
        self.compiled_step: Callable | None = None
        self.load(state)
        moved: dict[str, Any] = {"donate_argnums": (0, 1)}
        if self.sharded:
            shardings = jax.tree.map(lambda a: a.sharding, (self.params, self.slots))
            moved["out_shardings"] = (*shardings, self.replicated)
        self.compute_step = jax.jit(self._step, **moved)
        self.compute_gradients = jax.jit(self._gradients, out_shardings=self.replicated)
        self.compute_update = jax.jit(self._update, **moved)
        self.compute_counts = jax.jit(self._counts)

    def load(self, state: TrainState) -> None:
        """Take over a state; raises UserError unless its arrays fit the model."""
        canonical.check(self.cfg, state.params)
        self.step, self.adam_count = state.step, int(state.scalars["adam_count"])
        self.load_params(state.params)
        self.slots = {
            slot: self._to_mesh(self.paths, arrays) for slot, arrays in state.slots.items()
        }

    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        """Take over parameters alone, {canonical name: array}: all that `gradients` depends on."""
        self.params = self._to_mesh(self.paths, params)
        self.fixed = self._to_mesh(self.fixed_paths, params)

    def state(self) -> TrainState:
        """A copy of everything a run continues from, in canonical arrays on the host."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], TrainState]:
        """`state` in two steps: a copy on the device now, and its way to the host later.

        The second is the call of the result, by any thread. With sharded parameters every process
        calls this, which gathers one array after another, and process 0's state has the arrays.
        """
        if self.sharded:
            state = self._gathered_state()
            return lambda: state
        # One device's copies: a computation of this process alone may not touch those of others.
        own = jax.tree.map(lambda a: a.addressable_data(0), (self.params, self.fixed, self.slots))
        params, fixed, slots = _copies(own)
        cfg, step, scalars = self.cfg, self.step, {"adam_count": self.adam_count}

        def fetch() -> TrainState:
            arrays = state_arrays(params) | state_arrays(fixed)
            return TrainState(
                config=cfg,
                step=step,
                params={n: arrays[n] for n in canonical.shapes(cfg)},
                slots={slot: self._in_order(state_arrays(tree)) for slot, tree in slots.items()},
                scalars=scalars,
            )

        return fetch

    def _gathered_state(self) -> TrainState:
        """The state of sharded parameters: every process calls this, process 0 gets the arrays."""
        order = {name: i for i, name in enumerate(canonical.shapes(self.cfg))}
        keep = self.process == 0

        def gathered(tree: nnx.State) -> dict[str, np.ndarray]:
            leaves = {canonical_name(p): (p, v[...]) for p, v in nnx.to_flat_state(tree)}
            found = {}
            for name in sorted(leaves, key=order.__getitem__):
                path, leaf = leaves[name]
                array = whole(leaf, self.mesh)
                if keep:
                    found[name] = to_canonical(path, np.asarray(array))
            return found

        params = gathered(self.params) | gathered(self.fixed)
        return TrainState(
            config=self.cfg,
            step=self.step,
            params={n: params[n] for n in order if n in params},
            slots={slot: gathered(tree) for slot, tree in self.slots.items()},
            scalars={"adam_count": self.adam_count},
        )

    def to_device(self, batch: Batch) -> DeviceBatch:
        """Start copying this process's rows to its devices."""
        weight, rows = batch.weight.astype(self.dtype), batch.rows.astype(np.int32)
        parts = self.train.grad_accum
        split = (
            a.reshape(parts, -1, *a.shape[1:]) for a in (batch.images, batch.labels, weight, rows)
        )
        arrays = (jax.make_array_from_process_local_data(self.by_row, a) for a in split)
        images, labels, weight, rows = arrays
        mixing = None
        if batch.mix is not None:
            numbers = np.array([batch.mix.lam, batch.mix.pixels], self.dtype)
            mixing = Mixing(numbers, np.array(batch.mix.box, np.int32))
        return DeviceBatch(images, labels, weight, rows, batch.step, mixing)

    def train_step(
        self, batch: DeviceBatch, scalars: StepScalars, stop: bool = False
    ) -> ResultFuture:
        """One update: `gradients`, in `grad_accum` parts, and `update`, compiled as one."""
        args = (
            self.params,
            self.slots,
            self.fixed,
            batch[:4],
            self._draws(batch),
            self._to_scalars(scalars),
            np.uint32(self.step),
            self._flag(stop),
        )
        if self.compiled_step is None:
            begin = time.perf_counter()
            self.compiled_step = self.compute_step.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - begin
        self.params, self.slots, values = self.compiled_step(*args)
        self.step, self.adam_count = self.step + 1, self.adam_count + 1
        return ResultFuture(values, self._to_metrics)

    def gradients(self, batch: DeviceBatch) -> tuple[ResultFuture, dict[str, np.ndarray]]:
        """The metrics that `train_step` would return, and the gradients that it would clip.

        The gradients are those of the global mean loss, {canonical name: array on the host}, in
        canonical layout and the parameters' dtype. No weight changes.
        """
        args = (self.params, self.fixed, batch[:4], self._draws(batch))
        grads, values = self.compute_gradients(*args)
        return ResultFuture(values, self._to_metrics), self._in_order(state_arrays(grads))

    def update(self, grads: Mapping[str, np.ndarray], scalars: StepScalars) -> None:
        """Clip and step on given gradients of the global mean loss, as `gradients` returns them."""
        tree = self._to_mesh(self.paths, grads)
        args = (self.params, self.slots, tree, self._to_scalars(scalars), np.uint32(self.step))
        self.params, self.slots, _ = self.compute_update(*args)
        self.step, self.adam_count = self.step + 1, self.adam_count + 1

    def _step(
        self,
        params: nnx.State,
        slots: dict[str, nnx.State],
        fixed: nnx.State,
        batch: Arrays,
        draws: Draws,
        scalars: Array,
        step: Array,
        stop: Array,
    ) -> tuple[nnx.State, dict[str, nnx.State], Array]:
        """The compiled part of `train_step`: (params, slots, [loss, stop, norm])."""
        loss, grads = self._backward(params, fixed, batch, draws)
        params, slots, norm = self._update(params, slots, grads, scalars, step)
        return params, slots, jnp.stack([loss, stop.sum().astype(self.dtype), norm])

    def _gradients(
        self, params: nnx.State, fixed: nnx.State, batch: Arrays, draws: Draws
    ) -> tuple[nnx.State, Array]:
        """The compiled part of `gradients`: (gradients, [loss, 0, norm])."""
        loss, grads = self._backward(params, fixed, batch, draws)
        return grads, jnp.stack([loss, jnp.zeros_like(loss), global_norm(grads)])

    def _backward(
        self, params: nnx.State, fixed: nnx.State, batch: Arrays, draws: Draws
    ) -> tuple[Array, nnx.State]:
        """The loss and its gradients over the batch, as terms of the global mean."""
        images, labels, _, rows = batch
        parts = images, labels, rows
        if self.train.sam_rho:
            return self._sharp_backward(params, fixed, parts, draws)
        return self._sum_parts(params, fixed, parts, draws)

    def _sharp_backward(
        self, params: nnx.State, fixed: nnx.State, parts: Parts, draws: Draws
    ) -> tuple[Array, nnx.State]:
        """`_backward` by sharpness-aware minimization (Foret et al. 2021).

        Each group of rows takes the ascent step by its own gradient from the same weights; the
        gradients where it arrives are summed over the groups. The loss is that of the weights
        themselves.
        """

        def add_group(carry, own):
            total, sums = carry
            loss, grads = self._sum_parts(params, fixed, own, draws)
            up = ascent_step(params, grads, self.train.sam_rho)
            _, grads = self._sum_parts(up, fixed, own, draws)
            return (total + loss, jax.tree.map(jnp.add, sums, grads)), None

        by_groups = tuple(by_group(a, self.train.sam_groups) for a in parts)
        return jax.lax.scan(add_group, self._nothing(params), by_groups)[0]

    def _sum_parts(
        self, params: nnx.State, fixed: nnx.State, parts: Parts, draws: Draws
    ) -> tuple[Array, nnx.State]:
        """The loss and its gradients, summed over the parts."""

        def add_part(carry, part):
            return jax.tree.map(
                jnp.add, carry, self._backward_part(params, fixed, part, draws)
            ), None

        if self.train.grad_accum == 1:
            images, labels, rows = parts
            return self._backward_part(params, fixed, (images[0], labels[0], rows[0]), draws)
        return jax.lax.scan(add_part, self._nothing(params), parts)[0]

    def _backward_part(
        self, params: nnx.State, fixed: nnx.State, part: Parts, draws: Draws
    ) -> tuple[Array, nnx.State]:
        """The loss and its gradients of a part, as its term of the global mean."""
        images, labels, rows = part
        keys, mixing = draws
        drop = None if keys is None else (keys, rows)

        def loss(params):
            total = self.objective(params, fixed, images, labels, drop, mixing)
            return total / self.train.batch_size

        return jax.value_and_grad(loss)(params)

    def _nothing(self, params: nnx.State) -> tuple[Array, nnx.State]:
        """A loss and gradients of zero."""
        return jnp.zeros((), self.dtype), jax.tree.map(jnp.zeros_like, params)

    def _update(
        self,
        params: nnx.State,
        slots: dict[str, nnx.State],
        grads: nnx.State,
        scalars: Array,
        step: Array,
    ) -> tuple[nnx.State, dict[str, nnx.State], Array]:
        """The compiled part of `update`: (params, slots, norm before clipping)."""
        lr, c1, c2, *weight = scalars
        grads, norm = clip_by_global_norm(grads, self.train.clip)
        updates, moved = self.optimizer.update(grads, slots, params, lr=lr, corrections=(c1, c2))
        params = optax.apply_updates(params, updates)
        if self.train.nudge is not None:
            params = nudge(params, self.train.nudge, step)
        if self.train.ema:
            moved[EMA] = average(slots[EMA], params, *weight)
        return params, moved, norm

    def _to_metrics(self, values: list[float]) -> StepMetrics:
        loss, asked, norm = values
        return StepMetrics(loss, norm, False, asked > 0)

    def eval_step(
        self, batch: DeviceBatch, stop: bool = False, averaged: bool = False
    ) -> ResultFuture:
        """Counts over the global batch; examples of weight 0 do not count.

        They are those of the weights or, if `averaged`, of their moving average.
        """
        params = self.slots[EMA] if averaged else self.params
        values = self.compute_counts(params, self.fixed, batch[:4], self._flag(stop))
        return ResultFuture(values, self._to_counts)

    def _counts(self, params: nnx.State, fixed: nnx.State, batch: Arrays, stop: Array) -> Array:
        """The compiled part of `eval_step`: [correct1, correct5, loss_sum, count, stop]."""
        # The sharded axis goes first: otherwise every device would gather the full batch.
        images, labels, weight, _ = (a.swapaxes(0, 1).reshape(-1, *a.shape[2:]) for a in batch)
        logits = self.objective.logits(params, fixed, images)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        before = jnp.arange(logits.shape[1]) < labels[:, None]
        # How many classes come first, equal ones by number; a NaN is never right.
        rank = (~(logits <= own) | ((logits == own) & before)).sum(1)
        sums = [(weight * (rank < k)).sum() for k in (1, 5)] + [
            (weight * losses(logits, labels, self.train.loss)).sum(),
            weight.sum(),
        ]
        return jnp.stack([*sums, stop.sum().astype(self.dtype)])

    def _to_counts(self, values: list[float]) -> Counts:
        correct1, correct5, loss_sum, count, asked = values
        return Counts(correct1, correct5, loss_sum, count, asked > 0)

    def versions(self) -> dict[str, str]:
        """Framework, version, device and number of devices."""
        kind, count = self.mesh.devices.flat[0].device_kind, self.mesh.devices.size
        versions = {"framework": "jax", "version": jax.__version__}
        return versions | {"device": kind, "devices": str(count)}

    def _draws(self, batch: DeviceBatch) -> Draws:
        """The keys of the step's masks, None without dropout and stochastic depth; its mixing."""
        keys = None
        if self.cfg.draws_masks:
            paths = self.cfg.drop_path > 0
            keys = dropout.site_keys(self.train.seed, batch.step, self.cfg.depth, paths)
        return keys, batch.mixing

    def _to_scalars(self, scalars: StepScalars) -> np.ndarray:
        """The learning rate, Adam's bias corrections and the average's weight, in float64 first."""
        count = self.adam_count + 1
        values = [scalars.lr, 1 - BETA1**count, 1 - BETA2**count]
        if self.train.ema:
            values.append(1 - ema_decay(self.train.ema, count))
        return np.array(values, self.dtype)

    def _is_trained(self, path: Path, value: object) -> bool:
        return canonical_name(path) in self.trained_names

    def _in_order(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of the trained parameters, in canonical order."""
        return {n: arrays[n] for n in self.trained_names}

    def _to_mesh(
        self, paths: list[tuple[Path, str]], arrays: Mapping[str, np.ndarray]
    ) -> nnx.State:
        # Copies: the CPU back end may otherwise alias, and with donation overwrite, the caller's
        # memory.
        leaves = [
            np.array(to_jax(path, np.asarray(arrays[name], self.dtype)), order="C")
            for path, name in paths
        ]
        shards = self.sharded and paths is self.paths
        placed = zip(paths, self._put_all(leaves, shards), strict=True)
        kinds = self.kinds if paths is self.fixed_paths else {}
        return nnx.from_flat_state((p, kinds.get(p, nnx.Param)(leaf)) for (p, _), leaf in placed)

    def _put_all(self, arrays: list[np.ndarray], shards: bool) -> list[Array]:
        """The same arrays on every device of the mesh, or shared out over the devices."""
        shardings = [
            placement(self.mesh, a.shape, True) if shards else self.replicated for a in arrays
        ]
        if not self.mesh.is_multi_process:
            return jax.device_put(arrays, shardings)  # at once: ten times less overhead
        made = zip(arrays, shardings, strict=True)
        return [jax.make_array_from_callback(a.shape, p, a.__getitem__) for a, p in made]

    def _flag(self, stop: bool) -> Array:
        local = np.full(len(self.mesh.local_devices), stop, np.int32)
        return jax.make_array_from_process_local_data(self.by_device, local)
