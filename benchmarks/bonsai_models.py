"""Models of jax-ml/bonsai, unedited, against transformers' of the same name.

Small random configurations; bonsai's own converters where they take one, and copies by hand.
"""

import contextlib
import dataclasses
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from twinvit import port

Draw = Callable[[torch.nn.Module], torch.nn.Module]
VOCABULARY = 97


def use(checkout: Path) -> None:
    """Make `import bonsai` find this checkout."""
    if not (checkout / "bonsai/models").is_dir():
        raise SystemExit(f"--bonsai: no folder bonsai/models in {checkout}; give jax-ml/bonsai's")
    sys.path.insert(0, str(checkout.resolve()))


def shown(text: str) -> str:
    """A text with the checkout's files named from its root, not from where it lies."""
    return re.sub(r"[^\s(]*/(bonsai/models/)", r"\1", text)


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def checkpoint(state: dict[str, torch.Tensor], name: str = "model.safetensors") -> Iterator[str]:
    """A folder with these tensors in one file, as converters read it."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().clone().contiguous() for k, v in state.items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / name
        if name.endswith(".safetensors"):
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        yield folder


def function(model: Any, call: Callable[..., Any]) -> port.Function:
    """`call(model, *inputs)` as a function of the model's arrays."""
    from flax import nnx

    graph, state = nnx.split(model)

    def run(params: Any, *inputs: Any) -> Any:
        return call(nnx.merge(graph, params), *inputs)

    return port.Function(run, nnx.to_pure_dict(state))


def put(model: Any, values: dict[str, torch.Tensor]) -> None:
    """Write tensors into an nnx model by the dotted names of its variables."""
    for name, tensor in values.items():
        place = model
        for part in name.split("."):
            place = place[int(part)] if part.isdigit() else getattr(place, part)
        array = np.array(tensor.detach())
        if place[...].shape != array.shape:
            raise ValueError(f"{name}: {array.shape} for {place[...].shape}")
        place.set_value(jnp.asarray(array))


def renamed(state: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors with parts of their names replaced, in this order."""
    found = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


def ids(length: int = 13) -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCABULARY, (2, length))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def qwen3(draw: Draw) -> tuple[torch.nn.Module, Any, Any]:
    """The reference, bonsai's model and its module."""
    import transformers
    from bonsai.models.qwen3 import modeling, params

    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=60,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=40,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    reference = draw(transformers.Qwen3ForCausalLM(config))
    ours = modeling.ModelConfig(
        num_layers=2,
        vocab_size=VOCABULARY,
        emb_dim=60,
        mlp_dim=88,
        num_heads=6,
        head_dim=16,
        num_kv_heads=2,
        rope_theta=1_000_000,
        rope_scaling_factor=8.0,
        local_rope_theta=1e4,
        norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    with checkpoint(reference.state_dict()) as folder:
        return reference, params.create_model_from_safe_tensors(folder, ours), modeling


def qwen3_prefill(draw: Draw) -> dict[str, Any]:
    """All tokens at once, into an empty cache of 16."""
    reference, model, modeling = qwen3(draw)

    def call(model: Any, tokens: Any) -> Any:
        cache = modeling.init_cache(model.config, 2, tokens.shape[1], 3, jnp.float32)
        return model(tokens, cache=cache, segment_ids=jnp.ones_like(tokens))

    return given(reference, function(model, call), (ids(),), "logits")


def qwen3_decode(draw: Draw) -> dict[str, Any]:
    """Ten tokens at once, then one by one with the cache."""
    reference, model, modeling = qwen3(draw)

    def call(model: Any, tokens: Any) -> Any:
        cache = modeling.init_cache(model.config, 2, tokens.shape[1], 3, jnp.float32)
        found = []
        for start, stop in ((0, 10), (10, 11), (11, 12), (12, 13)):
            part = tokens[:, start:stop]
            found.append(model(part, cache=cache, segment_ids=jnp.ones_like(part)))
        return jnp.concatenate(found, axis=1)

    return given(reference, function(model, call), (ids(),), "logits")


def given(reference: Any, port_model: Any, inputs: Any, output: str, **more: Any) -> dict[str, Any]:
    """Arguments of `explain`; the output by its key, of either side that names its outputs."""
    return {
        "torch_model": reference,
        "jax_model": port_model,
        "inputs": inputs,
        "output": lambda out: out[output] if isinstance(out, dict) else out,
        **more,
    }


def whisper(draw: Draw) -> dict[str, Any]:
    """Encoder and decoder, with a causal mask."""
    import transformers
    from bonsai.models.whisper import modeling, params

    sizes = {
        "vocab_size": VOCABULARY,
        "num_mel_bins": 20,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 5,
        "decoder_attention_heads": 5,
        "encoder_ffn_dim": 88,
        "decoder_ffn_dim": 88,
        "d_model": 60,
        "max_source_positions": 15,
        "max_target_positions": 16,
    }
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = transformers.WhisperConfig(**sizes, **special, decoder_start_token_id=1)
    config._attn_implementation = "eager"
    reference = draw(transformers.WhisperModel(config))
    ours = dataclasses.replace(modeling.ModelConfig.whisper_tiny(), **sizes, max_length=16)
    model = modeling.Whisper(ours, rngs=rngs())
    state = {f"model.{k}": v for k, v in reference.state_dict().items()}
    convert(model, state, params, params._get_key_and_transform_mapping(ours), r"\.", None)

    def call(model: Any, features: Any, tokens: Any) -> Any:
        hidden = model.encoder(features)
        length = tokens.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        return model.decoder(tokens, mask, hidden, None, decode=False)

    features = images(2, 20, 30)
    return given(
        reference,
        function(model, call),
        {"input_features": features, "decoder_input_ids": ids()},
        "last_hidden_state",
        jax_inputs=(features.transpose(0, 2, 1), ids()),
    )


def rngs() -> Any:
    from flax import nnx

    return nnx.Rngs(params=0, dropout=0)


def convert(
    model: Any,
    state: dict[str, torch.Tensor],
    params: Any,
    mapping: dict[str, Any],
    separator: str,
    *more: Any,
) -> None:
    """Write a state_dict into a model by a converter's own table and functions."""
    from flax import nnx

    graph, abstract = nnx.split(model)
    found = nnx.to_pure_dict(abstract)
    for name, tensor in state.items():
        theirs, transform = params._st_key_to_jax_key(mapping, name)
        if theirs is not None:
            keys = [params._stoi(k) for k in theirs.split(separator)]
            params._assign_weights(keys, tensor.numpy(), found, name, transform.value, *more)
    nnx.update(model, nnx.split(nnx.merge(graph, found))[1])


def convnext(draw: Draw) -> dict[str, Any]:
    """The whole classifier; its converter takes TensorFlow's files, so that names are mapped."""
    import transformers
    from bonsai.models.convnext import modeling

    depths, dims = (1, 2, 1, 1), (12, 20, 28, 36)
    config = transformers.ConvNextConfig(
        depths=list(depths), hidden_sizes=list(dims), num_labels=11, image_size=64
    )
    reference = draw(transformers.ConvNextForImageClassification(config))
    ours = modeling.ModelConfig(depths, dims, drop_path_rate=0.0, num_classes=11)
    model = modeling.ConvNeXt(ours, rngs=rngs())
    put(model, dict(_convnext_names(reference.state_dict())))
    x = images(2, 3, 64, 64)

    def call(model: Any, x: Any) -> Any:
        return model(x, rngs=jax.random.key(0))

    return given(reference, function(model, call), (x,), "logits")


def _convnext_names(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    names = {
        "convnext.embeddings.patch_embeddings.": "embedding_layer.layers.0.",
        "convnext.embeddings.layernorm.": "embedding_layer.layers.1.",
        "convnext.encoder.stages.": "stages.",
        ".downsampling_layer.": ".downsample_layers.",
        "convnext.layernorm.": "norm.",
        ".layernorm.": ".norm.",
        "classifier.": "head.",
        "layer_scale_parameter": "gamma",
    }
    for name, tensor in renamed(state, names).items():
        if name.endswith(".weight"):
            if tensor.ndim == 1:
                name = name.removesuffix("weight") + "scale"
            else:
                name = name.removesuffix("weight") + "kernel"
                tensor = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        yield name, tensor


def umt5(draw: Draw) -> dict[str, Any]:
    """Encoder, decoder and logits; long enough for the logarithmic buckets of positions."""
    import transformers
    from bonsai.models.umt5 import modeling, params

    sizes = {
        "vocab_size": VOCABULARY,
        "d_model": 60,
        "d_kv": 12,
        "d_ff": 88,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 5,
    }
    config = transformers.UMT5Config(**sizes)
    config._attn_implementation = "eager"
    reference = draw(transformers.UMT5ForConditionalGeneration(config))
    ours = modeling.ModelConfig(**sizes)
    # its converter reads safetensors, and fails at them: `npy` is set for PyTorch's files alone
    with checkpoint(reference.state_dict(), "pytorch_model.bin") as folder:
        model = params.create_model(modeling.UMT5Model, folder, ours)
    inputs = {"input_ids": ids(30), "decoder_input_ids": ids(20)}

    def call(model: Any, source: Any, target: Any) -> Any:
        return model.lm_head(model(source, decoder_input_ids=target))

    return given(
        reference,
        function(model, call),
        inputs,
        "logits",
        jax_inputs=tuple(inputs.values()),
    )


def mamba2(draw: Draw) -> dict[str, Any]:
    """The language model, over two chunks and a half."""
    import transformers
    from bonsai.models.mamba2 import modeling, params

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "state_size": 12,
        "head_dim": 16,
        "chunk_size": 8,
        "num_hidden_layers": 2,
    }
    config = transformers.Mamba2Config(
        **sizes, num_heads=6, n_groups=1, tie_word_embeddings=True, rms_norm=True
    )
    reference = draw(transformers.Mamba2ForCausalLM(config))
    ours = modeling.ModelConfig(**sizes)
    names = {"backbone.embeddings.": "backbone.embedding."}
    state = {k: v.numpy() for k, v in renamed(reference.state_dict(), names).items()}
    model = params.create_random_model(ours)
    model, _, skipped = params.load_pytorch_weights(model, state)
    if skipped:
        raise ValueError(f"bonsai's converter leaves out {', '.join(skipped)}")
    return given(reference, function(model, lambda m, x: m(x)), (ids(20),), "logits")


def vae(draw: Draw) -> dict[str, Any]:
    """The autoencoder, from an image to the image of the mean, against diffusers'."""
    import diffusers
    from bonsai.models.vae import modeling, params

    channels = (8, 16, 16)
    reference = draw(
        diffusers.AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            norm_num_groups=4,
            latent_channels=4,
        )
    )
    ours = modeling.ModelConfig(channels, 4, 4)
    # published checkpoints have the older names
    names = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    with checkpoint(renamed(reference.state_dict(), names)) as folder:
        model = params.create_model_from_safe_tensors(folder, ours)
    return given(reference, function(model, lambda m, x: m(x)), (images(2, 3, 16, 16),), "sample")


def vjepa2(draw: Draw) -> dict[str, Any]:
    """The encoder alone."""
    return _vjepa2(draw, "last_hidden_state", skip_predictor=True)


def vjepa2_predictor(draw: Draw) -> dict[str, Any]:
    """Encoder and predictor; all tokens are context and target."""
    return _vjepa2(draw, "predictor_last_hidden_state", skip_predictor=False)


def _vjepa2(draw: Draw, output: str, skip_predictor: bool) -> dict[str, Any]:
    import transformers
    from bonsai.models.vjepa2 import modeling, params

    sizes = {
        "patch_size": 8,
        "crop_size": 24,
        "frames_per_clip": 4,
        "hidden_size": 60,
        "num_attention_heads": 5,
        "num_hidden_layers": 2,
        "pred_hidden_size": 42,
        "pred_num_attention_heads": 3,
        "pred_num_hidden_layers": 2,
    }
    config = transformers.VJEPA2Config(**sizes)
    config._attn_implementation = "eager"
    reference = draw(transformers.VJEPA2Model(config))
    with checkpoint(reference.state_dict()) as folder:
        model = params.create_model_from_safe_tensors(folder, modeling.ModelConfig(**sizes))
    video = images(2, 4, 3, 24, 24)

    class Reference(torch.nn.Module):
        """transformers' model with the flag."""

        def __init__(self) -> None:
            super().__init__()
            self.model = reference

        def forward(self, video: torch.Tensor) -> torch.Tensor:
            found = self.model(video, skip_predictor=skip_predictor)
            if output == "last_hidden_state":
                return found.last_hidden_state
            return found.predictor_output.last_hidden_state

    def call(model: Any, video: Any) -> Any:
        return model(video, skip_predictor=skip_predictor)

    return given(
        Reference(),
        function(model, call),
        (video,),
        output,
        jax_inputs=(video.transpose(0, 1, 3, 4, 2),),
    )


CASES: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "bonsai qwen3": qwen3_prefill,
    "bonsai qwen3, decoding": qwen3_decode,
    "bonsai whisper": whisper,
    "bonsai convnext": convnext,
    "bonsai umt5": umt5,
    "bonsai mamba2": mamba2,
    "bonsai vae": vae,
    "bonsai vjepa2": vjepa2,
    "bonsai vjepa2, predictor": vjepa2_predictor,
}

# What the sources say where a finding points.
_ROTARY = (
    "modeling_qwen3.py:99, 118: inv_freq is a buffer of float32; qwen3/modeling.py:216: the port "
    "computes it as it runs: rounding alone"
)
CHECKED = {
    ("bonsai qwen3", "precision"): _ROTARY,
    ("bonsai qwen3, decoding", "precision"): _ROTARY,
    ("bonsai whisper", "gelu_tanh"): "whisper/modeling.py:168, 169: jax.nn.gelu after both "
    "convolutions, tanh by default; the layers have the exact form; modeling_whisper.py:615: exact",
    ("bonsai convnext", "norm_eps"): "convnext/modeling.py:19: layernorm_eps is 1e-12 for all; "
    "modeling_convnext.py:75, 131, 174: 1e-6; :260: the last one alone has config's 1e-12",
    ("bonsai umt5", "scale"): "modeling_umt5.py:1062: tied embeddings: the decoder's output times "
    "d_model ** -0.5 before lm_head; umt5/modeling.py:706: generate() has no such scale",
}
