"""Claim: runs of every piece of a recipe at once draw one curve, whichever twin and however often
they are interrupted."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from helpers import TINY, jax_trainer, nudged_runs, random_arrays, run, torch_trainer, train_config
from whole_runs import digests, metrics, train_here

import torch_vit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.run.state import first_state
from shared_vit.spec.recipe import Recipe
from twinvit.parity.noise_rule import gap, machine_epsilon, noise_rule

ALL = dict(
    mixup=0.2, cutmix=1.0, label_smoothing=0.1, randaug="2,10", ema=0.99, layer_decay=0.8,
    repeat_aug=3,
)  # fmt: skip
SHARP = dict(optimizer="sgd", weight_decay=0.01, sam_rho=0.05, sam_groups=2, lr=0.05)
MODEL = dataclasses.replace(TINY, drop_path=0.2, dropout=0.1)


# Sixty steps show what two hundred do, in a third of the time; `make test-slow` runs all.
@pytest.mark.parametrize("steps", [60, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [ALL, SHARP], ids=["everything", "sam and sgd"])
def test_curves(settings, steps, x64):
    train = train_config("fp64", **settings)
    train = dataclasses.replace(train, model=MODEL)
    state = first_state(MODEL, random_arrays(MODEL), "fp64", train)
    a, b = (
        run(t, train, steps) for t in (jax_trainer(state, train, 2), torch_trainer(state, train))
    )
    noise = nudged_runs(state, train, steps)
    verdict = noise_rule(a, b, b, noise, machine_epsilon("fp64"))
    assert verdict.matched and verdict.decided_until == steps, verdict.describe()
    assert gap(a, b, "loss")[min(steps, 100) - 1] <= 1e-10
    assert a.loss[-20:].mean() < a.loss[:20].mean()  # it learned


FLAGS = (
    "--preset=digits", "--depth=2", "--device=cpu", "--steps=12", "--batch_size=32",
    "--warmup_steps=3",
    "--eval_every=6", "--checkpoint_every=3", "--keep=all", "--workers=0", "--mixup=0.2",
    "--cutmix=1", "--label_smoothing=0.1", "--randaug=1,10", "--drop_path=0.1", "--ema=0.9",
)  # fmt: skip
PARTS = {
    "adamw": ("--layer_decay=0.8", "--freeze=1"),
    "sgd": ("--optimizer=sgd", "--weight_decay=0.01", "--lr=0.03", "--sam_rho=0.05"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_run_is_resumed_by_itself_and_by_the_other_twin(part, tmp_path, x64):
    flags = (*FLAGS, *PARTS[part], "--precision=fp64")
    for twin in ("torch", "jax"):
        assert train_here(twin, tmp_path / twin, *flags) == 0
        assert train_here(twin, tmp_path / f"{twin} stopped", *flags, "--stop_at=5") == 0
        assert train_here(twin, tmp_path / f"{twin} stopped", "--resume", "--stop_at=100") == 0
        whole, stopped = digests(tmp_path / twin), digests(tmp_path / f"{twin} stopped")
        assert {n: stopped.get(n) for n in whole} == whole
    assert train_here("torch", tmp_path / "moved", *flags, "--stop_at=6") == 0
    assert train_here("jax", tmp_path / "moved", "--resume", "--stop_at=100") == 0
    expected, found = metrics(tmp_path / "torch"), metrics(tmp_path / "moved")
    assert len(found) == len(expected) == 14
    for a, b in zip(expected, found):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-9), (a, name)


@pytest.mark.filterwarnings("ignore:the weights of .* are taken")
def test_averaged_weights_are_evaluated_and_kept(tmp_path):
    assert train_here("torch", tmp_path / "run", *FLAGS) == 0
    line = next(m for m in metrics(tmp_path / "run") if "val_top1" in m)
    assert {"val_loss_ema", "val_top1_ema", "val_top5_ema", "val_count"} < line.keys()
    assert line["val_loss_ema"] != line["val_loss"]
    folder = tmp_path / "run/checkpoints/step_12"
    state, _ = checkpoint.load(folder)
    model = torch_vit.load(folder / "ema.safetensors")
    _, averaged = torch_vit.to_arrays(model)
    for name, array in averaged.items():
        np.testing.assert_array_equal(array, state.slots["ema"].get(name, state.params[name]))
    cfg, raw = weights.read(folder)  # a checkpoint's weights are the raw ones
    assert cfg == state.config
    assert all(np.array_equal(raw[n], p) for n, p in state.params.items())
    assert any(not np.array_equal(raw[n], averaged[n]) for n in raw)
    # Evaluated by its file, it has the score that the run recorded.
    last = metrics(tmp_path / "run")[-1]
    found = evaluated(tmp_path, folder / "ema.safetensors")
    assert found == pytest.approx(last["val_loss_ema"], abs=5e-5)


def evaluated(tmp_path, file) -> float:
    """The loss that --mode=eval prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        flags = ("--mode=eval", f"--init_from={file}", "--data=digits", "--workers=0")
        assert train_here("torch", tmp_path / "eval", *flags) == 0
    return float(said.getvalue().split("loss ")[1].split(" ")[0])


def test_frozen_runs_say_so_in_their_checkpoints(tmp_path):
    flags = ("--preset=digits", "--steps=2", "--warmup_steps=1", "--workers=0", "--freeze=trunk")
    assert train_here("torch", tmp_path / "run", *flags) == 0
    document = json.loads((tmp_path / "run/checkpoints/step_2/state.json").read_text())
    assert "cls_token" in document["frozen"] and "head.weight" not in document["frozen"]
    state, _ = checkpoint.load(tmp_path / "run/checkpoints/step_2")
    assert set(state.slots["exp_avg"]) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--freeze=5",), "the model has 4 blocks"),
        (("--freeze=all",), "expected none, embed, trunk"),
        (("--label_smoothing=1",), "below 1"),
        (("--momentum=1",), "below 1"),
        (("--ema=1",), "below 1"),
        (("--drop_path=1",), r"drop_path must be in \[0, 1\)"),
        (("--sam_groups=2",), "belongs to --sam_rho"),
        (("--sam_rho=0.1", "--sam_groups=3"), "not divisible by 2 x 3 groups"),
        (("--ema=0.9", "--precision=fp16"), "--ema knows nothing: use bf16"),
        (("--optimizer=sgd", "--precision=fp16"), "--optimizer=sgd knows nothing: use bf16"),
        (("--mixup=0.2", "--batch_size=3"), "an odd number"),
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(flags, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train_here("torch", tmp_path / "run", "--preset=digits", "--workers=0", *flags)
    assert not (tmp_path / "run").exists()


def test_records_of_older_recipes_keep_their_curve():
    """A recipe written before these fields is the one in which all of them are off."""
    old = dataclasses.asdict(Recipe())
    new = ("mixup", "cutmix", "momentum", "loss", "label_smoothing", "layer_decay", "freeze", "ema",
           "sam_rho", "sam_groups")  # fmt: skip
    assert Recipe.from_dict({n: v for n, v in old.items() if n not in new}) == Recipe()
