"""Claim: weights of the classes are torch's in both twins' loss, come from the data or a file, and
are part of the run."""

import json

import numpy as np
import pytest
import torch
from data_helpers import encoded, photo
from whole_runs import TWINS, metrics, train_here

import jax_vit.objective
import torch_vit.objective
from shared_vit.data import open_dataset
from shared_vit.data.labels import labels_of
from shared_vit.data.minival import with_minival
from shared_vit.errors import UserError
from shared_vit.run.record import read_record
from shared_vit.spec.class_weights import BALANCED, parse_class_weights, settled
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.settings import written

FLAGS = (
    "--model=vit_nano2", "--image_size=8", "--data=folder", "--batch_size=4", "--steps=4",
    "--warmup_steps=1", "--workers=0", "--precision=fp64", "--eval_every=4",
)  # fmt: skip
COUNTS = {"ant": 12, "bee": 3, "cow": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 12, 3 and 1 training images."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        for label, (name, count) in enumerate(COUNTS.items()):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                content = encoded(photo(100 * label + i, 20, 24))
                (root / split / name / f"{i}.jpg").write_bytes(content)
    return root


def test_both_twins_weigh_as_torch_does(x64):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 3)), np.array([0, 1, 2, 2, 1, 0])
    weights = np.array([0.5, 1.0, 3.0])
    right = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weights),
        reduction="none",
    ).numpy()  # fmt: skip
    each = jax_vit.objective.losses(logits, labels, "softmax")
    in_jax = each * jax_vit.objective.weights_of_rows(weights, labels)
    tensors = [torch.from_numpy(a) for a in (weights, labels, logits)]
    in_torch = torch_vit.objective.losses(tensors[2], tensors[1], "softmax")
    in_torch = in_torch * torch_vit.objective.weights_of_rows(*tensors[:2])
    for found in (np.asarray(in_jax), in_torch.numpy()):
        np.testing.assert_allclose(found, right, rtol=1e-14)


def test_balanced_weights_are_1_on_average():
    labels = np.repeat(np.arange(3), [12, 3, 1])
    found = settled(BALANCED, labels, 4)
    assert found == pytest.approx((16 / 36, 16 / 9, 16 / 3, 1.0))
    assert np.array(found)[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("text, weights", [
    ("off", ()), ("1,2.5,0", (1.0, 2.5, 0.0)), ("balanced", BALANCED), ("1e-1", (0.1,)),
])  # fmt: skip
def test_words_and_numbers(text, weights):
    assert parse_class_weights(text) == weights


def test_what_cannot_weigh(photos, tmp_path):
    with pytest.raises(UserError, match="expected off, balanced, numbers"):
        parse_class_weights("nothere.txt")
    (tmp_path / "words.txt").write_text("ant 1\n")
    with pytest.raises(UserError, match="expected a number in each line"):
        parse_class_weights(str(tmp_path / "words.txt"))
    for bad in ((0.0, 0.0), (-2.0, 1.0), (float("inf"), 1.0)):
        with pytest.raises(UserError, match="numbers of at least 0, and not all of them 0"):
            Recipe(class_weights=bad)
    with pytest.raises(UserError, match="has 2 weights, and the model has 3 classes"):
        train_here("torch", tmp_path / "run", *FLAGS, f"--data_dir={photos}", "--class_weights=1,2")


def test_runs_of_both_twins_take_the_same_weights_and_keep_them(photos, tmp_path, capsys, x64):
    (tmp_path / "weights.txt").write_text("\n".join(map(str, (16 / 36, 16 / 9, 16 / 3))))
    curves = {}
    for twin in TWINS:
        for name in ("balanced", str(tmp_path / "weights.txt"), "off"):
            run = tmp_path / f"{twin}-{len(curves)}"
            flags = (*FLAGS, f"--data_dir={photos}", f"--class_weights={name}")
            assert train_here(twin, run, *flags) == 0
            kept = read_record(run).recipe.class_weights
            assert kept == pytest.approx(() if name == "off" else (16 / 36, 16 / 9, 16 / 3))
            rows = [line for line in metrics(run) if "loss" in line]
            curves[twin, name] = np.array([row["loss"] for row in rows])
        assert "class weights 0.444 to 5.33" in capsys.readouterr().out
    in_jax, in_torch = ([c for (t, _), c in curves.items() if t == twin] for twin in TWINS)
    for a, b in zip(in_jax, in_torch, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    balanced, of_file, off = in_torch
    assert np.array_equal(balanced, of_file) and not np.allclose(balanced, off)


def test_a_run_goes_on_with_its_own_weights_alone(photos, tmp_path):
    flags = (*FLAGS, f"--data_dir={photos}", "--class_weights=balanced")
    assert train_here("torch", tmp_path / "whole", *flags) == 0
    assert train_here("torch", tmp_path / "run", *flags, "--stop_at=2") == 0
    with pytest.raises(UserError, match="class_weights"):
        train_here("torch", tmp_path / "run", "--resume", "--class_weights=off")
    assert train_here("torch", tmp_path / "run", "--resume", "--class_weights=balanced") == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_record_without_weights_is_as_before():
    assert "class_weights" not in written(Recipe())
    kept = json.loads(json.dumps(written(Recipe(class_weights=(1.0, 2.0)))))
    assert Recipe.from_dict(kept).class_weights == (1.0, 2.0)


def test_labels_of_any_split(photos):
    dataset = open_dataset("folder", str(photos))
    assert np.bincount(labels_of(dataset.train)).tolist() == [12, 3, 1]
    digits = open_dataset("digits")
    part = with_minival(digits).train
    right = [part.read(i)[1] for i in range(len(part))]
    assert labels_of(part).tolist() == right
