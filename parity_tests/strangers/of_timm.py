"""timm: its train.py, its average, its folders, and what people save of its models."""

from __future__ import annotations

import argparse
from pathlib import Path

import peers
import safetensors.torch
import torch
from torch import nn

from strangers.row import CFG, Logits, Stranger, drawn, of_torch, stepped

# What `timm.create_model` is told of a model as small as CFG.
ARGS = dict(
    img_size=CFG.image_size, patch_size=CFG.patch_size, embed_dim=CFG.width, depth=CFG.depth,
    num_heads=CFG.num_heads, mlp_ratio=CFG.mlp_dim / CFG.width, num_classes=CFG.num_classes,
)  # fmt: skip
FLAGS = argparse.Namespace(model="vit_base_patch16_224", lr=1e-3, aa=None, mean=None, workers=4)


def model(seed: int = 0) -> nn.Module:
    return drawn(peers.timm_model(CFG), seed)


def train_py(folder: Path, averaged: bool = False) -> tuple[Path, Logits]:
    """`timm/train.py`: its CheckpointSaver, with the optimizer, a scaler, flags and the history."""
    import timm.utils

    net = model()
    optimizer = stepped(net)
    ema = None
    if averaged:
        ema = timm.utils.ModelEmaV3(net, decay=0.5)
        drawn(net, 1)
        ema.update(net)
    scaler = timm.utils.NativeScaler(device="cpu")
    saver = timm.utils.CheckpointSaver(
        net, optimizer, args=FLAGS, model_ema=ema, amp_scaler=scaler, checkpoint_dir=str(folder)
    )
    saver.save_checkpoint(epoch=3, metric=71.5)
    return folder / "last.pth.tar", of_torch(ema.module if ema else net)


def ema_state(folder: Path) -> tuple[Path, Logits]:
    import timm.utils

    ema = timm.utils.ModelEmaV3(model())
    torch.save(ema.state_dict(), folder / "ema.pth")
    return folder / "ema.pth", of_torch(ema.module)


def hub_folder(folder: Path) -> tuple[Path, Logits]:
    import timm.models

    net = drawn(timm.create_model("vit_base_patch16_224", **ARGS))
    timm.models.save_for_hf(net, folder / "vit", model_args=ARGS, safe_serialization=True)
    return folder / "vit", of_torch(net)


def hub_folder_of_pickles(folder: Path) -> tuple[Path, Logits]:
    import timm.models

    args = ARGS | {"global_pool": "avg", "class_token": False, "act_layer": "gelu_tanh"}
    net = drawn(timm.create_model("vit_base_patch16_224", **args))
    timm.models.save_for_hf(net, folder / "vit", model_args=args)
    return folder / "vit", of_torch(net)


def clean_checkpoint(folder: Path) -> tuple[Path, Logits]:
    """`timm/clean_checkpoint.py --safetensors`: the weights alone, the checksum in the name."""
    net = model()
    safetensors.torch.save_file(net.state_dict(), folder / "last-8d2a7e1c.safetensors")
    return folder / "last-8d2a7e1c.safetensors", of_torch(net)


def save_model(folder: Path) -> tuple[Path, Logits]:
    """safetensors' `save_model`, which keeps tied tensors once and names the others in its
    metadata; here a model with a buffer of its own."""
    net = model()
    net.register_buffer("images_seen", torch.tensor(12800.0))
    safetensors.torch.save_model(net, str(folder / "model.safetensors"))
    return folder / "model.safetensors", of_torch(net)


def features(folder: Path) -> tuple[Path, Logits]:
    net = drawn(peers.timm_model(CFG))
    net.reset_classifier(0)
    torch.save(net.state_dict(), folder / "backbone.pt")
    return folder / "backbone.pt", of_torch(net)


def tutorial(folder: Path) -> tuple[Path, Logits]:
    """A dictionary as PyTorch's tutorial of saving writes it, of a model with a head of its own."""
    net = peers.timm_model(CFG)
    net.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(CFG.width, CFG.num_classes))
    drawn(net)
    optimizer = stepped(net)
    content = {
        "epoch": 3,
        "model_state_dict": net.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": torch.tensor(0.25),
    }
    torch.save(content, folder / "checkpoint.tar")
    return folder / "checkpoint.tar", of_torch(net)


def halved(folder: Path) -> tuple[Path, Logits]:
    net = model().half()
    torch.save(net.state_dict(), folder / "fp16.pth")
    return folder / "fp16.pth", of_torch(net)


ROWS = [
    Stranger(
        "timm train.py",
        "timm's `train.py` (`CheckpointSaver`)",
        "weights, optimizer, scaler, `argparse.Namespace`, metric, history",
        train_py,
        by_library=True,
        read="the weights",
    ),
    Stranger(
        "timm train.py --model-ema",
        "timm's `train.py --model-ema` (`ModelEmaV3`)",
        "the same with `state_dict_ema`",
        lambda folder: train_py(folder, averaged=True),
        by_library=True,
        read="the average, as timm's loader does",
        said=("the averaged weights of", "state_dict_ema", "#raw"),
    ),
    Stranger(
        "timm ModelEmaV3",
        "timm's `ModelEmaV3.state_dict()`",
        "names under `module.`",
        ema_state,
        by_library=True,
        read="the weights",
    ),
    Stranger(
        "timm folder",
        "timm's `save_for_hf`, safetensors",
        "`config.json` with `model_args`",
        hub_folder,
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "timm folder, pickled",
        "timm's `save_for_hf`, PyTorch's form",
        "`pytorch_model.bin`; no class token, the mean, tanh GELU",
        hub_folder_of_pickles,
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "timm clean_checkpoint.py",
        "timm's `clean_checkpoint.py`",
        "safetensors without metadata",
        clean_checkpoint,
        read="the weights",
    ),
    Stranger(
        "safetensors save_model",
        "safetensors' `save_model`",
        "a buffer beside the weights",
        save_model,
        by_library=True,
        read="the weights, without the buffer",
        said=("images_seen",),
    ),
    Stranger(
        "timm features",
        "a timm model after `reset_classifier(0)`",
        "no head",
        features,
        read="the features",
    ),
    Stranger(
        "PyTorch's tutorial",
        "PyTorch's tutorial of saving",
        "`model_state_dict` beside optimizer and loss; head is `Sequential(Dropout, Linear)`",
        tutorial,
        read="the weights",
        said=("its head is read from head.1",),
    ),
    Stranger("half precision", "`model.half()`", "float16", halved, read="the weights"),
]
