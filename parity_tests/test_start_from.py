"""A run from weights has their model, and says in four lines what it took from them."""

import pytest
import safetensors.numpy

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.plan import first_or_given_state, make_plan
from shared_vit.run.presets import PRESETS
from shared_vit.run.record import write_record
from shared_vit.run.requested import RequestedConfig
from shared_vit.run.start_from import describe_start
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig

CFG = ModelConfig(
    image_size=12, patch_size=2, width=24, depth=2, num_heads=3, mlp_dim=40, num_classes=7,
    pre_logits=5, norm_eps=1e-5, gelu="tanh", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5),
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(cfg: ModelConfig, format: str = "torch") -> str:
        path = tmp_path / f"{format}.safetensors"
        weights.write(path, cfg, init.draw(cfg, 3), format=format)
        return str(path)

    return write


def plan_of(path: str, **given):
    settings = dict(precision="fp32", world_size=1, device="cpu", init_from=path)
    return make_plan(RequestedConfig(settings | given, PRESETS["digits"]), "torch")


def test_the_model_is_that_of_the_weights(write):
    plan = plan_of(write(CFG))
    sizes = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "gelu", "norm_eps", "mean")
    assert all(getattr(plan.model, n) == getattr(CFG, n) for n in sizes)
    assert (plan.model.image_size, plan.model.num_classes, plan.model.pre_logits) == (8, 10, 0)
    state = first_or_given_state(plan)
    assert {n: a.shape for n, a in state.params.items()} == canonical.shapes(plan.model)
    name = "blocks.1.mlp.fc1.weight"
    assert (state.params[name] == init.draw(CFG, 3)[name]).all()


def test_without_a_preset_s_size_the_image_is_that_of_the_weights(write):
    given = dict(precision="fp32", world_size=1, device="cpu", init_from=write(CFG), data="digits")
    assert make_plan(RequestedConfig(given), "torch").model.image_size == 12


def test_four_lines(write):
    path = write(CFG)
    plan = plan_of(path)
    assert describe_start(plan.weights.source, plan.model) == [
        f"starts from: {path} (format torch, jax), ViT of width 24, depth 2, 3 heads",
        "head: new, zero, for 10 classes; that of 7 is dropped, its pre-logits layer is dropped",
        "positions: 6 x 6 -> 4 x 4: bicubic with antialias, as timm",
        "input: mean 0.5 0.5 0.5, std 0.25 0.25 0.5; LayerNorm eps 1e-05, GELU tanh",
    ]


def test_four_lines_where_nothing_changes(write):
    same = ModelConfig(
        image_size=8, patch_size=2, width=64, depth=4, num_heads=4, mlp_dim=256, num_classes=10
    )
    plan = plan_of(write(same, "timm"))
    found = describe_start(plan.weights.source, plan.model)
    assert "(format timm), vit_nano2" in found[0]
    assert found[1:3] == ["head: kept, 10 classes", "positions: kept, 4 x 4"]
    assert found[3].startswith("input: mean 0.485 0.456 0.406, std 0.229 0.224 0.225; LayerNorm")
    sincos = ModelConfig(**{**vars(CFG), "pos_embed": "sincos2d", "pre_logits": 0})
    plan = plan_of(write(sincos))
    found = describe_start(plan.weights.source, plan.model)
    assert found[1] == "head: new, zero, for 10 classes; that of 7 is dropped"
    assert found[2] == "positions: computed anew, 4 x 4 (the weights have 6 x 6)"


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(model="vit_ti4"), "width: 24, not 192; .*which may be left out"),
        (dict(width=64), "--width=64, but the weights of .* have 24"),
        (dict(depth=3), "--depth=3, but the weights of .* have 2"),
        (dict(gelu="erf"), "--gelu=erf, but the weights of .* have tanh"),
    ],
    ids=str,
)
def test_another_model_is_refused(write, given, message):
    with pytest.raises(UserError, match=message):
        plan_of(write(CFG), **given)
    plan_of(write(CFG), width=24, depth=2)


def test_a_model_without_a_name():
    flags = "--preset=digits --width=128 --depth=2 --patch_size=4 --device=cpu"
    plan = make_plan(parse(flags.split(), "x").replace(world_size=1, precision="fp32"), "torch")
    model = plan.model
    assert (model.width, model.depth, model.patch_size) == (128, 2, 4)
    assert (model.num_heads, model.mlp_dim) == (2, 512)
    flags += " --num_heads=8 --mlp_dim=96"
    plan = make_plan(parse(flags.split(), "x").replace(world_size=1, precision="fp32"), "torch")
    assert (plan.model.num_heads, plan.model.mlp_dim) == (8, 96)


def test_a_resumed_run_keeps_its_sizes(tmp_path):
    from shared_vit.run.record import differences, write_record

    flags = "--preset=digits --width=128 --steps=4 --device=cpu"
    run = ["--resume", f"--run_dir={tmp_path}"]
    runtime = dict(world_size=1, precision="fp32")
    plan = make_plan(parse([*flags.split(), run[1]], "x").replace(**runtime), "torch")
    write_record(tmp_path, plan.record())
    resumed = make_plan(parse(run, "x").replace(**runtime), "torch")
    assert resumed.recipe == plan.recipe
    for flag, said in (("--model=vit_nano2", "width is 128"), ("--depth=3", "--depth is 4")):
        other = make_plan(parse([*run, flag], "x").replace(**runtime), "torch")
        assert any(said in line for line in differences(plan.record(), other.record()))


def test_a_start_that_saved_nothing_reads_the_weights_as_it_did(tmp_path):
    """--num_heads and --num_classes, which the file does not say, are those of the record."""
    cfg = ModelConfig(
        image_size=8, patch_size=2, width=64, depth=1, num_heads=2, mlp_dim=96, num_classes=10
    )
    path = tmp_path / "timm.safetensors"
    weights.write(path, cfg, init.draw(cfg, 3), format="timm")
    bare = {n: a for n, a in safetensors.numpy.load_file(path).items() if "head" not in n}
    path.with_name(path.name + ".json").unlink(missing_ok=True)
    safetensors.numpy.save_file(bare, path)
    flags = ["--preset=digits", f"--init_from={path}", "--num_heads=2", "--num_classes=10"]
    run = f"--run_dir={tmp_path / 'run'}"
    begun = make_plan(parse([*flags, run, "--device=cpu", "--world_size=1"], "x"), "torch")
    (tmp_path / "run").mkdir()
    write_record(tmp_path / "run", begun.record())
    resumed = make_plan(parse(["--resume", run], "x"), "torch")
    assert resumed.recipe == begun.recipe
    first, again = first_or_given_state(begun), first_or_given_state(resumed)
    assert first.config == again.config and first.config.num_heads == 2
    assert all((first.params[n] == a).all() for n, a in again.params.items())
