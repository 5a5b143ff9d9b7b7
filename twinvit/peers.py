"""Other libraries' ViTs, built for a file of theirs and run beside the twins."""

import functools
import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch import nn

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats import FOREIGN
from shared_vit.weights.formats.timm import architecture_of, model_args

_BLOCKS = {
    "timm": "blocks.{}",
    "torchvision": "encoder.layers.encoder_layer_{}",
    "huggingface": "vit.layers.{}",
}
_NORMS = {"torchvision": "encoder.ln", "huggingface": "vit.layernorm"}  # timm's names are ours
_PACKAGES = {"timm": "timm", "torchvision": "torchvision", "huggingface": "transformers"}


def installed(format: str) -> bool:
    """Whether the library of a format is here to be run."""
    return format in _PACKAGES and importlib.util.find_spec(_PACKAGES[format]) is not None


def load(format: str, path: Path, cfg: ModelConfig) -> nn.Module:
    """The library's own model, told all that the format does not say, with the weights of its file, all names matched."""
    without_torchvision_operators()
    with torch.device("cpu"):
        return {"timm": _timm, "torchvision": _torchvision, "huggingface": _huggingface}[format](
            path, cfg
        ).eval()


def trace(
    format: str, model: nn.Module, images: torch.Tensor, cfg: ModelConfig
) -> dict[str, torch.Tensor]:
    """`{"blocks.0": output, ..., "norm": output, "": logits}` for images [B, 3, H, W]."""
    outputs: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    pattern = (
        _BLOCKS[format] if _BLOCKS[format].format(0) in modules else "vit.encoder.layer.{}"
    )  # transformers 4

    def keep(_module, _inputs, output, name: str) -> None:
        outputs[name] = output[0] if isinstance(output, tuple) else output

    theirs = {f"blocks.{i}": pattern.format(i) for i in range(cfg.depth)}
    theirs[cfg.norm_name] = _NORMS.get(format, cfg.norm_name)
    hooks = [
        modules[there].register_forward_hook(functools.partial(keep, name=name))
        for name, there in theirs.items()
    ]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    return outputs | {"": getattr(logits, "logits", logits)}


def without_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch build that its compiled operators do not fit; ViTs need none of them."""
    sys.modules.setdefault(
        "torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations")
    )


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _timm(path: Path, cfg: ModelConfig) -> nn.Module:
    import timm

    args = model_args(cfg)
    if cfg.norm_eps != 1e-6:
        args["norm_layer"] = functools.partial(timm.layers.LayerNorm, eps=cfg.norm_eps)
    model = timm.create_model(architecture_of(cfg), **args)
    model.load_state_dict(
        _state_dict(path / "model.safetensors" if path.is_dir() else path), strict=True
    )
    return model


def _torchvision(path: Path, cfg: ModelConfig) -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        num_layers=cfg.depth,
        num_heads=cfg.num_heads,
        hidden_dim=cfg.width,
        mlp_dim=cfg.mlp_dim,
        num_classes=cfg.num_classes,
        representation_size=cfg.pre_logits or None,
        norm_layer=functools.partial(nn.LayerNorm, eps=cfg.norm_eps),
    )
    if cfg.gelu == "tanh":
        for module in model.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "tanh"
    model.load_state_dict(_state_dict(path), strict=True)
    return model


def _huggingface(path: Path, cfg: ModelConfig) -> nn.Module:
    import transformers

    kind = transformers.ViTForImageClassification
    if path.is_dir():
        model, report = kind.from_pretrained(path, output_loading_info=True)
    else:
        config = transformers.ViTConfig(
            **FOREIGN["huggingface"].config(cfg), num_labels=cfg.num_classes
        )
        model, report = kind.from_pretrained(
            None, config=config, state_dict=_state_dict(path), output_loading_info=True
        )
    faults = {key: value for key, value in report.items() if value}
    if faults:
        raise RuntimeError(f"transformers did not load {path} whole: {faults}")
    return model
