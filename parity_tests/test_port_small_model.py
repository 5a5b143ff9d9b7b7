"""Claim: a small random model of a Hugging Face architecture runs, hides nothing, and can be ported
by the recipes that docs/port.md shows."""

import re
from pathlib import Path

import numpy as np
import peers  # noqa: F401 - makes torchvision importable, which transformers imports
import pytest
import torch

from twinvit import port
from twinvit.port.hugging_face import LAYERS, WIDTH, smaller

PAGE = (Path(__file__).parents[1] / "docs/port.md").read_text()
TEXT = (
    "bert",
    "gpt2",
    "llama",
    "gemma2",
    "qwen3",
    "mixtral",
    "deepseek_v3",
    "mamba",
    "t5",
    "bart",
)
OTHERS = ("vit", "dinov2", "siglip", "swin", "convnext", "whisper", "clip", "wav2vec2")


@pytest.mark.parametrize("architecture", [*TEXT, *OTHERS])
def test_a_small_model_runs_and_hides_nothing(architecture):
    model, inputs = port.small_model(architecture)
    assert not model.training and sum(p.numel() for p in model.parameters()) < 2e5
    with torch.no_grad():
        out = model(**{n: torch.from_numpy(x) for n, x in inputs.items()})
    first = next(v for v in out.values() if torch.is_tensor(v))
    assert torch.isfinite(first).all() and float(first.std()) > 1e-3
    for name, p in model.named_parameters():
        if p.numel() > 1 and p.is_floating_point():
            assert float(p.detach().max()) > float(p.detach().min()), name
    again, same = port.small_model(architecture)
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert all(np.array_equal(inputs[n], same[n]) for n in inputs)


def test_two_layers_of_each_kind_and_sizes_by_name():
    config = {
        "num_hidden_layers": 30, "hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128,
        "num_key_value_heads": 8, "layer_types": ["a"] * 5 + ["b"], "use_cache": True, "eps": 1e-6,
        "text_config": {"model_type": "x", "n_layer": 7}, "eos_token_id": 50256, "depths": None,
    }  # fmt: skip
    small = smaller(config)
    assert small["num_hidden_layers"] == LAYERS and small["hidden_size"] == WIDTH
    assert small["head_dim"] * small["num_attention_heads"] == WIDTH
    assert small["num_key_value_heads"] == 2 and small["layer_types"] == ["a", "b"]
    assert small["use_cache"] is True and small["eps"] == 1e-6
    assert small["text_config"] == {"model_type": "x", "n_layer": LAYERS}
    assert small["eos_token_id"] < 96
    assert smaller(config | {"num_key_value_heads": 32})["num_key_value_heads"] == 4


def test_what_cannot_be_made_says_what_to_set():
    with pytest.raises(port.PortError, match="knows no architecture 'lama'"):
        port.small_model("lama")
    with pytest.raises(port.PortError, match="give the fields that must fit"):
        port.small_model("llama", num_attention_heads=-1)
    model, _ = port.small_model("llama", num_hidden_layers=1)
    assert model.config.num_hidden_layers == 1


def recipe(title):
    """The Python block below a heading of docs/port.md."""
    section = PAGE.split(f"### {title}")[1]
    return re.search(r"```python\n(.*?)```", section, flags=re.S)[1]


@pytest.mark.parametrize(
    "title", ["Any Hugging Face architecture, small and random", "Equinox", "Keras"]
)
def test_recipes_are_the_same(title, monkeypatch):
    if title == "Keras":
        monkeypatch.setenv("KERAS_BACKEND", "jax")
    names: dict = {}
    exec(recipe(title), names)
    assert names["report"].same, str(names["report"])
