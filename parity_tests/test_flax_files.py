"""Flax's own files: msgpack, Hugging Face's Flax folders, orbax's folders, and big_vision's .npz
with the optimizer's arrays, give the same weights as the formats that they are versions of."""

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from helpers import random_arrays

import jax_vit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.config import model_config
from shared_vit.weights import open_weights
from shared_vit.weights.choice import Said
from shared_vit.weights.containers.msgpack import open_msgpack
from twinvit.convert.command import convert

CFG = model_config("vit_nano2", num_classes=5, image_size=8)
ARRAYS = random_arrays(CFG, 3)


def nested(arrays, separator: str) -> dict:
    tree: dict = {}
    for name, array in arrays.items():
        *modules, leaf = name.split(separator)
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        place[leaf] = array
    return tree


def as_flax(arrays) -> dict:
    """torch's names and layouts to those of Flax's modules."""
    out = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
            axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[array.ndim]
            array = np.ascontiguousarray(array.transpose(axes))
        out[f"{module}.{leaf}" if module else leaf] = array
    return nested(out, ".")


@pytest.fixture(scope="module")
def of_huggingface(tmp_path_factory):
    """A folder as transformers' Flax classes write it."""
    import safetensors.numpy

    folder = tmp_path_factory.mktemp("flax") / "model"
    weights.write(folder, CFG, ARRAYS, format="huggingface")
    tree = as_flax(safetensors.numpy.load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    return folder


def same(source) -> bool:
    assert source.cfg.depth == CFG.depth and source.cfg.num_heads == CFG.num_heads
    return all(np.array_equal(np.asarray(source.arrays[n]), a) for n, a in ARRAYS.items())


def test_a_flax_folder_of_hugging_face(of_huggingface, tmp_path):
    source = open_weights(of_huggingface)
    assert source.format == "huggingface" and same(source)
    assert convert(str(of_huggingface), str(tmp_path / "a.safetensors"), "torch") == 0
    assert same(open_weights(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("average", [False, True])
def test_a_training_state_gives_its_parameters(of_huggingface, tmp_path, average):
    content = (of_huggingface / "flax_model.msgpack").read_bytes()
    params = flax.serialization.msgpack_restore(content)
    other = flax.serialization.msgpack_restore(content)
    other["vit"]["layernorm"]["bias"] = other["vit"]["layernorm"]["bias"] + 1
    state = {"step": 3, "params": params, "opt_state": {"0": {"mu": other, "count": np.int32(1)}}}
    path = tmp_path / "state.msgpack"
    state |= {"ema_params": other} if average else {}
    path.write_bytes(flax.serialization.to_bytes(state))
    assert same(open_weights(path, num_heads=4))
    if average:
        assert not same(open_weights(f"{path}#ema", num_heads=4))


def test_chunks_and_narrow_types(tmp_path, monkeypatch):
    import ml_dtypes

    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    tree = {"a": {"kernel": np.arange(60, dtype=np.float32).reshape(5, 12)}}
    tree["b"] = {"bias": np.arange(3).astype(ml_dtypes.bfloat16)}
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    found = open_msgpack(tmp_path / "a.msgpack", None, Said())
    assert np.array_equal(np.asarray(found["a/kernel"]), tree["a"]["kernel"])
    assert np.array_equal(np.asarray(found["b/bias"]), tree["b"]["bias"])


@pytest.mark.parametrize("cut", [10, 1000, -1])
def test_a_damaged_file_is_refused(of_huggingface, tmp_path, cut):
    content = (of_huggingface / "flax_model.msgpack").read_bytes()
    (tmp_path / "a.msgpack").write_bytes(content[:cut])
    with pytest.raises(UserError, match="no intact file of Flax's"):
        open_weights(tmp_path / "a.msgpack")
    (tmp_path / "a.msgpack").write_bytes(b"\x81\xa1a" + b"\xc7\x10\x01" + b"\x93" + b"\x00" * 15)
    with pytest.raises(UserError):
        open_weights(tmp_path / "a.msgpack")


def of_orbax(path, tree):
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(path, tree)
    return path


def test_an_orbax_folder_of_an_nnx_model(tmp_path):
    model = jax_vit.from_arrays(CFG, ARRAYS)
    path = of_orbax(tmp_path / "nnx", nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    source = open_weights(path, num_heads=4)
    assert source.format == "timm" and same(source)
    state = {"model": nnx.to_pure_dict(nnx.state(model, nnx.Param)), "step": np.int32(5)}
    assert same(open_weights(of_orbax(tmp_path / "state", state), num_heads=4))


def test_an_orbax_folder_of_google_s_names(tmp_path):
    cfg = model_config("vit_nano2", num_classes=5, image_size=8, gelu="tanh")
    weights.write_weights(tmp_path / "a.npz", cfg, ARRAYS, format="google")
    arrays = dict(np.load(tmp_path / "a.npz"))
    source = open_weights(of_orbax(tmp_path / "google", {"params": nested(arrays, "/")}))
    assert source.format == "google" and same(source)


def test_a_folder_that_is_no_checkpoint_of_orbax(tmp_path):
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint that orbax reads"):
        open_weights(tmp_path)


@pytest.mark.parametrize("prefix", ["params/", "params/img/"])
def test_big_vision_s_file_with_the_optimizer(tmp_path, prefix):
    cfg = model_config("vit_nano2", num_classes=5, image_size=8, gelu="tanh")
    weights.write_weights(tmp_path / "a.npz", cfg, ARRAYS, format="big_vision")
    arrays = dict(np.load(tmp_path / "a.npz"))
    both = {f"{prefix}{n}": a for n, a in arrays.items()}
    both |= {f"opt/0/mu/{n}": a + 1 for n, a in arrays.items()} | {"opt/0/count": np.int32(3)}
    np.savez(tmp_path / "b.npz", **both)
    plain, with_opt = (open_weights(tmp_path / f"{n}.npz", num_heads=4) for n in "ab")
    for name in plain.arrays:
        assert np.array_equal(np.asarray(plain.arrays[name]), np.asarray(with_opt.arrays[name]))
