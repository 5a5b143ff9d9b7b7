"""Training from Python: whole runs with the flags as arguments, and single steps; and the one line
that fine-tunes on whatever folder there is."""

import typing

import mypy.api
import numpy as np
import pytest
from data_helpers import encoded, photo
from helpers import random_arrays
from whole_runs import TWINS, metrics, train_here

import twinvit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.plan import make_plan
from shared_vit.run.requested import flags
from shared_vit.run.state import TrainState
from shared_vit.spec.config import model_config
from shared_vit.spec.settings import _kind
from shared_vit.weights import open_weights
from twinvit.training.flags import Flags, requested

DIGITS: dict = dict(
    preset="digits", depth=2, device="cpu", world_size=1, precision="fp32", steps=6, batch_size=32,
    warmup_steps=2, seed=3,
)  # fmt: skip
ARGV = [f"--{name}={value}" for name, value in DIGITS.items()]
LEFT_OUT = {"config", "mode", "coordinator", "num_processes", "process_id"}


def test_the_types_are_those_of_the_flags():
    hints = typing.get_type_hints(Flags)
    assert set(hints) == set(flags()) - LEFT_OUT
    for name, hint in hints.items():
        kind = flags()[name][1]
        if kind.choices:
            assert typing.get_args(hint) == kind.choices, name
        elif name not in ("keep", "mean", "std", "class_weights"):
            assert _kind(hint).type is kind.type, name


def test_mypy_knows_the_requested_config(tmp_path):
    """A flag of another name is refused, and a number that may be open yet."""
    code = (
        "from shared_vit.run.requested import RequestedConfig\n"
        "def f(requested: RequestedConfig) -> float:\n"
        "    return requested.lr + requested.{}\n"
    )
    for name in ("clip", "learning_rate", "num_classes"):
        (tmp_path / f"{name}.py").write_text(code.format(name))
    paths = [str(path) for path in tmp_path.glob("*.py")]
    said, _, status = mypy.api.run([f"--cache-dir={tmp_path}", "--follow-imports=silent", *paths])
    assert status == 1 and "clip.py" not in said, said
    assert 'learning_rate.py:3: error: "RequestedConfig" has no attribute' in said
    assert "num_classes.py:3: error: Unsupported operand types" in said


def test_flags_are_taken_as_on_a_command_line():
    given = DIGITS | dict(mean=(0.1, 0.2, 0.3), keep="all", resume=False, lr=None)
    one, other = requested(given, "x"), parse([*ARGV, "--mean=0.1,0.2,0.3", "--keep=all"], "x")
    assert one == other and one.mean == (0.1, 0.2, 0.3)
    with pytest.raises(UserError, match="takes no flag 'learning_rat'"):
        twinvit.trainer("torch", learning_rat=1.0)
    with pytest.raises(UserError, match="--batch_size"):
        twinvit.trainer("torch", preset="digits", batch_size=0)
    with pytest.raises(UserError, match="framework is one of torch, jax"):
        twinvit.train("tensorflow")


@pytest.mark.parametrize("twin", TWINS)
def test_a_whole_run(tmp_path, twin):
    run = twinvit.train(twin, run_dir=str(tmp_path / "run"), **DIGITS)
    assert run.path == tmp_path / "run" and run.framework == twin and not run.interrupted
    assert run.metrics == metrics(run.path) and run.metrics[-1]["val_top1"] > 0
    train_here(twin, tmp_path / "other", *ARGV)
    assert run.metrics == metrics(tmp_path / "other")
    held = open_weights(run.path).arrays["head.weight"]
    kept = twinvit.load(run.path, twin).model
    named = {"torch": "head.weight", "jax": "head"}
    parameter = dict(run.model.named_parameters())["head.weight"] if twin == "torch" else None
    assert named[twin] and type(kept) is type(run.model)
    if parameter is not None:
        assert np.array_equal(parameter.detach().numpy(), np.asarray(held))
    else:
        assert np.array_equal(np.asarray(run.model.head.kernel[...]).T, np.asarray(held))


def test_a_run_without_a_folder_takes_the_next_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = DIGITS | {"steps": 1}
    assert [twinvit.train("torch", **few).path.name for _ in range(2)] == [
        "digits-torch", "digits-torch-2",
    ]  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
def test_steps_in_python_are_those_of_a_run(tmp_path, twin):
    trainer = twinvit.trainer(twin, **DIGITS)
    batch = next(trainer.batches())
    first = trainer.step(batch)
    assert batch.images.shape == (32, 8, 8, 3) and trainer.step_count == 1
    rest = [trainer.step(next(trainer.batches())) for _ in range(5)]
    run = twinvit.train(twin, run_dir=str(tmp_path / "run"), **DIGITS)
    lines = [line for line in run.metrics if "loss" in line]
    assert [m.loss for m in (first, *rest)] == [line["loss"] for line in lines]
    assert [m.grad_norm for m in (first, *rest)] == [line["grad_norm"] for line in lines]
    assert trainer.evaluate()["val_loss"] == run.metrics[-1]["val_loss"]
    trainer.save(tmp_path / "w.safetensors")
    made, theirs = open_weights(tmp_path / "w.safetensors"), open_weights(run.path)
    name = "blocks.0.mlp.fc1.weight"
    assert np.array_equal(np.asarray(made.arrays[name]), np.asarray(theirs.arrays[name]))
    assert isinstance(trainer.state(), TrainState) and trainer.state().step == 6


def test_a_run_goes_on_step_by_step(tmp_path):
    twinvit.train("torch", run_dir=str(tmp_path / "run"), stop_at=4, **DIGITS)
    trainer = twinvit.trainer("torch", run_dir=str(tmp_path / "run"), resume=True)
    assert trainer.step_count == 4
    last = [trainer.step(batch).loss for batch, _ in zip(trainer.batches(), range(2))]
    whole = twinvit.train("torch", run_dir=str(tmp_path / "whole"), **DIGITS)
    assert last == [line["loss"] for line in whole.metrics if line["step"] > 4 and "loss" in line]


@pytest.mark.parametrize("twin", TWINS)
def test_features_are_what_the_head_is_given(tmp_path, twin):
    cfg = model_config("vit_nano2", num_classes=5, image_size=8)
    arrays = random_arrays(cfg)
    weights.write(tmp_path / "w.safetensors", cfg, arrays)
    images = [photo(i, 20, 24) for i in range(3)]
    model = twinvit.embedder(tmp_path / "w.safetensors", twin)
    found = model.embed(images)
    assert found.shape == (3, 64) and found.dtype == np.float32
    predictor = twinvit.load(tmp_path / "w.safetensors", twin)
    logits = predictor.logits(twinvit.preprocess(images, predictor.cfg))
    expected = found @ arrays["head.weight"].T + arrays["head.bias"]
    assert np.allclose(expected, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert np.array_equal(model.embed(images[1]), model.embed([images[1]])[0])
    assert model.embed([]).shape == (0, 64)


def test_weights_without_a_head_give_features(tmp_path):
    import safetensors.numpy

    cfg = model_config("vit_nano2", num_classes=5, image_size=8)
    weights.write(tmp_path / "w.safetensors", cfg, random_arrays(cfg), format="timm")
    arrays = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    bare = {n: a for n, a in arrays.items() if not n.startswith("head.")}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    image, same = photo(0, 20, 24), dict(num_heads=4, mean=cfg.mean, std=cfg.std, exif="ignore")
    same |= dict(interpolation="bilinear", eval_resize=cfg.eval_resize)
    one, two = (
        twinvit.embedder(tmp_path / f"{name}.safetensors", "torch", **same)
        for name in ("w", "bare")
    )
    assert np.array_equal(one.embed(image), two.embed(image))


def test_the_command_writes_features_beside_the_names(tmp_path, capsys):
    from twinvit.predict.embed import embed

    cfg = model_config("vit_nano2", num_classes=5, image_size=8)
    weights.write(tmp_path / "w.safetensors", cfg, random_arrays(cfg))
    (tmp_path / "photos").mkdir()
    for i in range(5):
        (tmp_path / f"photos/{i}.jpg").write_bytes(encoded(photo(i, 20, 24)))
    out = str(tmp_path / "e.npz")
    arguments = (str(tmp_path / "w.safetensors"), (str(tmp_path / "photos"),), out)
    assert embed(*arguments, batch_size=2) == 0
    found = np.load(out)
    names = [str(tmp_path / f"photos/{i}.jpg") for i in range(5)]
    assert found["images"].tolist() == names and found["features"].shape == (5, 64)
    model = twinvit.embedder(tmp_path / "w.safetensors")
    assert np.allclose(found["features"], model.embed(names), atol=1e-5)
    with pytest.raises(UserError, match="exists already"):
        embed(*arguments)
    (tmp_path / "photos/2.jpg").write_bytes(b"no picture")
    assert embed(*arguments, overwrite=True) == 1
    assert "cannot decode" in capsys.readouterr().err
    assert np.load(out)["images"].tolist() == [n for n in names if not n.endswith("2.jpg")]
    with pytest.raises(UserError, match=r"written to \*\.npz"):
        embed(arguments[0], arguments[1], str(tmp_path / "e.csv"))


def photos(root, layout: str, count: int = 6):
    """Images of two classes, `count` each, in one of the layouts that people have."""
    splits = {"flat": [""], "split": ["train/", "val/"], "val": ["val/"]}[layout]
    for split in splits:
        for name in ("ant", "bee"):
            (root / f"{split}{name}").mkdir(parents=True)
            for i in range(count):
                data = encoded(photo(i + len(name) * count, 20, 24))
                (root / f"{split}{name}/{i}.jpg").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    cfg = model_config("vit_nano2", num_classes=7, image_size=8, depth=1)
    weights.write(path, cfg, random_arrays(cfg))
    return path


@pytest.mark.parametrize("layout", ["flat", "split", "val"])
def test_one_line_fine_tunes_on_whatever_the_folder_is(tmp_path, pretrained, layout, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = photos(tmp_path / "photos", layout)
    line = [f"--init_from={pretrained}", "--data=folder", f"--data_dir={root}"]
    plan = make_plan(parse(line, "train").replace(**_CPU), "jax")
    assert plan.recipe.steps == 200 and plan.runtime.eval_every == 20
    assert any("so this run takes 200" in text for text in plan.dataset.notices)
    run = twinvit.train(
        "torch", init_from=str(pretrained), data="folder", data_dir=str(root), device="cpu"
    )
    assert run.path.name == "finetune-torch" and run.metrics[-1]["step"] == 200
    names = [str(root / p) for p in ("ant/0.jpg", "train/ant/0.jpg", "val/ant/0.jpg")]
    picture = next(n for n in names if (tmp_path / n).exists())
    assert twinvit.load(run.path, "jax").predict(picture)[0]["class"] in ("ant", "bee")


_CPU = dict(device="cpu", world_size=1, precision="fp32")


@pytest.mark.parametrize("flag", ["--steps=30", "--epochs=30", "--preset=finetune"])
def test_a_chosen_length_is_kept_and_a_short_one_is_said(tmp_path, pretrained, flag):
    root = photos(tmp_path / "photos", "split")
    line = [f"--init_from={pretrained}", "--data=folder", f"--data_dir={root}", flag]
    plan = make_plan(parse(line, "train").replace(**_CPU), "jax")
    assert plan.recipe.steps == (30 if flag == "--steps=30" else 6)
    assert any(f"{plan.recipe.steps} steps are few for fine-tuning" in text
               for text in plan.dataset.notices)  # fmt: skip


def test_enough_pictures_keep_their_epochs(tmp_path, pretrained):
    root = photos(tmp_path / "photos", "split", count=40)
    line = [f"--init_from={pretrained}", "--data=folder", f"--data_dir={root}", "--batch_size=4"]
    plan = make_plan(parse(line, "train").replace(**_CPU), "jax")
    assert plan.recipe.steps == 600 and plan.runtime.eval_every == 20 and not plan.dataset.notices
