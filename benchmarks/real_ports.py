"""Published JAX models against their PyTorch originals: random weights, their own converters.

    python -m venv .real && .real/bin/pip install -r benchmarks/real_ports_requirements.txt
    .real/bin/python benchmarks/real_ports.py [--only "vit;bert"] [--json FILE]
    python benchmarks/real_ports.py --bonsai PATH  (jax-ml/bonsai's checkout, transformers 5)

Transformers' Flax classes (the last version that has them) run with dtype=float64, so that what
is left are formulas; equimo's ViT runs against timm's. Every finding is printed with its file and
line. With --bonsai its models run, as they are, against transformers' and diffusers'; they go
into a file of their own.
"""

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from twinvit.convert.libraries import without_torchvision_operators  # noqa: E402

without_torchvision_operators()

import bonsai_models  # noqa: E402
from about import origin  # noqa: E402

from twinvit import port  # noqa: E402

RESULTS = ROOT / "benchmarks/results/real_ports.json"
BONSAI_RESULTS = ROOT / "benchmarks/results/real_ports_bonsai.json"
TEXT = {"vocab_size": 97, "max_position_embeddings": 40}
SMALL = {
    "hidden_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 88,
}
IMAGE = {"image_size": 24, "patch_size": 8}
# name: (configuration, its arguments, PyTorch class, "ids" or "pixels" or "both", output)
TRANSFORMERS = {
    "vit": ("ViT", SMALL | IMAGE, "ViTForImageClassification", "pixels", "logits"),
    "beit": ("Beit", SMALL | IMAGE, "BeitForImageClassification", "pixels", "logits"),
    "dinov2": ("Dinov2", SMALL | IMAGE, "Dinov2Model", "pixels", "last_hidden_state"),
    "resnet": (
        "ResNet",
        {"embedding_size": 12, "hidden_sizes": [12, 20, 28], "depths": [1, 2, 1]},
        "ResNetForImageClassification",
        "pixels",
        "logits",
    ),
    "regnet": (
        "RegNet",
        {"embedding_size": 12, "hidden_sizes": [12, 24], "depths": [1, 2], "groups_width": 4},
        "RegNetForImageClassification",
        "pixels",
        "logits",
    ),
    "clip vision": ("CLIPVision", SMALL | IMAGE, "CLIPVisionModel", "pixels", "last_hidden_state"),
    "clip text": ("CLIPText", SMALL | TEXT, "CLIPTextModel", "ids", "last_hidden_state"),
    "bert": ("Bert", SMALL | TEXT, "BertForMaskedLM", "ids", "logits"),
    "roberta": ("Roberta", SMALL | TEXT, "RobertaModel", "ids", "last_hidden_state"),
    "albert": ("Albert", SMALL | TEXT | {"embedding_size": 34}, "AlbertModel", "ids", None),
    "electra": ("Electra", SMALL | TEXT | {"embedding_size": 34}, "ElectraModel", "ids", None),
    "distilbert": (
        "DistilBert",
        {"dim": 60, "n_layers": 2, "n_heads": 5, "hidden_dim": 88, **TEXT},
        "DistilBertModel",
        "ids",
        None,
    ),
    "roformer": ("RoFormer", SMALL | TEXT | {"embedding_size": 60}, "RoFormerModel", "ids", None),
    "gpt2": (
        "GPT2",
        {"n_embd": 60, "n_layer": 2, "n_head": 5, "n_positions": 40, "vocab_size": 97},
        "GPT2LMHeadModel",
        "ids",
        "logits",
    ),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": 60,
            "num_layers": 2,
            "num_heads": 5,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            **TEXT,
        },
        "GPTNeoForCausalLM",
        "ids",
        "logits",
    ),
    "gptj": (
        "GPTJ",
        {"n_embd": 60, "n_layer": 2, "n_head": 5, "n_positions": 40, "rotary_dim": 8} | TEXT,
        "GPTJForCausalLM",
        "ids",
        "logits",
    ),
    "opt": (
        "OPT",
        {"hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 5, "ffn_dim": 88}
        | {"word_embed_proj_dim": 60}
        | TEXT,
        "OPTForCausalLM",
        "ids",
        "logits",
    ),
    "bloom": (
        "Bloom",
        {"hidden_size": 60, "n_layer": 2, "n_head": 5, "vocab_size": 97},
        "BloomForCausalLM",
        "ids",
        "logits",
    ),
    "llama": (
        "Llama",
        SMALL | TEXT | {"num_attention_heads": 6, "num_key_value_heads": 2},
        "LlamaForCausalLM",
        "ids",
        "logits",
    ),
    "llama, rope_theta": (
        "Llama",
        SMALL | TEXT | {"num_attention_heads": 6, "rope_theta": 500000.0},
        "LlamaForCausalLM",
        "ids",
        "logits",
    ),
    "mistral": (
        "Mistral",
        SMALL | TEXT | {"num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": 5},
        "MistralForCausalLM",
        "ids",
        "logits",
    ),
    "gemma": (
        "Gemma",
        SMALL | TEXT | {"num_key_value_heads": 1, "head_dim": 14},
        "GemmaForCausalLM",
        "ids",
        "logits",
    ),
}


def draw(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights, norms and statistics included; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        fixed = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
        if not tensor.is_floating_point() or "inv_freq" in name or fixed:
            continue
        values = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif "weight" in name and tensor.ndim == 1:
            values = 1 + 0.2 * values
        elif tensor.ndim > 1:
            values = values * 1.2 / tensor[0].numel() ** 0.5
        else:
            values = values * 0.3
        tensor.data.copy_(values)
    return model.eval()


def transformers_case(name: str) -> dict:
    """Reference, port and inputs."""
    import transformers
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    family, settings, reference, kind, output = TRANSFORMERS[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    torch_model = draw(getattr(transformers, reference)(config))
    flax_class = getattr(transformers, f"Flax{reference}")
    shape = {"input_shape": (1, 24, 24, 3)} if kind == "pixels" else {}
    first = flax_class(config, **shape)
    params = convert_pytorch_state_dict_to_flax(torch_model.state_dict(), first)
    wide = flax_class(config, dtype=jnp.float64, _do_init=False, **shape)
    rng = np.random.default_rng(0)
    if kind == "pixels":
        size = 24 if "image_size" in settings else 40
        inputs = (rng.standard_normal((2, 3, size, size)).astype(np.float32),)
    else:
        inputs = (rng.integers(3, 97, (2, 13)),)

    def call(params, x):
        out = wide(x, params=params)
        return out[output or "last_hidden_state"]

    keep = output or "last_hidden_state"
    return {
        "torch_model": torch_model,
        "jax_model": port.Function(call, params),
        "inputs": inputs,
        "output": lambda out: out[keep] if isinstance(out, dict) else out,
    }


def equimo_case(name: str) -> dict:
    """equimo's ViT against timm's, by equimo's converter."""
    import equinox as eqx
    import timm
    from equimo.conversion.utils import convert_torch_to_equinox
    from equimo.models import VisionTransformer

    sizes = {"img_size": 24, "patch_size": 8, "depths": [2], "num_heads": 5, "dim": 60}
    ours = VisionTransformer(
        in_channels=3,
        num_classes=7,
        key=jax.random.key(0),
        reg_tokens=0,
        global_pool="token",
        eps=1e-6,
        **sizes,
    )
    torch_model = draw(
        timm.models.VisionTransformer(
            img_size=24, patch_size=8, embed_dim=60, depth=2, num_heads=5, num_classes=7
        )
    )
    converted = convert_torch_to_equinox(
        ours,
        replace_cfg={
            "blocks.0.blocks": "blocks",
            "global_pos_embed.weight": "pos_embed",
            ".prenorm.": ".norm1.",
            ".norm.": ".norm2.",
        },
        expand_cfg={"patch_embed.proj.bias": ["after", 2]},
        squeeze_cfg={"cls_token": 0, "pos_embed": 0},
        source="custom",
        torch_model=torch_model,
        strict=False,
    )
    converted = eqx.nn.inference_mode(converted)
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    x = rng.standard_normal((2, 3, 24, 24)).astype(np.float32)
    params, static = eqx.partition(converted, eqx.is_array)

    def call(params, x):
        model = eqx.combine(params, static)
        return jax.vmap(lambda image: model(image, key=key))(x)

    return {"torch_model": torch_model, "jax_model": port.Function(call, params), "inputs": (x,)}


# What the sources say where a finding points; a finding that is not here was not looked up.
CHECKED = {
    ("electra", "position_offset"): "modeling_flax_electra.py:796: token types default to ones; "
    "PyTorch's and all other Flax classes' to zeros",
    ("mistral", "mask_offset"): "modeling_flax_mistral.py:243: triu(k=-sliding_window) keeps "
    "sliding_window + 1 positions; masking_utils.py:88 keeps kv > q - sliding_window",
    (
        "gptj",
        "attention_scale",
    ): "modeling_gptj.py: scale_attn is sqrt(head_dim) rounded to float32",
    ("equimo vit", "gelu_tanh"): "equimo/layers/activation.py:60: 'gelu' is jax.nn.gelu, tanh",
    ("llama, rope_theta", "rope_base"): "modeling_flax_llama.py:132: 10000 whatever the config's "
    "rope_theta",
    ("llama, rope_theta", "precision"): "rotary tables in float32",
    ("llama", "precision"): "rotary tables in float32",
    ("gemma", "precision"): "rotary tables in float32",
    ("mistral", "precision"): "rotary tables in float32",
    ("gptj", "precision"): "rotary tables in float32",
    ("roformer", "precision"): "sin-cos table in float32",
} | bonsai_models.CHECKED
CASES: dict[str, Callable[[str], dict]] = dict.fromkeys(TRANSFORMERS, transformers_case)
CASES["equimo vit"] = equimo_case
BONSAI = {name: lambda _, case=case: case(draw) for name, case in bonsai_models.CASES.items()}


def row(name: str) -> dict:
    start = time.perf_counter()
    report = port.explain(**(CASES | BONSAI)[name](name))
    return {
        "same": report.same,
        "explained": report.explained,
        "distance": report.distance,
        "remaining": report.remaining,
        "seconds": round(time.perf_counter() - start, 1),
        "findings": [
            {
                "kind": f.kind,
                "cause": f.cause,
                "text": f.text,
                "torch": f.torch,
                "jax": bonsai_models.shown(f.jax),
                "places": len(f.places),
                "before": f.before,
                "after": f.after,
                "checked": CHECKED.get((name, f.cause or f.kind), ""),
            }
            for f in report.findings
        ],
        "narrowings": sorted(
            {bonsai_models.shown(f"{n.side}: {n.where} to {n.dtype}") for n in report.narrowings}
        ),
        "notes": [bonsai_models.shown(text) for text in report.notes],
    }


def said_of(checkout: Path | None) -> dict:
    """Where the rows come from."""
    if checkout is None:
        return origin(("torch", "jax", "flax", "transformers", "equinox", "equimo", "timm"))
    found = origin(("torch", "jax", "flax", "transformers", "diffusers"), [checkout])
    found["versions"]["bonsai"] = bonsai_models.commit(checkout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names, separated by semicolons")
    parser.add_argument("--bonsai", type=Path, help="checkout of jax-ml/bonsai; runs its models")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases: dict[str, Callable[[str], dict]] = BONSAI if args.bonsai else CASES
    if args.bonsai:
        bonsai_models.use(args.bonsai)
    args.json = args.json or (BONSAI_RESULTS if args.bonsai else RESULTS)
    torch.set_num_threads(1)
    rows = json.loads(args.json.read_text())["models"] if args.json.exists() else {}
    chosen = args.only.split(";") if args.only else list(cases)
    if unknown := [name for name in chosen if name not in cases]:
        parser.error(f"no case {', '.join(map(repr, unknown))}; there are {'; '.join(cases)}")
    for name in chosen:
        try:
            rows[name] = row(name)
        except Exception as error:  # what does not load is a result
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            rows[name] = {"error": f"{type(error).__name__}: {str(error)[:400]} ({place})"}
        r = rows[name]
        if "error" in r:
            print(f"{name}: {r['error']}", flush=True)
        else:
            verdict = "same" if r["same"] else "explained" if r["explained"] else "DIFFERENT"
            print(f"{name}: {verdict}, {r['distance']:.1e} apart, {r['remaining']:.1e} left")
            for f in r["findings"]:
                what = f"{f['cause'] or f['kind']} x{f['places']}"
                print(f"    {what} {f['torch']} | {f['jax']} | {f['text']}")
                print(f"        by hand: {f['checked'] or 'not looked up'}")
            sys.stdout.flush()
        args.json.write_text(json.dumps(said_of(args.bonsai) | {"models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
