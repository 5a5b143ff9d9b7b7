"""torchvision's references, Lightning, DeepSpeed and others, and what torch itself saves."""

from __future__ import annotations

import argparse
import collections
import functools
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from strangers.row import CFG, Logits, Stranger, drawn, of_torch, stepped


def timm_model(seed: int = 0) -> nn.Module:
    return drawn(peers.timm_model(CFG), seed)


def vision_model(seed: int = 0) -> nn.Module:
    return drawn(peers.torchvision_model(CFG), seed)


def references(folder: Path, averaged: bool = True) -> tuple[Path, nn.Module, nn.Module]:
    """torchvision's `references/classification/train.py`; its average is torch's AveragedModel."""
    net = vision_model()
    optimizer = stepped(net)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    content: dict[str, Any] = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(model="vit_b_16", data_path="/datasets", amp=True),
        "scaler": {},
    }
    average = AveragedModel(vision_model(1), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(vision_model(1))
    if averaged:
        content["model_ema"] = average.state_dict()
    torch.save(content, folder / "model_3.pth")
    return folder / "model_3.pth", net, average.module


def references_raw(folder: Path) -> tuple[Path, Logits]:
    path, net, _ = references(folder)
    return path, of_torch(net)


def references_ema(folder: Path) -> tuple[str, Logits]:
    path, _, average = references(folder)
    return f"{path}#ema", of_torch(average)


def averaged_model(folder: Path) -> tuple[Path, Logits]:
    average = AveragedModel(vision_model())
    average.update_parameters(vision_model())
    torch.save(average.state_dict(), folder / "swa.pth")
    return folder / "swa.pth", of_torch(average.module)


def own_heads(folder: Path) -> tuple[Path, Logits]:
    """The most copied tutorial: `model.heads = nn.Linear(768, classes)`."""
    net = peers.torchvision_model(CFG)
    net.heads = nn.Linear(CFG.width, CFG.num_classes)
    drawn(net)
    torch.save(net.state_dict(), folder / "best.pt")
    return folder / "best.pt", of_torch(net)


def ddp(folder: Path) -> tuple[Path, Logits]:
    net = timm_model()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.save(nn.parallel.DistributedDataParallel(net).state_dict(), folder / "ddp.pth")
    finally:
        dist.destroy_process_group()
    return folder / "ddp.pth", of_torch(net)


def compiled(folder: Path) -> tuple[Path, Logits]:
    """A compiled model inside a module of one's own, wrapped again by DataParallel."""
    net, outer = timm_model(), nn.Module()
    outer.backbone = torch.compile(net)
    outer.criterion = nn.BatchNorm1d(3)
    state = nn.DataParallel(outer).state_dict()
    torch.save({"net": state, "acc": 91.2, "epoch": 3}, folder / "ckpt.pth")
    return folder / "ckpt.pth", of_torch(net)


def whole_model(folder: Path) -> tuple[Path, None]:
    torch.save(timm_model(), folder / "model.pt")
    return folder / "model.pt", None


def torchscript(folder: Path) -> tuple[Path, None]:
    with warnings.catch_warnings(action="ignore"):  # that a trace fixes the shapes
        program = torch.jit.trace(timm_model(), torch.zeros(1, 3, 8, 8), check_trace=False)
    program.save(folder / "model.pt")
    return folder / "model.pt", None


def exported(folder: Path) -> tuple[Path, None]:
    program = torch.export.export(timm_model(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2", None


def onnx_program(folder: Path) -> tuple[Path, None]:
    import onnx

    weight = onnx.numpy_helper.from_array(np.ones((5, 28), np.float32), "onnx::MatMul_91")
    value = functools.partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=["batch", 28])
    node = onnx.helper.make_node("Gemm", ["x", "onnx::MatMul_91"], ["y"], transB=1)
    graph = onnx.helper.make_graph([node], "main_graph", [value("x")], [value("y")], [weight])
    model = onnx.helper.make_model(graph, producer_name="pytorch")
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx", None


def distributed_checkpoint(folder: Path) -> tuple[Path, None]:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings(action="ignore"):  # that there is one process
        state = {"model": timm_model().state_dict()}
        dcp.save(state, checkpoint_id=folder / "step_500", no_dist=True)
    return folder / "step_500", None


def of_lightning(state: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """A checkpoint of Lightning 2."""
    return {
        "epoch": 3,
        "global_step": 500,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {
            "best_model_score": torch.tensor(0.3), "best_model_path": "/runs/epoch=3.ckpt",
        }},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 4, "_last_lr": [1e-4]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "model_name": "vit_base_patch16_224"},
    } | more  # fmt: skip


def lightning(folder: Path) -> tuple[Path, Logits]:
    net = timm_model()
    state = {f"model.{n}": t for n, t in net.state_dict().items()}
    state |= {"criterion.weight": torch.ones(5), "val_acc.correct": torch.tensor(9)}
    torch.save(of_lightning(state), folder / "epoch=3-step=500.ckpt")
    return folder / "epoch=3-step=500.ckpt", of_torch(net)


class DictConfig:
    """Stands for OmegaConf's, whose module need not be installed to read a file."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content


def lightning_and_hydra(folder: Path) -> tuple[Path, Logits]:
    """Hyperparameters as Hydra gives them: objects of OmegaConf, paths, a class of torch's."""
    net = timm_model()
    package, module = (types.ModuleType(f"omegaconf{end}") for end in ("", ".dictconfig"))
    module.DictConfig, DictConfig.__module__ = DictConfig, module.__name__
    sys.modules |= {each.__name__: each for each in (package, module)}
    more = {"hyper_parameters": {
        "net": DictConfig({"depth": 12}), "root": Path("/data"),
        "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3),
        "metrics": collections.defaultdict(list, {"acc": [0.5]}),
    }}  # fmt: skip
    try:
        state = {f"net.{n}": t for n, t in net.state_dict().items()}
        torch.save(of_lightning(state, **more), folder / "last.ckpt")
    finally:
        del sys.modules[package.__name__], sys.modules[module.__name__]
    return folder / "last.ckpt", of_torch(net)


def numpy_metric(folder: Path) -> tuple[Path, Logits]:
    """A script of one's own: NumPy's numbers, the version of torch."""
    net = timm_model()
    content = {
        "model": net.state_dict(), "best_acc": np.float64(91.5), "history": np.arange(3.0),
        "torch_version": torch.__version__, "args": argparse.Namespace(out=Path("runs")),
    }  # fmt: skip
    torch.save(content, folder / "best.pth")
    return folder / "best.pth", of_torch(net)


def lightning_averaging(folder: Path) -> tuple[Path, Logits]:
    """Lightning's WeightAveraging: `state_dict` is the average."""
    net = timm_model()
    state = {f"net.vit.{n}": t for n, t in net.state_dict().items()}
    raw = {n: t + 1 for n, t in state.items()}
    extra = {"current_model_state": raw, "averaging_state": {"n_averaged": torch.tensor(12)}}
    torch.save(of_lightning(state, **extra), folder / "last.ckpt")
    return folder / "last.ckpt", of_torch(net)


def solo_learn(folder: Path) -> tuple[Path, Logits]:
    """A self-supervised method in Lightning: a backbone, its momentum copy, a projector."""
    net, other = timm_model(), timm_model(1)
    for each in (net, other):
        each.reset_classifier(0)
    state = {f"backbone.{n}": t for n, t in net.state_dict().items()}
    state |= {f"momentum_backbone.{n}": t for n, t in other.state_dict().items()}
    online = drawn(nn.Linear(CFG.width, 9))
    state |= {f"classifier.{n}": t for n, t in online.state_dict().items()}
    state |= {"projector.0.weight": torch.ones(16, CFG.width)}
    torch.save(of_lightning(state), folder / "mocov3.ckpt")
    net.head = online
    return folder / "mocov3.ckpt", of_torch(net)


def deepspeed(folder: Path) -> tuple[Path, Logits]:
    """DeepSpeed's `mp_rank_00_model_states.pt` of ZeRO-1."""
    net = timm_model()
    content = {
        "module": net.state_dict(), "buffer_names": [], "optimizer": None, "param_shapes": None,
        "frozen_param_shapes": None, "shared_params": {}, "lr_scheduler": None,
        "data_sampler": None, "random_ltd": None, "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 500, "global_samples": 64000, "dp_world_size": 1, "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 1}}, "ds_version": "0.16.2",
    }  # fmt: skip
    (folder / "global_step500").mkdir()
    path = folder / "global_step500/mp_rank_00_model_states.pt"
    torch.save(content, path)
    return path, of_torch(net)


def composer(folder: Path) -> tuple[Path, Logits]:
    """MosaicML's Composer: everything under `state`."""
    net = timm_model()
    model = {f"module.{n}": t for n, t in net.state_dict().items()}
    state = {"model": model, "optimizers": {"DecoupledAdamW": {"state": {}}}, "run_name": "vit"}
    rng = [{"python": (3, (1, 2, 3), None), "torch": torch.zeros(16, dtype=torch.uint8)}]
    torch.save({"state": state, "rng": rng}, folder / "ep3-ba500-rank0.pt")
    return folder / "ep3-ba500-rank0.pt", of_torch(net)


def fastai(folder: Path) -> tuple[Path, Logits]:
    """`learn.save`: the model and the optimizer's state, of a model cut in two."""
    net = timm_model()
    opt = {"state": [{"mom": torch.ones(3)}], "hypers": [{"lr": 1e-3}]}
    torch.save({"model": net.state_dict(), "opt": opt}, folder / "stage-1.pth")
    return folder / "stage-1.pth", of_torch(net)


ROWS = [
    Stranger(
        "torchvision train.py",
        "torchvision's `references/classification/train.py`",
        "optimizer, scheduler, `argparse.Namespace`, `model_ema`",
        references_raw,
        read="`model`, as its `--resume` does",
        said=("the raw weights of", "model_ema"),
    ),
    Stranger(
        "torchvision train.py, averaged",
        "the same, as `model_3.pth#ema`",
        "torch's `AveragedModel`: names under `module.`, `n_averaged`",
        references_ema,
        read="the average",
        said=("n_averaged",),
    ),
    Stranger(
        "AveragedModel",
        "torch's `AveragedModel.state_dict()`",
        "names under `module.`, `n_averaged`",
        averaged_model,
        by_library=True,
        read="the weights",
        said=("n_averaged",),
    ),
    Stranger(
        "torchvision, own head",
        "`model.heads = nn.Linear(...)` on torchvision's model",
        "`heads.weight`",
        own_heads,
        by_library=True,
        read="the weights",
        said=("its head is read from heads",),
    ),
    Stranger(
        "DDP",
        "torch's `DistributedDataParallel`",
        "names under `module.`",
        ddp,
        by_library=True,
        read="the weights",
    ),  # fmt: skip
    Stranger(
        "torch.compile",
        "a compiled model in a module in `DataParallel`",
        "names under `module.backbone._orig_mod.`, a BatchNorm beside them",
        compiled,
        by_library=True,
        read="the weights",
        said=("without the prefix", "left out: "),
    ),
    Stranger(
        "a whole model",
        "`torch.save(model)`",
        "Python objects",
        whole_model,
        by_library=True,
        refused="torch.save(model.state_dict(), FILE)",
        read="reading it would run code of its author",
    ),
    Stranger(
        "TorchScript",
        "`torch.jit.save`",
        "a program with its weights",
        torchscript,
        by_library=True,
        refused="TorchScript",
        read="it is a program: `torch.jit.load(FILE).state_dict()` has its weights",
    ),
    Stranger(
        "torch.export",
        "`torch.export.save`",
        "a program with its weights",
        exported,
        by_library=True,
        refused="torch.export",
        read="it is a program: `torch.export.load(FILE).state_dict` has its weights",
    ),
    Stranger(
        "ONNX",
        "`torch.onnx.export`",
        "a program, with names of its graph",
        onnx_program,
        refused="a program of ONNX",
        read="it no longer has the model's names: convert the weights that it was exported from",
    ),
    Stranger(
        "torch.distributed.checkpoint",
        "`torch.distributed.checkpoint.save`",
        "a folder of shards, with a pickled plan",
        distributed_checkpoint,
        by_library=True,
        refused="dcp_to_torch",
        read="`torch.distributed.checkpoint.format_utils dcp_to_torch` makes one file of it",
    ),
    Stranger(
        "Lightning",
        "Lightning's `ModelCheckpoint`",
        "names under `model.`, the loss's weights, a metric's counts, callbacks, hyperparameters",
        lightning,
        read="the weights",
        said=("left out: 2 arrays",),
    ),
    Stranger(
        "Lightning and Hydra",
        "Lightning with Hydra's hyperparameters",
        "objects of OmegaConf, paths, partial functions",
        lightning_and_hydra,
        read="the weights; the objects are not made",
        said=("objects that are no tensors", "omegaconf.dictconfig.DictConfig"),
    ),
    Stranger(
        "a script's own numbers",
        "a training script",
        "NumPy's numbers, paths, torch's version beside the weights",
        numpy_metric,
        read="the weights",
        said=("objects that are no tensors",),
    ),
    Stranger(
        "Lightning WeightAveraging",
        "Lightning's `WeightAveraging`",
        "`state_dict` is the average, `current_model_state` the weights",
        lightning_averaging,
        read="the average, as Lightning's loader does",
        said=("current_model_state",),
    ),
    Stranger(
        "solo-learn",
        "solo-learn in Lightning",
        "`backbone.`, `momentum_backbone.`, a projector, an online classifier",
        solo_learn,
        read="`backbone`, with the online classifier",
        said=("'backbone.'", "left out: "),
    ),
    Stranger(
        "DeepSpeed",
        "DeepSpeed's `mp_rank_00_model_states.pt`",
        "`module` beside its settings",
        deepspeed,
        read="the weights",
    ),
    Stranger(
        "Composer",
        "Composer",
        "`state.model.module.`, states of random generators",
        composer,
        read="the weights",
    ),
    Stranger("fastai", "fastai's `learn.save`", "`model` and `opt`", fastai, read="the weights"),
]
