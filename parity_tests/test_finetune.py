"""Claim: weights of any format are tuned to other classes by both twins, along one curve."""

import cv2
import numpy as np
import pytest
from whole_runs import metrics, train_here

from shared_vit.data.sources import open_dataset
from shared_vit.weights import open_weights, read, write_weights

FORMATS = {
    "torch": "weights.safetensors", "timm": "weights", "torchvision": "weights.pth",
    "huggingface": "weights", "google": "weights.npz", "big_vision": "weights.npz",
}  # fmt: skip
PICTURES = ("--data=folder", "--device=cpu", "--precision=fp64", "--workers=0", "--pad_crop=1",
            "--eval_every=0", "--checkpoint_every=0", "--batch_size=32")  # fmt: skip
TUNED = ("--preset=finetune", "--lr=0.1", "--warmup_steps=10", "--steps=200")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Folders of images of the digits 0 to 3, and of 4 to 9."""
    root = tmp_path_factory.mktemp("halves")
    dataset = open_dataset("digits")
    for split, most in (("train", 1000), ("val", 300)):
        examples = getattr(dataset, split)
        for i in range(most):
            image, label = examples.read(i)
            folder = root / ("low" if label < 4 else "high") / split / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{i}.png"), image)
    return root


@pytest.fixture(scope="module")
def trained(halves, tmp_path_factory):
    """A run on the low half."""
    run = tmp_path_factory.mktemp("runs") / "low"
    flags = (
        f"--data_dir={halves / 'low'}",
        "--model=vit_nano2",
        "--depth=2",
        "--image_size=8",
        "--lr=3e-3",
    )
    more = ("--eval_resize=1", "--warmup_steps=20", "--steps=200", "--randaug=off")
    assert train_here("torch", run, *PICTURES, *flags, *more) == 0
    assert metrics(run)[-1]["val_top1"] > 0.4  # a guess: 0.25
    return run


def tuned(twin, run, weights, halves, *flags) -> list[dict]:
    where = (f"--init_from={weights}", f"--data_dir={halves / 'high'}")
    assert train_here(twin, run, *PICTURES, *where, *TUNED, *flags) == 0
    return metrics(run)


@pytest.fixture(scope="module")
def curve(trained, halves, tmp_path_factory):
    """Of the PyTorch twin, from the run itself."""
    found = tuned("torch", tmp_path_factory.mktemp("runs") / "own", trained, halves)
    assert found[0]["loss"] == pytest.approx(np.log(6), rel=1e-12)  # a new head, zero
    assert np.mean([m["loss"] for m in found[180:200]]) < 0.95 * found[0]["loss"]
    return found


@pytest.mark.parametrize("twin", ["torch", "jax"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_tuned_along_one_curve(format, twin, trained, halves, curve, tmp_path, x64):
    path = tmp_path / FORMATS[format]
    write_weights(path, *read(trained), format=format)
    assert open_weights(path).cfg.num_classes == 4
    found = tuned(twin, tmp_path / "run", path, halves, "--stop_at=25")
    assert len(found) == 25
    for a, b in zip(curve, found):  # float32 in most formats
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), a["step"]


@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_a_linear_probe_moves_the_head_alone(twin, trained, halves, curve, tmp_path, x64):
    found = tuned(twin, tmp_path / "run", trained, halves, "--freeze=trunk", "--stop_at=10")
    assert found[0]["loss"] == pytest.approx(np.log(6), rel=1e-12) and found[-1]["loss"] < np.log(6)
    (_, before), (_, after) = read(trained), read(tmp_path / "run")
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {"head.weight", "head.bias"}
