"""An image that cannot be decoded stops the run, or is replaced by its neighbour and reported."""

import os
import subprocess
import sys

import numpy as np
import pytest
from data_helpers import digest, folder_run, image_folder, take

from shared_vit.data import examples
from shared_vit.data.check import check_folder
from shared_vit.data.sources import folder as folder_source
from shared_vit.errors import UserError

BAD = {
    "train/n01/n01_2.JPEG": b"",
    "train/n02/n02_6.JPEG": b"<html></html>",
    "train/n03/n03_6.JPEG": "half",
    "val/n01/n01_3.JPEG": b"no",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = image_folder(tmp_path_factory.mktemp("photos"))
    for name, content in BAD.items():
        path = root / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_stops_the_run_with_its_path(folder, workers):
    with pytest.raises(UserError) as caught:
        take(folder_run(folder, workers=workers), 3)
    found = str(caught.value)
    assert (
        any(found.startswith(f"cannot decode {folder / name}: ") for name in BAD)
        and "\n" not in found
    )
    assert "--on_bad_image=skip" in found and "twinvit prepare --check" in found


def test_its_neighbour_stands_in_and_it_is_counted(folder):
    run = folder_run(folder, on_bad_image="skip", batch_size=21)
    dataset = run.dataset()
    first, second = take(run, 2, dataset=dataset)
    for batch in (first, second):
        # The last of the second class is replaced by one of the third, the very last by the first.
        assert np.bincount(batch.labels, minlength=3).tolist() == [8, 6, 7]
    bad = dataset.bad_images
    assert bad.count == 6 and bad.paths == sorted(
        str(folder / name) for name in BAD if name.startswith("train")
    )
    told = bad.describe()
    assert (
        told.startswith("6 times")
        and "3 such images" in told
        and all(path in told for path in bad.paths)
    )
    assert "the file is empty" in told


def test_an_evaluation_replaces_it_too(folder):
    run = folder_run(folder, on_bad_image="skip", batch_size=12)
    dataset = run.dataset()
    batch = take(run, 1, split="val", dataset=dataset)[0]
    assert np.array_equal(batch.images[3], batch.images[4]) and batch.labels.tolist()[2:5] == [
        0,
        1,
        1,
    ]
    assert batch.weight.all() and dataset.bad_images.count == 1


def test_replacements_are_the_same_whoever_makes_them(folder):
    run = folder_run(folder, on_bad_image="skip")
    expected, dataset = digest(take(run, 6)), run.dataset()
    assert digest(take(run.but(workers=1), 6, dataset=dataset)) == expected
    assert dataset.bad_images.count > 0  # told across processes
    assert digest(take(run, 3, start=3)) == expected[3:]


def test_the_counted_are_those_that_were_used_not_those_read_ahead(folder):
    run = folder_run(folder, on_bad_image="skip", batch_size=21)
    dataset = run.dataset()
    take(run, 1, dataset=dataset)
    assert dataset.bad_images.count == 3


def test_nothing_but_bad_images_is_an_error(tmp_path):
    image_folder(tmp_path)
    for path in (tmp_path / "train").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    with pytest.raises(
        UserError, match="21 images in a row cannot be decoded, the last of them .*JPEG"
    ):
        take(folder_run(tmp_path, on_bad_image="skip"), 1)


def test_a_random_neighbour_would_be_noticed(folder, monkeypatch):
    run = folder_run(folder, on_bad_image="skip")
    expected = digest(take(run, 6))
    rng, real = np.random.default_rng(), examples.PhotoLoader.__call__

    def wander(self, index, draws=None):
        try:
            return real(
                examples.PhotoLoader(self.split, self.prepare, self.random, skip_bad=False),
                index,
                draws,
            )
        except UserError:
            return wander(self, int(rng.integers(len(self.split))), draws)

    monkeypatch.setattr(examples.PhotoLoader, "__call__", wander)
    assert digest(take(run, 6)) != expected


def test_check_finds_them_all(folder):
    program = [
        sys.executable,
        "-c",
        "from twinvit.cli import main; main()",
        "prepare",
        "--check",
        str(folder),
    ]
    found = subprocess.run(program, capture_output=True, text=True)
    assert found.returncode == 1 and "33 images checked, 4 cannot be decoded" in found.stdout
    for name in BAD:
        assert sum(str(folder / name) + ": " in line for line in found.stdout.splitlines()) == 1
    assert "Traceback" not in found.stderr


def test_check_names_files_that_cannot_be_read_once(tmp_path, monkeypatch, capsys):
    """Also those that have no UTF-8 name, whose path no terminal could show."""
    image_folder(tmp_path)
    for name in (b"large.jpg", b"\xff.jpg"):
        with open(os.path.join(os.fsencode(tmp_path), b"train", b"n01", name), "wb") as file:
            file.truncate(100_000)
    monkeypatch.setattr(folder_source, "MOST_BYTES", 99_999)
    assert check_folder(tmp_path) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        f"cannot read {tmp_path}/train/n01/{name}: it has more than 99,999 bytes"
        for name in ("large.jpg", r"\xff.jpg")
    ]


def test_check_of_a_good_folder_leaves_with_status_0(tmp_path):
    image_folder(tmp_path)
    program = [
        sys.executable,
        "-c",
        "from twinvit.cli import main; main()",
        "prepare",
        "--check",
        str(tmp_path),
    ]
    found = subprocess.run(program, capture_output=True, text=True)
    assert found.returncode == 0 and "33 images checked, 0 cannot be decoded" in found.stdout
