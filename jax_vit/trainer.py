"""Trainer: the arithmetic of a training run in JAX. Read it beside `torch_vit/trainer.py`."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_vit.bridge import canonical_name, from_arrays, state_arrays, to_jax
from jax_vit.optim import AdamState, clip_by_global_norm, make_optimizer, nudge
from jax_vit.results import LazyResult
from shared_vit.data.batch import Batch
from shared_vit.run.state import Counts, StepMetrics, TrainState
from shared_vit.spec import canonical
from shared_vit.spec import mask_keys as dropout
from shared_vit.spec.adam import BETA1, BETA2
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.pixels import normalization
from shared_vit.spec.precision import PRECISIONS
from shared_vit.spec.recipe import Recipe


class DeviceBatch(NamedTuple):
    """A global batch on the mesh, in `parts` of which each device holds its rows: [parts, B /
    parts, ...]."""

    images: jax.Array
    labels: jax.Array
    weight: jax.Array
    rows: jax.Array
    step: int


class Objective:
    """Sum of the cross-entropies of uint8 images [B, H, W, 3] and labels [B], a scalar in the
    parameters' dtype."""

    def __init__(self, graphdef: nnx.GraphDef, cfg: ModelConfig, dtype):
        self.graphdef = graphdef
        self.scale, self.shift = (a.astype(dtype) for a in normalization(cfg))

    def __call__(self, params, fixed, images, labels, dropout=None):
        logits = self.logits(params, fixed, images, dropout)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    def logits(self, params, fixed, images, dropout=None):
        x = images.astype(self.scale.dtype) * self.scale + self.shift
        return nnx.merge(self.graphdef, params, fixed)(x, dropout)


class Trainer:
    """One model and its optimizer, replicated over a mesh of devices that share each batch."""

    def __init__(self, state: TrainState, train: Recipe, mesh: Mesh):
        self.cfg, self.train, self.mesh = state.config, train, mesh
        self.process, self.num_processes = jax.process_index(), jax.process_count()
        self.compile_seconds = None
        self.dtype = np.dtype(PRECISIONS[train.precision].param)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.by_row = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.by_device = NamedSharding(mesh, PartitionSpec("data"))
        model = from_arrays(state.config, state.params, train.precision)
        graphdef, params, fixed = nnx.split(model, nnx.Param, ...)
        self.objective = Objective(graphdef, state.config, self.dtype)
        self.names = nnx.map_state(lambda path, _: canonical_name(path), params)
        self.paths = [(path, canonical_name(path)) for path, _ in nnx.to_flat_state(params)]
        self.fixed_paths = [(path, canonical_name(path)) for path, _ in nnx.to_flat_state(fixed)]
        self.optimizer = make_optimizer(self.names, train.weight_decay)
        self.compute_step = jax.jit(self._step, donate_argnums=(0, 1))
        self.compute_counts = jax.jit(self._counts)
        self.compiled_step = None
        self.load(state)

    def load(self, state: TrainState) -> None:
        """Take over a state; raises UserError unless its arrays fit the model."""
        canonical.check(self.cfg, state.params)
        self.step, self.adam_count = state.step, state.adam_count
        self.params = self._to_mesh(self.paths, state.params)
        self.fixed = self._to_mesh(self.fixed_paths, state.params)
        adam, decay, lr = self.optimizer.init(self.params)
        adam = AdamState(
            self._to_mesh(self.paths, state.exp_avg), self._to_mesh(self.paths, state.exp_avg_sq)
        )
        self.opt_state = (adam, decay, lr)

    def state(self) -> TrainState:
        """A copy of everything a run continues from, in canonical arrays on the host."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], TrainState]:
        """`state` in two steps: a copy on the device now; its way to the host when the result is
        called, by any thread."""
        adam = self.opt_state[0]
        # One device's copies: a computation of this process alone may not touch those of others.
        copies = jax.tree.map(
            lambda a: jnp.copy(a.addressable_data(0)),
            (self.params, self.fixed, adam.exp_avg, adam.exp_avg_sq),
        )
        names = canonical.trained(self.cfg, canonical.shapes(self.cfg))
        rest = dict(config=self.cfg, step=self.step, adam_count=self.adam_count)

        def fetch() -> TrainState:
            params, fixed, exp_avg, exp_avg_sq = map(state_arrays, copies)
            params |= fixed
            return TrainState(
                params={n: params[n] for n in canonical.shapes(rest["config"])},
                exp_avg={n: exp_avg[n] for n in names},
                exp_avg_sq={n: exp_avg_sq[n] for n in names},
                **rest,
            )

        return fetch

    def put(self, batch: Batch, parts: int | None = None) -> DeviceBatch:
        """Start copying this process's rows to its devices."""
        parts = parts or self.train.grad_accum
        arrays = (
            batch.images,
            batch.labels,
            batch.weight.astype(self.dtype),
            batch.rows.astype(np.int32),
        )
        split = (a.reshape(parts, -1, *a.shape[1:]) for a in arrays)
        return DeviceBatch(
            *(jax.make_array_from_process_local_data(self.by_row, a) for a in split), batch.step
        )

    def train_step(self, batch: DeviceBatch, lr: float, stop: bool = False) -> LazyResult:
        """One update: forward and backward over the mesh's rows, in `grad_accum` parts, and the
        optimizer's step."""
        keys = None
        if self.cfg.dropout:
            keys = dropout.site_keys(self.train.seed, batch.step, self.cfg.depth)
        count = self.adam_count + 1
        scalars = np.array([lr, 1 - BETA1**count, 1 - BETA2**count], self.dtype)
        args = (
            self.params,
            self.opt_state,
            self.fixed,
            batch[:4],
            keys,
            scalars,
            np.uint32(self.step),
            self._flag(stop),
        )
        if self.compiled_step is None:
            begin = time.perf_counter()
            self.compiled_step = self.compute_step.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - begin
        self.params, self.opt_state, values = self.compiled_step(*args)
        self.step, self.adam_count = self.step + 1, count
        return LazyResult(values, self._to_metrics)

    def _step(self, params, opt_state, fixed, batch, keys, scalars, step, stop):
        """The compiled part of `train_step`: (params, optimizer state, [loss, stop, norm])."""
        images, labels, _, rows = batch

        def add_part(carry, part):
            images, labels, rows = part
            drop = None if keys is None else (keys, rows)
            loss, grads = jax.value_and_grad(self._part_loss)(params, fixed, images, labels, drop)
            return jax.tree.map(jnp.add, carry, (loss, grads)), None

        if self.train.grad_accum == 1:
            drop = None if keys is None else (keys, rows[0])
            loss, grads = jax.value_and_grad(self._part_loss)(
                params, fixed, images[0], labels[0], drop
            )
        else:
            zero = (jnp.zeros((), self.dtype), jax.tree.map(jnp.zeros_like, params))
            (loss, grads), _ = jax.lax.scan(add_part, zero, (images, labels, rows))
        params, opt_state, norm = self._update(params, opt_state, grads, scalars, step)
        return params, opt_state, jnp.stack([loss, stop.sum().astype(self.dtype), norm])

    def _part_loss(self, params, fixed, images, labels, drop):
        return self.objective(params, fixed, images, labels, drop) / self.train.batch_size

    def _update(self, params, opt_state, grads, scalars, step):
        """Clip and step; also returns the norm before clipping."""
        lr, c1, c2 = scalars
        grads, norm = clip_by_global_norm(grads, self.train.clip)
        updates, opt_state = self.optimizer.update(
            grads, opt_state, params, lr=lr, corrections=(c1, c2)
        )
        params = optax.apply_updates(params, updates)
        if self.train.nudge is not None:
            params = nudge(params, self.train.nudge, step)
        return params, opt_state, norm

    def _to_metrics(self, values: list[float]) -> StepMetrics:
        loss, asked, norm = values
        return StepMetrics(loss, norm, False, asked > 0)

    def eval_step(self, batch: DeviceBatch, stop: bool = False) -> LazyResult:
        """Counts over the global batch; examples of weight 0 do not count."""
        values = self.compute_counts(self.params, self.fixed, batch[:4], self._flag(stop))
        return LazyResult(values, lambda v: Counts(*v[:4], stop=v[4] > 0))

    def _counts(self, params, fixed, batch, stop):
        """The compiled part of `eval_step`: [correct1, correct5, loss_sum, count, stop]."""
        images, labels, weight, _ = (a.reshape(-1, *a.shape[2:]) for a in batch)
        logits = self.objective.logits(params, fixed, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        before = jnp.arange(logits.shape[1]) < labels[:, None]
        # How many classes come first, equal ones by number; a logit that is not a number is never
        # right.
        rank = (~(logits <= own) | ((logits == own) & before)).sum(1)
        sums = [(weight * (rank < k)).sum() for k in (1, 5)] + [
            (weight * losses).sum(),
            weight.sum(),
        ]
        return jnp.stack([*sums, stop.sum().astype(self.dtype)])

    def versions(self) -> dict[str, str]:
        """Framework, version, device and number of devices."""
        kind = self.mesh.devices.flat[0].device_kind
        return {
            "framework": "jax",
            "version": jax.__version__,
            "device": kind,
            "devices": str(self.mesh.devices.size),
        }

    def _to_mesh(self, paths, arrays: dict[str, np.ndarray]) -> nnx.State:
        def leaf(path, name):
            # A copy: the CPU back end may otherwise keep, and with donation overwrite, the caller's
            # memory.
            array = np.array(to_jax(path, np.asarray(arrays[name], self.dtype)), order="C")
            return jax.make_array_from_callback(
                array.shape, self.replicated, lambda index: array[index]
            )

        kind = nnx.Param if paths is self.paths else nnx.Variable
        return nnx.from_flat_state((path, kind(leaf(path, name))) for path, name in paths)

    def _flag(self, stop: bool) -> jax.Array:
        local = np.full(len(self.mesh.local_devices), stop, np.int32)
        return jax.make_array_from_process_local_data(self.by_device, local)
