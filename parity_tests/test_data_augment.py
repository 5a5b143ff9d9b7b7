"""Crops are distributed as torchvision's, and pixels are what the libraries with the same filters give."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from data_helpers import photo

from shared_vit.data import augment
from shared_vit.data.augment import NUM_UNIFORMS, center_crop, crop_box, random_crop_flip


def reference_box(rng, height, width):
    """torchvision's `RandomResizedCrop.get_params` restated with its own kind of draws."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(low, high))
        w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    if width / height < 3 / 4:
        h, w = int(round(width / (3 / 4))), width
    elif width / height > 4 / 3:
        h, w = height, int(round(height * (4 / 3)))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


def torchvisions_box(rng, height, width):
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(int(rng.integers(2**62)))
    image = torch.empty(3, height, width, device="meta")
    return transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))


def our_box(rng, height, width):
    return crop_box(rng.random(NUM_UNIFORMS), height, width)


def boxes(draw, height, width, count=2000, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([draw(rng, height, width) for _ in range(count)])


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    """Largest two-sample Kolmogorov-Smirnov distance over several views of the boxes, in units of its 0.1 % level."""

    def views(box):
        top, left, h, w = box.T.astype(float)
        return top, left, h, w, h * w, w / h, top + h, left + w

    worst = 0.0
    for x, y in zip(views(a), views(b)):
        grid = np.union1d(x, y)
        distance = np.abs(
            np.searchsorted(np.sort(x), grid, "right") / len(x) - np.searchsorted(np.sort(y), grid, "right") / len(y)
        ).max()
        worst = max(worst, distance / (1.95 * math.sqrt(2 / len(x))))
    return worst


SIZES = [(375, 500), (32, 32), (60, 200), (300, 90)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("reference", [reference_box, torchvisions_box])
def test_crops_are_distributed_as_torchvisions(reference, height, width):
    assert furthest(boxes(our_box, height, width), boxes(reference, height, width, seed=1)) < 1


def biased(rng, height, width):
    return crop_box(rng.random(NUM_UNIFORMS) ** 1.15, height, width)


def linear_ratio(rng, height, width):
    u = rng.random(NUM_UNIFORMS)
    span = (3 / 4, 4 / 3)
    u[1:-3:2] = (np.log(span[0] + (span[1] - span[0]) * u[1:-3:2]) - math.log(span[0])) / math.log(span[1] / span[0])
    return crop_box(u, height, width)


@pytest.mark.parametrize("fault", [biased, linear_ratio])
def test_the_comparison_of_distributions_notices(fault):
    assert furthest(boxes(fault, 375, 500), boxes(reference_box, 375, 500, seed=1)) > 1


def test_the_fallback_is_a_centred_crop():
    for size in ((10, 400), (400, 10)):
        found = boxes(our_box, *size, count=400)
        fallback = (0, 193, 10, 13) if size == (10, 400) else (193, 0, 13, 10)
        assert (found == fallback).all(axis=1).mean() > 0.3
    assert crop_box(np.zeros(NUM_UNIFORMS), 1, 1) == (0, 0, 1, 1)


def test_boxes_lie_inside_whatever_the_size():
    rng = np.random.default_rng(3)
    extremes = [np.zeros(NUM_UNIFORMS), np.full(NUM_UNIFORMS, np.nextafter(1, 0))]
    for height, width in rng.integers(1, 700, (300, 2)).tolist():
        for u in (*extremes, rng.random(NUM_UNIFORMS)):
            top, left, h, w = crop_box(u, height, width)
            assert h >= 1 and w >= 1 and 0 <= top <= height - h and 0 <= left <= width - w


def whole_image(flip: bool) -> np.ndarray:
    """Uniforms whose crop is the whole of a square image."""
    u = np.full(NUM_UNIFORMS, 0.5)
    u[0] = np.nextafter(1, 0)
    u[-1] = 0.0 if flip else 0.9
    return u


@pytest.mark.parametrize("size", [16, 24, 50, 96])
def test_resampling_is_bilinear_without_antialias(size):
    image = photo(1, 41, 41)
    found = random_crop_flip(image, size, whole_image(flip=False))
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), (size, size), mode="bilinear", antialias=False
    )[0].permute(1, 2, 0)  # fmt: skip
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    gap = found - exact.numpy()
    assert np.abs(gap).max() < 1 and abs(gap.mean()) < 0.05  # weights of 8 bits round by up to 1 in 512


def test_a_flip_is_a_mirror_and_comes_half_of_the_time():
    image = photo(2, 41, 41)
    plain, flipped = (random_crop_flip(image, 32, whole_image(f)) for f in (False, True))
    assert np.array_equal(flipped, plain[:, ::-1]) and not np.array_equal(flipped, plain)
    tiny, rng = photo(2, 6, 6), np.random.default_rng(4)
    times = 0
    for _ in range(2000):
        u = rng.random(NUM_UNIFORMS)
        unflipped = random_crop_flip(tiny, 5, np.append(u[:-1], 0.9))
        times += not np.array_equal(random_crop_flip(tiny, 5, u), unflipped)
    assert abs(times - 1000) < 3.3 * math.sqrt(500)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (300, 300), (40, 61), (256, 1000), (7, 9)])
@pytest.mark.parametrize("size", [224, 32])
def test_evaluation_is_torchvisions_resize_and_center_crop(height, width, size):
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    image = photo(5, height, width)
    steps = transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)])
    found = center_crop(image, size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(steps(Image.fromarray(image))))


def test_evaluation_is_antialiased():
    """Against torch's antialiased interpolation of the whole, cut in the middle; the plain one differs far more."""
    image = photo(6, 300, 400)
    found = center_crop(image, 56).astype(float)
    whole = torch.from_numpy(image).permute(2, 0, 1)[None].double()

    def gap(antialias):
        small = torch.nn.functional.interpolate(whole, (64, 85), mode="bilinear", antialias=antialias)
        return np.abs(small[0].permute(1, 2, 0).numpy()[4:60, 14:70] - found).max()

    assert gap(True) <= 1.01 and gap(False) > 3


def test_a_small_image_is_enlarged():
    assert center_crop(photo(7, 3, 2), 16).shape == (16, 16, 3)
    assert random_crop_flip(photo(7, 1, 1), 16, np.full(NUM_UNIFORMS, 0.5)).shape == (16, 16, 3)


def test_digits_are_turned_and_shifted_a_little():
    rng = np.random.default_rng(8)
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 3:5] = 200
    found = np.stack([augment.random_affine(image, rng.random(NUM_UNIFORMS)) for _ in range(300)]).astype(float)
    assert np.abs(found.mean(0) - image).max() < 100 and (found != image).any(axis=(1, 2, 3)).mean() > 0.99
    mass = found[..., 0].reshape(300, 64)
    rows, columns = np.divmod(np.arange(64), 8)
    for axis, middle in ((rows, 3.5), (columns, 3.5)):
        centre = (mass * axis).sum(1) / mass.sum(1)
        assert abs(centre.mean() - middle) < 0.1 and 0.3 < centre.std() < 0.6 and np.abs(centre - middle).max() < 1.2
