"""The flags of training as types, for `twinvit.train` and `twinvit.trainer`.

`shared_vit.run.requested.flags` says what each of them means; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from shared_vit.errors import UserError, nearest
from shared_vit.run.command_line import ask
from shared_vit.run.requested import RequestedConfig, flags
from shared_vit.weights.overrides import Colours


class Flags(TypedDict, total=False):
    """What `twinvit train --help` lists, by the same names; what is left out takes its default."""

    preset: str
    resume: bool
    epochs: float
    model: str
    image_size: int | tuple[int, int]
    num_classes: int
    pool: Literal["token", "mean"]
    pos_embed: Literal["learned", "sincos2d"]
    gelu: Literal["erf", "tanh"]
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    dropout: float
    drop_path: float
    eval_resize: float
    mean: Colours
    std: Colours
    interpolation: Literal["bilinear", "bicubic"]
    exif: Literal["ignore", "turn"]
    data: str
    class_order: str
    pad_crop: int
    min_area: float
    randaug: str
    repeat_aug: int
    mixup: float
    cutmix: float
    minival: Literal["off", "on"]
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    schedule: Literal["cosine", "linear", "constant", "rsqrt"]
    cooldown_steps: int
    optimizer: Literal["adam", "adamw", "sgd"]
    momentum: float
    weight_decay: float
    clip: float
    loss: Literal["softmax", "sigmoid"]
    label_smoothing: float
    class_weights: str | Sequence[float]
    layer_decay: float
    freeze: str
    ema: float
    sam_rho: float
    sam_groups: int
    grad_accum: int
    precision: Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
    seed: int
    nudge: int
    init_from: str
    positions: Literal["bicubic", "dinov2", "corners"]
    data_dir: str
    on_bad_image: Literal["stop", "skip"]
    check_images: Literal["off", "on"]
    data_check: Literal["sampled", "full"]
    workers: int
    device: Literal["cpu", "gpu"]
    world_size: int
    compile: Literal["on", "off"]
    remat: Literal["none", "block"]
    shard: Literal["none", "params"]
    run_dir: str
    stop_at: int
    eval_every: int
    checkpoint_every: int
    keep: int | Literal["all"]
    keep_best: Literal["off", "val_top1", "val_loss", "val_top1_ema"]
    wandb: Literal["off", "offline", "online"]
    tensorboard: Literal["off", "on"]
    log_every: int


def requested(values: Flags, prog: str) -> RequestedConfig:
    """The requested config of these flags, as on a command line. None leaves a flag out.

    Raises UserError for unknown flags, with the nearest one, and for impossible values.
    """
    known = flags()
    given: dict[str, Any] = {n: v for n, v in values.items() if v is not None}
    for name in given:
        if name not in Flags.__annotations__:
            raise UserError(f"{prog} takes no flag {name!r}{nearest(name, Flags.__annotations__)}")
    argv = []
    for name, value in given.items():
        if known[name][1].type is bool:
            argv += [f"--{name}"] if value else []
        elif isinstance(value, list | tuple):
            argv.append(f"--{name}={','.join(map(repr, value))}")
        else:
            argv.append(f"--{name}={value}")
    return ask(argv, prog)
