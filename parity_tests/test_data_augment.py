"""Training crops are distributed as torchvision's; their pixels are those of the same filters."""

import math

import numpy as np
import pytest
import torch
from data_helpers import encoded, folder_run, photo, take

from shared_vit.data import augment
from shared_vit.data.augment import NUM_UNIFORMS, crop_box, padded_crop_flip, random_crop_flip
from twinvit.convert.libraries import without_torchvision_operators


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
    without_torchvision_operators()
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
    """Largest two-sample Kolmogorov-Smirnov distance over views of boxes, over its 0.1 % level."""

    def views(box):
        top, left, h, w = box.T.astype(float)
        return top, left, h, w, h * w, w / h, top + h, left + w

    worst = 0.0
    for x, y in zip(views(a), views(b)):
        grid = np.union1d(x, y)
        distance = np.abs(
            np.searchsorted(np.sort(x), grid, "right") / len(x)
            - np.searchsorted(np.sort(y), grid, "right") / len(y)
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
    u[1:-3:2] = (np.log(span[0] + (span[1] - span[0]) * u[1:-3:2]) - math.log(span[0])) / math.log(
        span[1] / span[0]
    )
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
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(planes, (size, size), mode="bilinear")
    exact = resized[0].permute(1, 2, 0)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    gap = found - exact.numpy()
    assert (
        np.abs(gap).max() < 1 and abs(gap.mean()) < 0.05
    )  # weights of 8 bits round by up to 1 in 512


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


def padded_crops(image: np.ndarray, size: int, pad: int, count: int = 4000) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    draws = rng.random((count, NUM_UNIFORMS))
    return [padded_crop_flip(image, size, pad, "bilinear", u) for u in draws]


def test_a_padded_crop_is_any_window_of_the_padded_image_as_often_as_the_others():
    image = 1 + np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    black = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {}
    for top in range(5):
        for left in range(5):
            window = black[top : top + 6, left : left + 6]
            windows[window.tobytes()] = windows[window[:, ::-1].tobytes()] = 0
    assert len(windows) == 50
    for crop in padded_crops(image, 6, 2):
        assert crop.shape == (6, 6, 3) and crop.dtype == np.uint8
        windows[crop.tobytes()] += 1  # a KeyError for any other image
    counts = np.array(list(windows.values()))
    assert ((counts - 80) ** 2 / 80).sum() < 85.4  # 49 degrees of freedom: 0.1 % exceed this


def test_a_padded_crop_uses_the_draws_of_offset_and_flip_alone():
    image = photo(10, 32, 32)
    u = np.random.default_rng(10).random(NUM_UNIFORMS)
    first = padded_crop_flip(image, 32, 4, "bilinear", u)
    for i in range(NUM_UNIFORMS):
        other = u.copy()
        other[i] = (u[i] + 0.5) % 1
        changed = not np.array_equal(padded_crop_flip(image, 32, 4, "bilinear", other), first)
        assert changed == (i >= NUM_UNIFORMS - 3)


def test_a_padded_crop_of_another_size_is_resized_first():
    wide = photo(11, 40, 80)
    crops = padded_crops(wide, 20, 3, count=300)
    assert {crop.shape for crop in crops} == {(20, 20, 3)}
    from PIL import Image

    small = np.asarray(Image.fromarray(wide).resize((40, 20), Image.Resampling.BILINEAR))
    inside = np.full(NUM_UNIFORMS, 0.5)
    found = padded_crop_flip(wide, 20, 3, "bilinear", inside)  # top 3 of 6, left 13 of 26
    assert np.array_equal(found, small[:, 10:30])


@pytest.fixture
def small_photos(tmp_path):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = photo(20 + i + 4 * (label == "b"), 32, 32)
                (tmp_path / split / label / f"{i}.png").write_bytes(encoded(pixels, "PNG"))
    return tmp_path


def test_a_run_with_pad_crop_shows_windows_of_its_images_in_the_same_order(small_photos):
    plain = folder_run(small_photos, image_size=32, patch_size=32)
    padded = plain.but(pad_crop=4)
    dataset = plain.dataset()
    black = [
        np.pad(photo(20 + i, 32, 32), ((4, 4), (4, 4), (0, 0))) for i in range(8)
    ]  # in the listing's order
    windows = [
        {
            b[t : t + 32, x : x + 32][:, ::d].tobytes()
            for t in range(9)
            for x in range(9)
            for d in (1, -1)
        }
        for b in black
    ]
    for one, other in zip(take(padded, 3, dataset=dataset), take(plain, 3, dataset=dataset)):
        assert np.array_equal(one.labels, other.labels)
        seen = [next(k for k, w in enumerate(windows) if i.tobytes() in w) for i in one.images]
        assert sorted(seen) == list(range(8)) and [k // 4 for k in seen] == one.labels.tolist()


def test_pad_crop_of_digits_is_refused():
    from data_helpers import run_of

    from shared_vit.errors import UserError

    with pytest.raises(UserError, match="--pad_crop=4: the images of digits are not cropped"):
        run_of(8, pad_crop=4).batches()


def test_a_small_image_is_enlarged():
    assert random_crop_flip(photo(7, 1, 1), 16, np.full(NUM_UNIFORMS, 0.5)).shape == (16, 16, 3)


def test_digits_are_turned_and_shifted_a_little():
    rng = np.random.default_rng(8)
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:6, 3:5] = 200
    found = np.stack(
        [augment.random_affine(image, rng.random(NUM_UNIFORMS)) for _ in range(300)]
    ).astype(float)
    assert (
        np.abs(found.mean(0) - image).max() < 100
        and (found != image).any(axis=(1, 2, 3)).mean() > 0.99
    )
    mass = found[..., 0].reshape(300, 64)
    rows, columns = np.divmod(np.arange(64), 8)
    for axis, middle in ((rows, 3.5), (columns, 3.5)):
        centre = (mass * axis).sum(1) / mass.sum(1)
        assert (
            abs(centre.mean() - middle) < 0.1
            and 0.3 < centre.std() < 0.6
            and np.abs(centre - middle).max() < 1.2
        )
