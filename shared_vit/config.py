"""What decides a model's function and a run's curve: `ModelConfig`, `TrainConfig`, presets and the precision policy."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared_vit.errors import UserError, nearest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (width, depth, heads, MLP width): Dosovitskiy et al. 2021, table 1; Ti and S from Touvron et al. 2021. `nano` and
# `mini` are this project's own, for digits and CIFAR-10 on small machines.
SIZES = {
    "nano": (64, 4, 4, 256),
    "mini": (192, 6, 3, 768),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}
MODELS = [f"vit_{n}" for n in ("nano2", "mini4", "ti4", "ti16", "s16", "s32", "b16", "b32", "l16", "l32", "h14")]


@dataclass(frozen=True)
class ModelConfig:
    """All that decides the function a ViT computes, given its weights.

    Sizes are in pixels (image, patch) and units (width, MLP, pre-logits). Raises UserError for an impossible combination.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    class_token: bool = True
    pool: Literal["token", "mean"] = "token"
    pool_class_token: bool = False  # whether the mean counts the class token
    norm_after_pool: bool = False  # False: `norm` over all tokens, then pool; True: pool, then `fc_norm`
    pos_embed: Literal["learned", "sincos2d"] = "learned"
    gelu: Literal["erf", "tanh"] = "erf"
    norm_eps: float = 1e-6
    pre_logits: int = 0  # units of the tanh layer before the head; 0: none
    dropout: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        for name in ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim", "num_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            sizes = " or ".join(f"--image_size={s}" for s in (below, below + self.patch_size) if s)
            raise UserError(
                f"patches of {self.patch_size} px do not divide an image of {self.image_size} px: choose {sizes}"
            )
        if self.width % self.num_heads:
            raise UserError(f"{self.num_heads} heads do not divide the width {self.width}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        if not isinstance(self.pre_logits, int) or self.pre_logits < 0:
            raise UserError(f"pre_logits must be a number of units, or 0 for none, not {self.pre_logits!r}")
        if self.pool == "token" and not self.class_token:
            raise UserError("pool='token' needs class_token=True; without one, use pool='mean'")
        if self.pool == "token" and self.norm_after_pool:
            raise UserError(
                "norm_after_pool belongs to pool='mean'; for pool='token' both orders are the same function"
            )
        if self.pool_class_token and not (self.class_token and self.pool == "mean"):
            raise UserError("pool_class_token needs class_token=True and pool='mean'")
        if self.pos_embed == "sincos2d" and self.width % 4:
            raise UserError(f"sincos2d positions need a width divisible by 4, not {self.width}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.norm_eps > 0:
            raise UserError(f"norm_eps must be above 0, not {self.norm_eps}")
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise UserError(f"{name} must be three numbers, one for each of R, G and B, not {values}")
            object.__setattr__(self, name, values)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token, where there is one."""
        return self.num_patches + self.class_token

    @property
    def norm_name(self) -> str:
        """Canonical name of the last LayerNorm."""
        return "fc_norm" if self.norm_after_pool else "norm"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """From `dataclasses.asdict`'s dictionary (or its JSON); an unknown or missing field is a UserError."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != fields:
            given = set(values) if isinstance(values, dict) else set()
            raise UserError(
                f"this is not a ModelConfig of this version: unknown fields {sorted(given - fields)}, "
                f"missing fields {sorted(fields - given)}"
            )
        for f in dataclasses.fields(cls):
            kind, value = type(f.default), values[f.name]
            if kind is float and type(value) is int:
                value = float(value)
            if kind is tuple and isinstance(value, list):
                value = tuple(value)
            if type(value) is not kind:
                raise UserError(f"ModelConfig field {f.name}: expected {kind.__name__}, found {value!r}")
        return cls(**values)


_CHOICES = {"pool": ("token", "mean"), "pos_embed": ("learned", "sincos2d"), "gelu": ("erf", "tanh")}


def model_config(name: str, num_classes: int = 1000, image_size: int = 224, **overrides) -> ModelConfig:
    """The ModelConfig of a named model (`vit_b16`, ...; `vit` is `vit_b16`), with any field overridden.

    Raises UserError for an unknown name (with the nearest one) or an impossible combination.
    """
    full = "vit_b16" if name == "vit" else name
    match = re.fullmatch(r"vit_([a-z]+)(\d+)", full)
    if full not in MODELS or not match:
        raise UserError(f"unknown model {name!r}{nearest(name, MODELS)} Models: {', '.join(MODELS)}.")
    width, depth, heads, mlp_dim = SIZES[match[1]]
    values = dict(patch_size=int(match[2]), width=width, depth=depth, num_heads=heads, mlp_dim=mlp_dim)
    return ModelConfig(**(values | dict(num_classes=num_classes, image_size=image_size) | overrides))


@dataclass(frozen=True)
class Policy:
    """Which numbers are held in which type. Stated here, obeyed by both twins.

    Parameters, optimizer state, LayerNorm, softmax, loss, head, logits and the residual stream are `param` (float32, or
    float64 throughout under fp64). The other products take inputs and weights in `compute`, accumulate and add the bias
    in float32, and round once to `compute`; GELU takes and gives `compute`. `tf32` lets the hardware round the inputs
    of float32 products to TensorFloat-32; everywhere else float32 products are full float32.
    """

    param: str
    compute: str
    tf32: bool = False


PRECISIONS = {
    "fp32": Policy("float32", "float32"),
    "tf32": Policy("float32", "float32", tf32=True),
    "bf16": Policy("float32", "bfloat16"),
    "fp16": Policy("float32", "float16"),
    "fp64": Policy("float64", "float64"),
}

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]


@dataclass(frozen=True)
class TrainConfig:
    """One run: the same flags for both trainers. A field of None takes its value from the preset, data or machine."""

    preset: str | None = None
    """digits, cifar10 or imagenet: the settings that the other flags then change."""
    mode: Literal["train", "eval"] = "train"
    """eval evaluates --init_from (or the newest checkpoint of --run_dir) on the validation split."""
    model: str | None = None
    """vit_ti16, vit_s16, vit_s32, vit_b16 (also: vit), vit_b32, vit_l16, vit_l32, vit_h14, vit_ti4, vit_mini4, vit_nano2."""
    image_size: int | None = None
    """Side of the square input in pixels; the patch must divide it."""
    num_classes: int | None = None
    """Classes of the head; by default those of the data."""
    pool: Literal["token", "mean"] | None = None
    """token: class token (the default); mean: no class token, mean over the patches."""
    pos_embed: Literal["learned", "sincos2d"] | None = None
    """Position embedding, learned (the default) or fixed 2-D sines and cosines."""
    gelu: Literal["erf", "tanh"] | None = None
    """GELU's form; erf is the default."""
    num_heads: int | None = None
    """Heads of a model read by --init_from from a file that does not say."""
    data: str | None = None
    """digits, imagenet, folder, or tfds:<name>[/<config>]."""
    data_dir: str | None = None
    """Where the data is: a folder with train/ and val/ class folders, or TFDS's data_dir."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be decoded: stop, or use its neighbour and count it."""
    epochs: float = 300
    """Length of the run and of the schedule, in passes over the training split."""
    steps: int | None = None
    """Length of the run and of the schedule in updates; overrides --epochs."""
    stop_at: int | None = None
    """Save after this many updates and leave with status 0; the schedule keeps its length."""
    batch_size: int = 1024
    """Examples per update over all devices."""
    grad_accum: int = 1
    """Split each device's share of the batch into this many parts, one after another."""
    lr: float = 1e-3
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 0.3
    """Decoupled decay, times the learning rate, on the weights of products only."""
    warmup_steps: int = 100_000
    """Updates of linear warm-up, before the cosine to zero."""
    dropout: float = 0.0
    """After the position embedding, the attention's output, GELU and the second MLP product."""
    clip: float = 1.0
    """Largest global norm of the gradient; inf does not clip."""
    precision: Precision | None = None
    """By default bf16 on GPUs that have it, else fp32."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    world_size: int | None = None
    """Devices to use on this host; by default every GPU there is, else one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile in the PyTorch twin (auto: on GPUs). JAX always compiles."""
    seed: int = 0
    """Of first weights, order of the data, augmentation and dropout."""
    run_dir: str | None = None
    """Where the run is written; by default runs/<preset>-<framework>."""
    resume: bool = False
    """Continue the run in --run_dir, whichever twin wrote it."""
    init_from: str | None = None
    """Start from these weights: any format that `twinvit convert` reads."""
    eval_every: int | None = None
    """Evaluate each so many updates (and at the end); by default each epoch, 0 only at the end."""
    checkpoint_every: int | None = None
    """Save each so many updates (and at the end); by default as often as it evaluates, 0 only at the end."""
    keep: int = 2
    """Checkpoints kept."""
    workers: int | None = None
    """Processes that decode images; 0 uses threads only. By default chosen from the cores there are."""
    wandb: Literal["off", "offline", "online"] = "off"
    nudge: int | None = None
    """Seed of a rounding-sized disturbance after each update; measures how far rounding alone moves the curve, and
    is not evaluated."""
    coordinator: str | None = None
    """JAX over several processes: host:port of process 0."""
    num_processes: int | None = None
    """JAX over several processes: how many (found by itself under SLURM)."""
    process_id: int | None = None
    """JAX over several processes: which one this is (found by itself under SLURM)."""


_IMAGENET = TrainConfig(preset="imagenet", model="vit_b16", image_size=224, data="imagenet")
PRESETS = {
    "digits": TrainConfig(
        preset="digits", model="vit_nano2", image_size=8, data="digits",
        epochs=60, batch_size=64, lr=3e-3, weight_decay=0.1, warmup_steps=200, eval_every=220,
    ),
    "cifar10": TrainConfig(
        preset="cifar10", model="vit_mini4", image_size=32, data="tfds:cifar10",
        epochs=100, batch_size=128, lr=5e-4, weight_decay=0.1, warmup_steps=2000,
    ),
    "imagenet": _IMAGENET,
}  # fmt: skip

# Flags that may differ when a run is resumed: none of them can change the curve.
FREE_FIELDS = frozenset(
    "preset mode data_dir device world_size compile run_dir resume stop_at keep workers wandb eval_every "
    "checkpoint_every coordinator num_processes process_id num_heads on_bad_image init_from".split()
)
LENGTH_FIELDS = frozenset(("epochs", "steps"))


def imagenet_places() -> list[Path]:
    """Where ImageNet's class folders are looked for when no data set is named."""
    named = [os.environ["IMAGENET_DIR"]] if os.environ.get("IMAGENET_DIR") else []
    return [Path(p).expanduser() for p in (*named, "imagenet", "data/imagenet", "~/imagenet", "/data/imagenet")]


def find_imagenet() -> Path | None:
    """The first of `imagenet_places` that has a `train` folder."""
    return next((p for p in imagenet_places() if (p / "train").is_dir()), None)


def validate(cfg: TrainConfig) -> None:
    """Check everything about a TrainConfig that needs neither data nor devices. Raises UserError."""
    if cfg.preset is not None and cfg.preset not in PRESETS:
        raise UserError(f"unknown preset {cfg.preset!r}{nearest(cfg.preset, PRESETS)} Presets: {', '.join(PRESETS)}.")
    sources = ("digits", "imagenet", "folder")
    if cfg.data is not None and cfg.data not in sources and not cfg.data.startswith("tfds:"):
        known = (*sources, "tfds:<name>")
        raise UserError(f"unknown data set {cfg.data!r}{nearest(cfg.data, known)} Data sets: {', '.join(known)}.")
    at_least = dict(batch_size=1, grad_accum=1, steps=1, stop_at=1, world_size=1, warmup_steps=0, keep=1, workers=0,
                    eval_every=0, checkpoint_every=0, num_processes=1, process_id=0, seed=0, nudge=0,
                    num_classes=1, num_heads=1)  # fmt: skip
    for name, least in at_least.items():
        value = getattr(cfg, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if cfg.seed >= 2**64:
        raise UserError(f"--seed must be below 2**64, not {cfg.seed}")
    for name in ("lr", "epochs", "clip"):
        if not getattr(cfg, name) > 0:
            raise UserError(f"--{name} must be above 0, not {getattr(cfg, name)}")
    if not cfg.weight_decay >= 0:
        raise UserError(f"--weight_decay must be at least 0, not {cfg.weight_decay}")
    if cfg.optimizer == "adam" and cfg.weight_decay:
        raise UserError("--optimizer=adam has no weight decay: use --optimizer=adamw, or --weight_decay=0")
    if cfg.batch_size % ((cfg.world_size or 1) * cfg.grad_accum):
        raise UserError(
            f"--batch_size={cfg.batch_size} is not divisible by --world_size={cfg.world_size or 1} x "
            f"--grad_accum={cfg.grad_accum}: every device takes the same share"
        )
    build_model_config(cfg, num_classes=cfg.num_classes or 1)


def build_model_config(cfg: TrainConfig, num_classes: int) -> ModelConfig:
    """The ModelConfig that a TrainConfig's flags name, with `num_classes` where --num_classes is not given."""
    changes = {k: getattr(cfg, k) for k in ("pos_embed", "gelu") if getattr(cfg, k) is not None}
    if cfg.pool == "mean":
        changes |= dict(class_token=False, pool="mean")
    return model_config(
        cfg.model or "vit_b16",
        num_classes=cfg.num_classes or num_classes,
        image_size=cfg.image_size or 224,
        dropout=cfg.dropout,
        **changes,
    )
