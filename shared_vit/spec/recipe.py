"""`Recipe`: everything that decides the curve of a training run, with nothing left open."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from shared_vit.errors import UserError
from shared_vit.spec.class_weights import check_class_weights, parse_class_weights
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Precision
from shared_vit.spec.settings import restore, setting

Schedule = Literal["cosine", "linear", "constant", "rsqrt"]
Loss = Literal["softmax", "sigmoid"]
Freeze = Literal["none", "embed", "trunk"] | int
MIN_AREA = 0.08  # as torchvision's RandomResizedCrop
LARGEST_ALPHA = 4.0  # of mixing: rejection sampling accepts one sample of 70 there, fewer above


@dataclass(frozen=True)
class Recipe:
    """The model, data, length, optimizer, augmentation, seed and precision of a run.

    Two runs of the same recipe produce the same curve up to rounding, on whatever machine they run.
    A field younger than the first version states its `historical` value. Raises UserError for an
    impossible combination.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: str = setting(
        "digits", "digits, imagenet, folder, or tfds:<name>[/<config>].", group="data"
    )
    class_order: str = setting(
        "name",
        "Order of the class folders, which numbers the classes: name (10 before 2), number (2 "
        "before 10), or a text file with the name of a class in each line.",
        group="data",
        metavar="{name,number,FILE}",
        historical="name",
    )
    pad_crop: int = setting(
        0,
        "Training crops: pad each side by this many pixels and crop at random, for small images; "
        "0: crops of random area and ratio.",
        group="data",
        ge=0,
        le=1024,
        historical=0,
    )
    min_area: float = setting(
        MIN_AREA,
        "Training crops of random area: the smallest fraction of the image.",
        group="data",
        gt=0,
        le=1,
        historical=MIN_AREA,
    )
    randaug: str = setting(
        "off",
        "RandAugment after crop and flip: N operations of strength M, as N,M (2,10), M from 1 to "
        "15; off: none.",
        group="data",
        metavar="N,M",
        historical="off",
    )
    repeat_aug: int = setting(
        1,
        "Repeated augmentation: show each example this many times, two rows apart, in as many "
        "different crops; an epoch has the same number of rows.",
        group="data",
        ge=1,
        le=1024,
        historical=1,
    )
    mixup: float = setting(
        0.0,
        "Mixup: weights of pairs of images from Beta(A, A), one sample a batch; 0: off. With "
        "--cutmix each batch takes one of them.",
        group="data",
        ge=0,
        le=LARGEST_ALPHA,
        historical=0.0,
        metavar="A",
    )
    cutmix: float = setting(
        0.0,
        "Cutmix: a box of its partner in each image, its fraction from Beta(A, A), one sample a "
        "batch; 0: off.",
        group="data",
        ge=0,
        le=LARGEST_ALPHA,
        historical=0.0,
        metavar="A",
    )
    minival: Literal["off", "on"] = setting(
        "off",
        "on: hold a random 1 % of the training split out and evaluate on it, not on the validation "
        "split.",
        group="data",
        historical="off",
    )
    steps: int = setting(
        1,
        "Length of the run and of the schedule in updates; overrides --epochs.",
        group="length",
        ge=1,
        le=10**10,
        open="--epochs passes over the data",
    )
    batch_size: int = setting(
        1024, "Examples per update over all devices.", group="length", ge=1, le=10**8
    )
    lr: float = setting(1e-3, "Peak learning rate.", group="optimizer", gt=0)
    warmup_steps: int = setting(
        100_000, "Updates of linear warm-up, before --schedule.", group="optimizer", ge=0
    )
    schedule: Schedule = setting(
        "cosine",
        "Learning rate after the warm-up: cosine or linear to zero, constant, or with the inverse "
        "square root of the update (rsqrt).",
        group="optimizer",
        historical="cosine",
    )
    cooldown_steps: int = setting(
        0,
        "Last updates of a constant or rsqrt schedule, in which the learning rate falls linearly "
        "to zero.",
        group="optimizer",
        ge=0,
        historical=0,
    )
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adamw", "Optimizer.", group="optimizer")
    momentum: float = setting(0.9, "Momentum of sgd.", group="optimizer", ge=0, historical=0.9)
    weight_decay: float = setting(
        0.3,
        "Decoupled decay, times the learning rate, on the weights of products only.",
        group="optimizer",
        ge=0,
    )
    clip: float = setting(
        1.0,
        "Largest global norm of the gradient; inf: no clipping.",
        group="optimizer",
        gt=0,
    )
    loss: Loss = setting(
        "softmax",
        "softmax: cross-entropy; sigmoid: binary cross-entropies, summed over the classes.",
        group="optimizer",
        historical="softmax",
    )
    label_smoothing: float = setting(
        0.0,
        "Fraction of a label that goes to all classes alike, in training.",
        group="optimizer",
        ge=0,
        historical=0.0,
    )
    class_weights: tuple[float, ...] = setting(
        (),
        "Weights of the classes in the loss: balanced (by the number of their images), a text file "
        "with a number a line, numbers with commas, or off.",
        group="optimizer",
        parse=parse_class_weights,
        metavar="{off,balanced,FILE}",
        historical=(),
    )
    layer_decay: float = setting(
        1.0,
        "Learning rate of each layer over that of the layer above it.",
        group="optimizer",
        gt=0,
        le=1,
        historical=1.0,
    )
    freeze: str = setting(
        "none",
        "Leave tensors as they are: trunk (all but the head), embed (positions, patches and class "
        "token), N (those and the first N blocks), or none.",
        group="optimizer",
        metavar="{none,embed,trunk,N}",
        historical="none",
    )
    ema: float = setting(
        0.0,
        "Decay of a moving average of the weights, evaluated in addition to them (0.9999); 0: "
        "none.",
        group="optimizer",
        ge=0,
        historical=0.0,
    )
    sam_rho: float = setting(
        0.0,
        "Sharpness-aware minimization: the gradient is taken this far up the loss; 0: off.",
        group="optimizer",
        ge=0,
        historical=0.0,
    )
    sam_groups: int = setting(
        1,
        "Groups of a batch, each with an ascent step by its own gradient, whatever the devices.",
        group="optimizer",
        ge=1,
        historical=1,
    )
    grad_accum: int = setting(
        1,
        "Split each device's part of the batch into this many parts, one after another.",
        group="machine",
        ge=1,
    )
    precision: Precision = setting(
        "fp32",
        "Dtypes: see docs/scaling.md.",
        group="machine",
        open="bf16 on GPUs that have it, else fp32",
    )
    seed: int = setting(
        0,
        "Seed of the first weights, the order of the data, augmentation and dropout.",
        group="length",
        ge=0,
        le=2**64 - 1,
    )
    nudge: int | None = setting(
        None,
        "Seed of a rounding-sized disturbance after each update, which measures how far rounding "
        "alone changes the curve. The run is not evaluated.",
        group="proof",
        ge=0,
    )
    init_from: str | None = setting(
        None,
        "Start from these weights: any format that `twinvit convert` reads, on disk or as "
        "hf:OWNER/NAME[@REVISION][/FILE] on the Hugging Face hub.",
        group="model",
        open="initial weights sampled from the seed",
    )
    positions: Literal["bicubic", "dinov2", "corners"] = setting(
        "bicubic",
        "How learned positions of weights become those of another --image_size: bicubic with "
        "antialias (timm's), dinov2 (of DINOv2's hub models), or corners (big_vision's).",
        group="model",
        historical="bicubic",
    )

    WRITTEN_ALWAYS: ClassVar = frozenset(
        (
            "pad_crop", "min_area", "randaug", "repeat_aug", "mixup", "cutmix", "minival",
            "schedule", "cooldown_steps", "momentum", "loss", "label_smoothing", "layer_decay",
            "freeze", "ema", "sam_rho", "sam_groups",
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        parse_randaug(self.randaug)
        if self.pad_crop and self.min_area != MIN_AREA:
            raise UserError(
                f"--min_area={self.min_area} belongs to crops of random area: add --pad_crop=0, or "
                "leave it out"
            )
        if self.repeat_aug > 1 and self.batch_size % 2:
            raise UserError(
                f"--repeat_aug={self.repeat_aug} needs an even --batch_size, not {self.batch_size}"
            )
        if self.schedule == "rsqrt" and not self.warmup_steps:
            raise UserError("--schedule=rsqrt counts from the warm-up: set --warmup_steps above 0")
        if self.cooldown_steps and self.schedule in ("cosine", "linear"):
            raise UserError(
                f"--schedule={self.schedule} ends at zero by itself: --cooldown_steps belongs to "
                "constant and rsqrt"
            )
        if self.optimizer == "adam" and self.weight_decay:
            raise UserError(
                "--optimizer=adam has no weight decay: use --optimizer=adamw, or --weight_decay=0"
            )
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"--{name} must be at least 0 and below 1, not {getattr(self, name)}"
                )
        if self.sam_groups > 1 and not self.sam_rho:
            raise UserError(
                f"--sam_groups={self.sam_groups} belongs to --sam_rho above 0: add it, or leave "
                "--sam_groups out"
            )
        new = [n for n in ("ema", "sam_rho") if getattr(self, n)]
        new += ["optimizer=sgd"] if self.optimizer == "sgd" else []
        if self.precision == "fp16" and new:
            raise UserError(
                f"--precision=fp16 may skip updates, of which --{new[0]} knows nothing: use bf16"
            )
        parse_freeze(self.freeze)
        check_class_weights(self.class_weights)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """From the dictionary of `dataclasses.asdict` or its JSON, of this version or an older one.

        Raises UserError for an unknown field, or a missing one without a historical value.
        """
        return restore(cls, values, where)


def parse_randaug(text: str) -> tuple[int, int]:
    """(operations, strength) of `N,M`; (0, 0) for `off`. Raises UserError."""
    if text == "off":
        return 0, 0
    found = re.fullmatch(r"([0-9]{1,2}),([0-9]{1,2})", text)
    if not found or not 1 <= int(found[1]) <= 16 or not 1 <= int(found[2]) <= 15:
        raise UserError(
            f"--randaug={text}: N,M is expected, N operations (1 to 16) of strength M (1 to 15), "
            "as in --randaug=2,10, or off"
        )
    return int(found[1]), int(found[2])


def parse_freeze(text: str) -> Freeze:
    """`none`, `embed`, `trunk` or a number of blocks. Raises UserError."""
    if text in ("none", "embed", "trunk"):
        return text  # type: ignore[return-value]
    if text.isascii() and text.isdigit():
        return int(text)
    raise UserError(
        f"--freeze={text}: expected none, embed, trunk, or the number of first blocks to freeze"
    )


FEATURES = (
    "class_order", "pad_crop", "min_area", "randaug", "repeat_aug", "mixup", "cutmix", "minival",
    "loss", "label_smoothing", "layer_decay", "freeze", "ema", "sam_rho", "sam_groups",
)  # fmt: skip


def enabled_features(recipe: Recipe) -> list[str]:
    """What a recipe has beyond the plain one, in words: `mixup 0.2`, ..."""
    plain = Recipe()
    found = [f"drop path {recipe.model.drop_path}"] if recipe.model.drop_path else []
    found += [f"momentum {recipe.momentum}"] if recipe.optimizer == "sgd" else []
    if recipe.class_weights:
        least, most = min(recipe.class_weights), max(recipe.class_weights)
        found += [f"class weights {least:.3g} to {most:.3g}"]
    shown = [n for n in FEATURES if getattr(recipe, n) != getattr(plain, n)]
    return found + [f"{n.replace('_', ' ')} {getattr(recipe, n)}" for n in shown]


# What a resumed run may change: its length (with a notice), and where its first weights came from.
LENGTH_FIELDS = frozenset(("steps",))
FREE_FIELDS = LENGTH_FIELDS | {"init_from"}
