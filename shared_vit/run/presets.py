"""Presets: named settings, which flags then change, and what is known of their accuracy."""

from typing import Any

_IMAGENET = dict(image_size=224, data="imagenet")
# google-research/big_vision's vit_s16_i1k; its decay of 1e-4 is not multiplied by the learning rate
# of 1e-3.
_PLAIN: dict[str, Any] = _IMAGENET | dict(
    model="vit_s16", pool="mean", pos_embed="sincos2d", gelu="tanh", batch_size=1024, lr=1e-3,
    weight_decay=0.1, warmup_steps=10_000, randaug="2,10", mixup=0.2, min_area=0.05,
)  # fmt: skip
# Model and image size are those of the weights; the warm-up is a twentieth of the run.
_TUNED: dict[str, Any] = dict(
    data="folder", epochs=30.0, batch_size=64, optimizer="sgd", weight_decay=0.0,
    warmup_steps=None,
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # Evaluated as they are, 8 x 8 pixels, which for other images means squashed to a square.
    "digits": dict(
        model="vit_nano2", image_size=8, data="digits", epochs=60.0, batch_size=64, lr=3e-3,
        weight_decay=0.1, warmup_steps=200, eval_every=220, eval_resize=0.0,
    ),
    # Small images: every published CIFAR recipe pads by 4 and crops, and evaluates full images.
    # The warm-up is of 10 epochs.
    "cifar10": dict(
        model="vit_mini4", image_size=32, data="tfds:cifar10", epochs=200.0, batch_size=128,
        lr=1e-3, weight_decay=0.05, warmup_steps=3910, pad_crop=4, eval_resize=1.0, randaug="2,10",
        mixup=1.0, cutmix=1.0, label_smoothing=0.1, drop_path=0.1,
    ),
    # The settings of the PyTorch trainer that this project reimplements.
    "imagenet": dict(model="vit_b16", **_IMAGENET),
    "imagenet_plain": _PLAIN | dict(epochs=90.0),
    "imagenet_plain300": _PLAIN | dict(epochs=300.0),
    # The warm-up is of 30 epochs; torchvision's average takes 0.0087 of the weights each 32 steps.
    "imagenet_b16": dict(
        model="vit_b16", epochs=300.0, batch_size=4096, lr=3e-3, weight_decay=0.3,
        warmup_steps=9384, randaug="2,9", repeat_aug=3, mixup=0.2, cutmix=1.0,
        label_smoothing=0.11, ema=0.9997, **_IMAGENET,
    ),
    "imagenet_sam": dict(
        model="vit_b16", epochs=300.0, batch_size=4096, lr=3e-3, weight_decay=0.3,
        warmup_steps=10_000, schedule="linear", min_area=0.05, sam_rho=0.2, sam_groups=64,
        **_IMAGENET,
    ),
    # What --data=folder means without --preset, with --init_from and without.
    "finetune": _TUNED | dict(lr=3e-3),
    "folder": dict(
        model="vit_ti16", image_size=224, data="folder", epochs=100.0, batch_size=64, lr=5e-4,
        weight_decay=0.1, warmup_steps=None, randaug="2,10",
    ),
    "linear_probe": _TUNED | dict(lr=0.03, freeze="trunk"),
}  # fmt: skip
FROM_WEIGHTS = ("finetune", "linear_probe")

# Accuracies are top-1 on the validation split.
ABOUT = {
    "digits": (
        "A ViT of 4 blocks on 1,797 handwritten digits of 8 x 8 pixels, for laptops and tests. No "
        "published number; here: 97.4 % (JAX), 97.6 % (PyTorch), means of five seeds."
    ),
    "cifar10": (
        "A ViT of 2.7 M parameters from scratch, patches of 4 px. 91.38 % by "
        "SHI-Labs/Compact-Transformers (ViT-Lite-7/4, 200 epochs), 93.58 % by "
        "aanna0701/SPT_LSA_ViT (its plain ViT, 100 epochs); differs from them by 6 blocks of width "
        "192, RandAugment for AutoAugment, ImageNet's mean and std, and no dropout or erasing; "
        "here: 6 epochs only, 32.3 % (PyTorch), 31.7 % (JAX)."
    ),
    "imagenet": (
        "ViT-B/16 from scratch, the settings of the PyTorch trainer that this project "
        "reimplements, ssuncheol/Pytorch-VIT. 72.58 % by its README; differs from its code, which "
        "has 8 heads, the mean over all tokens, decay on every tensor, no warm-up and a periodic "
        "cosine; here: not run."
    ),
    "imagenet_plain": (
        "ViT-S/16 by a plain recipe, 90 epochs. 76.5 % by google-research/big_vision (Beyer et al. "
        "2022), 76.7 to 77.3 % by EIFY/mup-vit in PyTorch; differs from them by a linear head, "
        "torchvision's crop, the full training split, ImageNet's mean and std, and contrast about "
        "the mean grey; here: not run."
    ),
    "imagenet_plain300": (
        "The same for 300 epochs. 80.0 % by google-research/big_vision, 79.75 % (three runs) by "
        "EIFY/mup-vit; differs from them as imagenet_plain does; here: not run."
    ),
    "imagenet_b16": (
        "ViT-B/16 from scratch with today's augmentation. 81.07 % by torchvision's vit_b_16 "
        "(averaged weights); differs from it by big_vision's operations in RandAugment, a warm-up "
        "from 0, an average taken at each step, and pairs of neighbours in mixing; here: not run."
    ),
    "imagenet_sam": (
        "ViT-B/16 from scratch by sharpness-aware minimization, without strong augmentation, at "
        "twice the cost of a step. 79.9 % by Chen et al. 2022; differs from it by rho, which it "
        "does not print (0.2 is what its users run), and groups of 64 rows whatever the devices, "
        "of which it had 64; here: not run."
    ),
    "finetune": (
        "Your own photographs, or any data set, from the weights of --init_from: SGD, a new head "
        "where the classes differ. 98.6 % on CIFAR-10 by google-research/vision_transformer "
        "(B/16 of ImageNet-21k, 500 steps); differs from it by a batch of 64 with the learning "
        "rate in proportion, epochs instead of steps, and the weights' own image size "
        "(--image_size=384 is its choice); here: not run."
    ),
    "folder": (
        "Your own photographs, train/<class>/ and val/<class>/, from scratch: ViT-Ti/16, 100 "
        "epochs, warm-up over a twentieth of them. No published number; here: not run."
    ),
    "linear_probe": (
        "The head alone, on the frozen trunk of --init_from. 68.0 % on ImageNet by "
        "facebookresearch/mae (B/16); differs from it by SGD for LARS, a batch of 64 and no batch "
        "normalisation before the head; here: not run."
    ),
}
