"""RandAugment's operations are the documented formulas, in integers: equal bytes everywhere."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from data_helpers import digest, folder_run, image_folder, photo, run_of, take
from PIL import Image, ImageEnhance, ImageOps

from shared_vit.data import randaugment
from shared_vit.data.augment import NUM_UNIFORMS
from shared_vit.data.randaugment import OPERATIONS, RandAugment, apply
from shared_vit.errors import UserError
from shared_vit.spec.recipe import Recipe

SIDE = 23
STRENGTHS = (1, 4, 10, 15)


def grey(pixel):
    return (19595 * pixel[0] + 38470 * pixel[1] + 7471 * pixel[2] + 32768) // 65536


def blend(base, x, magnitude):
    factor = Fraction(18 * magnitude, 100) + Fraction(1, 10)
    return min(255, max(0, math.floor(base + factor * (x - base))))


def moved(image, source):
    """The pixel nearest to source(x, y), a pair of Fractions or floats, or grey 128."""
    result = np.full_like(image, 128)
    size = len(image)
    for y in range(size):
        for x in range(size):
            sx, sy = (math.floor(v + Fraction(1, 2)) for v in source(x, y))
            if 0 <= sx < size and 0 <= sy < size:
                result[y, x] = image[sy, sx]
    return result


def by_level(image, function):
    return np.array([[[function(int(v)) for v in p] for p in row] for row in image], np.uint8)


def by_channel(image, function):
    """function(level, sorted levels of the channel)."""
    planes = []
    for c in range(3):
        levels = sorted(image[..., c].ravel().tolist())
        planes.append(by_level(image[..., c : c + 1], lambda v, levels=levels: function(v, levels)))
    return np.concatenate(planes, -1)


def stretched(v, levels):
    low, high = levels[0], levels[-1]
    return v if low == high else math.floor(Fraction(255 * (v - low), high - low))


def equalized(v, levels):
    step = (len(levels) - levels.count(levels[-1])) // 255
    return v if step == 0 else min(255, (sum(w < v for w in levels) + step // 2) // step)


def sharpened(image, magnitude):
    result = image.copy()
    for y in range(1, len(image) - 1):
        for x in range(1, len(image) - 1):
            for c in range(3):
                around = int(image[y - 1 : y + 2, x - 1 : x + 2, c].astype(int).sum())
                smooth = (around + 4 * int(image[y, x, c])) // 13
                result[y, x, c] = blend(smooth, int(image[y, x, c]), magnitude)
    return result


def reference(name, image, m, sign, centre):
    """The operation written from its published description, pixel by pixel, in exact numbers."""
    size = len(image)
    shear, shift = Fraction(3 * m * sign, 100), sign * math.floor(Fraction(100 * m * size, 2240))
    if name == "autocontrast":
        return by_channel(image, stretched)
    if name == "equalize":
        return by_channel(image, equalized)
    if name == "invert":
        return by_level(image, lambda v: 255 - v)
    if name == "posterize":
        unit = 2 ** (8 - int(4 * m / 10))
        return by_level(image, lambda v: v // unit * unit)
    if name == "solarize":
        threshold = 0 if m == 10 else min(256, int(25.6 * m))
        return by_level(image, lambda v: v if v < threshold else 255 - v)
    if name == "solarize_add":
        return by_level(image, lambda v: min(255, v + 11 * m) if v < 128 else v)
    if name == "brightness":
        return by_level(image, lambda v: blend(0, v, m))
    if name in ("color", "contrast"):
        greys = np.array([[grey(p.tolist()) for p in row] for row in image])
        mean = math.floor(Fraction(int(greys.sum()), size * size) + Fraction(1, 2))
        bases = greys if name == "color" else np.full_like(greys, mean)
        rows = [[[blend(int(b), int(v), m) for v in p] for p, b in zip(*both)]
                for both in zip(image, bases)]  # fmt: skip
        return np.array(rows, np.uint8)
    if name == "sharpness":
        return sharpened(image, m)
    if name == "rotate":
        angle, middle = math.radians(3 * m * sign), (size - 1) / 2
        cos, sin = math.cos(angle), math.sin(angle)
        # One rounding to 1e-9 pixel decides ties, which whole sides have at 30 degrees.
        return moved(image, lambda x, y: (
            round(middle + cos * (x - middle) - sin * (y - middle), 9),
            round(middle + sin * (x - middle) + cos * (y - middle), 9),
        ))  # fmt: skip
    if name == "cutout":
        half, (row, column) = math.floor(Fraction(40 * m * size, 2240)), centre
        result = image.copy()
        for y in range(size):
            for x in range(size):
                if row - half <= y < row + half and column - half <= x < column + half:
                    result[y, x] = 128
        return result
    sources = {
        "shear_x": lambda x, y: (x + shear * y, y),
        "shear_y": lambda x, y: (x, y + shear * x),
        "translate_x": lambda x, y: (x + shift, y),
        "translate_y": lambda x, y: (x, y + shift),
    }
    return moved(image, sources[name])


@pytest.mark.parametrize("magnitude", STRENGTHS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_its_formula(name, magnitude):
    image = photo(31, SIDE, SIDE)
    image[3:7, 3:7], image[8:12, 8:12] = 0, 255
    untouched = image.copy()
    for size in (SIDE, SIDE - 1):
        part = image[:size, :size]
        for sign, centre in ((1, (11, 12)), (-1, (0, size - 1))):
            found = apply(name, part, magnitude, sign, centre)
            expected = reference(name, part, magnitude, sign, centre)
            assert found.dtype == np.uint8 and found.shape == part.shape
            assert np.array_equal(found, expected), (name, magnitude, size, sign)
    assert np.array_equal(image, untouched)


def flat(level):
    return np.full((SIDE, SIDE, 3), level, np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("image", [flat(0), flat(200), flat(255), photo(32, 1, 1), photo(33, 2, 2)])
def test_an_operation_of_a_flat_or_tiny_image(name, image):
    found = apply(name, image, 10, -1, (0, 0))
    assert np.array_equal(found, reference(name, image, 10, -1, (0, 0)))


def pils(name, image, magnitude):
    factor = 0.018 * 10 * magnitude + 0.1
    picture = Image.fromarray(image)
    if name in ("autocontrast", "equalize", "invert"):
        return np.asarray(getattr(ImageOps, name)(picture))
    if name == "posterize":
        return np.asarray(ImageOps.posterize(picture, int(4 * magnitude / 10)))
    if name == "solarize":
        threshold = 0 if magnitude == 10 else 256 * magnitude // 10  # 0: as the published code
        return np.asarray(ImageOps.solarize(picture, threshold))
    return np.asarray(getattr(ImageEnhance, name.title())(picture).enhance(factor))


@pytest.mark.parametrize("magnitude", [4, 10, 14])
@pytest.mark.parametrize(
    "name, most",  # levels: Pillow rounds the 3 x 3 mean, and its blends in float32
    [("autocontrast", 1), ("equalize", 0), ("invert", 0), ("posterize", 0), ("solarize", 0),
     ("color", 1), ("contrast", 1), ("brightness", 1), ("sharpness", 2)],
)  # fmt: skip
def test_an_operation_is_pillows(name, most, magnitude):
    for seed in (34, 35):
        image = photo(seed, 64, 64)
        gap = apply(name, image, magnitude).astype(int) - pils(name, image, magnitude)
        assert np.abs(gap).max() <= most
        assert (gap == 0).mean() > (0.4 if name == "sharpness" else 0.9)


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_is_pillows(sign):
    """At even sides and 30 degrees no pixel ties; shears are compared where none does."""
    size, m = 224, 10
    image = photo(36, size, size)
    picture, fill = Image.fromarray(image), dict(fillcolor=(128,) * 3)
    nearest, affine = Image.Resampling.NEAREST, Image.Transform.AFFINE
    turned = picture.rotate(3.0 * m * sign, nearest, **fill)
    assert np.array_equal(apply("rotate", image, m, sign), np.asarray(turned))
    shifted = picture.transform((size, size), affine, (1, 0, 100 * sign, 0, 1, 0), nearest, **fill)
    assert np.array_equal(apply("translate_x", image, m, sign), np.asarray(shifted))
    # Pillow shears about the corner of the image, big_vision about the centre of its first pixel.
    slope = 0.3 * sign
    sheared = picture.transform(
        (size, size), affine, (1, slope, -slope / 2, 0, 1, 0), nearest, **fill
    )
    rows = np.flatnonzero(np.arange(size) * 3 % 10 != 5)
    assert len(rows) == size - 22
    assert np.array_equal(apply("shear_x", image, m, sign)[rows], np.asarray(sheared)[rows])


def test_operations_are_drawn_alike_whatever_the_layer(monkeypatch):
    seen = []
    monkeypatch.setattr(
        randaugment, "apply", lambda name, image, *rest: seen.append((name, *rest)) or image
    )
    count, image = 8000, photo(37, 8, 8)
    augment, rng = RandAugment(2, 10), np.random.default_rng(11)
    for _ in range(count):
        augment(image, rng.random(augment.num_uniforms))
    assert {m for _, m, _, _ in seen} == {10}
    for layer in (seen[::2], seen[1::2]):
        names = Counter(name for name, *_ in layer)
        assert set(names) == set(OPERATIONS) and len(layer) == count
        assert sum((n - count / 16) ** 2 / (count / 16) for n in names.values()) < 37.7  # 0.1 %
    pairs = Counter((a[0], b[0]) for a, b in zip(seen[::2], seen[1::2]))
    assert sum((n - count / 256) ** 2 / (count / 256) for n in pairs.values()) < 330.5  # 0.1 %
    assert abs(sum(sign for _, _, sign, _ in seen)) < 3.3 * math.sqrt(len(seen))
    assert {c for *_, c in seen} == {(r, c) for r in range(8) for c in range(8)}


def test_an_image_is_not_written_to():
    image = photo(38, 16, 16)
    before, rng = image.copy(), np.random.default_rng(12)
    for _ in range(200):
        found = RandAugment(2, 10)(image, rng.random(8))
        assert found.shape == image.shape and found.dtype == np.uint8
    assert np.array_equal(image, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photos"))


def test_workers_and_processes_do_not_change_a_byte(folder):
    run = folder_run(folder, randaug="2,10")
    expected = digest(take(run, 5))
    assert digest(take(run.but(workers=2), 5)) == expected
    assert digest(take(run, 2, start=3)) == expected[3:]
    halves = [take(run, 1, process=p, num_processes=2)[0].images for p in (0, 1)]
    assert np.array_equal(np.concatenate(halves), take(run, 1)[0].images)


@pytest.mark.parametrize("pad_crop", [0, 2])
def test_what_is_augmented_is_the_crop_of_a_run_without(monkeypatch, folder, pad_crop):
    plain, run = (folder_run(folder, pad_crop=pad_crop, randaug=r) for r in ("off", "2,10"))
    expected, crops = take(plain, 4), {}
    augment = RandAugment.__call__

    def record(self, image, uniforms):
        found = augment(self, image, uniforms)
        if self.layers:
            crops[found.tobytes()] = image.tobytes()
        return found

    monkeypatch.setattr(RandAugment, "__call__", record)
    changed = 0
    for before, after in zip(expected, take(run, 4)):
        assert np.array_equal(before.labels, after.labels)
        changed += (before.images != after.images).any(axis=(1, 2, 3)).sum()
        for crop, image in zip(before.images, after.images):
            assert crops[image.tobytes()] == crop.tobytes()
    assert changed > 20
    assert digest(take(plain, 1, split="val")) == digest(take(run, 1, split="val"))


def test_digits_are_augmented_too():
    plain, run = (take(run_of(8, batch_size=64, randaug=r), 1)[0] for r in ("off", "1,10"))
    same = (plain.images == run.images).all(axis=(1, 2, 3))
    assert np.array_equal(plain.labels, run.labels) and 0 < same.sum() < 32


def test_the_draws_come_after_those_of_the_crop():
    """A generator gives the same first numbers whether or not more are asked for."""
    one, other = np.random.default_rng(13), np.random.default_rng(13)
    u = one.random(NUM_UNIFORMS)
    assert np.array_equal(other.random(NUM_UNIFORMS + 8)[:NUM_UNIFORMS], u)


@pytest.mark.parametrize("text", ["on", "2", "2,0", "0,10", "2,16", "17,3", "2,10,1", "2, 10", ""])
def test_a_wrong_setting_is_named(text):
    with pytest.raises(UserError, match="--randaug=.*N,M is expected"):
        Recipe(randaug=text)
