"""Claim: the names of a model's classes go with its weights, through files, formats and runs."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from helpers import SMALL, random_arrays
from PIL import Image
from whole_runs import train_here

import jax_vit
import torch_vit
from shared_vit import weights
from shared_vit.data.sources.imagenet_names import imagenet_names, plain_names
from shared_vit.data.sources.wnids import WNIDS
from shared_vit.errors import UserError
from shared_vit.weights.class_names import cleaned
from shared_vit.weights.containers.safetensors import write_safetensors
from shared_vit.weights.formats import twinvit
from twinvit.convert.command import convert
from twinvit.convert.libraries import without_torchvision_operators

CFG = dataclasses.replace(SMALL, depth=1)
NAMES = ("cat", "dog", "crane", "crane", "grey wolf, lupus", "caf\u00e9", '"7"')
SUFFIXES = {
    "torch": ".safetensors",
    "timm": "",
    "huggingface": "",
    "torchvision": ".pth",
    "google": ".npz",
}


def arrays():
    values = random_arrays(CFG)
    values["pos_embed"][:, 0] = 0  # big_vision and Google keep none there
    return values


def write(path, format="torch", names=NAMES):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights.write(path, CFG, arrays(), format, names)
    return path


def names_in(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weights.open_weights(path).class_names


def test_equal_weights_and_names_are_equal_files(tmp_path):
    a, b = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", names=list(NAMES))
    assert a.read_bytes() == b.read_bytes()
    assert names_in(a) == NAMES
    other = write(tmp_path / "c.safetensors", names=("bird", *NAMES[1:]))
    assert other.read_bytes() != a.read_bytes()
    assert weights.read(a)[0] == CFG  # and `read` is what it was: (cfg, arrays)


def test_a_file_without_names_is_the_file_that_it_was(tmp_path):
    """Nothing is added, so that equal weights stay equal files across versions."""
    path = write(tmp_path / "a.safetensors", names=None)
    metadata = {"format": "twinvit", "format_version": "1", "model_config": CFG.to_json()}
    write_safetensors(tmp_path / "b.safetensors", arrays(), metadata)
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert names_in(path) is None


@pytest.mark.parametrize(
    "names, complaint",
    [
        (NAMES[:6], "6 class names do not fit 7 classes"),
        (("a\nb", *NAMES[1:]), "each printable"),
        ((1, *NAMES[1:]), "each printable"),
        (("", *NAMES[1:]), "each printable"),
        ("abcdefg", "a list of class names"),
    ],
)
def test_names_that_are_none_are_refused(names, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        weights.write(tmp_path / "a.safetensors", CFG, arrays(), class_names=names)
    assert not any(tmp_path.iterdir())
    stored = {"format": twinvit.FORMAT, "model_config": CFG.to_json()}
    stored["class_names"] = json.dumps(names)
    write_safetensors(tmp_path / "a.safetensors", arrays(), stored)
    with pytest.raises(UserError, match="class names"):
        weights.open_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("format, suffix", [*SUFFIXES.items(), ("timm", ".pth")])
@pytest.mark.parametrize("names", [NAMES, None])
def test_conversions_keep_them(format, suffix, names, tmp_path):
    """There and back: the names are the same, and so is the file."""
    src = write(tmp_path / "a.safetensors", names=names)
    there, back = tmp_path / f"b{suffix}", tmp_path / "c.safetensors"
    assert convert(str(src), str(there), format) == 0
    assert names_in(there) == names
    assert convert(str(there), str(back), "torch") == 0
    assert back.read_bytes() == src.read_bytes()


def test_another_number_of_classes_drops_them(tmp_path):
    src, dst = write(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    assert convert(str(src), str(dst), "torch", num_classes=3) == 0
    assert names_in(dst) is None
    again = dict(num_classes=7, image_size=16, overwrite=True)
    assert convert(str(src), str(dst), "torch", **again) == 0
    assert names_in(dst) == NAMES


def test_hugging_faces_id2label(tmp_path):
    config = write(tmp_path / "hf", "huggingface") / "config.json"
    said = json.loads(config.read_text())
    assert said["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    assert said["label2id"]["dog"] == 1
    said["id2label"] = dict(reversed(said["id2label"].items())) | {"0": "tiger"}
    config.write_text(json.dumps(said))
    assert names_in(tmp_path / "hf") == ("tiger", *NAMES[1:])
    for useless in (
        {"0": "cat"},
        {str(i): i for i in range(7)},
        {str(i + 1): "x" for i in range(7)},
    ):
        config.write_text(json.dumps(said | {"id2label": useless}))
        source = weights.open_weights(tmp_path / "hf")
        assert source.class_names is None
        assert any("class names do not fit 7 classes: left out" in n for n in source.notices)
    for nothing in (None, {}, {str(i): f"LABEL_{i}" for i in range(2)}):
        config.write_text(json.dumps(said | {"id2label": nothing}))
        source = weights.open_weights(tmp_path / "hf")
        assert source.class_names is None and not source.notices


def test_transformers_reads_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "hf", "huggingface")
    config = transformers.ViTConfig.from_pretrained(tmp_path / "hf")
    assert config.num_labels == 7 and [config.id2label[i] for i in range(7)] == list(NAMES)


def test_timms_label_names(tmp_path):
    """A list or an object, at the top or in pretrained_cfg; descriptions are what people read."""
    config = write(tmp_path / "timm", "timm", names=None) / "config.json"
    said = json.loads(config.read_text())
    assert "label_names" not in said and names_in(tmp_path / "timm") is None
    numbers = {str(i): f"n{i}" for i in range(7)}
    described = {f"n{i}": name for i, name in enumerate(NAMES)}
    in_cfg = {"pretrained_cfg": said["pretrained_cfg"] | {"label_names": list(NAMES)}}
    for change, expected in (
        ({"label_names": list(NAMES)}, NAMES),
        ({"label_names": numbers}, tuple(numbers.values())),
        ({"label_names": numbers, "label_descriptions": described}, NAMES),
        ({"label_names": numbers, "label_descriptions": {"n0": "cat"}}, tuple(numbers.values())),
        (in_cfg, NAMES),
    ):
        config.write_text(json.dumps(said | change))
        assert names_in(tmp_path / "timm") == expected


def test_timm_reads_them(tmp_path):
    without_torchvision_operators()
    hub = pytest.importorskip("timm.models._hub")
    write(tmp_path / "timm", "timm")
    found = hub.load_model_config_from_path(tmp_path / "timm")[0]
    assert found["label_names"] == list(NAMES)


def test_imagenets_names():
    names = list(imagenet_names().values())
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {i: names[i] for i in known} == known
    assert list(imagenet_names()) == WNIDS and len(set(names)) == 1000
    assert plain_names(["n02123045", "n01440764"]) == ("tabby", "tench")  # any subset
    assert plain_names(["n02123045", "cat"]) == ("n02123045", "cat")
    assert plain_names([]) == ()


def test_imagenets_names_are_torchvisions():
    without_torchvision_operators()
    meta = pytest.importorskip("torchvision.models._meta")
    assert list(imagenet_names().values()) == meta._IMAGENET_CATEGORIES


def test_both_twins_save_them(tmp_path):
    for twin in (jax_vit, torch_vit):
        twin.save(twin.from_arrays(CFG, arrays()), tmp_path / "a.safetensors", class_names=NAMES)
        assert names_in(tmp_path / "a.safetensors") == NAMES


def test_the_arrays_do_not_depend_on_the_names(tmp_path):
    a, b = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", names=None)
    for name, array in weights.read(a)[1].items():
        assert np.array_equal(array, weights.read(b)[1][name])


def test_names_that_cannot_be_written_become_such(tmp_path):
    """A class folder may be called anything, and no run fails at its first checkpoint for that."""
    odd = ["a\nb", "", "x" * 2000, "\u3000", "\x1b[31m", "caf\u00e9", "\udc80"]
    names = cleaned(odd)
    assert names == ("a\\nb", "1", "x" * 1000, "\\u3000", "\\x1b[31m", "caf\u00e9", "\\udc80")
    assert names_in(write(tmp_path / "a.safetensors", names=names)) == names


def pictures(root, classes):
    """One tiny image of each class in each split."""
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 8)).save(root / split / name / "a.png")
    return root


def trained(run_dir, data, *flags):
    size = ("--width=8", "--depth=1", "--num_heads=1", "--image_size=8", "--patch_size=4")
    length = ("--steps=1", "--batch_size=2", "--warmup_steps=0", "--workers=0")
    where = ("--data=folder", f"--data_dir={data}")
    start = () if any("init_from" in flag for flag in flags) else size
    assert train_here("torch", run_dir, *where, *start, *length, *flags) == 0
    return names_in(run_dir)


def test_a_run_names_its_classes(tmp_path, capsys):
    data = pictures(tmp_path / "data", ["dog", "c\nat"])
    assert trained(tmp_path / "run", data) == ("c\\nat", "dog")
    # Weights of the run go on: the same head, other names for it, and a new head.
    go_on = f"--init_from={tmp_path / 'run'}"
    capsys.readouterr()
    assert trained(tmp_path / "same", data, go_on) == ("c\\nat", "dog")
    assert "another name" not in capsys.readouterr().out
    other = pictures(tmp_path / "other", ["Dog", "bird"])
    assert trained(tmp_path / "other_run", other, go_on) == ("Dog", "bird")
    assert "notice: 2 of the 2 classes have another name in the weights" in capsys.readouterr().out
    three = pictures(tmp_path / "three", ["a", "b", "c"])
    assert trained(tmp_path / "new", three, go_on) == ("a", "b", "c")
    assert "another name" not in capsys.readouterr().out
    assert trained(tmp_path / "wide", three, "--num_classes=5") == ("a", "b", "c", "3", "4")


def test_a_run_on_imagenets_folders_has_plain_names(tmp_path):
    data = pictures(tmp_path / "data", ["n02123045", "n01440764"])
    assert trained(tmp_path / "run", data) == ("tench", "tabby")
    assert trained(tmp_path / "run", data, "--resume", "--steps=2") == ("tench", "tabby")
