"""Evaluation shows a model what its configuration says, by the filters of torchvision and timm."""

import dataclasses

import numpy as np
import pytest
import torch
from data_helpers import encoded, folder_run, photo, take
from PIL import Image

from shared_vit.data import evaluation_input, normalize
from shared_vit.data.decode import MOST_PIXELS, DecodeError
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from twinvit.convert.libraries import without_torchvision_operators

TRUE_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def model(size: int, **changes) -> ModelConfig:
    return ModelConfig(image_size=size, patch_size=size, **changes)


def torchvision_transforms():
    """torchvision's transforms, without the operators that a CPU build of it may lack."""
    without_torchvision_operators()
    return pytest.importorskip("torchvision.transforms")


SIZES = [(375, 500), (500, 333), (300, 300), (40, 61), (256, 1000), (7, 9)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("size", [224, 32])
@pytest.mark.parametrize(
    "resize, interpolation",
    [(256 / 224, "bilinear"), (1.0, "bilinear"), (1.0, "bicubic"), (248 / 224, "bicubic")],
)
def test_it_is_torchvisions_resize_and_center_crop(height, width, size, resize, interpolation):
    transforms = torchvision_transforms()
    image = photo(5, height, width)
    mode = getattr(transforms.InterpolationMode, interpolation.upper())
    shorter = {256 / 224: round(size * 256 / 224), 1.0: size, 248 / 224: round(size * 248 / 224)}
    steps = transforms.Compose(
        [transforms.Resize(shorter[resize], interpolation=mode), transforms.CenterCrop(size)]
    )
    cfg = model(size, eval_resize=resize, interpolation=interpolation)
    found = evaluation_input(image, cfg)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8 and found.flags.writeable
    assert np.array_equal(found, np.asarray(steps(Image.fromarray(image))))


def test_the_defaults_are_those_of_the_first_version():
    """For each size: the shorter side was `round(size * 256 / 224)`, in whole numbers."""
    cfg = ModelConfig()
    assert (cfg.eval_resize, cfg.interpolation) == (256 / 224, "bilinear")
    for size in range(1, 5000):
        assert round(size * cfg.eval_resize) == round(size * 256 / 224) == (size * 16 + 7) // 14


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_whole_image_can_be_squashed(interpolation):
    image = photo(6, 60, 100)
    found = evaluation_input(image, model(32, eval_resize=0.0, interpolation=interpolation))
    squashed = Image.fromarray(image).resize((32, 32), TRUE_PILLOW[interpolation])
    assert np.array_equal(found, np.asarray(squashed))


@pytest.mark.parametrize("resize", [0.0, 1.0])
def test_without_a_margin_an_image_of_the_right_size_is_itself(resize):
    image = photo(7, 32, 32)
    assert np.array_equal(evaluation_input(image, model(32, eval_resize=resize)), image)
    assert not np.array_equal(evaluation_input(image, model(32)), image)


def test_it_is_antialiased():
    """Compared with torch's two interpolations of the whole image, cut in the middle."""
    image = photo(6, 300, 400)
    found = evaluation_input(image, model(56)).astype(float)
    whole = torch.from_numpy(image).permute(2, 0, 1)[None].double()

    def gap(antialias):
        small = torch.nn.functional.interpolate(
            whole, (64, 85), mode="bilinear", antialias=antialias
        )
        return np.abs(small[0].permute(1, 2, 0).numpy()[4:60, 14:70] - found).max()

    assert gap(True) <= 1.01 and gap(False) > 3


@pytest.mark.parametrize("resize", [0.0, 1.0, 256 / 224])
def test_a_run_evaluates_by_its_model(tmp_path, resize):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(3):
            data = encoded(photo(30 + i, 32, 40 - 4 * i), "PNG")
            (tmp_path / split / "a" / f"{i}.png").write_bytes(data)
        (tmp_path / split / "b").mkdir()  # training wants another class; it comes after these
        (tmp_path / split / "b/3.png").write_bytes(data)
    run = folder_run(tmp_path, image_size=32, patch_size=32, eval_resize=resize, batch_size=3)
    cfg = model(32, eval_resize=resize)
    found = take(run.but(interpolation="bicubic"), 1, split="val")[0].images
    for i in range(3):
        image = photo(30 + i, 32, 40 - 4 * i)
        bicubic = dataclasses.replace(cfg, interpolation="bicubic")
        assert np.array_equal(found[i], evaluation_input(image, bicubic))
    assert np.array_equal(found[2], photo(32, 32, 32)) == (resize < 1.1)


def test_a_small_image_is_enlarged():
    assert evaluation_input(photo(7, 3, 2), model(16)).shape == (16, 16, 3)
    assert evaluation_input(photo(7, 1, 1), model(16, eval_resize=0.0)).shape == (16, 16, 3)


def test_a_ribbon_is_an_error_and_not_gigabytes():
    with pytest.raises(DecodeError, match="1 x 40,000 pixels would become 256 x 10,240,000"):
        evaluation_input(np.zeros((40_000, 1, 3), np.uint8), model(224))
    with pytest.raises(DecodeError, match=f"more than {MOST_PIXELS:,}"):
        evaluation_input(np.zeros((1, 40_000, 3), np.uint8), model(224))
    squashed = evaluation_input(np.zeros((40_000, 1, 3), np.uint8), model(224, eval_resize=0.0))
    assert squashed.shape == (224, 224, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_an_error(image):
    with pytest.raises(UserError, match=r"uint8 \[H, W, 3\]"):
        evaluation_input(image, model(8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalized_pixels_have_the_mean_and_deviation_of_the_model(dtype):
    cfg = dataclasses.replace(model(8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    images = np.stack([photo(i, 8, 8) for i in range(3)])
    found = normalize(images, cfg, dtype)
    expected = (images / 255 - np.array(cfg.mean)) / np.array(cfg.std)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=20 * np.finfo(dtype).eps)
    default = normalize(images[0], cfg)
    assert default.dtype == np.float32 and default.shape == (8, 8, 3)
