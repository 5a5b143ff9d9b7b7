"""The JAX trainer's step with the gradients before clipping as further results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx

from jax_vit.bridge import Path, state_arrays
from jax_vit.results import ResultFuture
from jax_vit.trainer import DeviceBatch, Trainer
from shared_vit.run.state import StepScalars, TrainState
from shared_vit.spec import canonical
from twinvit.lockstep.jax_update import tree_of


class WatchedTrainer(Trainer):
    """A trainer of which each step is watched.

    `train_step` is the trainer's own code, compiled again with the gradients as further results.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._traced: nnx.State | None = None
        self._seen: nnx.State | None = None
        places: Any = None
        if self.sharded:
            arrays = jax.tree.map(lambda a: a.sharding, (self.params, self.slots))
            places = (*arrays, self.replicated)
        step = jax.jit(
            self._watched_step, donate_argnums=(0, 1), out_shardings=(places, self.replicated)
        )
        self.compute_step = _Watched(step, self._keep)

    def watched_step(
        self, batch: DeviceBatch, scalars: StepScalars
    ) -> tuple[ResultFuture, dict[str, np.ndarray]]:
        """`train_step`, and the unclipped gradients that it took, by canonical name on the host."""
        metrics = self.train_step(batch, scalars)
        seen, self._seen = self._seen, None
        assert seen is not None
        return metrics, self._in_order(state_arrays(seen))

    def state(self) -> TrainState:
        """The trainer's, read at once: no step runs while it is copied to the host."""
        if self.sharded:
            return super().state()
        arrays = state_arrays(self.params) | state_arrays(self.fixed)
        return TrainState(
            config=self.cfg,
            step=self.step,
            params={n: arrays[n] for n in canonical.shapes(self.cfg)},
            slots={slot: self._in_order(state_arrays(tree)) for slot, tree in self.slots.items()},
            scalars={"adam_count": self.adam_count},
        )

    def _to_mesh(self, paths: list[tuple[Path, str]], arrays: Mapping[str, np.ndarray]) -> Any:
        """The trainer's. Trained arrays pass end to end as one, which is placed in a tenth of the
        time: at every step the state is another one."""
        flat = [np.ravel(arrays[name]) for _, name in paths]
        if self.sharded or paths is not self.paths or not flat:
            return super()._to_mesh(paths, arrays)
        return self._parted(np.concatenate(flat, dtype=self.dtype))

    @cached_property
    def _parted(self) -> Callable[[np.ndarray], nnx.State]:
        """The trained parameters, or a slot, of their canonical arrays end to end; compiled."""
        shapes = canonical.shapes(self.cfg)
        return jax.jit(
            lambda vector: tree_of(self.paths, shapes, vector), out_shardings=self.replicated
        )

    def _watched_step(self, *args: Any) -> tuple[Any, nnx.State]:
        result = self._step(*args)
        grads, self._traced = self._traced, None
        assert grads is not None
        return result, grads

    def _backward(self, *args: Any) -> Any:
        loss, self._traced = super()._backward(*args)
        return loss, self._traced

    def _keep(self, grads: nnx.State) -> None:
        self._seen = grads


class _Watched:
    """A jitted function, its lowering or its program, as `train_step` uses it; of the two results
    the second is passed to `keep`."""

    def __init__(self, inner: Any, keep: Callable[[Any], None]):
        self._inner, self._keep = inner, keep

    def lower(self, *args: Any) -> _Watched:
        return _Watched(self._inner.lower(*args), self._keep)

    def compile(self) -> _Watched:
        return _Watched(self._inner.compile(), self._keep)

    def __call__(self, *args: Any) -> Any:
        result, grads = self._inner(*args)
        self._keep(grads)
        return result
