"""The PyTorch trainer's step, with the gradients before clipping recorded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_vit.run.state import StepScalars, TrainState
from torch_vit.results import ResultFuture
from torch_vit.trainer import DeviceBatch, Trainer


class WatchedTrainer(Trainer):
    """A trainer of one process, of which a step can be watched. It computes the same bits."""

    _watching = False
    _seen: dict[str, Tensor] | None = None

    def watched_step(
        self, batch: DeviceBatch, scalars: StepScalars
    ) -> tuple[ResultFuture, dict[str, np.ndarray]]:
        """`train_step`, and the unclipped gradients that it took, by canonical name on the host."""
        self._watching = True
        try:
            metrics = self.train_step(batch, scalars)
        finally:
            self._watching = False
        seen, self._seen = self._seen, None
        assert seen is not None
        return metrics, self._in_order(seen)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """The model's tensors by canonical name, found once: each step takes other values."""
        return dict(self.model.state_dict())

    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        _fill_all(self._tensors, params)

    def load(self, state: TrainState) -> None:
        """As `Trainer.load`; a state of the arrays that are loaded is copied into them."""
        held: dict[str, dict[str, Tensor]] = getattr(self, "slots", {})
        fits = bool(held) and list(held) == list(state.slots)
        if not fits or self.averaged is not None or self.scaler is not None:
            super().load(state)
            return
        self.step, self.adam_count = state.step, int(state.scalars["adam_count"])
        self.load_params(state.params)
        for slot, tensors in held.items():
            _fill_all(tensors, state.slots[slot])
        for found in self.optimizer.state.values():
            found["step"].fill_(float(self.adam_count))

    def _backward(self, batch: DeviceBatch) -> Any:
        loss = super()._backward(batch)
        if self._watching:
            self._seen = {n: p.grad.detach().clone() for n, p in self.named}
        return loss


def _fill_all(tensors: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> None:
    """Set tensors from their canonical arrays."""
    given = [torch.from_numpy(np.ascontiguousarray(arrays[n])) for n in tensors]
    with torch.no_grad():
        torch._foreach_copy_(list(tensors.values()), given)
