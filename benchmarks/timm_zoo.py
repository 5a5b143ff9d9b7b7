"""timm's architectures made small, in float64, and both twins against them."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.torch import save_file

import jax_vit
import torch_vit
from shared_vit import weights
from shared_vit.weights.formats.timm_architectures import architectures
from twinvit.convert.libraries import without_torchvision_operators

without_torchvision_operators()

import timm  # noqa: E402

PATCHES = 5, 3  # rows and columns, which are told apart


def with_float64_tables() -> None:
    """Let timm compute rotary tables in float64, which it does in float32 for models of any dtype.

    The functions and methods of its module are made once more from its source.
    """
    from timm.layers import pos_embed_sincos as module

    if getattr(module, "in_float64", False):
        return
    own = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    source = inspect.getsource(module).replace("torch.float32", "torch.float64")
    source = source.replace(".float()", ".double()")
    exec(compile(source, module.__file__, "exec"), vars(module))
    for name, old in own.items():
        new = getattr(module, name)
        if old.__module__ == module.__name__ and new is not old:
            for key, value in vars(new).items():
                if inspect.isfunction(value):
                    # Its `super()` needs the class that it is a method of.
                    value.__closure__ and _enclosed(value, old)
                    setattr(old, key, value)
            setattr(module, name, old)
    module.in_float64 = True


def _enclosed(function: Any, owner: type) -> None:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__):
        if name == "__class__":
            cell.cell_contents = owner


def small_arguments(name: str) -> dict[str, Any]:
    """Arguments of `create_model` for two blocks, two heads and 5 x 3 patches."""
    each = architectures()[name]
    cfg = each.cfg
    found: dict[str, Any] = dict(depth=2, num_heads=2, embed_dim=2 * cfg.head_width)
    if "naflex" not in each.spelling:
        found["img_size"] = tuple(side * cfg.patch_size for side in PATCHES)
    if cfg.num_classes:
        found["num_classes"] = 7
    if cfg.map_heads:  # eight heads of attention pooling, and heads of four numbers or more
        found |= dict(num_heads=4, embed_dim=4 * cfg.head_width)
    if "sapiens2" in name:
        found["num_kv_heads"] = (2, 2)
    return found


@dataclass
class Pair:
    """A drawn model of timm's in float64, its folder, and what it computes of `images`."""

    name: str
    args: dict[str, Any]
    model: torch.nn.Module
    folder: Path
    images: torch.Tensor


def drawn(name: str, folder: Path, seed: int = 0, **more: Any) -> Pair:
    """One architecture made small, every weight drawn, written as timm writes it to the hub; `more`
    are arguments of `create_model`."""
    with_float64_tables()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        args = small_arguments(name) | more
        model = timm.create_model(name, **args).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        cfg = architectures()[name].cfg
        size = args.get("img_size") or cfg.image_shape
        images = torch.randn(2, 3, *size)
    finally:
        torch.set_default_dtype(before)
    pair = Pair(name, args, model, folder, images)
    write_folder(pair)
    return pair


def write_folder(pair: Pair) -> None:
    """The model as it is now, with timm's config.json."""
    pair.folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in pair.model.state_dict().items()}
    save_file(state, pair.folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(pair.name, pair.args, pair.model)
    (pair.folder / "config.json").write_text(json.dumps(config))


def _config(name: str, args: dict[str, Any], model: Any) -> dict[str, Any]:
    kept = {key: list(v) if isinstance(v, tuple) else v for key, v in args.items()}
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "model_args": kept,
        "pretrained_cfg": {**architectures()[name].pretrained, "num_classes": model.num_classes},
    }


def distances(pair: Pair) -> dict[str, float]:
    """The largest relative distance of logits and of tokens of each twin from timm's model, and 0
    or 1 for whether timm loads every tensor that is written back, bit for bit."""
    cfg, arrays = weights.read(pair.folder, "timm")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    with torch.no_grad():
        logits, tokens = pair.model(pair.images), pair.model.forward_features(pair.images)
    mine = torch_vit.from_arrays(cfg, arrays, "fp64")
    found = {}
    with torch.no_grad():
        found["torch logits"] = gap(mine(pair.images), logits)
        found["torch tokens"] = gap(mine.features(pair.images).tokens, tokens)
    ours = jax_vit.from_arrays(cfg, arrays, "fp64")
    images = pair.images.permute(0, 2, 3, 1).numpy()
    # One program: operation by operation, JAX would compile each of them.
    logits_and_tokens = jax.jit(lambda x: (ours(x), ours.features(x).tokens))
    theirs = logits_and_tokens(images)
    found["jax logits"], found["jax tokens"] = gap(theirs[0], logits), gap(theirs[1], tokens)
    found["written back"] = float(not written_back(pair, cfg, arrays))
    return found


def written_back(pair: Pair, cfg: Any, arrays: dict[str, np.ndarray]) -> bool:
    """Whether timm builds the written folder's model, loads it strictly, and has the tensors of
    the first one."""
    folder = pair.folder.parent / (pair.folder.name + "_back")
    weights.write(folder, cfg, arrays, format="timm")
    config = json.loads((folder / "config.json").read_text())
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in config["model_args"].items()}
    model = timm.create_model(config["architecture"], **args).double()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    old, new = pair.model.state_dict(), model.state_dict()
    return old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def gap(mine: Any, theirs: torch.Tensor) -> float:
    """The largest difference over the largest number; infinity for other shapes."""
    a, b = np.asarray(mine), theirs.numpy()
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / np.abs(b).max())
