"""A small random model of any Hugging Face architecture, to port before the weights are available.

Two layers show almost every mistake of a port, and take seconds where the full model takes
minutes. Sizes are made smaller by the names that transformers' configurations give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from twinvit.port.errors import PortError

LAYERS, WIDTH, HEADS, INNER = 2, 32, 4, 48
SIZES = {
    LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_decoder_layers num_encoder_layers decoder_num_hidden_layers",
    WIDTH: "hidden_size d_model n_embd dim n_embed embed_dim embedding_size emb_dim d_embed "
    "encoder_hidden_size decoder_hidden_size word_embed_proj_dim out_hidden_size "
    "projection_dim projection_size",
    HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads attention_heads "
    "decoder_attention_heads decoder_num_attention_heads",
    INNER: "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff ffn_dim n_inner d_inner mlp_dim "
    "moe_intermediate_size ffn_hidden_size hidden_dim inner_dim decoder_intermediate_size "
    "shared_expert_intermediate_size",
    WIDTH // HEADS: "head_dim d_kv attention_head_size kv_channels v_head_dim qk_nope_head_dim "
    "qk_rope_head_dim qk_head_dim rotary_dim",
    96: "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size",
    64: "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx "
    "max_sequence_length seq_length sliding_window",
    24: "kv_lora_rank q_lora_rank",
    16: "num_mel_bins",
}
NAMED = {name: size for size, names in SIZES.items() for name in names.split()}
FEWER = {  # at most so many
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "type_vocab_size": 2,
    "mamba_n_heads": 8,
}
PER_LAYER = (
    "layer_types",
    "attention_types",
    "mlp_layer_types",
    "block_types",
    "layers_block_type",
)
WIDTHS = ("hidden_sizes", "embed_dims", "embedding_dims", "conv_dim", "encoder_channels")
TOKENS = ("_token_id", "_token_index")
DERIVED = ("stage_names", "out_features", "out_indices")  # computed of the others
IMAGE, PATCH = 32, 8


def small_model(
    architecture: Any, *, auto: Any = None, seed: int = 0, **sizes: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    """A small random model of a Hugging Face architecture, and inputs for it.

    Nothing is downloaded. No weight is left at zero or one, so that nothing hides behind it.

    Args:
        architecture: a model type that transformers knows, "llama", or a configuration.
        auto: the class that makes it of a configuration; by default transformers.AutoModel.
        seed: of weights and inputs.
        sizes: fields of the configuration that are to have other values than the small ones.

    Returns:
        The model, in evaluation mode, and its main input by name, as `explain` takes it: whole
        numbers [2, 12] for tokens, or float32 images [2, C, H, W] or other features.

    Raises:
        PortError: transformers is not installed or does not know the architecture, or its sizes
            depend on one another otherwise than by their names: what to set.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise PortError(f"{error.name} is not installed; a small model needs it") from error
    config = _config(transformers, architecture)
    try:
        small = type(config).from_dict(smaller(config.to_dict()) | sizes)
        torch.manual_seed(seed)
        make = (auto or transformers.AutoModel).from_config
        model = make(small, attn_implementation="eager").eval()
    except Exception as error:
        raise PortError(
            f"{config.model_type} cannot be made small by the names of its sizes "
            f"({type(error).__name__}: {str(error)[:200]}); give the fields that must fit one "
            "another, small_model(..., hidden_size=64), or make the model yourself"
        ) from error
    _draw(model, torch.Generator().manual_seed(seed))
    return model, _inputs(model, small, np.random.default_rng(seed))


def _config(transformers: Any, architecture: Any) -> Any:
    if not isinstance(architecture, str):
        return architecture
    try:
        return transformers.AutoConfig.for_model(architecture)
    except (ValueError, KeyError) as error:
        raise PortError(
            f"transformers {transformers.__version__} knows no architecture {architecture!r}; give "
            "a model type such as 'llama', or a configuration"
        ) from error


def smaller(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's fields with small sizes, those of the configurations within it, too."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and "mrope_section" in value:  # parts of half a head
            found[name] = value | {"mrope_section": [WIDTH // HEADS // 2 - 2, 1, 1]}
        elif isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            found[name] = smaller(value)
        else:
            found[name] = _smaller(name, value)
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(groups, int):
        found["num_key_value_heads"] = HEADS if groups == heads else max(1, min(groups, HEADS // 2))
    if isinstance(config.get("depths"), list | tuple):
        found = _stages(found, len(config["depths"]))
    for name in DERIVED:
        found.pop(name, None)
    return found


def _stages(found: dict[str, Any], count: int) -> dict[str, Any]:
    """The fields of a network of stages with two of them, of a layer each."""
    listed: dict[str, Any]
    listed = {n: v[:LAYERS] for n, v in found.items() if isinstance(v, list) and len(v) == count}
    listed |= {n: LAYERS for n in ("num_stages", "num_encoder_blocks") if n in found}
    if found.get("window_size"):  # Swin's: 32 px in patches of 4
        listed |= {"window_size": 4, "patch_size": 4}
    return found | listed


def _smaller(name: str, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if name.endswith(TOKENS) and value >= 0:
            return min(value, 90)
        if name in ("image_size", "input_size"):
            return min(value, IMAGE)
        if name == "patch_size":
            return min(value, PATCH)
        if name in NAMED:
            return min(value, NAMED[name])
        return min(value, FEWER[name]) if name in FEWER else value
    if isinstance(value, list | tuple) and value:
        if name in PER_LAYER:
            return [*value[: LAYERS - 1], value[-1]]  # the last is often of another kind
        if name in ("depths", "num_blocks"):
            return [1] * len(value)
        if name in WIDTHS:
            return [16 * (i + 1) for i in range(len(value))]
        if name.endswith(TOKENS):
            return [min(v, 90) for v in value]
        if name in ("image_size", "patch_size") and all(isinstance(v, int) for v in value):
            return [min(v, IMAGE if name == "image_size" else PATCH) for v in value]
        if name in ("num_heads", "num_attention_heads"):
            return [2] * len(value)
    return value


def _draw(model: Any, generator: Any) -> None:
    """Weights that hide nothing: no bias is zero, no scale is one, no two rows are alike."""
    import torch

    with torch.no_grad():
        for p in model.parameters():
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype)
            if p.ndim < 2:
                p.add_(0.1 * noise)
            else:
                p.copy_(noise / max(1.0, (p.numel() / p.shape[0]) ** 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))


def _inputs(model: Any, config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The model's main input by its name, and what else it cannot do without."""
    name = getattr(model, "main_input_name", "input_ids")
    inner = getattr(config, "text_config", None) or config
    size = min(getattr(inner, "vocab_size", None) or 96, 90)
    image = getattr(config, "vision_config", None)
    found: dict[str, np.ndarray] = {}
    if name == "input_ids":
        found[name] = rng.integers(3, size, (2, 12))
        if image is not None and not hasattr(config, "image_token_id"):  # two towers, CLIP's
            found["pixel_values"] = _normal(rng, _image(image))
    elif name == "pixel_values":
        found[name] = _normal(rng, _image(image or config))
    elif name == "input_features":
        frames = 2 * (getattr(config, "max_source_positions", None) or 32)
        bins = getattr(config, "num_mel_bins", None) or 16
        found[name] = _normal(rng, (2, bins, frames))
    else:
        found[name] = _normal(rng, (2, 800))
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = rng.integers(3, size, (2, 7))
    return found


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _image(config: Any) -> tuple[int, int, int, int]:
    side = getattr(config, "image_size", None) or IMAGE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return 2, getattr(config, "num_channels", None) or 3, height, width
