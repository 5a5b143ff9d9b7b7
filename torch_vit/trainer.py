"""Trainer: the arithmetic of a training run in PyTorch. Read it beside `jax_vit/trainer.py`."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shared_vit.data.batch import Batch
from shared_vit.run.state import Counts, StepMetrics, TrainState
from shared_vit.spec import canonical
from shared_vit.spec import mask_keys as dropout
from shared_vit.spec.pixels import normalization
from shared_vit.spec.recipe import Recipe
from torch_vit.bridge import from_arrays
from torch_vit.dropout import to_keys
from torch_vit.model import VisionTransformer
from torch_vit.optim import clip_by_global_norm, make_optimizer, nudge
from torch_vit.precision import set_backend_precision
from torch_vit.results import LazyResult


class DeviceBatch(NamedTuple):
    """A process's rows of a batch, on its device."""

    images: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    rows: torch.Tensor
    step: int


class Objective(nn.Module):
    """Sum of the cross-entropies of uint8 images [B, H, W, 3] and labels [B], a scalar in the
    parameters' dtype."""

    def __init__(self, model: VisionTransformer):
        super().__init__()
        self.model = model
        scale, shift = (torch.from_numpy(a) for a in normalization(model.cfg))
        self.register_buffer("scale", scale.to(model.pos_embed), persistent=False)
        self.register_buffer("shift", shift.to(model.pos_embed), persistent=False)

    def forward(self, images, labels, dropout=None):
        return F.cross_entropy(self.logits(images, dropout), labels, reduction="sum")

    def logits(self, images, dropout=None):
        x = images.to(self.scale.dtype) * self.scale + self.shift
        return self.model(x.permute(0, 3, 1, 2), dropout)


class Trainer:
    """One model and its optimizer on one device, in step with those of the other processes."""

    def __init__(
        self, state: TrainState, train: Recipe, device: torch.device, compile: bool = False
    ):
        set_backend_precision(train.precision)
        self.cfg, self.train, self.device = state.config, train, device
        self.process = dist.get_rank() if dist.is_initialized() else 0
        self.num_processes = dist.get_world_size() if dist.is_initialized() else 1
        self.compile_seconds = None
        self.model = from_arrays(state.config, state.params, train.precision).to(device)
        self.objective = Objective(self.model)
        self.optimizer = make_optimizer(self.model, train.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type) if train.precision == "fp16" else None
        self.compute_loss = self.objective
        if self.num_processes > 1:
            self.compute_loss = DistributedDataParallel(
                self.objective,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.compute_logits = self.objective.logits
        if compile:
            self.compute_loss = torch.compile(self.compute_loss)
            self.compute_logits = torch.compile(self.compute_logits)
        if self.num_processes > 1:
            self._settle_buckets()
        self.load(state)

    def load(self, state: TrainState) -> None:
        """Take over a state; raises UserError unless its arrays fit the model."""
        canonical.check(self.cfg, state.params)
        self.step, self.adam_count = state.step, state.adam_count
        with torch.no_grad():
            for name, array in self.model.state_dict().items():
                array.copy_(torch.from_numpy(np.ascontiguousarray(state.params[name])))
        for name, p in self.model.named_parameters():
            self.optimizer.state[p] = {
                "step": torch.tensor(float(state.adam_count), device=self.device),
                "exp_avg": torch.tensor(state.exp_avg[name], device=self.device, dtype=p.dtype),
                "exp_avg_sq": torch.tensor(
                    state.exp_avg_sq[name], device=self.device, dtype=p.dtype
                ),
            }
        if self.scaler is not None and state.scaler is not None:
            values = self.scaler.state_dict()
            values["scale"], values["_growth_tracker"] = (
                state.scaler["scale"],
                int(state.scaler["growth_tracker"]),
            )
            self.scaler.load_state_dict(values)

    def state(self) -> TrainState:
        """A copy of everything a run continues from, in canonical arrays on the host."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], TrainState]:
        """`state` in two steps: a copy on the device now; its way to the host when the result is
        called, by any thread."""
        moments = {n: self.optimizer.state[p] for n, p in self.model.named_parameters()}
        names = canonical.trained(self.cfg, canonical.shapes(self.cfg))
        counts = {int(m["step"].item()) for m in moments.values()}
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        params = {n: p.detach().clone() for n, p in self.model.state_dict().items()}
        exp_avg, exp_avg_sq = (
            {n: moments[n][k].clone() for n in names} for k in ("exp_avg", "exp_avg_sq")
        )
        rest = dict(
            config=self.cfg,
            step=self.step,
            adam_count=counts.pop(),
            scaler=scaler
            and {"scale": scaler["scale"], "growth_tracker": scaler["_growth_tracker"]},
        )
        return lambda: TrainState(
            params={n: params[n].cpu().numpy() for n in canonical.shapes(rest["config"])},
            exp_avg={n: t.cpu().numpy() for n, t in exp_avg.items()},
            exp_avg_sq={n: t.cpu().numpy() for n, t in exp_avg_sq.items()},
            **rest,
        )

    def put(self, batch: Batch) -> DeviceBatch:
        """Start copying this process's rows to the device."""
        arrays = (batch.images, batch.labels.astype(np.int64), batch.weight, batch.rows)
        return DeviceBatch(
            *(self._to_device(torch.from_numpy(np.ascontiguousarray(a))) for a in arrays),
            batch.step,
        )

    def train_step(self, batch: DeviceBatch, lr: float, stop: bool = False) -> LazyResult:
        """One update: forward and backward over this process's rows, in `grad_accum` parts, and the
        optimizer's step."""
        keys = None
        if self.cfg.dropout:
            keys = self._to_device(
                to_keys(dropout.site_keys(self.train.seed, batch.step, self.cfg.depth))
            )
        parts = [t.chunk(self.train.grad_accum) for t in (batch.images, batch.labels, batch.rows)]
        total = torch.zeros((), dtype=self.objective.scale.dtype, device=self.device)
        for i, (images, labels, rows) in enumerate(zip(*parts)):
            with self._no_sync() if i + 1 < self.train.grad_accum else nullcontext():
                loss = (
                    self.compute_loss(images, labels, None if keys is None else (keys, rows))
                    / self.train.batch_size
                )
                total += loss.detach()
                # DDP divides the sum over processes by their number, which the loss takes back.
                loss = loss * self.num_processes
                (self.scaler.scale(loss) if self.scaler else loss).backward()
        norm = self._update(lr)
        self.step += 1
        asked = torch.full_like(total, float(stop))
        return LazyResult([total, asked], [norm], self._to_metrics)

    def _update(self, lr: float) -> torch.Tensor:
        """Clip, step and forget the gradients; returns the norm before clipping."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = clip_by_global_norm([p.grad for p in self.model.parameters()], self.train.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.num_processes == 1)
        if self.train.nudge is not None:
            nudge(list(self.model.parameters()), self.train.nudge, self.step)
        return norm

    def _to_metrics(self, values: list[float]) -> StepMetrics:
        loss, asked, norm = values
        return StepMetrics(loss, norm, self.scaler is not None and not np.isfinite(norm), asked > 0)

    @torch.no_grad()
    def eval_step(self, batch: DeviceBatch, stop: bool = False) -> LazyResult:
        """Counts over the global batch; examples of weight 0 do not count."""
        logits, labels, weight = (
            self.compute_logits(batch.images),
            batch.labels,
            batch.weight.to(self.objective.scale),
        )
        losses = F.cross_entropy(logits, labels, reduction="none")
        own = logits.gather(1, labels[:, None])
        before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        # How many classes come first, equal ones by number; a logit that is not a number is never
        # right.
        rank = (~(logits <= own) | ((logits == own) & before)).sum(1)
        sums = [(weight * (rank < k)).sum() for k in (1, 5)] + [
            (weight * losses).sum(),
            weight.sum(),
        ]
        asked = torch.full_like(sums[0], float(stop))
        return LazyResult([*sums, asked], [], lambda v: Counts(*v[:4], stop=v[4] > 0))

    def versions(self) -> dict[str, str]:
        """Framework, version, device and number of processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "framework": "torch",
            "version": torch.__version__,
            "device": name,
            "devices": str(self.num_processes),
        }

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Without waiting for what the device is doing, which a copy from memory that is not pinned
        would."""
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor
        )

    def _no_sync(self):
        return self.compute_loss.no_sync() if self.num_processes > 1 else nullcontext()

    def _settle_buckets(self) -> None:
        """One backward pass on zeros. DDP regroups its buckets after its first, and with them the
        order in which it sums:
        without this, a resumed run of three processes or more would differ by rounding from one
        that was not stopped."""
        part = self.train.batch_size // self.num_processes // self.train.grad_accum
        images = torch.zeros(
            part, self.cfg.image_size, self.cfg.image_size, 3, dtype=torch.uint8, device=self.device
        )
        labels = torch.zeros(part, dtype=torch.int64, device=self.device)
        keys = None
        if self.cfg.dropout:
            keys = (self._to_device(to_keys(dropout.site_keys(0, 0, self.cfg.depth))), labels)
        self.compute_loss(images, labels, keys).backward()
        self.optimizer.zero_grad(set_to_none=False)
