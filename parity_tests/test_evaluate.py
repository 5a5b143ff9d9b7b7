"""Claim: an evaluation is of the weights and data that the user means, and its line names them."""

import re
import shutil

import numpy as np
import pytest
from helpers import random_arrays
from PIL import Image
from whole_runs import metrics, train_here

from shared_vit import weights
from shared_vit.data.sources import imagenet
from shared_vit.errors import UserError
from shared_vit.run import checkpoint, plan
from shared_vit.run.command_line import parse
from shared_vit.run.plan import make_plan
from shared_vit.run.start_from import describe_start
from shared_vit.spec.config import model_config
from shared_vit.weights.checkpoints import MODEL
from twinvit.training.command import evaluate

FLAGS = ("--batch_size=16", "--steps=4", "--warmup_steps=2", "--workers=0", "--lr=1e-2")


def folder_of_pictures(root, classes: int):
    """`train/` and `val/` of smooth images that are easy to tell apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for label in range(classes):
            folder = root / split / f"c{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (12, 12, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder_of_pictures(tmp_path_factory.mktemp("photos"), classes=3)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Weights of another number of classes, which a run starts from."""
    path = tmp_path_factory.mktemp("pretrained") / "weights.safetensors"
    cfg = model_config("vit_nano2", num_classes=5, image_size=8)
    weights.write(path, cfg, random_arrays(cfg))
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, photos, pretrained):
    """A run on photographs that began with --init_from, evaluated at its end and in between."""
    run_dir = tmp_path_factory.mktemp("tuned") / "run"
    where = (f"--init_from={pretrained}", "--data=folder", f"--data_dir={photos}")
    size = ("--model=vit_nano2", "--image_size=8", "--eval_every=2", "--keep=all")
    assert train_here("torch", run_dir, *where, *size, *FLAGS) == 0
    return run_dir


@pytest.fixture(autouse=True)
def no_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "imagenet_places", lambda: [tmp_path / "imagenet"])


def result_of(run_dir, step: int) -> str:
    row = next(r for r in metrics(run_dir) if r["step"] == step and "val_loss" in r)
    top1, loss = f"{100 * row['val_top1']:.2f} %", f"{row['val_loss']:.4f}"
    return f"top-1 {top1}, top-5 100.00 %, loss {loss} on 18 examples"


def test_a_tuned_run_is_evaluated_at_its_newest_checkpoint(tuned, pretrained, capsys):
    """Not the weights it began with; its data come from its own record, without a flag."""
    assert result_of(tuned, 2) != result_of(tuned, 4)
    hidden = pretrained.rename(pretrained.with_name("hidden"))
    try:
        for argv in (["--device=cpu"], ["--framework=torch", "--device=cpu"]):
            assert evaluate([str(tuned), *argv]) == 0
        said = capsys.readouterr().out.splitlines()
        assert train_here("torch", tuned, "--mode=eval") == 0
        said += capsys.readouterr().out.splitlines()
    finally:
        hidden.rename(pretrained)
    assert len(said) == 3 and len(set(said)) == 1
    assert said[0] == (
        f"{tuned}/checkpoints/step_4/model.safetensors (step 4) on folder, validation split, "
        "shorter side to 9 px (bilinear), centre 8 px, mean 0.485 0.456 0.406, std 0.229 0.224 "
        "0.225: " + result_of(tuned, 4)
    )


def test_a_checkpoint_of_a_run_is_evaluated_on_its_data(tuned, capsys):
    for path in ("step_2", "step_2/model.safetensors"):
        assert evaluate([f"{tuned}/checkpoints/{path}", "--device=cpu"]) == 0
        said = capsys.readouterr().out
        assert "(step 2)" in said and result_of(tuned, 2) in said


def test_the_step_is_the_checkpoint_s_own(tuned, tmp_path, capsys):
    """Wherever it lies, and whatever of it is named; weights that are no checkpoint have none."""
    for path in (tuned, *(tuned / "checkpoints/step_4" / name for name in ("", MODEL))):
        begun = make_plan(parse([f"--init_from={path}", "--preset=digits"], "x"), "torch")
        assert ", step 4), " in describe_start(begun.weights.source, begun.model)[0]
    shutil.copytree(tuned / "checkpoints/step_4", tmp_path / "best")
    (tmp_path / "step_9").mkdir()
    shutil.copy(tmp_path / "best" / MODEL, tmp_path / "step_9")
    for name, said in (("best", f"best/{MODEL} (step 4) on"), ("step_9", f"step_9/{MODEL} on")):
        path = tmp_path / name / MODEL
        assert train_here("torch", tuned, "--mode=eval", f"--init_from={path}") == 0
        assert said in capsys.readouterr().out


def test_other_weights_are_evaluated_on_a_run_s_data(tuned, tmp_path, capsys):
    """--init_from names the weights, --run_dir the data."""
    cfg, arrays = weights.read(tuned / "checkpoints/step_2/model.safetensors")
    weights.write(tmp_path / "w.safetensors", cfg, arrays)
    flags = ("--mode=eval", f"--init_from={tmp_path / 'w.safetensors'}")
    assert train_here("torch", tuned, *flags) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/w.safetensors on folder") and result_of(tuned, 2) in said


def test_a_damaged_newest_checkpoint_is_skipped(tuned, tmp_path, capsys):
    run = shutil.copytree(tuned, tmp_path / "run")
    (run / "checkpoints/step_4/optimizer.safetensors").unlink()
    assert evaluate([str(run), "--device=cpu"]) == 0
    found = capsys.readouterr()
    assert "skipped: step_4: " in found.err and result_of(tuned, 2) in found.out


def test_a_head_of_other_classes_is_refused(tuned, tmp_path):
    two = folder_of_pictures(tmp_path / "two", classes=2)
    for flags in (["--data=folder", f"--data_dir={two}"], ["--data=digits"]):
        argv = ["--mode=eval", f"--init_from={tuned}", "--device=cpu", *flags]
        with pytest.raises(UserError, match=r"has (2|10) classes, the weights have 3"):
            make_plan(parse(argv, "x").replace(world_size=1, precision="fp32"), "torch")


def test_weights_that_name_no_data_are_not_evaluated_on_digits(pretrained):
    with pytest.raises(UserError, match="does not say what data to evaluate on"):
        parse(["--mode=eval", f"--init_from={pretrained}"], "x")


def test_weights_are_opened_once(photos, pretrained, tmp_path, monkeypatch):
    opened, open_weights = [], weights.open_weights

    def counted(path, **hints):
        opened.append(path)
        return open_weights(path, **hints)

    monkeypatch.setattr(plan.weights, "open_weights", counted)
    where = (f"--init_from={pretrained}", "--data=folder", f"--data_dir={photos}")
    size = ("--model=vit_nano2", "--image_size=8", "--stop_at=1")
    assert train_here("torch", tmp_path / "run", *where, *size, *FLAGS) == 0
    assert [str(path) for path in opened] == [str(pretrained)]


def test_a_plan_with_open_weights_goes_to_another_process(tuned):
    import pickle

    argv = ["--mode=eval", f"--init_from={tuned}", "--device=cpu"]
    settled = make_plan(parse(argv, "x").replace(world_size=1), "torch")
    copy = pickle.loads(pickle.dumps(settled))
    state = plan.state_to_evaluate(copy)
    known, _ = checkpoint.load(tuned / "checkpoints/step_4")
    assert all(np.array_equal(state.params[n], a) for n, a in known.params.items())


def test_evaluate_needs_something_to_evaluate(capsys, tmp_path):
    with pytest.raises(UserError, match="needs a run or a weight file"):
        evaluate(["--device=cpu"])
    with pytest.raises(UserError, match="--framework is one of torch, jax, not 'tf'"):
        evaluate(["x", "--framework=tf"])
    assert evaluate(["--help"]) == 0
    assert re.match("usage: twinvit evaluate RUN_OR_WEIGHTS", capsys.readouterr().out)


def named_weights(path, names):
    cfg = model_config("vit_nano2", num_classes=len(names), image_size=8)
    weights.write(path, cfg, random_arrays(cfg), class_names=names)
    return path


def evaluation_of(weights_file, photos):
    argv = ["--mode=eval", f"--init_from={weights_file}", "--data=folder", f"--data_dir={photos}"]
    settled = dict(world_size=1, precision="fp32", device="cpu")
    return make_plan(parse(argv, "x").replace(**settled), "torch")


@pytest.mark.parametrize(
    "names, other",
    [
        (("c1", "c0", "c2"), "2 classes .* class 0 is 'c1' to the weights, and 'c0' to the data"),
        (("c2", "c0", "c1"), "3 classes"),
        (("C1, a synonym", "c7", "c8"), "1 classes .* class 0 is 'c1'"),
        (("c0", "c1", "c2"), None),
        (("C0, zero", "c1", "c2"), None),
        (("cat", "dog", "fox"), None),  # other words, which nobody can pair
    ],
)
def test_classes_in_another_order_are_refused(names, other, photos, tmp_path):
    """A label would mean another class to the weights: their accuracy would be a wrong number."""
    file = named_weights(tmp_path / "w.safetensors", names)
    if other is None:
        assert evaluation_of(file, photos).dataset.num_classes == 3
    else:
        with pytest.raises(UserError, match=other):
            evaluation_of(file, photos)
