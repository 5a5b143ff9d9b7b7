"""DeiT, MAE, DINO, DINOv2, MoCo v3 and I-JEPA: the layouts of their programs, written by hand."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import peers
import timm
import torch
from timm.models.vision_transformer import Block, PatchEmbed
from torch import nn

from strangers.row import CFG, Logits, Stranger, drawn, of_torch, stepped

ARGS = argparse.Namespace(
    batch_size=64, model="deit_small_patch16_224", lr=5e-4, output_dir="", device="cuda"
)


def model(seed: int = 0, **changes: Any) -> nn.Module:
    return drawn(peers.timm_model(CFG, **changes), seed)


def scaler() -> dict[str, Any]:
    """The state of a GradScaler that was enabled."""
    return {
        "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000,
        "_growth_tracker": 7,
    }  # fmt: skip


def deit(folder: Path, averaged: bool = True) -> tuple[Path, Logits]:
    """`deit/main.py`: DeiT's loader takes `model`."""
    net = model()
    optimizer = stepped(net)
    content: dict[str, Any] = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [5e-4], "param_group_field": "lr"},
        "epoch": 3,
        "model_ema": model(1).state_dict() if averaged else None,
        "scaler": scaler(),
        "args": ARGS,
    }
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth", of_torch(net)


def deit_average(folder: Path) -> tuple[str, Logits]:
    path, _ = deit(folder)
    return f"{path}#ema", of_torch(model(1))


# Of the two whose function no tensor of a small model tells.
PUBLISHED = "published sizes, known by their tensors; others with timm's `config.json` beside them"


def distilled(folder: Path) -> tuple[Path, Logits]:
    from timm.models.deit import VisionTransformerDistilled

    sizes = dict(img_size=8, patch_size=4, embed_dim=28, depth=2, num_heads=4, mlp_ratio=2)
    return of_deit(folder, drawn(VisionTransformerDistilled(**sizes, num_classes=5)))


def of_deit(folder: Path, net: nn.Module) -> tuple[Path, Logits]:
    """A file as DeiT publishes it."""
    torch.save({"model": net.state_dict()}, folder / "deit_distilled.pth")
    return folder / "deit_distilled.pth", of_torch(net)


norm = functools.partial(nn.LayerNorm, eps=1e-6)


class MaskedAutoencoder(nn.Module):
    """MAE's `models_mae.py`, built of timm's parts as there: an encoder, and a narrower decoder."""

    def __init__(self) -> None:
        super().__init__()
        width, narrow, side = CFG.width, 16, CFG.image_size
        self.patch_embed = PatchEmbed(side, CFG.patch_size, 3, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        tokens = CFG.num_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width), requires_grad=False)
        ratio = CFG.mlp_dim / width
        self.blocks = nn.ModuleList(
            [Block(width, CFG.num_heads, ratio, qkv_bias=True, norm_layer=norm) for _ in range(2)]
        )
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, narrow), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([Block(narrow, 2, 2, qkv_bias=True, norm_layer=norm)])
        self.decoder_norm = norm(narrow)
        self.decoder_pred = nn.Linear(narrow, CFG.patch_size**2 * 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The encoder without masking, the class token behind the norm."""
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def mae_pretrain(folder: Path) -> tuple[Path, Logits]:
    net = drawn(MaskedAutoencoder())
    optimizer = stepped(net)
    content = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 399,
        "scaler": scaler(),
        "args": argparse.Namespace(mask_ratio=0.75, norm_pix_loss=True, blr=1.5e-4),
    }
    torch.save(content, folder / "checkpoint-399.pth")
    return folder / "checkpoint-399.pth", of_torch(net)


def mae_finetune(folder: Path) -> tuple[Path, Logits]:
    """`main_finetune.py --global_pool`: timm's model with the mean and `fc_norm`."""
    net = drawn(peers.timm_model(dataclasses.replace(CFG, pool="mean", norm_after_pool=True)))
    content = {"optimizer": stepped(net).state_dict(), "model": net.state_dict(), "epoch": 49}
    content |= {"scaler": scaler(), "args": ARGS}
    torch.save(content, folder / "checkpoint-49.pth")
    return folder / "checkpoint-49.pth", of_torch(net)


def mae_linprobe(folder: Path) -> tuple[Path, None]:
    """`main_linprobe.py`: its head begins with a BatchNorm1d."""
    net = model()
    net.head = nn.Sequential(nn.BatchNorm1d(CFG.width, affine=False), net.head)
    torch.save({"model": net.state_dict(), "epoch": 89, "args": ARGS}, folder / "checkpoint-89.pth")
    return folder / "checkpoint-89.pth", None


class Dino(nn.Module):
    """DINO's MultiCropWrapper: a backbone without a head, and a projection."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.backbone = peers.timm_model(CFG)
        self.backbone.reset_classifier(0)
        self.head = nn.Module()
        self.head.mlp = nn.Sequential(nn.Linear(28, 16), nn.GELU(), nn.Linear(16, 8))
        self.head.last_layer = nn.Module()  # under `torch.nn.utils.weight_norm`
        self.head.last_layer.weight_g = nn.Parameter(torch.zeros(12, 1))
        self.head.last_layer.weight_v = nn.Parameter(torch.zeros(12, 8))
        drawn(self, seed)


def dino(folder: Path) -> tuple[Path, Logits]:
    """`main_dino.py`: the student under DDP's prefix, the teacher not; `eval_linear.py` and the
    published evaluation take the teacher."""
    student, teacher = Dino(1), Dino(0)
    content = {
        "student": {f"module.{name}": t for name, t in student.state_dict().items()},
        "teacher": teacher.state_dict(),
        "optimizer": {"state": {0: {"step": 5, "exp_avg": torch.ones(3)}}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", local_crops_number=8, data_path="/data"),
        "dino_loss": {"center": torch.ones(1, 12)},
        "fp16_scaler": scaler(),
    }
    torch.save(content, folder / "checkpoint0100.pth")
    return folder / "checkpoint0100.pth", of_torch(teacher.backbone)


def dino_linear(folder: Path) -> tuple[Path, None]:
    """`eval_linear.py`: the classifier alone, the backbone is in another file."""
    state = {"module.linear.weight": torch.ones(5, 28), "module.linear.bias": torch.ones(5)}
    content = {"epoch": 99, "state_dict": state, "optimizer": {}, "best_acc": 77.0}
    torch.save(content, folder / "checkpoint.pth.tar")
    return folder / "checkpoint.pth.tar", None


def dinov2_teacher(folder: Path) -> tuple[Path, Logits]:
    sizes = dict(img_size=8, patch_size=4, embed_dim=28, depth=2, num_heads=4, mlp_ratio=2)
    net = timm.models.VisionTransformer(**sizes, num_classes=0, init_values=1e-5)
    return of_dinov2(folder, drawn(net))


def of_dinov2(folder: Path, net: nn.Module, group: int = 1) -> tuple[Path, Logits]:
    """`teacher_checkpoint.pth`: layer scale, a mask token, blocks in groups of so many."""
    named = {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // group}.{m[1]}", n): t
        for n, t in net.state_dict().items()
    }
    mask = {"mask_token": torch.zeros(1, named["norm.weight"].shape[0])}
    state = {f"backbone.{n}": t for n, t in (named | mask).items()}
    state |= {"dino_head.last_layer.weight_g": torch.ones(9, 1)}
    torch.save({"teacher": state}, folder / "teacher_checkpoint.pth")
    return folder / "teacher_checkpoint.pth", of_torch(net)


def moco_v3(folder: Path) -> tuple[Path, Logits]:
    """`main_moco.py`: two encoders under DDP's prefix, whose heads are projections;
    `main_lincls.py` takes `base_encoder`."""
    net, average = model(), model(1)
    head = {"head.0.weight": torch.ones(16, 28), "head.1.weight": torch.ones(16)}
    head |= {"head.1.running_mean": torch.ones(16), "head.3.weight": torch.ones(8, 16)}
    state: dict[str, torch.Tensor] = {}
    for prefix, encoder in (("base_encoder", net), ("momentum_encoder", average)):
        body = {n: t for n, t in encoder.state_dict().items() if not n.startswith("head.")} | head
        state |= {f"module.{prefix}.{n}": t for n, t in body.items()}
    state |= {"module.predictor.0.weight": torch.ones(16, 8)}
    content = {"epoch": 299, "arch": "vit_small", "state_dict": state}
    content |= {"optimizer": {}, "scaler": scaler()}
    torch.save(content, folder / "vit-s-300ep.pth.tar")
    features = copy.deepcopy(net)
    features.reset_classifier(0)
    return folder / "vit-s-300ep.pth.tar", of_torch(features)


def i_jepa(folder: Path) -> tuple[Path, Logits]:
    """`src/train.py`: encoder, predictor and the average of the encoder, which evaluations take."""
    net = drawn(peers.timm_model(dataclasses.replace(CFG, class_token=False, pool="mean")))
    net.reset_classifier(0)
    prefixed = {f"module.{n}": t for n, t in net.state_dict().items()}
    other = {n: t + 1 for n, t in prefixed.items()}
    predictor = {"module.predictor_embed.weight": torch.ones(8, 28)}
    content = {
        "encoder": other, "predictor": predictor, "target_encoder": prefixed,
        "opt": {"state": {0: {"exp_avg": torch.ones(3)}}}, "scaler": scaler(), "epoch": 300,
        "loss": 0.1, "batch_size": 128, "world_size": 16, "lr": 1e-3,
    }  # fmt: skip
    torch.save(content, folder / "jepa-latest.pth.tar")
    return folder / "jepa-latest.pth.tar", of_torch(net)


ROWS = [
    Stranger(
        "DeiT main.py",
        "DeiT's `main.py`",
        "`model`, `model_ema`, optimizer, scheduler, scaler, `argparse.Namespace`",
        deit,
        read="`model`, as DeiT's loader does",
        said=("the raw weights of", "model_ema", "#ema"),
    ),
    Stranger(
        "DeiT main.py, averaged",
        "the same, as `checkpoint.pth#ema`",
        "the same",
        deit_average,
        read="the average",
    ),
    Stranger(
        "DeiT without an average",
        "DeiT's `main.py --no-model-ema`",
        "`model_ema` is None",
        lambda folder: deit(folder, averaged=False),
        read="the weights",
    ),
    Stranger(
        "DeiT distilled",
        "DeiT's distilled models",
        "a second token and a second head",
        distilled,
        refused="put timm's config.json next to it",
        read=PUBLISHED,
        partly=True,
    ),
    Stranger(
        "MAE main_pretrain.py",
        "MAE's `main_pretrain.py`",
        "encoder, decoder, optimizer, scaler, flags",
        mae_pretrain,
        read="the encoder, without a head",
        said=("the decoder of a masked autoencoder",),
    ),
    Stranger(
        "MAE main_finetune.py",
        "MAE's `main_finetune.py --global_pool`",
        "`fc_norm` behind the mean",
        mae_finetune,
        read="the weights",
    ),
    Stranger(
        "MAE main_linprobe.py",
        "MAE's `main_linprobe.py`",
        "a head of BatchNorm and Linear",
        mae_linprobe,
        refused="its head is no single linear layer",
        read="the twins' head is one linear layer",
    ),
    Stranger(
        "DINO main_dino.py",
        "DINO's `main_dino.py`",
        "student (under DDP), teacher, projections, optimizer, the loss's centre",
        dino,
        read="the teacher's backbone",
        said=("(teacher); its raw ones (student)", "left out: "),
    ),
    Stranger(
        "DINO eval_linear.py",
        "DINO's `eval_linear.py`",
        "the linear classifier alone",
        dino_linear,
        refused="holds the weights of no known ViT",
        read="there is no ViT in it: it is `--pretrained_weights`' file",
    ),
    Stranger(
        "DINOv2",
        "DINOv2's `teacher_checkpoint.pth`",
        "layer scale, a mask token, blocks in chunks",
        dinov2_teacher,
        refused="put timm's config.json next to it",
        read=PUBLISHED,
        partly=True,
    ),
    Stranger(
        "MoCo v3",
        "MoCo v3's `main_moco.py`",
        "two encoders with projections for heads, a predictor",
        moco_v3,
        read="`base_encoder`, without the projection",
        said=("'module.base_encoder.'", "left out: "),
    ),
    Stranger(
        "I-JEPA",
        "I-JEPA's `train.py`",
        "encoder, predictor, the encoder's average",
        i_jepa,
        read="the average, as its evaluation does",
        said=("target_encoder", "(encoder)"),
    ),
]
