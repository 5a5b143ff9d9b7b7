"""`TrainConfig`: the flags of a training run, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared_vit.errors import UserError, nearest
from shared_vit.spec.config import ModelConfig, model_config
from shared_vit.spec.precision import Precision


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


def validate(cfg: TrainConfig) -> None:
    """Check everything about a TrainConfig that needs neither data nor devices. Raises UserError."""
    if cfg.preset is not None and cfg.preset not in PRESETS:
        raise UserError(
            f"unknown preset {cfg.preset!r}{nearest(cfg.preset, PRESETS)} Presets: {', '.join(PRESETS)}."
        )
    sources = ("digits", "imagenet", "folder")
    if cfg.data is not None and cfg.data not in sources and not cfg.data.startswith("tfds:"):
        known = (*sources, "tfds:<name>")
        raise UserError(
            f"unknown data set {cfg.data!r}{nearest(cfg.data, known)} Data sets: {', '.join(known)}."
        )
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
        raise UserError(
            "--optimizer=adam has no weight decay: use --optimizer=adamw, or --weight_decay=0"
        )
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
