"""Presets: named settings, which flags then change, and what is known of their accuracy."""

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
    # Also what --data=folder means without --preset. The warm-up is left open: it follows from the
    # length, which follows from the data.
    "folder": dict(
        model="vit_ti16", image_size=224, data="folder", epochs=100.0, batch_size=64, lr=5e-4,
        weight_decay=0.1, warmup_steps=None, randaug="2,10",
    ),
}  # fmt: skip
# What the preset `folder` is with --init_from; model and image size are those of the weights.
FOLDER_FROM_WEIGHTS: dict[str, Any] = dict(
    data="folder", epochs=30.0, batch_size=64, lr=1e-4, weight_decay=0.1, warmup_steps=None
)

# Accuracies are top-1 on the validation split.
ABOUT = {
    "digits": (
        "A ViT of 4 blocks on 1,797 handwritten digits of 8 x 8 pixels, for laptops and tests. No "
        "published number; here: 97.2 % (JAX), 97.5 % (PyTorch)."
    ),
    "cifar10": (
        "A ViT of 2.7 M parameters from scratch, patches of 4 px. 80 % after 200 epochs by "
        "kentaroy47/vision-transformers-cifar10; differs from it by a smaller model, AdamW with a "
        "warm-up, 100 epochs and no RandAugment; here: not run."
    ),
    "imagenet": (
        "ViT-B/16 from scratch, the settings of the PyTorch trainer that this project "
        "reimplements, ssuncheol/Pytorch-VIT. 72.58 % by its README; differs from its code, which "
        "has 8 heads, the mean over all tokens, decay on every tensor, no warm-up and a periodic "
        "cosine; here: not run."
    ),
    "folder": (
        "Your own photographs, train/<class>/ and val/<class>/. From scratch: ViT-Ti/16, 100 "
        "epochs, warm-up over a twentieth of them; with --init_from: 30 epochs at a lower rate, "
        "model and image size of the weights. No published number; here: not run."
    ),
}
