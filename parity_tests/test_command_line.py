"""Claim: bad input gets one clear error, at once, with exit status 2, and nothing is written."""

import pytest

from shared_vit.data.sources import imagenet
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.plan import make_plan, settle_recipe
from shared_vit.run.presets import ABOUT, FROM_WEIGHTS, PRESETS
from shared_vit.run.requested import RequestedConfig, check_processes, flags
from shared_vit.spec.config import model_config
from twinvit.presets import presets

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagenet, "imagenet_places", lambda: [tmp_path / "imagenet"])
    yield
    assert not list(tmp_path.iterdir()), "something was written"


BAD = {
    "--preset=digit": "did you mean 'digits'",
    "--preset=imagnet": "did you mean 'imagenet'",
    "--preset=ImageNet-1k": "did you mean 'imagenet'",
    "--preset=cifar": "did you mean 'cifar10'",
    "--data=imagnet": "did you mean 'imagenet'",
    "--model=vit_b61": "did you mean 'vit_b16'",
    "--data=digts": "did you mean 'digits'",
    "--data=cifar10": "did you mean --preset=cifar10, or --data=tfds:cifar10",
    "--data=CIFAR-10": "did you mean --preset=cifar10",
    "--data=mnist": "unknown data set 'mnist'. Data sets: ",
    "--preset=digits --model=ViT-B/16": "did you mean 'vit_b16'",
    "--preset=digits --model=google/vit-large-patch32-384": "did you mean 'vit_l32'",
    "--preset=digits --model=vit_base": "did you mean 'vit_b16'",
    "--preset=digits --model=resnet50": "unknown model 'resnet50'. Models: ",
    "--preset=digits --image_size=100000": "image_size must be at most 16384",
    "--preset=digits --device=cpu --world_size=1000": "at most .* use --world_size=",
    "--data=digits --model=vit_b16 --image_size=40": (
        "16 px do not divide .* 40 px.*--image_size=32 or"
    ),
    "--preset=digits --batch_size=65 --grad_accum=2": (
        "=65 is not divisible by --world_size=1 x --grad_accum=2"
    ),
    "--preset=digits --batch_size=60 --world_size=8": (
        "--batch_size=60 is not divisible by --world_size=8"
    ),
    "--preset=digits --optimizer=adam --weight_decay=0.1": "adam has no weight decay",
    "--preset=digits --lr=-1": "--lr must be above 0",
    "--preset=digits --lr=nan": "--lr must be above 0",
    "--preset=digits --dropout=1.5": "dropout must be in",
    "--preset=digits --steps=0": "--steps must be at least 1",
    "--resume": "--resume needs --run_dir",
    "--resume --run_dir=absent": "absent holds no run.*leave --resume out to begin a run there",
    "--preset=digits --init_from=x --resume --run_dir=absent": "absent holds no run",
    "--preset=digits --epochs=inf": "--epochs must be at most",
    "--preset=digits --epochs=1e300": "--epochs must be at most",
    "--preset=digits --num_heads=7": "7 heads do not divide the width 64",
    "--preset=digits --width=100": "--width=100 is not a multiple of 64: set --num_heads",
    "--preset=digits --patch_size=3": "patches of 3 px do not divide an image of 8 px",
    "--preset=digits --depth=0": "--depth must be at least 1",
    "--preset=digits --data_dir=x": "--data_dir is given, and the digits",
    "--preset=digits --keep=0": "--keep must be a number of at least 1, or all",
    "--preset=digits --world_size=100000": "--world_size must be at most",
}


@pytest.mark.parametrize("flags", BAD)
def test_errors(flags):
    with pytest.raises(UserError, match=BAD[flags]):
        parse(flags.split(), "train_torch.py")


@pytest.mark.parametrize(
    "flag, nearest",
    [
        ("--bath_size=3", "'--batch_size'?"),
        ("--warmup=10", "--warmup_steps?"),
        ("--learning-rate=1", "--lr?"),
        ("--zzzz", "'--zzzz'."),
    ],
)
def test_unknown_flag_names_the_nearest(flag, nearest, capsys):
    with pytest.raises(SystemExit) as left:
        parse([flag], "train_torch.py")
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.endswith(
        f"{nearest} train_torch.py --help lists the flags.\n"
    )


def test_many_devices_on_the_cpu_are_refused_before_anything_starts(monkeypatch):
    """Also where --device was left open and there is no GPU."""
    requested = RequestedConfig(
        dict(precision="fp32", device="cpu", world_size=1000), PRESETS["digits"]
    )
    with pytest.raises(UserError, match="at most .* devices make sense"):
        make_plan(requested, "torch")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # torchrun: spread over a thousand hosts
    check_processes(1000)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_classes=3), "10 classes, the model's head only 3"),
        (dict(init_from="absent.safetensors"), "absent.safetensors"),
        (dict(data="folder", data_dir=None), "data_dir"),
        (dict(data="folder", data_dir="absent"), "absent"),
        (dict(data="imagenet", data_dir=None), "imagenet"),
    ],
    ids=str,
)
def test_plan_errors(changes, message):
    requested = RequestedConfig(dict(precision="fp32", world_size=1, **changes), PRESETS["digits"])
    with pytest.raises(UserError, match=message):
        make_plan(requested, "torch")


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_heads=7),
        dict(width=0),
        dict(pool="mean", norm_after_pool=True, class_token=True, dropout=-1),
        dict(class_token=False),
        dict(gelu="relu"),
        dict(pos_embed="rope"),
        dict(std=(1, 1, 0)),
    ],
    ids=str,
)
def test_model_errors(changes):
    with pytest.raises(UserError):
        model_config("vit_s16", **changes)


def test_nothing_named_trains_digits(capsys):
    requested = parse([], "train_torch.py")
    assert (requested.preset, requested.data, requested.batch_size) == ("digits", "digits", 64)
    notice = capsys.readouterr().err
    assert "digits" in notice and "imagenet" in notice and notice.count("\n") == 1


def test_presets_and_overrides():
    imagenet = parse(["--preset=imagenet"], "x")
    found = (imagenet.model, imagenet.batch_size, imagenet.lr, imagenet.weight_decay)
    assert found == ("vit_b16", 1024, 1e-3, 0.3)
    found = (imagenet.epochs, imagenet.warmup_steps, imagenet.clip, imagenet.dropout)
    assert found == (300, 100_000, 1.0, 0.0)
    cifar = parse("--preset cifar10 --data_dir x --lr 0.1".split(), "x")
    assert (cifar.data, cifar.data_dir, cifar.lr, cifar.model) == ("folder", "x", 0.1, "vit_mini4")
    assert (cifar.pad_crop, cifar.eval_resize) == (4, 1.0)
    assert parse(["--data=digits", "--model=vit_b16"], "x").image_size == 32
    assert parse(["--preset=digits", "--optimizer=adam"], "x").weight_decay == 0
    assert model_config("vit") == model_config("vit_b16")


HYPHENS = {
    "--preset=digits --weight-decay=0.25": dict(weight_decay=0.25),
    "--preset=digits --optimizer=adam": dict(weight_decay=0.0),
    "--preset=digits --image-size=16": dict(image_size=16),
    "--data-dir=DIR": dict(data_dir="DIR", data="imagenet"),
    "--preset=digits --run-dir R --stop-at 3": dict(run_dir="R", stop_at=3),
}


@pytest.mark.parametrize("argv", HYPHENS)
def test_hyphens_equal_underscores(argv):
    requested = parse(argv.split(), "x")
    assert {name: getattr(requested, name) for name in HYPHENS[argv]} == HYPHENS[argv]
    assert requested == parse(
        [a.replace("-", "_").replace("__", "--", 1) for a in argv.split()], "x"
    )


def test_hyphens_are_obeyed_by_every_check():
    with pytest.raises(UserError, match="adam has no weight decay"):
        parse("--preset=digits --optimizer=adam --weight-decay=0.1".split(), "x")
    with pytest.raises(UserError, match="absent holds no run"):
        parse("--resume --run-dir=absent".split(), "x")


def test_every_flag_is_in_the_help(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["--help"], "train_jax.py")
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert all(f"--{name} " in text for name in flags())
    assert "None" not in text and "|STR" not in text and "SUPPRESS" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_folder_without_a_preset_gets_a_sensible_length_and_says_so(capsys):
    requested = parse(["--data=folder", "--data_dir=x", "--lr=0.25"], "x")
    assert (requested.preset, requested.model, requested.warmup_steps, requested.lr) == (
        "folder", "vit_ti16", None, 0.25
    )  # fmt: skip
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and "no preset was named" in notice
    assert (
        "warm-up a twentieth" in notice
        and "epochs 100.0" in notice
        and "lr 0.25" in notice
        and "0.0005" not in notice
    )
    cfg = model_config("vit_ti16", num_classes=2)
    for num_train, steps, warmup in ((200, 312, 15), (10, 16, 0), (10**6, 1562500, 10_000)):
        recipe = settle_recipe(requested, cfg, num_train)
        assert (recipe.steps, recipe.warmup_steps) == (steps, warmup)
    assert settle_recipe(requested.replace(warmup_steps=7), cfg, 200).warmup_steps == 7
    tuned = parse(["--data=folder", "--data_dir=x", "--init_from=w"], "x")
    assert (tuned.preset, tuned.epochs, tuned.lr) == ("finetune", 30, 3e-3)
    assert (tuned.optimizer, tuned.model, tuned.image_size) == ("sgd", None, None)
    said = capsys.readouterr().err
    assert "those of finetune (epochs 30.0" in said and "momentum" not in said
    for argv in (["--preset=folder", "--data_dir=x"], ["--preset=cifar10", "--data=folder"]):
        parse(argv, "x")
        assert not capsys.readouterr().err
    assert parse(["--data_dir=x"], "x").preset == "imagenet"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_is_known_of_it(name, capsys):
    presets()
    said = " ".join(capsys.readouterr().out.split())
    assert ABOUT[name] in said and ABOUT[name].endswith(".")
    assert "; here: " in ABOUT[name]
    for flag, value in PRESETS[name].items():
        assert value is None or f"--{flag}={value}" in said
    weights = ["--init_from=w"] * (name in FROM_WEIGHTS)
    argv = [f"--preset={name}", "--data=digits", "--warmup_steps=3", *weights]
    assert parse(argv, "x").preset == name
    if weights:
        with pytest.raises(UserError, match=f"--preset={name} starts from weights"):
            parse(argv[:-1], "x")


def test_published_recipes():
    """What their sources print, in this project's terms."""
    plain, b16 = (parse([f"--preset={n}"], "x") for n in ("imagenet_plain", "imagenet_b16"))
    sam, cifar = parse(["--preset=imagenet_sam"], "x"), parse(["--preset=cifar10"], "x")
    assert plain.weight_decay == 1e-4 / 1e-3  # big_vision's decay is not times the rate
    recipe = settle_recipe(plain, model_config("vit_s16"), 1_281_167)
    assert recipe.steps == 112_603 and recipe.warmup_steps == 10_000
    recipe = settle_recipe(b16, model_config("vit_b16"), 1_281_167)
    assert recipe.warmup_steps == round(30 * 1_281_167 / 4096)
    assert (1 - b16.ema) * 32 == pytest.approx(1 - 0.9913, rel=0.15)
    assert sam.batch_size / sam.sam_groups == 64
    recipe = settle_recipe(cifar, model_config("vit_mini4", image_size=32), 50_000)
    assert recipe.warmup_steps == pytest.approx(10 * 50_000 / 128, abs=5)
