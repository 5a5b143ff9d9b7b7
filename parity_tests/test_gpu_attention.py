"""Claim: in bf16 the JAX twin trains with fused attention on NVIDIA GPUs, for every named model.

No GPU is needed: programs are lowered for CUDA, with the device's answers given.
"""

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import SMALL, TINY, random_arrays, random_images, worst

import jax_vit
from jax_vit import fused
from jax_vit.bridge import state_arrays
from jax_vit.objective import Objective
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.mask_keys import site_keys
from shared_vit.spec.recipe import Recipe

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import gpu  # noqa: E402
import gpu_compile  # noqa: E402
from gpu_program import device, lowered, step  # noqa: E402

MODELS = gpu_compile.named_models()
H100 = device.describe("h100")
DEPTH = 2
ODD = dataclasses.replace(SMALL, depth=2, class_token=False, pool="mean", dropout=0.1)  # 9 tokens
EVEN = dataclasses.replace(SMALL, depth=1)  # 10 tokens


@pytest.fixture(autouse=True)
def forget_refusals():
    fused._taken.cache_clear()
    yield
    fused._taken.cache_clear()


def counts(cfg: ModelConfig, what: str) -> dict:
    with device.pretend(H100):
        return lowered.count(step.lower(dataclasses.replace(cfg, depth=DEPTH), "bf16", what))


def shape_of_attention(name: str) -> tuple:
    """What decides how a named model's attention is lowered; presets are of named models."""
    cfg = MODELS[name]
    sizes = cfg.num_heads, cfg.head_width, cfg.num_tokens % 2
    return name.startswith("preset"), cfg.relative_bias, cfg.pool, cfg.rope, cfg.no_bias, sizes


DISTINCT = list({shape_of_attention(name): name for name in reversed(MODELS)}.values())


@pytest.mark.parametrize("name", DISTINCT)
def test_forward_and_gradient_call_cudnn(name, capsys):
    """Once a block forward, twice with the gradient, and no score product beside it. A bias of
    scores takes the plain path, as does attention pooling, whose query is one."""
    cfg = MODELS[name]
    forward, gradient = counts(cfg, "forward"), counts(cfg, "gradient")
    fused_calls = 0 if cfg.relative_bias else DEPTH
    assert forward["attention"] == fused_calls
    assert gradient["attention"] == 2 * fused_calls
    assert capsys.readouterr().err == ""
    if cfg.relative_bias or cfg.pool == "map":
        kinds = set(forward["products"]) | set(gradient["products"])
        assert kinds <= {"bf16 x bf16 -> bf16", "bf16 x bf16 -> f32", "f32 x f32 -> f32"}
        assert forward["products"]["f32 x f32 -> f32"] == 1  # the head
        return
    layers = 1 + 4 * DEPTH  # patch embedding; qkv, proj, fc1 and fc2 of each block
    assert forward["products"] == {"bf16 x bf16 -> f32": layers, "f32 x f32 -> f32": 1}
    # Gradients of inputs are rounded by the product; there is none of the images.
    assert gradient["products"] == {
        "bf16 x bf16 -> bf16": layers - 1,
        "bf16 x bf16 -> f32": 2 * layers,
        "f32 x f32 -> f32": 3,
    }


STEPS = {
    "plain": {},
    "everything": dict(mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema=0.9, layer_decay=0.7),
    "sam, sgd, frozen": dict(sam_rho=0.1, optimizer="sgd", loss="sigmoid", freeze="1"),
}


@pytest.mark.parametrize("name", STEPS)
def test_training_steps_are_lowered(name):
    """By every kind of recipe, with masks. SAM takes both passes twice; a frozen block has no
    backward pass."""
    cfg = dataclasses.replace(MODELS["vit_ti4"], depth=DEPTH, dropout=0.1, drop_path=0.1)
    recipe = Recipe(model=cfg, batch_size=8, precision="bf16", **STEPS[name])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    with device.pretend(H100):
        traced = step.ShapesTrainer(cfg, recipe, mesh).trace()
        found = lowered.count(traced.lower(lowering_platforms=("cuda",)))
    both = DEPTH + DEPTH - (recipe.freeze == "1")
    assert found["attention"] == both * (2 if recipe.sam_rho else 1)


def test_the_models_have_odd_and_even_numbers_of_tokens():
    assert {cfg.num_tokens % 2 for cfg in MODELS.values()} == {0, 1}


@pytest.mark.parametrize("error", [NotImplementedError, ValueError, RuntimeError])
def test_a_refused_shape_falls_back_with_one_notice(error, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise error("no such shape")

    real = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
    found = counts(MODELS["vit_s16"], "gradient")
    monkeypatch.setattr(jax.nn, "dot_product_attention", real)
    notice = capsys.readouterr().err
    assert found["attention"] == 0
    assert notice.count("\n") == 1 and "no such shape" in notice and "198 tokens" in notice


def test_jax_refuses_the_gradient_without_padding():
    """The refusal that the padding is for; when JAX takes odd numbers, the padding can go."""
    x = jax.ShapeDtypeStruct((2, 197, 4, 64), jnp.bfloat16)
    with device.pretend(H100), pytest.raises(NotImplementedError, match="197"):
        jax.eval_shape(jax.grad(lambda x: fused.fused_attention(x, x, x, 197).sum()), x)


@pytest.mark.parametrize("change", [dict(precision="fp32"), dict(platform="cpu"), dict(rocm=True)])
def test_other_precisions_and_devices_compute_products(change):
    with device.pretend(H100):
        gpu = jax.devices()[0]
        gpu.platform = change.get("platform", "gpu")
        gpu.client.platform_version = "rocm 6" if change.get("rocm") else "cuda"
        program = step.lower(TINY, change.get("precision", "bf16"), "gradient")
    assert lowered.count(program)["attention"] == 0


def test_the_residual_stream_is_pinned_on_gpus_alone():
    """Its layout, forward and backward; `jax.export` refuses such a constraint."""

    def constraints() -> int:
        return step.lower(TINY, "fp32", "gradient").as_text().count("@LayoutConstraint")

    with device.pretend(H100):
        assert constraints() == 2
    assert constraints() == 0


# Numerics: plain operations in the place of cuDNN's, in float64.


def plain_attention(q, k, v, query_seq_lengths, key_value_seq_lengths, implementation):
    """What JAX's function documents, from products and a masked softmax; other queries are NaN."""
    assert implementation == "cudnn"
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    counts = jnp.arange(k.shape[1]) < key_value_seq_lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(counts, scores, -jnp.inf), axis=-1)
    written = jnp.arange(q.shape[1])[:, None, None] < query_seq_lengths[:, None, None, None]
    return jnp.where(written, jnp.einsum("bhqk,bkhd->bqhd", weights, v), jnp.nan)


@pytest.fixture
def padded(monkeypatch):
    """Attention as on a GPU, of which cuDNN's part is computed from plain operations."""
    monkeypatch.setattr(fused, "applies", lambda shape, policy: shape[1] % 2 == 0)
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain_attention)


def values(cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Logits and gradients of the training objective, in float64."""
    arrays = random_arrays(cfg)
    model = jax_vit.from_arrays(cfg, arrays, "fp64")
    graphdef, params, fixed = nnx.split(model, nnx.Param, ...)
    objective = Objective(graphdef, cfg, np.dtype("float64"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, cfg.image_size, cfg.image_size, 3), dtype=np.uint8)
    labels = rng.integers(0, cfg.num_classes, 4, dtype=np.int32)
    keys = site_keys(0, 0, cfg.depth) if cfg.dropout else None
    dropout = (keys, np.arange(4, dtype=np.int32)) if cfg.dropout else None
    gradients = jax.jit(jax.grad(objective))(params, fixed, images, labels, dropout)
    logits = jax.jit(objective.logits)(params, fixed, images, dropout)
    return {"": np.asarray(logits)} | state_arrays(gradients)


unpadded = cache(values)


@pytest.mark.parametrize("cfg", [ODD, TINY, EVEN], ids=["9 tokens", "5 tokens", "10 tokens"])
def test_padding_changes_nothing(cfg, x64, request):
    exact = unpadded(cfg)
    request.getfixturevalue("padded")
    distance, name = worst(values(cfg), exact)
    assert distance < 1e-12, name


def test_a_key_of_padding_that_counts_is_noticed(x64, request, monkeypatch):
    expected, real = unpadded(ODD), fused.fused_attention
    request.getfixturevalue("padded")
    monkeypatch.setattr(fused, "fused_attention", lambda q, k, v, n: real(q, k, v, q.shape[1]))
    assert worst(values(ODD), expected)[0] > 1e-3


@jax.custom_vjp
def spoil(x):
    """x, and not a number in the last token of its gradient."""
    return x


spoil.defvjp(lambda x: (x, None), lambda _, g: (g.at[:, -1].set(jnp.nan),))


def test_what_cudnn_leaves_in_the_padding_reaches_no_gradient(x64, request, monkeypatch):
    def tainted(q, k, v, **kwargs):
        return plain_attention(spoil(q), spoil(k), spoil(v), **kwargs)

    expected = unpadded(ODD)
    request.getfixturevalue("padded")
    monkeypatch.setattr(jax.nn, "dot_product_attention", tainted)
    distance, name = worst(values(ODD), expected)
    assert distance < 1e-12, name


def test_trace_shows_no_padding(x64, padded):
    model = jax_vit.from_arrays(ODD, random_arrays(ODD), "fp64")
    traced = model.trace(random_images(ODD, dtype=np.float64))
    tokens = {name: value.shape[1] for name, value in traced.items() if value.ndim == 3}
    assert set(tokens.values()) == {ODD.num_tokens} and "blocks.0.attn.qkv" in tokens


def test_the_first_part_of_a_gpu_run_runs_here(tmp_path):
    """In bf16 without a GPU both are products and a softmax, near to float32's."""
    gpu.write_attention(None, str(tmp_path / "smoke.json"))
    for found in json.loads((tmp_path / "smoke.json").read_text())["tokens"].values():
        assert found["fused"] == found["plain"] and 1e-4 < found["plain"] < 2e-2


def test_a_loan_stops_in_time_and_begins_with_what_matters_most(monkeypatch, capsys):
    """The second part takes all minutes that are left, and is stopped with what it started."""
    clock, begun, stopped = [0.0], [], []

    class Process:
        def __init__(self, command, start_new_session):
            assert start_new_session
            self.pid = len(begun)
            begun.append(command[-1])

        def wait(self, timeout=None):
            if self.pid == 0:
                clock[0] += 200
            elif timeout is not None:
                clock[0] += timeout
                raise subprocess.TimeoutExpired("", timeout)
            return 0

    monkeypatch.setattr(gpu.subprocess, "Popen", Process)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu.os, "killpg", lambda pid, _: stopped.append(pid))
    args = gpu.parse(["--minutes=15", "--cifar=x", "--out=y"])
    assert gpu.in_time(args, gpu.PARTS) == ["speed:vit_b16", "parity", "speed:vit_s16", "cifar"]
    assert begun == ["--only=smoke", "--only=speed:vit_b16"] and stopped == [1] and clock == [900]
    said = capsys.readouterr().out
    assert "speed:vit_b16: stopped" in said and "parity: not begun, 0 s are left" in said
