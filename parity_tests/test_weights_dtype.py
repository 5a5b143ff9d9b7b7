"""Claim: weights can be held in a narrower dtype than a model computes in, which is the function of
the rounded weights, and no wider copy of them is ever made; models that do not fit are refused."""

import dataclasses
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import FAMILY, SMALL, random_arrays, random_images, relative_l2, to_torch

import jax_vit
import torch_vit
import twinvit
from jax_vit.bridge import state_arrays
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.weights import memory
from shared_vit.weights.adapt import DTYPES, adapt
from shared_vit.weights.containers import safetensors

MODELS = {
    **FAMILY,
    "RMS norms, mixed rope, gated": dataclasses.replace(
        SMALL,
        norm="rms",
        rope="mixed",
        rope_base=10.0,
        qk_norm=True,
        inner_norm="both",
        activation="silu",
        gated=True,
        registers=1,
        prefix_positions=False,
    ),
    "after the norms of the branches": dataclasses.replace(SMALL, post_norm=True, pool="mean"),
}
PAIRS = [("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "bf16"), ("bf16", "fp64")]


@pytest.mark.parametrize("dtype, precision", PAIRS)
@pytest.mark.parametrize("model", MODELS)
def test_it_is_the_model_of_the_rounded_weights(model, dtype, precision, request):
    """Bit for bit, in both twins, and every weight is held in the dtype."""
    if precision == "fp64":
        request.getfixturevalue("x64")
    cfg, wide = MODELS[model], "float64" if precision == "fp64" else "float32"
    arrays = random_arrays(cfg)
    rounded = {n: a.astype(DTYPES[dtype]).astype(wide) for n, a in arrays.items()}
    images = random_images(cfg, 2, dtype=np.dtype(wide).type)
    in_jax = jax_vit.from_arrays(cfg, arrays, precision, dtype)
    assert {v[...].dtype for _, v in nnx.to_flat_state(nnx.state(in_jax))} == {DTYPES[dtype]}
    found, expected = in_jax(images), jax_vit.from_arrays(cfg, rounded, precision)(images)
    assert found.dtype == wide and np.array_equal(found, expected)
    in_torch = torch_vit.from_arrays(cfg, arrays, precision, dtype)
    kept = getattr(torch, DTYPES[dtype].name)
    assert {p.dtype for p in in_torch.parameters()} == {kept}
    with torch.no_grad():
        found = in_torch(to_torch(images))
        expected = torch_vit.from_arrays(cfg, rounded, precision)(to_torch(images))
    assert found.dtype == getattr(torch, wide) and torch.equal(found, expected)


def test_they_have_gradients_in_their_dtype():
    cfg = MODELS["RMS norms, mixed rope, gated"]
    arrays, images = random_arrays(cfg), random_images(cfg, 2)
    graph, params, fixed = nnx.split(jax_vit.from_arrays(cfg, arrays, dtype="bf16"), nnx.Param, ...)
    loss = lambda params: jnp.square(nnx.merge(graph, params, fixed)(images)).sum()  # noqa: E731
    in_jax = state_arrays(jax.grad(loss)(params))
    model = torch_vit.from_arrays(cfg, arrays, dtype="bf16")
    model(to_torch(images)).square().sum().backward()
    for name, p in model.named_parameters():
        assert in_jax[name].dtype == DTYPES["bf16"] and p.grad.dtype == torch.bfloat16
        found, expected = in_jax[name].astype(np.float32), p.grad.float().numpy()
        assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected), name


def write_bf16(path, cfg):
    """A file of bfloat16; its size, and that of its largest tensor, in bytes."""
    _, arrays = adapt(cfg, random_arrays(cfg), dtype="bf16")
    weights.write(path, cfg, arrays)
    return arrays, path.stat().st_size, max(array.nbytes for array in arrays.values())


@pytest.mark.parametrize("format", ["torch", "timm"])
@pytest.mark.parametrize("twin", [jax_vit, torch_vit])
def test_no_wider_copy_is_made_on_the_way(twin, format, tmp_path):
    """The most memory of NumPy's at any time is that of the file and of one tensor more."""
    cfg = dataclasses.replace(SMALL, width=320, depth=4, mlp_dim=1280)
    path = tmp_path / "a.safetensors"
    arrays, size, largest = write_bf16(path, cfg)
    if format == "timm":
        weights.write(tmp_path / "b.safetensors", cfg, arrays, "timm")
        path = tmp_path / "b.safetensors"
    twin.load(path, dtype="bf16")  # imports and caches
    tracemalloc.start()
    try:
        model = twin.load(path, dtype="bf16")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= size + largest + (1 << 17)
    _, held = twin.to_arrays(model)
    assert all(held[name].dtype == arrays[name].dtype for name in arrays)
    assert all(np.array_equal(held[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("twin", [jax_vit, torch_vit])
def test_each_tensor_is_read_once(twin, tmp_path, monkeypatch):
    arrays, *_ = write_bf16(tmp_path / "a.safetensors", SMALL)
    read, loader = [], safetensors._loader

    def counting(path, kept, name, offset, entry):
        load = loader(path, kept, name, offset, entry)
        return lambda: read.append(name) or load()

    monkeypatch.setattr(safetensors, "_loader", counting)
    model = twin.load(tmp_path / "a.safetensors", dtype="bf16")
    assert sorted(read) == sorted(arrays)
    twin.save(model, tmp_path / "b.safetensors")
    _, again = weights.read(tmp_path / "b.safetensors")
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    assert again["head.weight"].dtype == DTYPES["bf16"]


def test_without_a_dtype_weights_are_the_precision_s(tmp_path):
    """Also those of a file of another."""
    arrays, *_ = write_bf16(tmp_path / "a.safetensors", SMALL)
    assert jax_vit.load(tmp_path / "a.safetensors").cls_token[...].dtype == np.float32
    assert torch_vit.load(tmp_path / "a.safetensors").cls_token.dtype == torch.float32
    assert torch_vit.load(tmp_path / "a.safetensors", "fp64").cls_token.dtype == torch.float64


def test_a_predictor_and_an_embedder_hold_them(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.write(path, SMALL, random_arrays(SMALL))
    write_bf16(tmp_path / "b.safetensors", SMALL)
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    inputs = twinvit.preprocess(picture, SMALL)
    for framework in ("torch", "jax"):
        held = twinvit.load(path, framework, dtype="bf16")
        of_file = twinvit.load(tmp_path / "b.safetensors", framework)
        # compiled, with the conversions inside: within float32's rounding
        assert relative_l2(held.logits(inputs), of_file.logits(inputs)) <= 1e-6
        assert relative_l2(held.logits(inputs), twinvit.load(path).logits(inputs)) > 1e-4
        assert "bfloat16" in str(held.model.cls_token.dtype)
        features = twinvit.embedder(path, framework, dtype="bf16").embed(picture)
        expected = twinvit.embedder(tmp_path / "b.safetensors", framework).embed(picture)
        assert relative_l2(features, expected) <= 1e-6


@pytest.mark.parametrize("twin", [jax_vit, torch_vit])
def test_what_cannot_be_is_refused(twin, tmp_path):
    arrays = random_arrays(SMALL)
    with pytest.raises(
        UserError, match="unknown dtype 'float16': choose from fp32, fp64, fp16, bf1"
    ):
        twin.from_arrays(SMALL, arrays, dtype="float16")
    said = "precision='bf16' computes in float32 at most, and weights in fp64 would be rounded"
    with pytest.raises(UserError, match=said):
        twin.from_arrays(SMALL, arrays, "bf16", "fp64")
    arrays["blocks.2.mlp.fc2.weight"][3, 4] = 7e4
    weights.write(tmp_path / "a.safetensors", SMALL, arrays)
    with pytest.raises(
        UserError, match="tensor blocks.2.mlp.fc2.weight has values up to 70000.*bf1"
    ):
        twin.load(tmp_path / "a.safetensors", dtype="fp16")
    twin.load(tmp_path / "a.safetensors", dtype="bf16")


@pytest.mark.parametrize("twin", [jax_vit, torch_vit])
def test_memory_is_said_and_what_does_not_fit_is_refused(twin, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.safetensors"
    weights.write(path, SMALL, random_arrays(SMALL))
    twin.load(path)
    assert not capsys.readouterr().err  # nothing is said of small ones
    monkeypatch.setattr(memory, "LARGE", 1000)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**12)
    twin.load(path)
    said = r"notice: 0\.1 million parameters take 0\.4 MB in float32; 1000\.0 GB of memory are free"
    assert re.search(said, capsys.readouterr().err)
    monkeypatch.setattr(memory, "free_memory", lambda: 300_000)
    said = "this model does not fit: its 0.1 million parameters take 0.4 MB in float32, and 0.3 MB "
    with pytest.raises(
        UserError, match=f"{said}of memory are free: dtype='bf16' holds them in 0.2 MB"
    ):
        twin.load(path)
    twin.load(path, dtype="bf16")
    monkeypatch.setattr(memory, "free_memory", lambda: 100_000)
    with pytest.raises(
        UserError, match="in bfloat16, and 0.1 MB .*: a machine with more memory can"
    ):
        twin.load(path, dtype="bf16")
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    twin.load(path)
    assert "how much memory is free is not known here" in capsys.readouterr().err


def test_free_memory_is_that_of_this_machine():
    """As the system says it, within what other programs take meanwhile."""
    psutil = pytest.importorskip("psutil")
    free, whole = memory.free_memory(), psutil.virtual_memory().total + psutil.swap_memory().total
    assert free is not None and 0 < free <= whole
