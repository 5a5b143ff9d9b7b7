"""What each process of `train_step.py` measures: one model, its forward and training steps."""

import json
import math
import os
import resource
import subprocess
import sys
import time
from importlib import metadata

import numpy as np
import trainers
from about import cpu

from shared_vit.data.batch import Batch
from shared_vit.run.state import StepScalars
from shared_vit.spec.config import model_config
from shared_vit.spec.pixels import normalization
from shared_vit.spec.precision import PRECISIONS

CLASSES, LR, WEIGHT_DECAY, CLIP = 1000, 1e-3, 0.3, 1.0


def serve(args) -> None:
    """Answer each line of stdin with a line of JSON; everything else that is printed goes to
    stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    kind, _, option = args.worker.partition(":")
    contender = CONTENDERS[kind](args, kind, option == "compile")
    for line in sys.stdin:
        try:
            answer = getattr(contender, line.strip())()
        except Exception as error:  # told and passed over by the process that asked
            answer = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answer), file=answers, flush=True)


class Contender:
    """One model. `step` and `infer` run one of each without waiting; `wait` waits for both."""

    def __init__(self, args, kind: str, compile: bool):
        self.args, self.kind, self.compile = args, kind, compile
        self.cfg = model_config(args.model, num_classes=CLASSES, image_size=args.image_size)
        rng = np.random.default_rng(0)
        shape = (args.batch_size, args.image_size, args.image_size, 3)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        labels = rng.integers(0, CLASSES, args.batch_size, dtype=np.int32)
        self.batch = Batch(
            images, labels, np.ones(args.batch_size, np.float32), np.arange(args.batch_size), 0
        )

    def prepare(self) -> dict:
        """Build and warm up; the seconds that the first of each call takes beyond a later one."""
        self.build()
        extra = 0.0
        self.steps = {}
        for what, call in (("forward", self.infer), ("train", self.step)):
            first, _, later = (self._time(call, 1)["seconds"] for _ in range(3))
            extra += max(0, first - later)
            self.steps[what] = math.ceil(self.args.seconds / later)
        return {"compile_seconds": extra, "attention": self.attention()}

    def forward(self) -> dict:
        return self._time(self.infer, self.steps["forward"])

    def train(self) -> dict:
        return self._time(self.step, self.steps["train"])

    def _time(self, call, steps: int) -> dict[str, float]:
        """Of one call: seconds by the clock, and by the process's processors, which other programs
        disturb less. A call before brings the device's clock and allocator to where they stay."""
        call()
        self.wait()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            call()
        self.wait()
        spent = {
            "seconds": (time.perf_counter() - begin) / steps,
            "cpu_seconds": (time.process_time() - begin_cpu) / steps,
        }
        self.rest()
        return spent

    def rest(self) -> None:
        """Give back the memory that the next contender may need."""

    def flags(self) -> dict:
        """Of the twins' trainers, by the names of the command line."""
        return dict(
            batch_size=self.args.batch_size, precision=self.args.precision, device=self.args.device,
            weight_decay=WEIGHT_DECAY, clip=CLIP,
        )  # fmt: skip


class Jax(Contender):
    """The JAX twin, by its own trainer."""

    def build(self) -> None:
        import jax

        self.jax = jax
        self.trainer, _, _ = trainers.jax_trainer(self.cfg, **self.flags())
        self.on_device = self.trainer.to_device(self.batch)
        self.images = self.on_device.images[0]
        self.logits = jax.jit(self.trainer.objective.logits)
        self.result = self.output = None

    def step(self) -> None:
        self.result = self.trainer.train_step(self.on_device, StepScalars(LR))

    def infer(self) -> None:
        self.output = self.logits(self.trainer.params, self.trainer.fixed, self.images)

    def wait(self) -> None:
        self.jax.block_until_ready((self.output, self.result and self.result.values))

    def attention(self) -> str:
        """What attention is computed by."""
        from jax_vit import fused

        cfg = self.cfg
        tokens = cfg.num_tokens + cfg.num_tokens % 2
        shape = (self.args.batch_size, tokens, cfg.num_heads, cfg.width // cfg.num_heads)
        applies = fused.applies(shape, PRECISIONS[self.args.precision])
        return "cuDNN" if applies else "products and softmax"

    def memory(self) -> dict:
        stats = self.jax.local_devices()[0].memory_stats() or {}
        return {"peak_bytes": stats.get("peak_bytes_in_use") or _peak_of_process()}


class Torch(Contender):
    """What all contenders in PyTorch share."""

    def __init__(self, args, kind, compile):
        super().__init__(args, kind, compile)
        import torch

        self.torch = torch
        gpu = args.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if gpu else torch.device("cpu")

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def rest(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()

    def attention(self) -> str:
        """The kernel that scaled_dot_product_attention takes for the model's shape and types."""
        torch, cfg = self.torch, self.cfg
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.args.precision)
        shape = (2, cfg.num_heads, cfg.num_tokens, cfg.width // cfg.num_heads)
        q = torch.zeros(shape, dtype=low or torch.float32, device=self.device, requires_grad=True)
        try:
            return torch.nn.attention.SDPBackend(torch._fused_sdp_choice(q, q, q)).name
        except (AttributeError, ValueError, RuntimeError) as error:
            return f"not known: {error}"

    def memory(self) -> dict:
        gpu = self.device.type == "cuda"
        return {"peak_bytes": self.torch.cuda.max_memory_allocated() if gpu else _peak_of_process()}


class TorchTwin(Torch):
    """The PyTorch twin, by its own trainer."""

    def build(self) -> None:
        flags = self.flags() | {"compile": "on" if self.compile else "off"}
        self.trainer, _, _ = trainers.torch_trainer(self.cfg, **flags)
        self.on_device = self.trainer.to_device(self.batch)

    def step(self) -> None:
        self.trainer.train_step(self.on_device, StepScalars(LR))

    def infer(self) -> None:
        with self.torch.no_grad():
            self.trainer.compute_logits(self.on_device.images)


class Peer(Torch):
    """Another library's model, trained as its users would: autocast, the same fused AdamW, clipping
    and loss."""

    def build(self) -> None:
        torch, cfg = self.torch, self.cfg
        from torch_vit.precision import set_backend_precision
        from twinvit.convert.libraries import without_torchvision_operators

        without_torchvision_operators()
        set_backend_precision(self.args.precision)
        torch.manual_seed(0)
        self.model = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}[
            self.kind
        ](cfg)
        self.model.to(
            self.device, getattr(torch, "float64" if self.args.precision == "fp64" else "float32")
        ).train()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.args.precision == "fp16")
        self.run = torch.compile(self._logits) if self.compile else self._logits
        dtype = next(self.model.parameters()).dtype
        self.scale, self.shift = (
            torch.tensor(a, dtype=dtype, device=self.device) for a in normalization(cfg)
        )
        self.images = torch.from_numpy(self.batch.images).to(self.device)
        self.labels = torch.from_numpy(self.batch.labels.astype(np.int64)).to(self.device)

    def _logits(self, images):
        low = {"bf16": self.torch.bfloat16, "fp16": self.torch.float16}.get(self.args.precision)
        with self.torch.autocast(self.device.type, low, enabled=low is not None):
            x = (images.to(self.scale.dtype) * self.scale + self.shift).permute(0, 3, 1, 2)
            output = self.model(x)
        return getattr(output, "logits", output).to(self.scale.dtype)

    def step(self) -> None:
        torch = self.torch
        loss = torch.nn.functional.cross_entropy(self.run(self.images), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        with self.torch.no_grad():
            self.run(self.images)


class Device(Torch):
    """The machine itself: what it is, and how fast it multiplies matrices."""

    def about(self) -> dict:
        torch, gpu = self.torch, self.device.type == "cuda"
        name = torch.cuda.get_device_name(0) if gpu else f"{cpu()}, {os.cpu_count()} cores"
        about = {"device": name, "gpu": gpu, "threads": torch.get_num_threads()}
        return about | (
            {"free_bytes": torch.cuda.mem_get_info()[0]} | _versions(torch) if gpu else {}
        )

    def rate(self) -> dict:
        """Floating-point operations per second of a large square product in the precision's compute
        type."""
        from torch_vit.precision import set_backend_precision

        torch = self.torch
        set_backend_precision(self.args.precision)
        n = 8192 if self.device.type == "cuda" else 1536
        dtype = getattr(torch, PRECISIONS[self.args.precision].compute)
        a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        for _ in range(2):
            a @ b
        steps = math.ceil(self.args.seconds / self._time(lambda: a @ b, 1)["seconds"])
        return {"flops": 2 * n**3 / self._time(lambda: a @ b, steps)["seconds"]}


CONTENDERS = {
    "device": Device,
    "jax_vit": Jax,
    "torch_vit": TorchTwin,
    "timm": Peer,
    "torchvision": Peer,
    "transformers": Peer,
}


def _timm(cfg):
    from shared_vit.weights.formats import timm as names
    from twinvit.convert.libraries import without_torchvision_operators

    without_torchvision_operators()
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not names.is_plain(cfg):
        return timm.create_model(names.architecture_of(cfg), **names.model_args(cfg))

    return VisionTransformer(
        cfg.image_size, cfg.patch_size, num_classes=cfg.num_classes, embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.num_heads, mlp_ratio=cfg.mlp_dim / cfg.width,
    )  # fmt: skip


def _torchvision(cfg):
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        cfg.image_size,
        cfg.patch_size,
        cfg.depth,
        cfg.num_heads,
        cfg.width,
        cfg.mlp_dim,
        num_classes=cfg.num_classes,
    )


def _transformers(cfg):
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            hidden_size=cfg.width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.num_heads,
            intermediate_size=cfg.mlp_dim,
            num_labels=cfg.num_classes,
            attn_implementation="sdpa",
        )  # fmt: skip
    )


def _versions(torch) -> dict:
    """Of what computes on the GPU: CUDA, cuDNN, driver and Triton."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    )
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver.stdout.strip() or None,
        "triton": triton,
    }


def _peak_of_process() -> int:
    """Of the whole process, in bytes; Linux counts in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
