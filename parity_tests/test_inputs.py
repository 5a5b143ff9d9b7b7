"""Claim: what a user hands over wrongly is an error of one sentence that says what to do, in both
twins."""

import dataclasses
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import SMALL, random_arrays, random_images, to_torch

import jax_vit
import jax_vit.dropout
import torch_vit
import torch_vit.dropout
from shared_vit import weights
from shared_vit.data import evaluation_input, normalize
from shared_vit.errors import UserError
from shared_vit.spec.mask_keys import site_keys

TWINS = {"jax": jax_vit, "torch": torch_vit}
twins = pytest.mark.parametrize("twin", TWINS)
IMAGES = random_images(SMALL)


def images_for(twin: str, images: np.ndarray):
    return jnp.asarray(images) if twin == "jax" else to_torch(images)


def model_of(twin: str, **changes):
    cfg = dataclasses.replace(SMALL, **changes)
    return TWINS[twin].from_arrays(cfg, random_arrays(cfg))


@twins
def test_the_other_layout(twin):
    model = model_of(twin)
    other = images_for(twin, IMAGES).swapaxes(1, 3)
    with pytest.raises(
        UserError, match=r"takes \[batch, .*\], which images\.(transpose|permute)\(0, "
    ) as error:
        model(other)
    order = [int(i) for i in str(error.value).split("(0, ")[1][:7].split(")")[0].split(", ")]
    mended = other.transpose(0, *order) if twin == "jax" else other.permute(0, *order)
    assert model(mended).shape == (3, SMALL.num_classes)


@twins
@pytest.mark.parametrize("shape", [(24, 24, 3), (1, 24, 24, 1), (1, 24, 24, 4)])
def test_another_shape(twin, shape):
    images = (
        jnp.zeros(shape) if twin == "jax" else torch.zeros(shape[:-3] + shape[-1:] + shape[-3:-1])
    )
    with pytest.raises(UserError, match="takes .batch, "):
        model_of(twin)(images)


@twins
def test_another_size(twin):
    images = random_images(dataclasses.replace(SMALL, image_size=32))
    with pytest.raises(UserError, match="32 x 32 px, and this model takes 24 x 24"):
        model_of(twin)(images_for(twin, images))


@twins
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_images_that_are_not_normalised(twin, dtype):
    with pytest.raises(
        UserError, match="images are .*int.*, and the model takes normalised floats"
    ):
        model_of(twin)(images_for(twin, np.zeros_like(IMAGES, dtype)))


def test_images_of_another_library():
    with pytest.raises(UserError, match="torch_vit takes torch.Tensor"):
        model_of("torch")(IMAGES)
    with pytest.raises(UserError, match="jax_vit takes arrays of JAX or NumPy"):
        model_of("jax")(torch.from_numpy(IMAGES))


@twins
def test_a_name_in_place_of_a_config(twin):
    for make in (TWINS[twin].create, TWINS[twin].VisionTransformer):
        with pytest.raises(
            UserError, match="from a ModelConfig, not from 'vit_b16': .*model_config"
        ):
            make("vit_b16")
    with pytest.raises(UserError, match="from a ModelConfig"):
        TWINS[twin].from_arrays("vit_b16", random_arrays(SMALL))


def test_a_name_in_place_of_a_config_for_files_and_pictures(tmp_path):
    image = np.zeros((30, 30, 3), np.uint8)
    for call in (
        lambda: weights.write(tmp_path / "a.safetensors", "vit_b16", random_arrays(SMALL)),
        lambda: evaluation_input(image, "vit_b16"),
        lambda: normalize(image, "vit_b16"),
    ):
        with pytest.raises(UserError, match="from a ModelConfig, not from 'vit_b16': .*config"):
            call()
    assert not any(tmp_path.iterdir())


def test_pictures_that_are_none(tmp_path):
    for picture in ("cat.jpg", to_torch(IMAGES)):
        with pytest.raises(UserError, match="uint8 .H, W, 3., not .*: twinvit.preprocess takes"):
            evaluation_input(picture, SMALL)


def test_a_wrapped_model_is_not_saved(tmp_path):
    wrapped = torch.nn.DataParallel(model_of("torch"))
    with pytest.raises(UserError, match="DataParallel, not .* a wrapped one without its wrapper"):
        torch_vit.save(wrapped, tmp_path / "model.safetensors")
    torch_vit.save(wrapped.module, tmp_path / "model.safetensors")


@twins
def test_an_impossible_precision(twin):
    for make in (TWINS[twin].create, TWINS[twin].VisionTransformer):
        with pytest.raises(UserError, match="unknown precision 'fp8'"):
            make(SMALL, precision="fp8")
    if twin == "jax":
        for precision in ("fp16", "fp64"):
            with pytest.raises(UserError, match=precision):
                jax_vit.VisionTransformer(SMALL, precision)


def test_the_other_twins_model_is_not_saved(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="not a torch_vit.VisionTransformer: .* by jax_vit.save"):
        torch_vit.save(model_of("jax"), path)
    with pytest.raises(UserError, match="not a jax_vit.VisionTransformer: .* by torch_vit.save"):
        jax_vit.save(model_of("torch"), path)
    assert not path.exists()


@twins
def test_train_mode_without_dropout_keys(twin, tmp_path):
    """Dropout needs keys: train mode without them would silently train without dropout."""
    package, images = TWINS[twin], images_for(twin, IMAGES)
    model = model_of(twin, dropout=0.5)
    package.save(model, tmp_path / "model.safetensors")
    models = [model, package.create(model.cfg), package.load(tmp_path / "model.safetensors")]
    models += [package.VisionTransformer(model.cfg)]
    for model in models:
        model(images)
        model.train()
        with pytest.raises(
            UserError, match=r"in train mode, with dropout 0\.5 and drop_path 0\.0: call it with"
        ):
            model(images)
        model.eval()
        model(images)
    model = models[0]
    keys, rows = site_keys(0, 0, SMALL.depth), np.arange(3)
    dropout = (jnp.asarray(keys), jnp.asarray(rows))
    if twin == "torch":
        dropout = (torch_vit.dropout.to_keys(keys), torch.from_numpy(rows))
    model.train()
    dropped = np.asarray(model(images, dropout=dropout).tolist())
    model.eval()
    whole = np.asarray(model(images).tolist())
    assert np.abs(dropped - whole).max() > 0.1
    # Keys decide, not the mode.
    assert np.array_equal(np.asarray(model(images, dropout=dropout).tolist()), dropped)


@twins
def test_train_mode_without_dropout(twin):
    model = model_of(twin)
    model.train()
    model(images_for(twin, IMAGES))


def test_traces_of_two_threads_do_not_mix():
    """The trace of a JAX model leaves its classes and the model as they are."""
    models = [model_of("jax"), model_of("jax", depth=2)]
    expected = [list(model.trace(IMAGES)) for model in models]
    calls = [type(m).__call__ for m in (models[0], models[0].blocks[0], models[0].head)]
    found = {}

    def work(i: int) -> None:
        found[i] = [list(models[i % 2].trace(IMAGES)) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [expected[i % 2]] * 5 for i in range(4)}
    assert calls == [type(m).__call__ for m in (models[0], models[0].blocks[0], models[0].head)]


def test_torch_compiles_the_model_into_one_graph():
    """No check of the inputs, and no dtype by name, breaks the graph."""
    model = model_of("torch")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(to_torch(IMAGES)), model(to_torch(IMAGES)))
