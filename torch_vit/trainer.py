"""Trainer: the arithmetic of a training run in PyTorch. Read it next to `jax_vit/trainer.py`."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shared_vit.data.batch import Batch
from shared_vit.errors import UserError
from shared_vit.run.state import Counts, StepMetrics, StepScalars, TrainState
from shared_vit.spec import canonical
from shared_vit.spec import mask_keys as dropout
from shared_vit.spec.ema import ema_decay
from shared_vit.spec.lr_scales import trained_names
from shared_vit.spec.optimizers import EMA, optimizer_slots
from shared_vit.spec.recipe import Recipe
from torch_vit import sharding
from torch_vit.dropout import to_keys
from torch_vit.model import VisionTransformer
from torch_vit.objective import Mixing, Objective, group_of, losses
from torch_vit.optim import (
    ascent_step,
    average,
    clip_by_global_norm,
    global_norm,
    make_optimizer,
    nudge,
    set_lr,
)
from torch_vit.precision import set_backend_precision
from torch_vit.results import ResultFuture
from torch_vit.sharding import whole


class DeviceBatch(NamedTuple):
    """A process's rows of a batch, on its device."""

    images: Tensor
    labels: Tensor
    weight: Tensor
    rows: Tensor
    step: int
    mixing: Mixing | None


class Trainer:
    """One model and its optimizer on one device, in step with those of the other processes."""

    def __init__(
        self,
        state: TrainState,
        train: Recipe,
        device: torch.device,
        compile: bool = False,
        remat: bool = False,
        shard: bool = False,
    ):
        set_backend_precision(train.precision)
        train = replace(train, model=state.config)
        self.cfg, self.train, self.device = state.config, train, device
        self.process = dist.get_rank() if dist.is_initialized() else 0
        self.num_processes = dist.get_world_size() if dist.is_initialized() else 1
        self.sharded = shard and self.num_processes > 1
        if self.sharded and train.precision == "fp16":
            raise UserError("--shard=params has no gradient scaler, which fp16 needs: use bf16")
        self.compile_seconds: float | None = None
        self.trained_names = trained_names(train)
        self.model = self._make_model(compile, remat)
        kind = (train.loss, train.label_smoothing, train.class_weights)
        self.objective = Objective(self.model, *kind)
        self.dtype = self.objective.scale.dtype
        self.named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.optimizer = make_optimizer(dict(self.named), train)
        self.scaler = torch.amp.GradScaler(device.type) if train.precision == "fp16" else None
        self.compute_loss: Any = self.objective
        self.replicated = self.num_processes > 1 and not self.sharded
        self.unsettled = self.replicated  # until the first backward pass
        if self.replicated:
            self.compute_loss = DistributedDataParallel(
                self.objective,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # torch.compile cuts the model at each bucket's end: 4 parts of B/16, 14 by default.
                bucket_cap_mb=100,
                **{self._sync_buffers(): False},
            )
        self.compute_logits: Callable = self.objective.logits
        if compile and not self.sharded:
            self.compute_loss = torch.compile(self.compute_loss)
            self.compute_logits = torch.compile(self.compute_logits)
        self.averaged: VisionTransformer | None = None
        if train.ema:  # a second model holds the averaged weights and evaluates them
            self.averaged = self._make_model(compile, remat).requires_grad_(False)
            self.compute_averaged: Callable = Objective(self.averaged).logits
            if compile and not self.sharded:
                self.compute_averaged = torch.compile(self.compute_averaged)
        self.load(state)

    def _make_model(self, compile: bool, remat: bool) -> VisionTransformer:
        """A model on the device, unset, with the parameters that stay frozen."""
        with torch.device("meta") if self.sharded else self.device:
            model = VisionTransformer(self.cfg, self.train.precision)
        model.remat = remat
        for name, p in model.named_parameters():
            p.requires_grad_(name in self.trained_names)
        if self.sharded:
            if compile:  # the hooks that gather parameters stay outside the compiled blocks
                for block in model.blocks:
                    block.compile()
            sharding.shard(model, self.device)
        return model

    def load(self, state: TrainState) -> None:
        """Take over a state; raises UserError unless its arrays fit the model."""
        canonical.check(self.cfg, state.params)
        self.step, self.adam_count = state.step, int(state.scalars["adam_count"])
        self.load_params(state.params)
        self.slots: dict[str, dict[str, Tensor]] = {slot: {} for slot in state.slots}
        averages = {} if self.averaged is None else self.averaged.state_dict()
        for name, tensor in averages.items():
            self._fill(tensor, state.params[name])
        for slot, arrays in state.slots.items():
            for name, p in self.named:
                empty = averages[name] if slot == EMA else torch.empty_like(p)
                self.slots[slot][name] = empty.detach()
                self._fill(self.slots[slot][name], arrays[name])
        for name, p in self.named:
            count = torch.tensor(float(self.adam_count), device=self.device)
            moments = {slot: self.slots[slot][name] for slot in optimizer_slots(self.train)}
            self.optimizer.state[p] = {"step": count, **moments}
        if self.scaler is not None and "scale" in state.scalars:
            growth_tracker = int(state.scalars["growth_tracker"])
            values = {"scale": state.scalars["scale"], "_growth_tracker": growth_tracker}
            self.scaler.load_state_dict(self.scaler.state_dict() | values)

    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        """Take over parameters alone, {canonical name: array}: all that `gradients` depends on."""
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self._fill(tensor, params[name])

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
        params = {n: p.detach().clone() for n, p in self.model.state_dict().items()}
        slots = {s: {n: t.clone() for n, t in tensors.items()} for s, tensors in self.slots.items()}
        cfg, step = self.cfg, self.step
        scalars: dict[str, float] = {"adam_count": self._adam_count()}
        if self.scaler is not None:
            values = self.scaler.state_dict()
            scalars |= {"scale": values["scale"], "growth_tracker": values["_growth_tracker"]}

        def fetch() -> TrainState:
            return TrainState(
                config=cfg,
                step=step,
                params={n: params[n].cpu().numpy() for n in canonical.shapes(cfg)},
                slots={slot: self._in_order(tensors) for slot, tensors in slots.items()},
                scalars=scalars,
            )

        return fetch

    def _gathered_state(self) -> TrainState:
        """The state of sharded parameters: every process calls this, process 0 gets the arrays."""
        keep = self.process == 0

        def gathered(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
            found = {}
            for name in canonical.shapes(self.cfg):
                if name in tensors:
                    tensor = whole(tensors[name])
                    if keep:
                        found[name] = tensor.cpu().numpy()
            return found

        return TrainState(
            config=self.cfg,
            step=self.step,
            params=gathered(self.model.state_dict()),
            slots={slot: gathered(tensors) for slot, tensors in self.slots.items()},
            scalars={"adam_count": self._adam_count()},
        )

    def to_device(self, batch: Batch) -> DeviceBatch:
        """Start copying this process's rows to the device."""
        arrays = (batch.images, batch.labels.astype(np.int64), batch.weight, batch.rows)
        tensors = (self._to_device(torch.from_numpy(np.ascontiguousarray(a))) for a in arrays)
        images, labels, weight, rows = tensors
        mixing = None
        if batch.mix is not None:
            numbers = torch.tensor([batch.mix.lam, batch.mix.pixels], dtype=self.dtype)
            box = torch.tensor(batch.mix.box, dtype=torch.int32)
            mixing = Mixing(self._to_device(numbers), self._to_device(box))
        return DeviceBatch(images, labels, weight, rows, batch.step, mixing)

    def train_step(
        self, batch: DeviceBatch, scalars: StepScalars, stop: bool = False
    ) -> ResultFuture:
        """One update: `gradients` over this process's rows, in `grad_accum` parts, and `update`."""
        loss = self._backward(batch)
        norm = self._update(scalars)
        asked = torch.full_like(loss, float(stop))
        return ResultFuture([loss, asked], [norm], self._to_metrics)

    def gradients(self, batch: DeviceBatch) -> tuple[ResultFuture, dict[str, np.ndarray]]:
        """The metrics that `train_step` would return, and the gradients that it would clip.

        The gradients are those of the global mean loss, {canonical name: array on the host}, in
        canonical layout and the parameters' dtype. No weight changes.
        """
        loss = self._backward(batch)
        scale = self.scaler.get_scale() if self.scaler else 1
        grads = {n: p.grad / scale for n, p in self.named}
        self._forget_gradients()
        norm = global_norm(list(grads.values()))
        metrics = ResultFuture([loss, torch.zeros_like(loss)], [norm], self._to_metrics)
        return metrics, self._in_order(grads)

    def update(self, grads: Mapping[str, np.ndarray], scalars: StepScalars) -> None:
        """Clip and step on given gradients of the global mean loss, as `gradients` returns them."""
        for name, p in self.named:
            if p.grad is None:
                p.grad = torch.empty_like(p)
            self._fill(p.grad, grads[name])
            if self.scaler:
                p.grad.copy_(self.scaler.scale(p.grad))
        self._update(scalars)

    def _backward(self, batch: DeviceBatch) -> Tensor:
        """Leave the gradients, scaled in fp16, in the parameters; the loss of this process's rows.

        Both are summed over the parts of the batch, as terms of the global mean.
        """
        if self.unsettled:
            self._warm_up_buckets(batch.mixing)
            self.unsettled = False
        keys = self._keys(batch.step)
        tensors = (batch.images, batch.labels, batch.rows)
        parts = list(zip(*(t.chunk(self.train.grad_accum) for t in tensors)))
        if self.train.sam_rho:
            return self._sharp_backward(parts, keys, batch.mixing)
        return self._sum_parts(parts, keys, batch.mixing)

    def _sharp_backward(
        self, parts: list[tuple[Tensor, ...]], keys: Tensor | None, mixing: Mixing | None
    ) -> Tensor:
        """`_backward` by sharpness-aware minimization (Foret et al. 2021).

        Each group of rows takes the ascent step by its own gradient from the same weights; the
        gradients where it arrives are summed over the groups. The loss is that of the weights
        themselves.
        """
        params = [p for _, p in self.named]
        start = [p.detach().clone() for p in params]
        sums = [torch.zeros_like(p, requires_grad=False) for p in params]
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        groups = self.train.sam_groups
        for group in range(groups):
            own = [tuple(group_of(t, group, groups) for t in part) for part in parts]
            total += self._sum_parts(own, keys, mixing)
            ascent_step(params, self.train.sam_rho)
            self._forget_gradients()
            self._sum_parts(own, keys, mixing)
            with torch.no_grad():
                for p, kept, summed in zip(params, start, sums):
                    summed += p.grad
                    p.copy_(kept)
            self._forget_gradients()
        for p, summed in zip(params, sums):
            if p.grad is None:
                p.grad = summed
            else:
                p.grad.copy_(summed)
        return total

    def _sum_parts(
        self, parts: list[tuple[Tensor, ...]], keys: Tensor | None, mixing: Mixing | None
    ) -> Tensor:
        """Gradients in the parameters, and the loss: the sum over parts (images, labels, rows)."""
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for i, (images, labels, rows) in enumerate(parts):
            drop = None if keys is None else (keys, rows)
            with self._synced(i + 1 == len(parts)):
                loss = self.compute_loss(images, labels, drop, mixing) / self.train.batch_size
                total += loss.detach()
                # The mean over processes is taken, as DDP and FSDP do; the loss makes it the sum.
                loss = loss * self.num_processes
                (self.scaler.scale(loss) if self.scaler else loss).backward()
        return total

    def _update(self, scalars: StepScalars) -> Tensor:
        """Clip, step and forget the gradients; the norm before clipping."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        params = [p for _, p in self.named]
        norm = clip_by_global_norm([p.grad for p in params], self.train.clip)
        set_lr(self.optimizer, scalars.lr)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self._forget_gradients()
        self.adam_count += 1
        if self.train.nudge is not None:
            nudge(params, self.train.nudge, self.step)
        if self.train.ema:
            weight = 1 - ema_decay(self.train.ema, self.adam_count)
            average(list(self.slots[EMA].values()), params, weight)
        self.step += 1
        return norm

    def _to_metrics(self, values: list[float]) -> StepMetrics:
        loss, asked, norm = values
        return StepMetrics(loss, norm, self.scaler is not None and not np.isfinite(norm), asked > 0)

    @torch.no_grad()
    def eval_step(
        self, batch: DeviceBatch, stop: bool = False, averaged: bool = False
    ) -> ResultFuture:
        """Counts over the global batch; examples of weight 0 do not count.

        They are those of the weights or, if `averaged`, of their moving average.
        """
        compute = self.compute_averaged if averaged else self.compute_logits
        logits, labels, weight = compute(batch.images), batch.labels, batch.weight.to(self.dtype)
        own = logits.gather(1, labels[:, None])
        before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        # How many classes come first, equal ones by number; a NaN is never right.
        rank = (~(logits <= own) | ((logits == own) & before)).sum(1)
        sums = [(weight * (rank < k)).sum() for k in (1, 5)] + [
            (weight * losses(logits, labels, self.train.loss)).sum(),
            weight.sum(),
        ]
        asked = torch.full_like(sums[0], float(stop))
        return ResultFuture([*sums, asked], [], self._to_counts)

    def _to_counts(self, values: list[float]) -> Counts:
        correct1, correct5, loss_sum, count, asked = values
        return Counts(correct1, correct5, loss_sum, count, asked > 0)

    def versions(self) -> dict[str, str]:
        """Framework, version, device and number of processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        versions = {"framework": "torch", "version": torch.__version__}
        return versions | {"device": name, "devices": str(self.num_processes)}

    def _keys(self, step: int) -> Tensor | None:
        """The keys of a step's masks; None without dropout and stochastic depth."""
        if not self.cfg.draws_masks:
            return None
        paths = self.cfg.drop_path > 0
        keys = dropout.site_keys(self.train.seed, step, self.cfg.depth, paths)
        return self._to_device(to_keys(keys))

    def _in_order(self, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Those of the trained parameters on the host, in canonical order."""
        return {n: whole(tensors[n]).cpu().numpy() for n in self.trained_names}

    def _adam_count(self) -> int:
        """The updates that the optimizer made; which of them fp16 skipped the device knows."""
        if self.scaler is None:
            return self.adam_count
        return int(self.optimizer.state[self.named[0][1]]["step"].item())

    @torch.no_grad()
    def _fill(self, tensor: Tensor, array: np.ndarray) -> None:
        """Set a tensor, or this process's part of it, from its canonical array."""
        full = torch.from_numpy(np.ascontiguousarray(array))
        sharding.local(tensor).copy_(sharding.part_of(full, tensor))

    def _forget_gradients(self) -> None:
        # DDP's gradients are views of its buckets, which stay.
        self.optimizer.zero_grad(set_to_none=not self.replicated)

    def _to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, without waiting for it as memory that is not pinned would."""
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor
        )

    def _synced(self, last: bool) -> AbstractContextManager:
        """Add up the gradients of all processes in the backward pass of the last part alone."""
        if self.sharded:
            self.model.set_requires_gradient_sync(last)
        return nullcontext() if last or not self.replicated else self.compute_loss.no_sync()

    def _warm_up_buckets(self, mixing: Mixing | None) -> None:
        """One backward pass on zeros, after which DDP's buckets stay as they are.

        DDP regroups them after its first pass, and with them the order in which it sums: without
        this, a resumed run of three processes or more would differ by rounding from one that was
        not stopped.
        """
        part = self.train.batch_size // self.num_processes // self.train.grad_accum
        shape = (part, *self.cfg.image_shape, 3)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        labels = torch.zeros(part, dtype=torch.int64, device=self.device)
        keys = self._keys(0)
        drop = None if keys is None else (keys, labels)
        self.compute_loss(images, labels, drop, mixing).backward()
        self._forget_gradients()

    @staticmethod
    def _sync_buffers() -> str:
        """What DDP calls the argument that keeps buffers, which never change, from being sent anew
        in each pass; `broadcast_buffers` warns in torch 2.13, and older versions have no other."""
        known = inspect.signature(DistributedDataParallel).parameters
        return next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
