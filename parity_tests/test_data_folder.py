"""Image folders of every shape are read in a fixed order, and each mistake is one clear message."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import encoded, folder_run, image_folder, photo, take

from shared_vit.data import Dataset, evaluation_input, open_dataset
from shared_vit.data.sources import folder as folder_module
from shared_vit.data.sources import imagenet, listing
from shared_vit.data.sources.wnids import WNIDS
from shared_vit.errors import UserError

JPEG = encoded(photo(0, 20, 20))


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)


def paths(source, root: Path) -> list[str]:
    return [os.path.relpath(source.where(i), root) for i in range(len(source))]


def opened(root: Path, **changes: Any) -> Dataset:
    return folder_run(root, **changes).dataset()


def message(root: Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_and_files_are_in_sorted_order_whatever_their_names(tmp_path):
    write(
        tmp_path, "train/b/2.JPEG", "train/b/10.jpg", "train/b/nested/deep/3.png",
        "train/a b/X.JPG", "train/Zebra/1.jpeg", "train/été/ü.JpEg", "train/日本/一.webp",
        "train/b/notes.txt", "train/b/.hidden.jpg", "train/.cache/1.jpg", "train/readme.txt",
        "val/b/1.JPEG", "val/Zebra/1.PNG",
    )  # fmt: skip
    dataset = opened(tmp_path)
    assert dataset.class_names == ["Zebra", "a b", "b", "été", "日本"] and dataset.num_classes == 5
    assert paths(dataset.train, tmp_path) == [
        "train/Zebra/1.jpeg", "train/a b/X.JPG", "train/b/10.jpg", "train/b/2.JPEG",
        "train/b/nested/deep/3.png", "train/été/ü.JpEg", "train/日本/一.webp",
    ]  # fmt: skip
    assert [dataset.train.read(i)[1] for i in range(7)] == [0, 1, 2, 2, 2, 3, 4]
    assert [dataset.val.read(i)[1] for i in range(2)] == [0, 2]  # numbered as in training
    assert dataset.train.read(0)[0] == JPEG


def test_names_that_are_no_unicode(tmp_path):
    write(tmp_path, "train/a/1.jpg", "val/a/1.jpg")
    with open(os.path.join(os.fsencode(tmp_path), b"train", b"a", b"\xff\xfe.jpg"), "wb") as file:
        file.write(JPEG)
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"train", b"caf\xe9"))
    with open(os.path.join(os.fsencode(tmp_path), b"train", b"caf\xe9", b"2.jpg"), "wb") as file:
        file.write(JPEG)
    dataset = opened(tmp_path)
    assert len(dataset.train) == 3 and dataset.train.read(1)[0] == JPEG
    assert dataset.train.where(1) == f"{tmp_path}/train/a/\\xff\\xfe.jpg"
    assert dataset.class_names == ["a", "caf\\xe9"]  # text that every file format can hold


def test_links_are_followed_and_a_loop_of_them_ends(tmp_path):
    write(tmp_path / "far", "photos/1.jpg", "photos/sub/2.jpg")
    write(tmp_path, "train/a/0.jpg", "val/a/0.jpg")
    (tmp_path / "train/b").symlink_to(tmp_path / "far/photos")
    (tmp_path / "train/a/9.jpg").symlink_to(tmp_path / "far/photos/1.jpg")
    (tmp_path / "far/photos/sub/up").symlink_to(tmp_path / "far/photos")
    found = paths(opened(tmp_path).train, tmp_path)
    assert found == ["train/a/0.jpg", "train/a/9.jpg", "train/b/1.jpg", "train/b/sub/2.jpg"]


def test_test_stands_in_for_a_missing_val(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert len(opened(tmp_path).val) == 12
    write(tmp_path, "val/n01/1.jpg")
    assert len(opened(tmp_path).val) == 1


@pytest.mark.quick
def test_the_fingerprint_is_of_the_data_and_not_of_its_place(tmp_path):
    one = image_folder(tmp_path / "one")
    shutil.copytree(one, tmp_path / "two", copy_function=shutil.copyfile)  # new times
    first = opened(one).fingerprint
    assert len(first) == 32 and opened(tmp_path / "two").fingerprint == first
    (tmp_path / "two/val/n01/n01_0.JPEG").rename(tmp_path / "two/val/n02/n01_0.JPEG")
    moved = opened(tmp_path / "two").fingerprint
    (one / "train/n03/n03_6.JPEG").unlink()
    assert len({first, moved, opened(one).fingerprint}) == 3
    before = opened(one).fingerprint
    with open(one / "train/n03/n03_5.JPEG", "ab") as file:
        file.write(b"\0")  # the same names, one file of another size
    assert opened(one).fingerprint != before


def test_a_folder_may_be_named_as_a_split(tmp_path):
    for root in (tmp_path / "train", tmp_path / "val"):
        for split in ("train", "val"):
            (root / split).mkdir(parents=True)
        assert folder_module.find_splits(root) == ("train", "val")


def test_what_is_missing_or_empty_is_named(tmp_path):
    assert f"--data_dir={tmp_path}/none is not there" in message(tmp_path / "none")
    write(tmp_path, "file.jpg")
    assert "is not a folder" in message(tmp_path / "file.jpg")
    said = message(tmp_path)
    assert f"{tmp_path} has no folder train" in said
    assert "/train/<class>/<image> and " in said and "(.jpg .jpeg .png" in said
    (tmp_path / "train").mkdir()
    assert f"{tmp_path}/train has no class folders" in message(tmp_path)
    assert f"name the folder above, --data_dir={tmp_path}" in message(tmp_path / "train")
    (tmp_path / "val").mkdir()
    assert f"{tmp_path}/train has no class folders" in message(tmp_path)
    (tmp_path / "train/a").mkdir()
    assert "1 class folders and no images in them" in message(tmp_path) and ".jpeg" in message(
        tmp_path
    )
    write(tmp_path, "train/b/1.jpg")
    assert f"a in {tmp_path}/train has no images" in message(tmp_path)
    write(tmp_path, "train/a/1.jpg")
    assert f"{tmp_path}/val has no class folders" in message(tmp_path)
    write(tmp_path, "val/c/1.jpg", "val/a/1.jpg")
    assert message(tmp_path) == f"{tmp_path}/val has classes that the training split lacks: c"
    (tmp_path / "val/c/1.jpg").unlink()  # an empty class folder is no class
    assert opened(tmp_path).class_names == ["a", "b"]


def test_an_unreadable_folder_or_link_is_named(tmp_path, monkeypatch):
    image_folder(tmp_path)
    real = os.scandir

    def scandir(path):
        if os.fsdecode(path).endswith("n02"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert message(tmp_path) == f"cannot read {tmp_path}/train/n02: Permission denied"
    monkeypatch.undo()
    (tmp_path / "val/n02/9.jpg").symlink_to(tmp_path / "nowhere")
    assert message(tmp_path) == f"cannot read {tmp_path}/val/n02/9.jpg: No such file or directory"


@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_a_file_that_is_gone_stops_the_run_even_when_bad_images_are_skipped(tmp_path, skip):
    image_folder(tmp_path)
    run = folder_run(tmp_path, on_bad_image=skip)
    dataset = run.dataset()
    (tmp_path / "val/n02/n02_1.JPEG").unlink()
    with pytest.raises(UserError, match="cannot read .*val/n02/n02_1.JPEG: No such file"):
        take(run, 2, split="val", dataset=dataset)


def test_folder_needs_a_directory():
    with pytest.raises(UserError, match="--data=folder needs --data_dir"):
        open_dataset("folder")


def test_imagenet_is_looked_for_and_the_places_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        imagenet, "imagenet_places", lambda: [tmp_path / "here", tmp_path / "there"]
    )
    with pytest.raises(UserError) as caught:
        open_dataset("imagenet")
    for part in (
        f"{tmp_path}/here, {tmp_path}/there",
        "--data_dir",
        "twinvit prepare imagenet --train_tar",
    ):
        assert part in str(caught.value)
    with pytest.raises(
        UserError, match=r"--data_dir=/no/such is not there.*twinvit prepare imagenet"
    ):
        open_dataset("imagenet", "/no/such")
    image_folder(tmp_path / "there")
    with pytest.raises(
        UserError, match=f"{tmp_path}/there/train has 3 class folders, not the 1,000"
    ):
        open_dataset("imagenet")


def test_class_folders_alone_are_no_imagenet(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(UserError, match=r"is no ImageNet: .*\. --data=folder takes any classes"):
        open_dataset("imagenet", str(tmp_path))


def test_imagenets_classes_are_checked(tmp_path):
    assert len(WNIDS) == len(set(WNIDS)) == 1000 and sorted(WNIDS) == WNIDS
    assert (WNIDS[0], WNIDS[207], WNIDS[999]) == (
        "n01440764",
        "n02099601",
        "n15075141",
    )  # tench, golden retriever, tissue
    write(tmp_path, *(f"train/{wnid}/1.JPEG" for wnid in WNIDS), f"val/{WNIDS[7]}/1.JPEG")
    dataset = opened(tmp_path, data="imagenet")
    assert (dataset.name, dataset.num_classes, dataset.val.read(0)[1]) == ("imagenet", 1000, 7)
    shutil.move(tmp_path / "train" / WNIDS[5], tmp_path / "train" / "cats")
    found = message(tmp_path, data="imagenet")
    assert (
        f"1 are missing (such as {WNIDS[5]})" in found
        and "1 are no classes of it (such as cats)" in found
    )
    assert "--data=folder takes any classes" in found
    assert opened(tmp_path).num_classes == 1000


def test_names_hold_what_they_were_given():
    given = [b"", b"a", "é".encode(), b"\xff", b"", b"long" * 100]
    names = listing.Names.of(given)
    assert [names[i] for i in range(len(names))] == given and names[-1] == given[-1]
    with pytest.raises(IndexError):
        names[6]
    assert len(listing.Names.of([])) == 0


def test_the_splits_are_found_by_name(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    assert folder_module.find_splits(tmp_path) == ("train", "test")


def test_batches_hold_the_folders_pictures(tmp_path):
    """Evaluation batches against the files, decoded and cropped one by one."""
    from PIL import Image

    image_folder(tmp_path)
    run = folder_run(tmp_path)
    dataset = run.dataset()
    found = take(run, 2, split="val", dataset=dataset)
    for i in range(12):
        pixels = np.asarray(Image.open(dataset.val.where(i)).convert("RGB"))
        expected = evaluation_input(pixels, run.recipe.model)
        assert np.array_equal(found[i // 8].images[i % 8], expected)
        assert found[i // 8].labels[i % 8] == i // 4
