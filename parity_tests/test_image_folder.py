"""Claim: logits and curves agree on photographs too: JPEGs made here, or --imagenet=DIR."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import jax_trainer, nudged_runs, random_arrays, run, torch_trainer, traces, worst

from shared_vit import model_config
from shared_vit.data import batches, normalize, open_dataset
from shared_vit.run.state import first_state
from shared_vit.spec import init
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from twinvit.parity.noise_rule import machine_epsilon, noise_rule


def make_folder(root: Path) -> Path:
    """Three classes of JPEGs, each a colour of noise, so that there is something to learn."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, colour in enumerate(((200, 60, 60), (60, 200, 60), (60, 60, 200))):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.normal(colour, 40, (50 + i, 70 - i, 3)).clip(0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{i}.JPEG"), image)
    return root


@pytest.fixture(params=["made here", "imagenet"])
def folder(request, tmp_path):
    if request.param == "made here":
        return make_folder(tmp_path)
    given = request.config.getoption("--imagenet")
    if given is None:
        pytest.skip("give --imagenet=DIR to run this on ImageNet")
    return Path(given)


def test_logits(folder, x64):
    cfg = model_config("vit_ti16", image_size=32)
    train = Recipe(model=cfg, data="folder", batch_size=12)
    images = next(
        batches(train, "val", runtime=RuntimeConfig(data_dir=str(folder), workers=0))
    ).images
    a, b = traces(cfg, random_arrays(cfg), "fp64", normalize(images, cfg, np.float64))
    assert np.ptp(a[""], axis=0).min() > 1e-3
    distance, layer = worst(a, b)
    assert distance <= 1e-12, layer


def test_curves(folder, x64):
    runtime = RuntimeConfig(data_dir=str(folder), workers=0)
    classes = open_dataset("folder", runtime.data_dir).num_classes
    cfg = model_config("vit_nano2", num_classes=classes, image_size=32, patch_size=16)
    recipe = dict(data="folder", batch_size=12, lr=1e-3, weight_decay=0.1, warmup_steps=5)
    train = Recipe(model=cfg, precision="fp64", **recipe)
    state = first_state(cfg, init.draw(cfg, 0), "fp64")
    twins = (jax_trainer(state, train), torch_trainer(state, train))
    a, b = (run(trainer, train, 60, runtime=runtime) for trainer in twins)
    verdict = noise_rule(a, b, b, nudged_runs(state, train, 60, runtime), machine_epsilon("fp64"))
    assert verdict.matched, verdict.describe()
