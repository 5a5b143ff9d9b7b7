"""Image folders of every shape are read in a fixed order, changes are noticed, and each mistake is one clear message."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import encoded, folder_config, image_folder, photo, take

from shared_vit.data import open_dataset
from shared_vit.data.sources import folder as folder_module
from shared_vit.data.sources import imagenet, listing
from shared_vit.data.sources.wnids import WNIDS
from shared_vit.errors import UserError
from shared_vit.spec.recipe import TrainConfig

JPEG = encoded(photo(0, 20, 20))


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)


def paths(source, root: Path) -> list[str]:
    return [os.path.relpath(source.where(i), root) for i in range(len(source))]


def opened(root: Path, cache: Path | None = None, **changes):
    return open_dataset(folder_config(root, **changes), cache)


def message(root: Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_and_files_are_in_sorted_order_whatever_their_names(tmp_path):
    write(
        tmp_path, "train/b/2.JPEG", "train/b/10.jpg", "train/b/nested/deep/3.png", "train/a b/X.JPG", "train/Zebra/1.jpeg",
        "train/été/ü.JpEg", "train/日本/一.webp", "train/b/notes.txt", "train/b/.hidden.jpg", "train/.cache/1.jpg",
        "train/readme.txt", "val/b/1.JPEG", "val/Zebra/1.PNG",
    )  # fmt: skip
    dataset = opened(tmp_path)
    assert dataset.class_names == ["Zebra", "a b", "b", "été", "日本"] and dataset.num_classes == 5
    assert paths(dataset.train, tmp_path) == [
        "train/Zebra/1.jpeg", "train/a b/X.JPG", "train/b/10.jpg", "train/b/2.JPEG", "train/b/nested/deep/3.png",
        "train/été/ü.JpEg", "train/日本/一.webp",
    ]  # fmt: skip
    assert [dataset.train.read(i)[1] for i in range(7)] == [0, 1, 2, 2, 2, 3, 4]
    assert [dataset.val.read(i)[1] for i in range(2)] == [0, 2]  # numbered as in training
    assert dataset.train.read(0)[0] == JPEG


def test_names_that_are_no_unicode(tmp_path):
    write(tmp_path, "train/a/1.jpg", "val/a/1.jpg")
    with open(os.path.join(os.fsencode(tmp_path), b"train", b"a", b"\xff\xfe.jpg"), "wb") as file:
        file.write(JPEG)
    dataset = opened(tmp_path, tmp_path / "run")
    assert len(dataset.train) == 2 and dataset.train.read(1)[0] == JPEG
    dataset.train.where(1).encode("utf-8")
    dataset.keep(tmp_path / "run")
    assert len(opened(tmp_path, tmp_path / "run").train) == 2


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


def test_the_fingerprint_is_of_the_data_and_not_of_its_place(tmp_path):
    one = image_folder(tmp_path / "one")
    shutil.copytree(one, tmp_path / "two", copy_function=shutil.copyfile)  # new times
    first = opened(one).fingerprint
    assert len(first) == 32 and opened(tmp_path / "two").fingerprint == first
    (tmp_path / "two/val/n01/n01_0.JPEG").rename(tmp_path / "two/val/n02/n01_0.JPEG")
    moved = opened(tmp_path / "two").fingerprint
    (one / "train/n03/n03_6.JPEG").unlink()
    assert len({first, moved, opened(one).fingerprint}) == 3


def rewrite_in_place(root):
    path = root / "train/n02/n02_3.JPEG"
    path.write_bytes(path.read_bytes() + b"more")


def rewrite_with_the_same_size(root):
    path = root / "train/n02/n02_3.JPEG"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def replace_by_renaming(root):
    write(root, "train/aside")
    (root / "train/aside").rename(root / "train/n02/n02_3.JPEG")


def add(root):
    write(root, "train/n02/new.JPEG")


def add_in_a_new_folder(root):
    write(root, "train/n02/deep/deeper/new.JPEG")


def add_a_class(root):
    write(root, "train/n09/new.JPEG")


def remove(root):
    (root / "train/n02/n02_3.JPEG").unlink()


CHANGES = [
    rewrite_in_place,
    rewrite_with_the_same_size,
    replace_by_renaming,
    add,
    add_in_a_new_folder,
    add_a_class,
    remove,
]


def listings(monkeypatch) -> list[str]:
    """The splits that are listed anew from now on."""
    real, listed = listing.list_split, []
    monkeypatch.setattr(
        listing, "list_split", lambda root, split, *rest: listed.append(split) or real(root, split, *rest)
    )
    return listed


@pytest.mark.parametrize("change", CHANGES)
def test_the_cached_listing_is_used_until_something_changes(tmp_path, monkeypatch, change):
    root, run = image_folder(tmp_path / "photos"), tmp_path / "run"
    listed = listings(monkeypatch)
    first = opened(root, run)
    assert not run.exists()  # a run that does not begin leaves nothing behind
    first.keep(run)
    assert listed == ["train", "val"] and len(list(run.iterdir())) == 2
    times = [p.stat().st_mtime_ns for p in run.iterdir()]
    again = opened(root, run)
    again.keep(run)
    assert [p.stat().st_mtime_ns for p in run.iterdir()] == times
    assert listed == ["train", "val"] and again.fingerprint == first.fingerprint
    assert paths(again.train, root) == paths(first.train, root) and again.class_names == first.class_names
    assert [again.val.read(i) for i in range(12)] == [first.val.read(i) for i in range(12)]
    change(root)
    changed = opened(root, run)
    assert listed[2:] == (["train", "val"] if change is add_a_class else ["train"])
    assert paths(changed.train, root) == paths(opened(root).train, root)
    assert (changed.fingerprint != first.fingerprint) == (change is not rewrite_with_the_same_size)
    changed.keep(run)
    assert len(list(run.iterdir())) == 2
    listed.clear()
    assert opened(root, run).fingerprint == changed.fingerprint and listed == []


def test_a_cache_that_skips_its_check_would_be_noticed(tmp_path, monkeypatch):
    root, run = image_folder(tmp_path / "photos"), tmp_path / "run"
    first = opened(root, run)
    first.keep(run)
    monkeypatch.setattr(listing.Listing, "unchanged", lambda self, root: True)
    rewrite_in_place(root)
    assert opened(root, run).fingerprint == first.fingerprint  # what the test above would fail on


def test_a_damaged_or_foreign_cache_is_made_anew(tmp_path, monkeypatch):
    root, run = image_folder(tmp_path / "photos"), tmp_path / "run"
    opened(root).keep(run)
    expected = opened(root, run).fingerprint
    for broken in (b"", b"not a listing", (run / "files_train.npz").read_bytes()[:300]):
        (run / "files_train.npz").write_bytes(broken)
        dataset = opened(root, run)
        assert dataset.fingerprint == expected
        dataset.keep(run)
        assert (run / "files_train.npz").stat().st_size > 300
    other = image_folder(tmp_path / "other", per_class=3)
    assert len(opened(other, run).train) == 9 and len(opened(root, run).train) == 21


def test_what_is_missing_or_empty_is_named(tmp_path):
    assert f"--data_dir={tmp_path}/none is not there" in message(tmp_path / "none")
    write(tmp_path, "file.jpg")
    assert "is not a folder" in message(tmp_path / "file.jpg")
    assert f"{tmp_path} has no folder train" in message(tmp_path) and "/train/<class>/<image>" in message(tmp_path)
    (tmp_path / "train").mkdir()
    assert "no val or test" in message(tmp_path)
    (tmp_path / "val").mkdir()
    assert f"{tmp_path}/train has no class folders" in message(tmp_path)
    (tmp_path / "train/a").mkdir()
    assert "1 class folders and no images in them" in message(tmp_path) and ".jpeg" in message(tmp_path)
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
    cfg = folder_config(tmp_path, on_bad_image=skip)
    dataset = open_dataset(cfg)
    (tmp_path / "val/n02/n02_1.JPEG").unlink()
    with pytest.raises(UserError, match="cannot read .*val/n02/n02_1.JPEG: No such file"):
        take(cfg, 2, split="val", dataset=dataset)


def test_folder_needs_a_directory():
    with pytest.raises(UserError, match="--data=folder needs --data_dir"):
        open_dataset(TrainConfig(data="folder"))


def test_imagenet_is_looked_for_and_the_places_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(imagenet, "imagenet_places", lambda: [tmp_path / "here", tmp_path / "there"])
    monkeypatch.setattr("shared_vit.data.sources.select.imagenet_places", imagenet.imagenet_places)
    with pytest.raises(UserError) as caught:
        open_dataset(TrainConfig(data="imagenet"))
    for part in (f"{tmp_path}/here, {tmp_path}/there", "--data_dir", "twinvit prepare imagenet --train_tar"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"--data_dir=/no/such is not there.*twinvit prepare imagenet"):
        open_dataset(TrainConfig(data="imagenet", data_dir="/no/such"))
    image_folder(tmp_path / "there")
    with pytest.raises(UserError, match=f"{tmp_path}/there/train has 3 class folders, not the 1,000"):
        open_dataset(TrainConfig(data="imagenet"))


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
    assert f"1 are missing (such as {WNIDS[5]})" in found and "1 are no classes of it (such as cats)" in found
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

    from shared_vit.data.augment import center_crop

    image_folder(tmp_path)
    cfg = folder_config(tmp_path)
    dataset = open_dataset(cfg)
    found = take(cfg, 2, split="val", dataset=dataset)
    for i in range(12):
        pixels = np.asarray(Image.open(dataset.val.where(i)).convert("RGB"))
        assert np.array_equal(found[i // 8].images[i % 8], center_crop(pixels, 24))
        assert found[i // 8].labels[i % 8] == i // 4
