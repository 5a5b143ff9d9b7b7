"""Claim: tokens, pooled features and those of any block are the same of both twins, as they are and
compiled, with their gradients; every module gives the same in the families after the first ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import (
    FAMILY,
    SMALL,
    random_arrays,
    random_images,
    relative_l2,
    to_torch,
    traces,
    worst,
)
from PIL import Image

import jax_vit
import torch_vit
import twinvit
from jax_vit.bridge import state_arrays
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.layers import block_numbers
from shared_vit.weights.adapt import adapt
from twinvit.predict.embed import embed

VALUES, GRADIENTS = 1e-12, 1e-11


@pytest.fixture(params=FAMILY)
def cfg(request, x64):
    return FAMILY[request.param]


def twins(cfg):
    """Both with the same weights, of which none is zero, and the same images."""
    arrays = random_arrays(cfg, dtype=np.float64)
    in_jax = jax_vit.from_arrays(cfg, arrays, "fp64")
    in_torch = torch_vit.from_arrays(cfg, arrays, "fp64")
    images = random_images(cfg, batch_size=2, dtype=np.float64)
    return in_jax, in_torch, images, to_torch(images)


def listed(features) -> dict[str, np.ndarray]:
    """Every array of the Features of either twin."""
    found = {"tokens": features.tokens, "pooled": features.pooled}
    found |= {f"layers[{i}]": layer for i, layer in enumerate(features.layers)}
    return {
        name: x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        for name, x in found.items()
    }


def assert_equal(a, b) -> None:
    """The same arrays, grid and number of tokens before the patches', within rounding."""
    distance, name = worst(listed(a), listed(b))
    assert distance <= VALUES, name
    assert (a.grid, a.num_prefix_tokens) == (b.grid, b.num_prefix_tokens)


class Asks(torch.nn.Module):
    """A module whose output is `model.features(images, *what)`."""

    def __init__(self, model, *what):
        super().__init__()
        self.model, self.what = model, what

    def forward(self, images):
        return self.model.features(images, *self.what)


@pytest.mark.parametrize("norm", [True, False])
def test_both_twins_give_the_same(cfg, norm):
    in_jax, in_torch, images, channels_first = twins(cfg)
    a = in_jax.features(images, (0, -1), norm)
    b = in_torch.features(channels_first, (0, -1), norm)
    assert_equal(a, b)
    assert a.tokens.shape == (2, cfg.num_tokens, cfg.width) == a.layers[1].shape
    assert a.pooled.shape == (2, cfg.pooled_width)
    assert in_jax.num_prefix_tokens == in_torch.num_prefix_tokens == cfg.num_prefix
    assert a.num_prefix_tokens == cfg.num_prefix and a.grid == cfg.grid
    is_last = np.array_equal(a.tokens, a.layers[1])
    assert is_last == (norm or cfg.norm_after_pool)


def test_they_are_what_the_model_computes(cfg):
    """Against every module's output, and the logits that the head makes of them."""
    in_jax, in_torch, images, channels_first = twins(cfg)
    arrays = random_arrays(cfg, dtype=np.float64)
    bare, body = adapt(cfg, arrays, num_classes=0)
    pooled = torch_vit.from_arrays(bare, body, "fp64")(channels_first)
    for model, inputs in ((in_jax, images), (in_torch, channels_first)):
        traced = {n: np.asarray(x) for n, x in model.trace(inputs).items()}
        found = listed(model.features(inputs, cfg.depth, norm=False))
        for i in range(cfg.depth):
            assert relative_l2(found[f"layers[{i}]"], traced[f"blocks.{i}"]) <= VALUES
        last = "norm" if "norm" in traced else f"blocks.{cfg.depth - 1}"
        assert relative_l2(found["tokens"], traced[last]) <= VALUES
        assert relative_l2(found["pooled"], pooled.detach().numpy()) <= VALUES
        if not cfg.distilled:
            logits = found["pooled"] @ arrays["head.weight"].T + arrays["head.bias"]
            assert relative_l2(logits, traced[""]) <= VALUES


def test_every_module_s_output_is_the_same(cfg):
    images = random_images(cfg, dtype=np.float64)
    a, b = traces(cfg, random_arrays(cfg), "fp64", images)
    assert list(a) == list(b)
    distance, name = worst(a, b)
    assert distance <= VALUES, name
    assert np.ptp(a[""], axis=0).min() > 0.1  # there is something to compare
    parts = {name for name in a if "blocks" not in name}
    expected = {"", "patch_embed", "head"}
    expected |= {"norm_pre"} if cfg.embed_norm == "tokens" else set()
    expected |= {"fc_norm" if cfg.norm_after_pool else "norm"}
    expected |= {"head_dist"} if cfg.distilled else set()
    if cfg.pool == "map":
        inside = ("", ".q", ".kv", ".proj", ".norm", ".mlp", ".mlp.fc1", ".mlp.fc2")
        expected |= {f"attn_pool{part}" for part in inside}
    assert parts == expected
    assert ("blocks.0.ls1" in a) == (cfg.layer_scale != "none")


def test_jit_compile_and_export(cfg):
    in_jax, in_torch, images, channels_first = twins(cfg)
    plain = in_torch.features(channels_first, (0, -1), False)
    graph, state = nnx.split(in_jax)
    jitted = jax.jit(lambda state, x: nnx.merge(graph, state).features(x, (0, -1), False))
    assert_equal(jitted(state, images), plain)
    assert_equal(nnx.jit(lambda m, x: m.features(x, (0, -1), False))(in_jax, images), plain)
    compiled = torch.compile(in_torch.features, backend="eager", fullgraph=True)
    assert_equal(compiled(channels_first, (0, -1), False), plain)
    program = torch.export.export(Asks(in_torch, (0, -1), False), (channels_first,))
    assert_equal(program.module()(channels_first), plain)


def test_gradients_through_them(cfg):
    """Of a number that all of them are in, by images and every weight; with `remat` too."""
    in_jax, in_torch, images, channels_first = twins(cfg)
    rng = np.random.default_rng(3)
    shapes = {n: x.shape for n, x in listed(in_torch.features(channels_first, (1,))).items()}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def number(features, as_array):
        found = {"tokens": features.tokens, "pooled": features.pooled}
        found["layers[0]"] = features.layers[0]
        return sum((as_array(weights[name]) * x).sum() for name, x in found.items())

    def of_jax():
        graph, params, fixed = nnx.split(in_jax, nnx.Param, ...)

        def loss(params, x):
            return number(nnx.merge(graph, params, fixed).features(x, (1,)), jnp.asarray)

        by_params, by_images = jax.grad(loss, (0, 1))(params, images)
        return {"images": np.asarray(by_images).transpose(0, 3, 1, 2), **state_arrays(by_params)}

    def of_torch():
        in_torch.zero_grad()
        inputs = channels_first.clone().requires_grad_()
        number(in_torch.features(inputs, (1,)), torch.from_numpy).backward()
        found = {n: p.grad for n, p in in_torch.named_parameters() if not n.startswith("head")}
        return {"images": inputs.grad.numpy(), **{n: g.numpy().copy() for n, g in found.items()}}

    def compared(a, b):
        a = {name: a[name] for name in b}
        distance, name = worst(_without_key_bias(cfg, a), _without_key_bias(cfg, b))
        assert distance <= GRADIENTS, name

    expected = of_torch()
    assert all(np.abs(g).max() > 1e-6 for n, g in expected.items())  # nothing is left out
    compared(of_jax(), expected)
    in_jax.remat = in_torch.remat = True
    compared(of_jax(), expected)
    compared(of_torch(), expected)


def _without_key_bias(cfg, gradients):
    """Without the third of each bias of q, k and v that softmax does not see, where it does not."""
    if cfg.rope != "none":
        return gradients
    kept = np.repeat([True, False, True], cfg.width)
    return {n: g[kept] if n.endswith("qkv.bias") else g for n, g in gradients.items()}


def test_spatial(cfg):
    """The patches row by row, as images of each framework's layout."""
    in_jax, in_torch, images, channels_first = twins(cfg)
    a, b = in_jax.features(images, (1,)), in_torch.features(channels_first, (1,))
    rows, columns = cfg.grid
    assert a.spatial().shape == (2, rows, columns, cfg.width)
    for layer, tokens in ((None, a.tokens), (0, a.layers[0])):
        pictures = np.asarray(a.spatial(layer))
        y, x = rows - 1, columns - 2
        one = tokens[:, cfg.num_prefix + y * columns + x]
        assert np.array_equal(pictures[:, y, x], one)
        channels_last = b.spatial(layer).permute(0, 2, 3, 1).detach().numpy()
        assert relative_l2(pictures, channels_last) <= VALUES


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_an_embedder_gives_features_and_tokens(framework, tmp_path):
    """Of every kind of pooling, and the command writes them."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for i, (name, cfg) in enumerate(FAMILY.items()):
        path, out = tmp_path / f"{i}.safetensors", tmp_path / f"{i}.npz"
        weights.write(path, cfg, random_arrays(cfg))
        model = twinvit.embedder(path, framework)
        images = twinvit.normalize(twinvit.preprocess(picture, cfg), cfg)
        expected = torch_vit.load(path).features(to_torch(images))
        pooled, tokens = model.embed([picture] * 3), model.tokens([picture] * 3)
        assert pooled.shape == (3, cfg.pooled_width), name
        assert relative_l2(pooled[2:], expected.pooled.detach().numpy()) <= 5e-6, name
        patches = expected.spatial().permute(0, 2, 3, 1).detach().numpy()
        assert relative_l2(tokens[2:], patches) <= 5e-6, name
        assert np.array_equal(model.tokens(picture).shape, (*cfg.grid, cfg.width))
        if i % 3 == 0:
            arguments = str(path), (str(tmp_path / "a.png"),), str(out)
            assert embed(*arguments, tokens=True, framework=framework) == 0
            written = np.load(out)
            assert list(written) == ["images", "features", "tokens"]
            assert relative_l2(written["tokens"], patches) <= 5e-6, name
            assert relative_l2(written["features"], pooled[2:]) <= 5e-6, name


@pytest.mark.quick
@pytest.mark.parametrize(
    "layers, numbers",
    [(None, ()), (1, (2,)), (3, (0, 1, 2)), ((0, 2), (0, 2)), ([2, 0], (0, 2)), ((-1, 0), (0, 2))]
    + [((-3,), (0,)), ((), ()), (range(2), (0, 1)), (np.int64(2), (1, 2)), (np.arange(2), (0, 1))],
    ids=str,
)
def test_blocks_by_number(layers, numbers):
    assert block_numbers(SMALL, layers) == numbers


@pytest.mark.quick
@pytest.mark.parametrize(
    "layers, said",
    [
        (0, "layers=0: the last 1 to 3 blocks can be requested"),
        (4, "layers=4: the last 1 to 3 blocks"),
        (-1, r"layers=-1: the last 1 to 3 blocks .*layers=\(-1,\)"),
        ((3,), "layers has 3: this model's blocks are 0 to 2"),
        ((0, -4), "layers has -4: this model's blocks are 0 to 2"),
        ((1, 1), r"layers=\(1, 1\) names a block twice"),
        ((2, -1), r"layers=\(2, -1\) names a block twice"),
        (True, "layers is a number of blocks, or their indices, not True"),
        ("last", "layers is a number of blocks, or their indices, not 'last'"),
        ((0.5,), r"layers is a number of blocks, or their indices, not \(0.5,\)"),
    ],
    ids=str,
)
def test_other_blocks_are_refused(layers, said):
    arrays = random_arrays(SMALL)
    images = random_images(SMALL, 1)
    with pytest.raises(UserError, match=said):
        jax_vit.from_arrays(SMALL, arrays).features(images, layers)
    with pytest.raises(UserError, match=said):
        torch_vit.from_arrays(SMALL, arrays).features(to_torch(images), layers)
