"""Other libraries' ViTs and preprocessing, built for a file of theirs and run beside the twins."""

import functools
import importlib.util
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import timm as timm_format
from shared_vit.weights.formats import torchvision as torchvision_format
from shared_vit.weights.formats.huggingface import config_args, processor_args
from shared_vit.weights.read import file_arrays
from torch_vit.pth import tensor_of

_BLOCKS = {
    "timm": "blocks.{}",
    "torchvision": "encoder.layers.encoder_layer_{}",
    "huggingface": "vit.layers.{}",
}
_NORMS = {"torchvision": "encoder.ln", "huggingface": "vit.layernorm"}  # timm's names are ours
_PACKAGES = {"timm": "timm", "torchvision": "torchvision", "huggingface": "transformers"}

_FLAX = "flax_model.msgpack"

Preprocess = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> float32 [S, S, 3]


def installed(format: str) -> bool:
    """Whether the library of a format is here to be run."""
    return format in _PACKAGES and importlib.util.find_spec(_PACKAGES[format]) is not None


def without_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch build that its operators were not compiled for.

    Its import registers shapes of compiled operators (boxes, regions), and fails with "operator
    torchvision::nms does not exist" where the library of operators cannot be loaded, for example
    PyPI's torchvision for Linux beside a torch build without CUDA. ViTs and image transforms need
    no such operator, so the registration is left out. timm and transformers import torchvision.
    """
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))


def load(format: str, path: Path, cfg: ModelConfig) -> nn.Module:
    """The library's own model with the weights of its file, all names matched.

    It is told whatever the format does not say.
    """
    without_torchvision_operators()
    build = {"timm": _timm, "torchvision": _torchvision, "huggingface": _huggingface}[format]
    with torch.device("cpu"):
        return build(path, cfg).eval()


def trace(
    format: str, model: nn.Module, images: torch.Tensor, cfg: ModelConfig
) -> dict[str, torch.Tensor]:
    """`{"blocks.0": output, ..., "norm": output, "": logits}` for images [B, 3, H, W]."""
    outputs: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    # transformers 4 has other names of modules.
    known = _BLOCKS[format].format(0) in modules
    pattern = _BLOCKS[format] if known else "vit.encoder.layer.{}"

    def keep(_module: nn.Module, _inputs: object, output: object, name: str) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, torch.Tensor)
        outputs[name] = first

    theirs = {f"blocks.{i}": pattern.format(i) for i in range(cfg.depth)}
    theirs[cfg.norm_name] = _NORMS.get(format, cfg.norm_name)
    if isinstance(model, _OfAnotherKind):
        theirs = model.places(cfg)
    hooks = [
        modules[there].register_forward_hook(functools.partial(keep, name=name))
        for name, there in theirs.items()
    ]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    return outputs | {"": getattr(logits, "logits", logits)}


def preprocess(format: str, path: Path, cfg: ModelConfig) -> Preprocess:
    """The library's own preprocessing, as a folder's JSON files say it, else as the card does."""
    without_torchvision_operators()
    from PIL import Image

    if format == "huggingface":
        processor = _processor(path, cfg)

        def run(image: np.ndarray) -> np.ndarray:
            values = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
            return np.asarray(values, np.float32).transpose(1, 2, 0)

        return run
    transform = _timm_transform(path, cfg) if format == "timm" else _torchvision_transform(cfg)
    return lambda image: transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)


def _processor(path: Path, cfg: ModelConfig) -> Callable:
    import transformers

    if (path / "preprocessor_config.json").is_file():
        return transformers.AutoImageProcessor.from_pretrained(path)
    args = processor_args(cfg)
    return getattr(transformers, args.pop("image_processor_type"))(**args)


def _timm_transform(path: Path, cfg: ModelConfig) -> Callable:
    import timm.data

    known = timm_format.data_config(cfg)
    if (path / "config.json").is_file():
        known = json.loads((path / "config.json").read_text()).get("pretrained_cfg", {})
    return timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=known))


def _torchvision_transform(cfg: ModelConfig) -> Callable:
    from torchvision import transforms

    size = cfg.image_size
    interpolation = transforms.InterpolationMode[cfg.interpolation.upper()]
    return transforms.Compose(
        [
            transforms.Resize(cfg.short_side if cfg.eval_resize else (size, size), interpolation),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(cfg.mean, cfg.std),
        ]
    )


def _state_dict(format: str, path: Path) -> dict[str, torch.Tensor]:
    """The file's own arrays by its own names, without what training scripts put around them."""
    found = file_arrays(path, format)
    return {name: tensor_of(np.array(array)) for name, array in found.items()}


def _timm(path: Path, cfg: ModelConfig) -> nn.Module:
    import timm

    args = timm_format.model_args(cfg)
    if cfg.norm_eps != 1e-6:
        args["norm_layer"] = functools.partial(timm.layers.LayerNorm, eps=cfg.norm_eps)
    model = timm.create_model(timm_format.architecture_of(cfg), **args)
    state = _state_dict("timm", path)
    model.load_state_dict(state, strict=True)
    return model


def _torchvision(path: Path, cfg: ModelConfig) -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        **torchvision_format.model_args(cfg),
        norm_layer=functools.partial(nn.LayerNorm, eps=cfg.norm_eps),
    )
    if cfg.gelu == "tanh":
        for module in model.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "tanh"
    model.load_state_dict(_state_dict("torchvision", path), strict=True)
    return model


class _OfAnotherKind(nn.Module):
    """A ViT of transformers that is no ViTForImageClassification: images to logits or features."""

    def __init__(self, model: nn.Module, cfg: ModelConfig):
        super().__init__()
        self.model, self.pool, self.prefix = model, cfg.pool, cfg.num_prefix
        patches = torch.arange(float(cfg.num_patches))
        masks = type(model).__name__.startswith("ViTMAE")  # which also shuffles the patches
        self.call = {"noise": patches.repeat(2, 1)} if masks else {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.model(images, **{k: v[: len(images)] for k, v in self.call.items()})
        if getattr(out, "logits", None) is not None:
            return out.logits
        tokens = out.last_hidden_state
        return tokens[:, 0] if self.pool == "token" else tokens[:, self.prefix :].mean(dim=1)

    def places(self, cfg: ModelConfig) -> dict[str, str]:
        """Names of the modules of the blocks and of the last norm, by ours."""
        modules = [(n, m) for n, m in self.named_modules() if "decoder" not in n]
        blocks = next(n for n, m in modules if isinstance(m, nn.ModuleList) and len(m) == cfg.depth)
        norm = next(
            n for n, _ in modules if n.rpartition(".")[2] in ("layernorm", "norm")
            and not n.startswith(blocks)
        )  # fmt: skip
        return {f"blocks.{i}": f"{blocks}.{i}" for i in range(cfg.depth)} | {cfg.norm_name: norm}


def _of_another_kind(path: Path, cfg: ModelConfig, config: dict) -> nn.Module:
    """By the class that a folder's config.json names, without a head where the model has none."""
    import transformers

    name = str(config["architectures"][0])
    if not cfg.num_classes:
        name = re.sub("(For[A-Z].*|Model)$", "Model", name)
        if cfg.pool not in ("token", "mean"):
            raise RuntimeError(f"{name}'s features are pooled by {cfg.pool}, which is not run here")
    more = {"mask_ratio": 0.0} if name.startswith("ViTMAE") else {}
    model, report = getattr(transformers, name).from_pretrained(
        path, output_loading_info=True, **more
    )
    if missing := {n for n in report["missing_keys"] if "pooler" not in n}:
        raise RuntimeError(f"transformers' {name} misses {missing} in {path}")
    return _OfAnotherKind(model, cfg)


def _huggingface(path: Path, cfg: ModelConfig) -> nn.Module:
    import transformers

    if (path / "config.json").is_file():
        config = json.loads((path / "config.json").read_text())
        if config.get("model_type", "vit") != "vit" and config.get("architectures"):
            return _of_another_kind(path, cfg, config)
    kind = transformers.ViTForImageClassification
    config = transformers.ViTConfig(**config_args(cfg), num_labels=cfg.num_classes)
    if (path / "config.json").is_file():
        config = transformers.ViTConfig.from_pretrained(path)
    if path.is_dir() and not (path / _FLAX).is_file():
        model, report = kind.from_pretrained(path, output_loading_info=True)
    else:  # version 5 reads no files of Flax
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=_state_dict("huggingface", path),
            output_loading_info=True,
        )
    kinds = {key: set(names) for key, names in report.items()}
    if not cfg.num_classes:  # a ViTModel: its pooler is not used, and a new head is taken off again
        kinds["missing_keys"] -= {"classifier.weight", "classifier.bias"}
        kinds["unexpected_keys"] -= {"pooler.dense.weight", "pooler.dense.bias"}
        model.classifier = nn.Identity()
    faults = {key: names for key, names in kinds.items() if names}
    if faults:
        raise RuntimeError(f"transformers did not load all of {path}: {faults}")
    return model
