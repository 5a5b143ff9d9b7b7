"""The type of each flag of a requested config, for type checkers and editors.

A flag that data, weights or devices decide (`open=` of its setting) is None until they have.
`parity_tests/test_settings.py` compares these lines with the settings themselves.
"""

from __future__ import annotations

from typing import Literal

from shared_vit.spec.precision import Precision
from shared_vit.spec.recipe import Loss, Schedule
from shared_vit.spec.sides import Sides


class FlagTypes:
    """Annotations without values: `RequestedConfig` looks the values up by name."""

    # LaunchArguments
    preset: str | None
    config: str | None
    mode: Literal["train", "eval"]
    resume: bool
    epochs: float
    model: str | None
    image_size: Sides | None
    num_classes: int | None
    pool: Literal["token", "mean"] | None
    pos_embed: Literal["learned", "sincos2d"] | None
    gelu: Literal["erf", "tanh"] | None
    patch_size: int | None
    width: int | None
    depth: int | None
    num_heads: int | None
    mlp_dim: int | None
    dropout: float
    drop_path: float
    eval_resize: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: Literal["bilinear", "bicubic"] | None
    exif: Literal["ignore", "turn"] | None
    # Recipe
    data: str
    class_order: str
    pad_crop: int
    min_area: float
    randaug: str
    repeat_aug: int
    mixup: float
    cutmix: float
    minival: Literal["off", "on"]
    steps: int | None
    batch_size: int
    lr: float
    warmup_steps: int
    schedule: Schedule
    cooldown_steps: int
    optimizer: Literal["adam", "adamw", "sgd"]
    momentum: float
    weight_decay: float
    clip: float
    loss: Loss
    label_smoothing: float
    class_weights: tuple[float, ...]
    layer_decay: float
    freeze: str
    ema: float
    sam_rho: float
    sam_groups: int
    grad_accum: int
    precision: Precision | None
    seed: int
    nudge: int | None
    init_from: str | None
    positions: Literal["bicubic", "dinov2", "corners"]
    # RuntimeConfig
    data_dir: str | None
    on_bad_image: Literal["stop", "skip"]
    check_images: Literal["off", "on"]
    data_check: Literal["sampled", "full"]
    workers: int | None
    device: Literal["cpu", "gpu"] | None
    world_size: int | None
    compile: Literal["on", "off"] | None
    remat: Literal["none", "block"]
    shard: Literal["none", "params"]
    run_dir: str | None
    stop_at: int | None
    eval_every: int | None
    checkpoint_every: int | None
    keep: int
    keep_best: Literal["off", "val_top1", "val_loss", "val_top1_ema"]
    wandb: Literal["off", "offline", "online"]
    tensorboard: Literal["off", "on"]
    log_every: int
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
