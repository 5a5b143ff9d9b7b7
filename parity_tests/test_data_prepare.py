"""`twinvit prepare imagenet` on small files of the official structure: intact, damaged, hostile."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_helpers import encoded, folder_run, photo
from scipy.io import savemat

from shared_vit.data.sources import ilsvrc
from shared_vit.data.sources.ilsvrc import Counts, prepare_imagenet, validation_wnids
from shared_vit.errors import UserError

WNIDS = ["n02000003", "n02000001", "n02000002"]  # by ILSVRC2012_ID, which is not the sorted order
TRUTH = [3, 1, 2, 2, 1, 3, 3]
COUNTS = Counts(train=12, val=7, classes=3)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return file.getvalue()


def synsets(wnids: list[str] = WNIDS) -> bytes:
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    inner = [(4, "n00000009", "an inner node")]  # the devkit's table goes on above the classes
    rows = [(i + 1, wnid, f"word {i}") for i, wnid in enumerate(wnids)] + inner
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures():
    return {
        (wnid, i): encoded(photo(hash(wnid) % 97 + i, 20, 24))
        for wnid in sorted(WNIDS)
        for i in range(4)
    }


@pytest.fixture
def official(tmp_path, pictures):
    """The three files, by flag."""
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{i}.JPEG": pictures[wnid, i] for i in range(4)})
        for wnid in sorted(WNIDS)
    }
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    kit = {
        "ILSVRC2012_devkit_t12/readme.txt": b"hello",
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
        "ILSVRC2012_devkit_t12/data/meta.mat": synsets(),
    }
    val = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(photo(i, 18, 18)) for i in reversed(range(7))
    }
    files = dict(train_tar=tar_of(inner), val_tar=tar_of(val), devkit=tar_of(kit, "w:gz"))
    paths = {}
    for flag, data in files.items():
        paths[flag] = tmp_path / f"{flag}.{'tar.gz' if flag == 'devkit' else 'tar'}"
        paths[flag].write_bytes(data)
    return paths


def run(official: dict, out: Path) -> None:
    prepare_imagenet(**official, out=out, counts=COUNTS)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_the_official_files_become_class_folders(official, tmp_path, pictures, capsys):
    run(official, tmp_path / "out")
    found = tree(tmp_path / "out")
    expected = {f"train/{wnid}/{wnid}_{i}.JPEG": data for (wnid, i), data in pictures.items()}
    for i, number in enumerate(TRUTH):
        expected[f"val/{WNIDS[number - 1]}/ILSVRC2012_val_{i + 1:08d}.JPEG"] = encoded(
            photo(i, 18, 18)
        )
    assert found == expected
    assert "12 images in 3 classes" in capsys.readouterr().out
    dataset = folder_run(tmp_path / "out").dataset()
    assert (len(dataset.train), len(dataset.val), dataset.class_names) == (12, 7, sorted(WNIDS))


TRUTH_FILE = "data/ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize("wnid", ["../../escaped", "/absolute", "n0200000", "n02000001/x", ""])
def test_a_devkit_cannot_write_outside(official, tmp_path, wnid):
    """Class folders are named by the devkit, which is data like any other."""
    wnid = str(tmp_path / "absolute") if wnid == "/absolute" else wnid
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    kit = {TRUTH_FILE: truth, "data/meta.mat": synsets([wnid, *WNIDS[1:]])}
    official["devkit"].write_bytes(tar_of(kit, "w:gz"))
    before = tree(tmp_path)
    assert "is no WordNet number" in complaint(official, tmp_path / "far/out")
    assert tree(tmp_path) == before and not (tmp_path / "far").exists()


def mat(**variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


ODD_TABLES = {
    "another variable": mat(other=1),
    "no struct": mat(synsets=np.arange(3)),
    "one row": mat(
        synsets=np.array([(1, "n02000003")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    ),
    "no numbers": mat(
        synsets=np.array([("x", "y")] * 2, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    ),
    "another version": b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(1000),
    "half": synsets()[:300],
    "nothing": b"",
}


@pytest.mark.parametrize("name", ODD_TABLES)
def test_an_odd_devkit_is_one_message(official, tmp_path, name):
    kit = {TRUTH_FILE: b"1\n" * 7, "data/meta.mat": ODD_TABLES[name]}
    official["devkit"].write_bytes(tar_of(kit, "w:gz"))
    assert f"--devkit={official['devkit']} cannot be read" in complaint(official, tmp_path / "out")


def test_odd_members_of_a_devkit_are_one_message(official, tmp_path):
    kit = {TRUTH_FILE: b"1\n" * 7, "data/meta.mat": synsets()}
    for truth in (b"one\n" * 7, b"9\n" * 7, b"\xff" * 7, b"9" * 5000):
        official["devkit"].write_bytes(tar_of(kit | {TRUTH_FILE: truth}, "w:gz"))
        assert "cannot be read" in complaint(official, tmp_path / "out")
    for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with tarfile.open(official["devkit"], "w:gz") as tar:
            add(tar, TRUTH_FILE, b"1\n")
            member = tarfile.TarInfo("data/meta.mat")
            member.type, member.linkname = kind, "nowhere"
            tar.addfile(member)
        assert "it has no data/meta.mat" in complaint(official, tmp_path / "out")


def test_a_devkit_that_unpacks_to_gigabytes_is_not_read(official, tmp_path):
    official["devkit"].write_bytes(tar_of({TRUTH_FILE: bytes(1 << 27)}, "w:gz"))
    assert "has 134,217,728 bytes" in complaint(official, tmp_path / "out")


def test_labels_follow_the_devkits_numbers(official):
    assert validation_wnids(official["devkit"]) == [WNIDS[number - 1] for number in TRUTH]


def test_an_interrupted_run_goes_on_where_it_was(official, tmp_path, monkeypatch):
    out, real, copied = tmp_path / "out", ilsvrc._copy, []

    def breaks_off(after):
        def copy(tar, member, target):
            if len(copied) == after:
                target.write_bytes(b"half")
                raise KeyboardInterrupt
            copied.append(member.name)
            real(tar, member, target)

        return copy

    for after in (6, 14):  # in the second class, in the validation images
        monkeypatch.setattr(ilsvrc, "_copy", breaks_off(after))
        with pytest.raises(KeyboardInterrupt):
            run(official, out)
    monkeypatch.setattr(ilsvrc, "_copy", breaks_off(None))
    run(official, out)
    monkeypatch.undo()
    run(official, tmp_path / "at once")
    assert tree(out) == tree(tmp_path / "at once")
    assert len(copied) == 12 + 7 + 2  # only the two of the class that was broken off came twice
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.JPEG")}
    run(official, out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.JPEG")} == times


def complaint(official: dict, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        run(official, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("flag", ["train_tar", "val_tar", "devkit"])
def test_a_missing_file_or_one_that_is_no_tar_is_named_before_anything_is_written(
    official, tmp_path, flag
):
    whole = official[flag].read_bytes()
    for content in (
        b"",
        b"<html>sign in</html>" * 100,
        whole[:300] if flag == "devkit" else whole[:100],
    ):
        official[flag].write_bytes(content)
        assert str(official[flag]) in complaint(official, tmp_path / "out")
    official[flag].unlink()
    assert f"--{flag}={official[flag]} is not there" in complaint(official, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_wrong_tar_is_named_before_anything_is_written(official, tmp_path):
    swapped = official | dict(train_tar=official["val_tar"], val_tar=official["train_tar"])
    found = complaint(swapped, tmp_path / "out")
    assert (
        f"{official['val_tar']} is not the official file: "
        "it begins with ILSVRC2012_val_00000007.JPEG" in found
    )
    assert not (tmp_path / "out").exists()


def test_a_devkit_without_labels_or_with_others_is_named(official, tmp_path):
    official["devkit"].write_bytes(tar_of({"ILSVRC2012_devkit_t12/readme.txt": b"hello"}, "w:gz"))
    assert "has no data/ILSVRC2012_validation_ground_truth.txt" in complaint(
        official, tmp_path / "out"
    )
    kit = {"data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n", "data/meta.mat": synsets()}
    official["devkit"].write_bytes(tar_of(kit, "w:gz"))
    assert "has labels for 2 validation images, not 7" in complaint(official, tmp_path / "out")
    kit["data/meta.mat"] = b"no matrix"
    official["devkit"].write_bytes(tar_of(kit, "w:gz"))
    assert "cannot be read" in complaint(official, tmp_path / "out")


@pytest.mark.parametrize(
    "flag, written", [("train_tar", 0.5), ("val_tar", 0.5), ("train_tar", 0.97)]
)
def test_a_tar_that_breaks_off_is_named_and_leaves_nothing_half_written(
    official, tmp_path, flag, written
):
    whole = official[flag].read_bytes()
    end = len(whole.rstrip(b"\0"))
    official[flag].write_bytes(whole[: int(end * written)])
    found = complaint(official, tmp_path / "out")
    assert str(official[flag]) in found and "get it anew" in found
    official[flag].write_bytes(whole)
    partial = tree(tmp_path / "out")
    run(official, tmp_path / "out")
    complete = tree(tmp_path / "out")
    assert all(complete[name] == data for name, data in partial.items() if ".partial-" not in name)
    assert not any(".partial-" in name for name in complete)


def test_counts_that_are_not_those_of_ilsvrc2012_are_an_error(official, tmp_path):
    prepare = dict(official, out=tmp_path / "out")
    with pytest.raises(UserError, match="has 12 images in 3 classes, and ILSVRC2012 has 13 in 3"):
        prepare_imagenet(**prepare, counts=COUNTS._replace(train=13))
    with pytest.raises(UserError, match=r"labels for 7 validation images, not 50,000"):
        prepare_imagenet(**prepare)
    assert Counts() == (1_281_167, 50_000, 1000)


def test_a_full_disk_is_told(official, tmp_path, monkeypatch):
    def copy(tar, member, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(ilsvrc, "_copy", copy)
    found = complaint(official, tmp_path / "out")
    assert "No space left on device" in found and "the same command continues from there" in found


def command(*flags: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", "from twinvit.cli import main; main()", "prepare", *flags]
    return subprocess.run(program, capture_output=True, text=True)


def test_the_command_tells_mistakes_in_one_line(official, tmp_path):
    flags = [f"--{flag}={path}" for flag, path in official.items()]
    for arguments, told in (
        (
            ["imagenet", *flags, f"--out={tmp_path}/out"],
            "labels for 7 validation images, not 50,000",
        ),
        (
            ["imagenet", *flags[1:], f"--out={tmp_path}/out", f"--train_tar={tmp_path}/no.tar"],
            "no.tar is not there",
        ),
        (["imagenet", *flags], "also needs --out"),
        ([], "say what to do"),
        (["--check", f"{tmp_path}/nothing"], "no folder train, val or test"),
        (["imagenet", "--check", "x"], "are two commands"),
    ):
        found = command(*arguments)
        assert found.returncode == 2 and told in found.stderr and found.stdout == ""
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
