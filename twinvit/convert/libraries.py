"""Other libraries' ViTs and preprocessing, built for their own files and run next to the twins."""

import functools
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import AUTHORS
from shared_vit.weights.formats import timm as timm_format
from shared_vit.weights.formats import torchvision as torchvision_format
from shared_vit.weights.formats.authors.programs import PROGRAMS
from shared_vit.weights.formats.huggingface import processor_args
from shared_vit.weights.read import file_arrays
from torch_vit.pth import tensor_of
from twinvit.convert import transformers_models

_BLOCKS = {"torchvision": "encoder.layers.encoder_layer_{}"}  # timm's names are the twins'
_NORMS = {"torchvision": "encoder.ln"}
_PACKAGES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "huggingface": "transformers",
    **dict.fromkeys(PROGRAMS, "timm"),  # which has its own converters for their files
}

Preprocess = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> float32 [S, S, 3]


def installed(format: str) -> bool:
    """Whether the library of a format is here to be run."""
    return format in _PACKAGES and importlib.util.find_spec(_PACKAGES[format]) is not None


def without_torchvision_operators() -> None:
    """Let torchvision be imported with a torch build that its operators were not compiled for.

    Its import registers shapes of compiled operators (boxes, regions), and fails with "operator
    torchvision::nms does not exist" where the library of operators cannot be loaded, for example
    PyPI's torchvision for Linux with a torch build without CUDA. ViTs and image transforms need
    no such operator, so the registration is left out. timm and transformers import torchvision.
    """
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))


def load(format: str, path: Path, cfg: ModelConfig) -> nn.Module:
    """The library's own model with the weights of its file, all names matched.

    It is given whatever the format does not say.
    """
    without_torchvision_operators()
    builders = {"timm": _timm, "torchvision": _torchvision, "huggingface": _huggingface}
    build = builders.get(format) or functools.partial(_of_author, format)
    with torch.device("cpu"):
        return build(path, cfg).eval()


def trace(
    format: str, model: nn.Module, images: torch.Tensor, cfg: ModelConfig
) -> dict[str, torch.Tensor]:
    """`{"blocks.0": output, ..., "norm": output, "": logits}` for images [B, 3, H, W]."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(_module: nn.Module, _inputs: object, output: object, name: str) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, torch.Tensor)
        outputs[name] = first

    hooks = [
        module.register_forward_hook(functools.partial(keep, name=name))
        for name, module in _traced(format, model, cfg).items()
    ]
    with torch.no_grad():
        logits = model(images)
        if getattr(model, "of_token", False) and model.norm is not None:
            outputs[cfg.norm_name] = model.norm(outputs[f"blocks.{cfg.depth - 1}"])
    for hook in hooks:
        hook.remove()
    return outputs | {"": logits}


def _traced(format: str, model: nn.Module, cfg: ModelConfig) -> dict[str, nn.Module]:
    """The library's modules by canonical names: the blocks, and the last norm where it is run of
    every token."""
    if isinstance(model, transformers_models.Transformers):
        found = {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
        every_token = model.norm is not None and not model.of_token
        return found | ({cfg.norm_name: model.norm} if every_token else {})
    modules = dict(model.named_modules())
    names = {f"blocks.{i}": _BLOCKS.get(format, "blocks.{}").format(i) for i in range(cfg.depth)}
    if cfg.final_norm:
        names[cfg.norm_name] = _NORMS.get(format, cfg.norm_name)
    return {ours: modules[theirs] for ours, theirs in names.items()}


def in_float32(format: str, cfg: ModelConfig) -> str:
    """What the library computes in float32 even in a float64 model; "" where nothing."""
    parts = []
    if cfg.rope != "none":
        parts.append("rotary positions")
    if cfg.norm == "rms" and format == "huggingface":
        parts.append("RMSNorm")
    return " and ".join(parts)


def preprocess(format: str, path: Path, cfg: ModelConfig) -> Preprocess:
    """The library's own preprocessing, as a folder's JSON files say it, else as the card does."""
    without_torchvision_operators()
    from PIL import Image

    if format == "huggingface":
        processor = _processor(path, cfg)

        def of_processor(image: Image.Image) -> np.ndarray:
            return processor(image, return_tensors="np")["pixel_values"][0]

        def run(image: np.ndarray) -> np.ndarray:
            values = transformers_models.in_whole_levels(path, of_processor, Image.fromarray(image))
            return np.asarray(values, np.float32).transpose(1, 2, 0)

        return run
    torchvision = format == "torchvision"
    transform = _torchvision_transform(cfg) if torchvision else _timm_transform(path, cfg)
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
    """The file's own arrays by its own names, without what training scripts add around them."""
    found = file_arrays(path, format)
    return {name: tensor_of(np.array(array)) for name, array in found.items()}


def _timm(path: Path, cfg: ModelConfig) -> nn.Module:
    model = _timm_model(cfg)
    model.load_state_dict(_state_dict("timm", path), strict=True)
    return model


def _timm_model(cfg: ModelConfig, **more: object) -> nn.Module:
    import timm

    args = timm_format.model_args(cfg)
    if timm_format.is_plain(cfg) and cfg.norm_eps != 1e-6:
        args["norm_layer"] = functools.partial(timm.layers.LayerNorm, eps=cfg.norm_eps)
    return timm.create_model(timm_format.architecture_of(cfg), **args, **more)


def _of_author(format: str, path: Path, cfg: ModelConfig) -> nn.Module:
    """timm's model with the weights of an author's file, by timm's own converter."""
    fmt = AUTHORS[format]
    named = fmt.as_timms(cfg)
    model = _timm_model(named, **({} if named == cfg else {"global_pool": cfg.pool}))
    state = {fmt.prefix + name: tensor for name, tensor in _state_dict(format, path).items()}
    beside = fmt.beside(cfg, np.dtype(np.float32))
    state = {name: tensor_of(np.array(array)) for name, array in beside.items()} | state
    converter = sys.modules[type(model).__module__].checkpoint_filter_fn
    more = {"adapt_layer_scale": True} if format == "deit3" else {}
    theirs = converter({"encoder": state} if format == "ijepa" else state, model, **more)
    model.load_state_dict(theirs, strict=True)
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


def _huggingface(path: Path, cfg: ModelConfig) -> nn.Module:
    return transformers_models.load(path, cfg, lambda: _state_dict("huggingface", path))
