"""transformers' folders, its Trainer's and accelerate's, in PyTorch and in Flax."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import peers
import safetensors.torch
import torch
import transformers
from torch import nn

from strangers.row import CFG, Logits, Stranger, drawn, of_torch, stepped


def model(seed: int = 0) -> nn.Module:
    return drawn(peers.huggingface_model(CFG), seed)


def saved(folder: Path, **flags: Any) -> tuple[Path, Logits]:
    net = model()
    net.save_pretrained(folder / "vit", **flags)
    return folder / "vit", of_torch(net)


def trainer(folder: Path) -> tuple[Path, Logits]:
    """What transformers' Trainer leaves beside the model. `training_args.bin` is Python objects."""
    net = model()
    optimizer, here = stepped(net), folder / "checkpoint-500"
    net.save_pretrained(here)
    torch.save(optimizer.state_dict(), here / "optimizer.pt")
    torch.save({"last_epoch": 500, "_last_lr": [1e-4]}, here / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state(), "numpy": ("MT19937",)}, here / "rng_state.pth")
    (here / "training_args.bin").write_bytes(pickle.dumps(Path("not read")))
    state = {"best_metric": 0.9, "global_step": 500, "log_history": [{"loss": 0.1, "step": 500}]}
    (here / "trainer_state.json").write_text(json.dumps(state))
    size = {"height": CFG.image_size, "width": CFG.image_size}
    transformers.ViTImageProcessor(size=size, image_mean=[0.4] * 3).save_pretrained(here)
    return here, of_torch(net)


def trainer_s_runs(folder: Path) -> tuple[Path, None]:
    """The folder above, which holds several."""
    for step in (500, 1000):
        model().save_pretrained(folder / f"out/checkpoint-{step}")
    return folder / "out", None


def accelerate(folder: Path) -> tuple[Path, Logits]:
    """accelerate's `save_state`: `model.safetensors` without a configuration."""
    net, here = drawn(peers.timm_model(CFG)), folder / "checkpoint_3"
    here.mkdir()
    safetensors.torch.save_file(net.state_dict(), here / "model.safetensors", {"format": "pt"})
    torch.save(stepped(net).state_dict(), here / "optimizer.bin")
    torch.save({"last_epoch": 3}, here / "scheduler.bin")
    (here / "random_states_0.pkl").write_bytes(pickle.dumps({"step": 3}))
    net.load_state_dict(safetensors.torch.load_file(here / "model.safetensors"))
    return here, of_torch(net)


def features(folder: Path) -> tuple[Path, Logits]:
    """A ViTModel: names without `vit.`, and a pooler that ViTForImageClassification has not."""
    net = drawn(transformers.ViTModel(peers.huggingface_config(CFG)))
    net.save_pretrained(folder / "vit")
    return folder / "vit", of_torch(First(net))


class First(nn.Module):
    """The class token of a ViTModel's last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).last_hidden_state[:, 0]


def half_precision(folder: Path) -> tuple[Path, Logits]:
    net = model().bfloat16()
    net.save_pretrained(folder / "vit")
    return folder / "vit", of_torch(net)


def pickled(folder: Path) -> tuple[Path, Logits]:
    """`pytorch_model.bin`, as transformers 4 wrote it by default."""
    net = model()
    net.save_pretrained(folder / "vit")
    state = safetensors.torch.load_file(folder / "vit/model.safetensors")
    torch.save(state, folder / "vit/pytorch_model.bin")
    (folder / "vit/model.safetensors").unlink()
    return folder / "vit", of_torch(net)


SIZES = dict(
    hidden_size=CFG.width, num_hidden_layers=CFG.depth, num_attention_heads=CFG.num_heads,
    intermediate_size=CFG.mlp_dim, image_size=CFG.image_size, patch_size=CFG.patch_size,
)  # fmt: skip


def masked_autoencoder(folder: Path) -> tuple[Path, Logits]:
    """Its encoder, which is shown all patches here."""
    config = transformers.ViTMAEConfig(**SIZES, mask_ratio=0.0, decoder_num_hidden_layers=1,
                                       decoder_hidden_size=16, decoder_num_attention_heads=2,
                                       decoder_intermediate_size=32)  # fmt: skip
    net = drawn(transformers.ViTMAEForPreTraining(config))
    net.save_pretrained(folder / "mae")
    return folder / "mae", of_torch(First(net.vit))


def dinov2(folder: Path) -> tuple[Path, Logits]:
    net = drawn(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2)))
    net.save_pretrained(folder / "dinov2")
    return folder / "dinov2", of_torch(First(net))


def deit(folder: Path) -> tuple[Path, Logits]:
    config = transformers.DeiTConfig(**SIZES, num_labels=CFG.num_classes)
    net = drawn(transformers.DeiTForImageClassification(config))
    net.save_pretrained(folder / "deit")
    return folder / "deit", of_torch(net)


def adapter(folder: Path) -> tuple[Path, None]:
    """PEFT's LoRA: matrices to be added to another model's."""
    here = folder / "adapter"
    here.mkdir()
    name = "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight"
    state = {name: torch.ones(4, 28), name.replace("_A", "_B"): torch.ones(28, 4)}
    safetensors.torch.save_file(state, here / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": "google/vit-base-patch16-224"}
    (here / "adapter_config.json").write_text(json.dumps(config))
    return here, None


def in_flax(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """torch's names and layouts to Flax's tree, as transformers 4's converter has them."""
    tree: dict[str, Any] = {}
    for name, tensor in state.items():
        *modules, leaf = name.split(".")
        array, place = tensor.numpy(), tree
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
            axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[array.ndim]
            array = np.ascontiguousarray(array.transpose(axes))
        for module in modules:
            place = place.setdefault(module, {})
        place[leaf] = array
    return tree


def of_four(folder: Path, net: nn.Module) -> dict[str, Any]:
    """The names that transformers 4 gave the model, in which files are written still."""
    net.save_pretrained(folder / "of_four")
    return in_flax(safetensors.torch.load_file(folder / "of_four/model.safetensors"))


def flax_folder(folder: Path) -> tuple[Path, Logits]:
    net, here = model(), folder / "flax"
    here.mkdir()
    (here / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(of_four(folder, net)))
    net.config.save_pretrained(here)
    return here, of_torch(net)


ROWS = [
    Stranger(
        "transformers",
        "transformers' `save_pretrained`",
        "a folder",
        saved,
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "transformers, shards",
        "transformers' `save_pretrained(max_shard_size=...)`",
        "several files and their index",
        lambda folder: saved(folder, max_shard_size="20KB"),
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "transformers, bfloat16",
        "transformers' `save_pretrained` after `.bfloat16()`",
        "bfloat16",
        half_precision,
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "transformers, pickled",
        "transformers 4's `save_pretrained`",
        "`pytorch_model.bin`",
        pickled,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "transformers ViTModel",
        "transformers' `ViTModel.save_pretrained`",
        "names without `vit.`, a pooler, no head",
        features,
        by_library=True,
        read="the features; the pooler is left out",
        hints={},
    ),
    Stranger(
        "transformers Trainer",
        "transformers' `Trainer`, `checkpoint-500`",
        "the model's folder beside optimizer, scheduler, random states, `training_args.bin`",
        trainer,
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "transformers Trainer, the runs",
        "transformers' `Trainer`, its output folder",
        "`checkpoint-500`, `checkpoint-1000`",
        trainer_s_runs,
        by_library=True,
        refused="name one of them",
        read="the checkpoints in it are named",
    ),
    Stranger(
        "accelerate",
        "accelerate's `save_state`",
        "`model.safetensors`, no configuration, optimizer, random states",
        accelerate,
        read="the weights",
    ),
    Stranger(
        "transformers ViTMAE",
        "transformers' `ViTMAEForPreTraining`",
        "an encoder and a decoder",
        masked_autoencoder,
        by_library=True,
        read="the encoder, without a head",
        hints={},
    ),
    Stranger(
        "transformers DINOv2",
        "transformers' `Dinov2Model`",
        "layer scale, a mask token",
        dinov2,
        by_library=True,
        read="the features",
        hints={},
    ),
    Stranger(
        "transformers DeiT",
        "transformers' `DeiTForImageClassification`",
        "a distillation token",
        deit,
        by_library=True,
        read="weights and function",
        hints={},
    ),
    Stranger(
        "PEFT",
        "PEFT's `save_pretrained`",
        "matrices to be added to another model's",
        adapter,
        refused="adapter",
        read="it is no model by itself: merge it (`merge_and_unload`) and save that",
    ),
    Stranger(
        "transformers, Flax",
        "transformers 4's Flax classes",
        "`flax_model.msgpack` and `config.json`",
        flax_folder,
        read="weights and function",
        hints={},
    ),
]
