"""Claim: a run goes on with the images that it began with: other content of equal size, which the
fingerprint does not see, is refused."""

import numpy as np
import pytest
from data_helpers import encoded
from whole_runs import train_here

from shared_vit.data import content, open_dataset
from shared_vit.errors import UserError
from shared_vit.run.record import Record, differences, read_record, write_record
from shared_vit.run.start_from import first_name

FLAGS = (
    "--data=folder", "--batch_size=4", "--steps=3", "--warmup_steps=1", "--workers=0", "--width=16",
    "--depth=1", "--num_heads=2", "--mlp_dim=32", "--patch_size=4", "--image_size=8",
    "--eval_every=0",
)  # fmt: skip


def picture(seed: int) -> bytes:
    """A PNG; all are of one size, as what follows an image's end is not read."""
    rng = np.random.default_rng(seed)
    return encoded(rng.integers(0, 256, (9, 9, 3), np.uint8), "PNG").ljust(600, b"\0")


@pytest.fixture
def photos(tmp_path):
    """Two classes, four training and two validation images each."""
    for label in "ab":
        for split, count in (("train", 4), ("val", 2)):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(picture(100 * ord(label) + 10 * count + i))
    return tmp_path / "photos"


def exchanged(photos):
    a, b = photos / "train/a/1.png", photos / "train/b/2.png"
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)


def blackened(photos):
    path = photos / "val/b/1.png"
    path.write_bytes(encoded(np.zeros((9, 9, 3), np.uint8), "PNG").ljust(600, b"\0"))


@pytest.mark.parametrize("edit", [exchanged, blackened])
def test_a_run_is_not_resumed_on_other_content(edit, photos, tmp_path, capsys):
    before = open_dataset("folder", str(photos)).fingerprint
    run = tmp_path / "run"
    train_here("torch", run, *FLAGS, f"--data_dir={photos}", "--stop_at=1")
    assert read_record(run).data["content"].startswith("12 of 12 files: ")
    edit(photos)
    assert open_dataset("folder", str(photos)).fingerprint == before
    with pytest.raises(UserError, match="the data's content is 12 of 12 files: .* there, .* here"):
        train_here("torch", run, "--resume")
    edit(photos)  # exchanged again
    if edit is exchanged:
        assert train_here("torch", run, "--resume", "--stop_at=2") == 0


def test_a_sample_is_said_and_all_files_on_request(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(content, "SAMPLED", 3)
    dataset = open_dataset("folder", str(photos))
    first = content.content_of(dataset)
    assert first["content"].startswith("3 of 12 files: ") and "content_full" not in first
    assert content.content_of(open_dataset("folder", str(photos))) == first
    run = tmp_path / "run"
    flags = (*FLAGS, f"--data_dir={photos}", "--data_check=full")
    train_here("torch", run, *flags, "--stop_at=1")
    seen = 0
    for label in "ab":
        for i in range(4):
            path = photos / "train" / label / f"{i}.png"
            kept = path.read_bytes()
            path.write_bytes(picture(7))
            seen += content.content_of(dataset) != first
            with pytest.raises(UserError, match="the data's content_full is 12 of 12"):
                train_here("torch", run, "--resume")
            path.write_bytes(kept)
    assert 0 < seen < 8  # a sample is a sample


def test_runs_of_older_versions_have_no_checksum(photos, tmp_path):
    run = tmp_path / "run"
    train_here("torch", run, *FLAGS, f"--data_dir={photos}", "--stop_at=1")
    known = read_record(run)
    old = Record(
        known.recipe, known.runtime, known.preset,
        {n: known.data[n] for n in ("name", "fingerprint")}, id=known.id,
    )  # fmt: skip
    write_record(run, old)
    assert differences(read_record(run), known) == []
    assert train_here("torch", run, "--resume") == 0
    assert read_record(run).data == known.data  # and has one from here on


def test_first_names():
    assert first_name("Tabby, tabby cat") == "tabby"
