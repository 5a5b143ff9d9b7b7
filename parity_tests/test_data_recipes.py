"""Settings of the training stream: smallest crop, repeated augmentation, a held-out part.

Where they are off, the batches are those of the versions before them.
"""

import hashlib
import math

import numpy as np
import pytest
from data_helpers import (
    counting_dataset,
    digest,
    encoded,
    folder_run,
    photo,
    run_of,
    take,
)

from shared_vit.data.augment import NUM_UNIFORMS, crop_box
from shared_vit.data.minival import with_minival
from shared_vit.errors import UserError
from shared_vit.spec.recipe import Recipe

COUNTING = run_of(2, batch_size=4, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Lossless, so that no version of a JPEG library changes a byte."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 6), ("val", 3)):
        for k, label in enumerate(("a", "b")):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                image = photo(40 + 2 * i + k, 30 + 3 * i, 44 - i)
                (root / split / label / f"{i}.png").write_bytes(encoded(image, "PNG"))
    return root


@pytest.mark.parametrize(
    "kind, expected",
    [("crop", "c66923ca04235691"), ("pad", "45958a31ca9bc12a"), ("digits", "43b2487a9c53c995")],
)
def test_batches_of_the_versions_before_are_the_same(folder, kind, expected):
    """The hashes were made before any of these settings existed."""
    runs = {
        "crop": lambda: folder_run(folder),
        "pad": lambda: folder_run(folder, pad_crop=3),
        "digits": lambda: run_of(8, batch_size=64, seed=2),
    }
    found = hashlib.sha256("".join(digest(take(runs[kind](), 4))).encode()).hexdigest()
    assert found[:16] == expected


def labels(run, count, examples=23):
    return np.concatenate([b.labels for b in take(run, count, dataset=counting_dataset(examples))])


@pytest.mark.parametrize("times", [2, 3])
def test_repeats_lie_two_apart(times):
    plain = labels(COUNTING, 30)
    found = labels(COUNTING.but(repeat_aug=times), 30)
    for p, label in enumerate(found):
        assert label == plain[2 * (p // (2 * times)) + p % 2]
    groups = found[: len(found) // (2 * times) * 2 * times].reshape(-1, times, 2)
    assert (groups == groups[:, :1]).all() and (groups[..., 0] != groups[..., 1]).all()


def test_repeats_are_augmented_anew_and_the_same_for_any_number_of_workers(folder):
    run = folder_run(folder, repeat_aug=2)
    found = take(run, 4)
    for b in found:
        assert np.array_equal(b.labels[::4], b.labels[2::4])
        assert np.array_equal(b.labels[1::4], b.labels[3::4])
        assert all((b.images[i] != b.images[i + 2]).any() for i in (0, 1, 4, 5))
    assert digest(take(run.but(workers=2), 4)) == digest(found)
    assert digest(take(run, 2, start=2)) == digest(found)[2:]
    assert digest(take(run.but(repeat_aug=1), 4)) == digest(take(folder_run(folder), 4))


def test_repeats_need_an_even_batch():
    with pytest.raises(UserError, match="--repeat_aug=2 needs an even --batch_size, not 5"):
        Recipe(repeat_aug=2, batch_size=5)


@pytest.mark.parametrize("number, held_out", [(1000, 10), (1437, 14), (50, 1), (2, 1)])
def test_minival_is_one_percent_of_a_permutation(number, held_out):
    dataset = counting_dataset(number)
    found = with_minival(dataset)
    parts = [[split.read(i)[1] for i in range(len(split))] for split in (found.train, found.val)]
    assert sorted(parts[0] + parts[1]) == list(range(number)) and len(parts[1]) == held_out
    assert all(part == sorted(part) for part in parts)
    assert found.val.where(0) == f"number {parts[1][0]}"
    assert with_minival(found) is found
    words = np.random.Philox(np.random.SeedSequence([0, 0])).random_raw(number).tolist()
    smallest = sorted(range(number), key=words.__getitem__)[:held_out]
    assert parts[1] == sorted(smallest)
    if number == 1000:
        assert max(parts[1]) - min(parts[1]) > 500  # not an end of the listing


def test_a_run_with_minival_neither_trains_on_it_nor_evaluates_on_val():
    dataset = counting_dataset(200, val=5)
    run = COUNTING.but(minival="on", batch_size=2)
    trained = labels(run, 99, examples=200)
    shown = np.concatenate([b.labels for b in take(run, 1, split="val", dataset=dataset)])
    assert sorted(trained.tolist() + shown.tolist()) == list(range(200))
    other = np.concatenate(
        [b.labels for b in take(run.but(seed=6), 1, split="val", dataset=dataset)]
    )
    assert np.array_equal(shown, other)
    with pytest.raises(UserError, match="at least 2 training examples"):
        with_minival(counting_dataset(1))


@pytest.mark.parametrize("least", [0.05, 0.3])
def test_areas_of_crops_are_uniform_from_the_smallest(least):
    rng = np.random.default_rng(14)
    side, areas = 1000, []
    for u in rng.random((3000, NUM_UNIFORMS)):
        u[0:-3:2] *= 0.5  # areas up to the middle of the range always fit
        _, _, h, w = crop_box(u, side, side, min_area=least)
        areas.append(h * w / side**2)
    shares = np.sort((np.array(areas) - least) / (1 - least) / 0.5)
    assert np.abs(shares - (np.arange(3000) + 0.5) / 3000).max() < 1.95 / math.sqrt(3000)


def test_min_area_reaches_the_crops_of_a_run(folder):
    run = folder_run(folder)
    assert digest(take(run.but(min_area=0.5), 2)) != digest(take(run, 2))
    with pytest.raises(UserError, match="--min_area=0.2 belongs to crops of random area"):
        Recipe(pad_crop=4, min_area=0.2)
    with pytest.raises(UserError, match="--min_area=0.2: the images of digits are not cropped"):
        run_of(8, min_area=0.2).batches()
