"""Presets: named settings, which flags then change."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "digits": dict(
        model="vit_nano2", image_size=8, data="digits", epochs=60.0, batch_size=64, lr=3e-3,
        weight_decay=0.1, warmup_steps=200, eval_every=220,
    ),
    # Small images: every published CIFAR recipe pads by 4 and crops, and evaluates whole images.
    "cifar10": dict(
        model="vit_mini4", image_size=32, data="tfds:cifar10", epochs=100.0, batch_size=128,
        lr=5e-4, weight_decay=0.1, warmup_steps=2000, pad_crop=4, eval_resize=1.0,
    ),
    # The settings of the PyTorch trainer that this project reimplements.
    "imagenet": dict(model="vit_b16", image_size=224, data="imagenet"),
}  # fmt: skip
