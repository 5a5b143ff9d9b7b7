"""Claim: a model is written to formats that lack some of its parts as the same function, and what
is done for it is said."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import SMALL, random_arrays, random_images, to_torch

import torch_vit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.weights.folding import fold, steps_for
from shared_vit.weights.formats import FOREIGN
from shared_vit.weights.write import write_weights

HEADED = dataclasses.replace(SMALL, num_classes=7)
MODELS = {
    "layer scale": dict(layer_scale="both"),
    "attention's scale alone": dict(layer_scale="attention"),
    "no biases": dict(no_bias=("patch", "qkv", "proj", "mlp")),
    "no bias of keys": dict(no_bias=("k",)),
    "no position of the class token": dict(prefix_positions=False),
    "all": dict(layer_scale="both", no_bias=("k", "mlp"), prefix_positions=False),
}
SUFFIXES = {"torchvision": ".safetensors", "google": ".npz"}


def logits(cfg, arrays):
    model = torch_vit.from_arrays(cfg, {n: np.asarray(a) for n, a in arrays.items()}, "fp64")
    with torch.no_grad():
        return model(to_torch(random_images(cfg).astype(np.float64)))


@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize("name", MODELS)
def test_the_written_file_computes_the_same(name, format, tmp_path):
    cfg = dataclasses.replace(HEADED, **MODELS[name])
    arrays = random_arrays(cfg, dtype=np.float64)
    path = tmp_path / f"x{SUFFIXES[format]}"
    notes = write_weights(path, cfg, arrays, format)
    found, back = weights.read(path)
    assert not FOREIGN[format].not_held(found)
    torch.testing.assert_close(logits(found, back), logits(cfg, arrays), rtol=0, atol=1e-12)
    for field, word in (("layer_scale", "layer scale is folded"), ("no_bias", "are zeros there")):
        assert any(word in note for note in notes) == (field in MODELS[name])


def test_lazy_arrays_stay_lazy_and_types_stay(tmp_path):
    cfg = dataclasses.replace(HEADED, layer_scale="both", no_bias=("mlp",))
    arrays = random_arrays(cfg, dtype=np.float16)
    steps = steps_for(cfg, FOREIGN["torchvision"])
    out, folded, said = fold(cfg, arrays, steps)
    canonical.check(out, folded)
    assert len(said) == 2 and {a.dtype.name for a in folded.values()} == {"float16"}
    assert not isinstance(folded["blocks.0.mlp.fc2.weight"], np.ndarray)


def test_a_format_that_has_the_parts_keeps_them():
    """timm's own names of DINOv2 and DeiT-III: nothing is folded."""
    for changes in (dict(layer_scale="both"), dict(layer_scale="both", prefix_positions=False)):
        assert steps_for(dataclasses.replace(HEADED, **changes), FOREIGN["timm"]) == ()


def test_what_folding_cannot_help_is_refused_by_name(tmp_path):
    cfg = dataclasses.replace(HEADED, layer_scale="both", registers=4)
    with pytest.raises(UserError, match="torchvision cannot hold a model with .*registers=4"):
        write_weights(tmp_path / "x.safetensors", cfg, random_arrays(cfg), "torchvision")
