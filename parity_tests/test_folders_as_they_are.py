"""Folders of photographs as people have them: flat, with one split, with files that are not read,
with classes that are numbers, one level too deep. What is taken or left out is said."""

import json
import os
from pathlib import Path

import pytest
from data_helpers import encoded, image_folder, photo
from helpers import random_arrays

from shared_vit import weights
from shared_vit.data import open_dataset
from shared_vit.data.check import check_folder
from shared_vit.data.prepare import prepare
from shared_vit.errors import UserError
from shared_vit.run import loop
from shared_vit.run.command_line import parse
from shared_vit.run.plan import make_plan
from shared_vit.spec.config import model_config
from twinvit.predict.command import predict
from twinvit.training.command import evaluate

JPEG = encoded(photo(0, 20, 20))
CFG = model_config("vit_nano2", num_classes=3, image_size=8)


def write(root: Path, *names: str, content: bytes = JPEG) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def flat(root: Path, classes=("ant", "bee", "cat"), count: int = 10) -> Path:
    return write(root, *(f"{name}/{i}.jpg" for name in classes for i in range(count)))


def opened(root: Path, **changes):
    return open_dataset("folder", str(root), **changes)


def refused(root: Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **changes)
    return str(caught.value)


def paths(split, root: Path) -> list[str]:
    return [os.path.relpath(split.where(i), root) for i in range(len(split))]


def plan_of(root: Path, *flags: str):
    size = ("--model=vit_nano2", "--image_size=8", "--device=cpu", "--world_size=1")
    argv = ["--data=folder", f"--data_dir={root}", *size, "--batch_size=4", *flags]
    requested = parse([*argv, "--precision=fp32"], "train")
    return make_plan(requested, "torch")


def weights_of(path: Path, names: tuple[str, ...]) -> Path:
    cfg = model_config("vit_nano2", num_classes=len(names), image_size=8)
    weights.write(path, cfg, random_arrays(cfg), class_names=names)
    return path


def test_files_that_are_not_read_are_counted_by_folder_and_ending(tmp_path, capsys):
    image_folder(tmp_path)
    write(tmp_path, "train/n01/1.heic", "train/n01/2.HEIC", "train/n02/deep/3.heic", "train/a.jpg")
    write(tmp_path, "val/n01/x.tga", "val/n01/.hidden")
    told = opened(tmp_path).notices
    assert told[0] == (
        f"4 files are left out of {tmp_path}/train, by ending: .heic 3 (n01 2, n02 1); .jpg 1 "
        "(outside 1); HEIC is read where pillow-heif is installed: pip install pillow-heif"
    )
    assert told[1].startswith(f"1 file is left out of {tmp_path}/val, by ending: .tga 1 (n01 1)")
    loop._say_of_data(plan_of(tmp_path), print)  # at the start of a run
    assert f"notice: {told[0]}" in capsys.readouterr().out
    assert check_folder(tmp_path) == 0
    assert f"notice: {told[0]}" in capsys.readouterr().out


def test_a_class_of_other_endings_only_names_them(tmp_path):
    image_folder(tmp_path)
    write(tmp_path, "train/n04/1.heic", "train/n04/2.heic")
    said = refused(tmp_path)
    assert f"n04 in {tmp_path}/train has no images" in said
    assert ".heic 2 (n04 2)" in said and "pip install pillow-heif" in said


def test_predict_says_what_it_leaves_out_of_a_folder(tmp_path, capsys):
    file = weights_of(tmp_path / "w.safetensors", ("a", "b", "c"))
    write(tmp_path / "photos", "1.jpg", "2.jp2")
    assert predict(str(file), (str(tmp_path / "photos"),), json=True) == 0
    assert "notice: 1 file is left out of" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["jfif", "JPE", "avif"])
def test_other_endings_of_photographs_are_read(tmp_path, ending):
    content = encoded(photo(1, 24, 30), "AVIF") if ending == "avif" else JPEG
    image_folder(tmp_path)
    write(tmp_path, f"train/n01/zz.{ending}", content=content)
    dataset = opened(tmp_path)
    assert f"train/n01/zz.{ending}" in paths(dataset.train, tmp_path) and not dataset.notices
    assert check_folder(tmp_path) == 0


def test_one_class_is_refused_for_training(tmp_path):
    write(tmp_path / "one", "train/all/1.jpg", "val/all/1.jpg")
    assert "has one class folder, all, and training needs two or more" in refused(tmp_path / "one")
    assert opened(tmp_path / "one", training=False).num_classes == 1
    deep = flat(tmp_path / "deep" / "photos")
    said = refused(tmp_path / "deep")
    assert "In it are the folders ant, bee, cat" in said and f"name {deep} in --data_dir" in said
    image_folder(tmp_path / "far/data")
    said = refused(tmp_path / "far")
    assert f"--data_dir={tmp_path}/far/data" in said


@pytest.mark.parametrize("where", ["", "train", "val"])
def test_a_fifth_of_each_class_is_held_out_where_there_is_one_split(tmp_path, where):
    flat(tmp_path / where)
    plan = plan_of(tmp_path)
    train, val = paths(plan.dataset.train, tmp_path), paths(plan.dataset.val, tmp_path)
    assert len(train) == 24 and len(val) == 6 and not set(train) & set(val)
    assert {name: sum(f"{name}/" in p for p in val) for name in ("ant", "bee", "cat")} == {
        "ant": 2, "bee": 2, "cat": 2,
    }  # fmt: skip
    assert plan.dataset.notices == [
        f"{tmp_path} has no {'train' if where == 'val' else 'validation split'}: 6 of its 30 "
        "images, a fifth of each class and always the same ones, are held out to validate on "
        f"(`twinvit prepare {tmp_path} --val=0.2` writes such a split)"
    ]
    assert paths(opened(tmp_path).val, tmp_path) == val


def test_the_same_images_are_held_out_wherever_the_folder_is(tmp_path):
    one, two = flat(tmp_path / "one"), flat(tmp_path / "two/train")
    assert paths(opened(one).val, one) == paths(opened(two.parent).val, two)
    assert opened(one).fingerprint != opened(flat(tmp_path / "three", count=11)).fingerprint


def test_prepare_splits_class_folders_by_links_or_copies(tmp_path, monkeypatch, capsys):
    root = flat(tmp_path / "photos")
    held_out = paths(opened(root).val, root)
    assert prepare(str(root), val=0.2) == 0
    out = tmp_path / "photos-split"
    assert "24 images in train and 6 in val, 3 classes, linked to" in capsys.readouterr().out
    assert sorted(str(p.relative_to(out / "val")) for p in out.glob("val/*/*")) == held_out
    assert all(p.is_symlink() and p.read_bytes() == JPEG for p in out.glob("*/*/*"))
    assert len(opened(out).train) == 24 and len(opened(out).val) == 6 and not opened(out).held_out
    assert prepare(str(root), val=0.5, seed=1, by="copy", out=tmp_path / "half") == 0
    assert not any(p.is_symlink() for p in (tmp_path / "half").glob("*/*/*"))
    assert len(opened(tmp_path / "half").val) == 15 and len(opened(root).train) == 24
    monkeypatch.chdir(flat(tmp_path / "here"))
    assert prepare(".", val=0.2) == 0 and len(opened(tmp_path / "here-split").val) == 6
    for flags, told in (
        (dict(val=0.2), "exists already"),
        (dict(val=1.0, out=tmp_path / "x"), "between 0 and 1"),
        (dict(), "needs --val"),
    ):
        with pytest.raises(UserError, match=told):
            prepare(str(root), **flags)
    with pytest.raises(UserError, match="train and val already"):
        prepare(str(out), val=0.2, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def evaluated(capsys, *argv: str) -> str:
    assert evaluate([*argv, "--device=cpu", "--workers=0", "--batch_size=8"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("where", ["", "val"])
def test_all_images_of_a_folder_without_training_split_are_evaluated_on(tmp_path, where, capsys):
    file = weights_of(tmp_path / "w.safetensors", ("ant", "bee", "cat", "dog"))
    root = tmp_path / "photos"
    flat(root / where, ("bee", "dog"))
    said = evaluated(capsys, str(file), "--data=folder", f"--data_dir={root}")
    assert "on 20 examples" in said
    requested = parse(
        ["--mode=eval", f"--init_from={file}", "--data=folder", f"--data_dir={root}"], ""
    )
    plan = make_plan(requested.replace(device="cpu", world_size=1, precision="fp32"), "torch")
    labels = {plan.dataset.val.read(i)[1] for i in range(20)}
    assert labels == {1, 3} and plan.dataset.num_classes == 4  # the weights' own numbers


def test_classes_that_are_numbers_can_be_ordered_as_such(tmp_path):
    flat(tmp_path, ("10", "2", "1"), 2)
    by_name = opened(tmp_path)
    assert by_name.class_names == ["1", "10", "2"]
    assert "--class_order=number" in by_name.notices[-1]
    by_number = plan_of(tmp_path, "--class_order=number")
    assert list(by_number.dataset.class_names) == ["1", "2", "10"]
    assert not any("--class_order" in text for text in by_number.dataset.notices)
    assert by_number.recipe.class_order == "number"
    batch = next(by_number.batches("val", 0))
    labels = [by_number.dataset.val.read(i)[1] for i in range(3)]
    assert batch.labels[:3].tolist() == labels == [0, 1, 2]


def test_a_file_says_the_order_of_the_classes(tmp_path):
    root = flat(tmp_path / "photos", ("a", "b", "c"), 2)
    order = write(tmp_path, "order.txt", content=b"c\na\n\nb\n") / "order.txt"
    assert opened(root, class_order=str(order)).class_names == ["c", "a", "b"]
    order.write_text("c\na\nx\n")
    assert "lacks x; the file lacks b" in refused(root, class_order=str(order))
    order.write_text("c\na\na\nb\n")
    assert "names a class twice: a" in refused(root, class_order=str(order))
    assert "expected name, number, or a file" in refused(root, class_order="size")
    assert "class folders that are no numbers: a; b; c" in refused(root, class_order="number")
    with pytest.raises(UserError, match="--class_order=number is for class folders"):
        parse(["--data=digits", "--class_order=number"], "train")


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_split(tmp_path, name):
    image_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / name)
    write(tmp_path, "test/n01/1.jpg")
    dataset = opened(tmp_path)
    assert len(dataset.val) == 12 and not dataset.held_out


def test_a_line_break_in_a_name_is_an_escape_in_text(tmp_path, capsys):
    file = weights_of(tmp_path / "w.safetensors", ("a", "b", "c"))
    path = write(tmp_path, "two\nlines\x1b[31m.jpg") / "two\nlines\x1b[31m.jpg"
    assert predict(str(file), (str(path),), top_k=1) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/two\\nlines\\x1b[31m.jpg" and "%" in second
    assert predict(str(file), (str(path),), json=True) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(path)
