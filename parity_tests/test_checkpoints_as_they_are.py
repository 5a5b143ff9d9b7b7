"""Checkpoints as training programs leave them: averaged weights beside raw ones, prefixes, heads of
one's own, decoders, no head. What was taken is said, and both sets can be asked for."""

import argparse
import warnings

import numpy as np
import pytest
import torch
from helpers import random_arrays
from whole_runs import train_here

import jax_vit
import torch_vit
import twinvit
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.plan import first_or_given_state, make_plan
from shared_vit.run.start_from import describe_start
from shared_vit.spec.config import IMAGENET_MEAN, IMAGENET_STD, model_config
from shared_vit.weights import open_weights
from twinvit.convert import libraries
from twinvit.convert.command import convert
from twinvit.predict.command import predict
from twinvit.training.command import evaluate

CFG = model_config("vit_nano2", num_classes=5, image_size=8)
LOADS = {"torch": torch_vit.load, "jax": jax_vit.load, "twinvit": twinvit.load}


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """`{format: state_dict}` of the same weights, and `other`, timm's of other weights."""
    folder, found = tmp_path_factory.mktemp("states"), {}
    for format, seed in (("timm", 0), ("torchvision", 0), ("huggingface", 0), ("other", 1)):
        path = folder / f"{format}.safetensors"
        name = "timm" if format == "other" else format
        weights.write_weights(path, CFG, random_arrays(CFG, seed), format=name)
        import safetensors.torch

        found[format] = safetensors.torch.load_file(path)
    return found


def opened(path, **hints):
    return open_weights(path, num_heads=4, **hints)


def saved(path, content):
    torch.save(content, path)
    return path


def value(source, name="blocks.1.mlp.fc1.weight"):
    return np.asarray(source.arrays[name])


def prefixed(state, prefix):
    return {f"{prefix}{name}": t for name, t in state.items()}


TIMM = {"epoch": 3, "arch": "vit", "metric": 81.0, "args": argparse.Namespace(lr=1.0)}


def test_timm_s_averaged_weights_are_taken_and_both_can_be_asked_for(tmp_path, states):
    content = TIMM | {"state_dict": states["other"], "state_dict_ema": states["timm"]}
    path = saved(tmp_path / "last.pth.tar", content)
    mine, others = (states[n]["blocks.1.mlp.fc1.weight"].numpy() for n in ("timm", "other"))
    source = opened(path)
    assert np.array_equal(value(source), mine)
    assert source.notices == [
        f"the averaged weights of {path} are taken (state_dict_ema); its raw ones (state_dict) are "
        f"{path}#raw"
    ]
    assert np.array_equal(value(opened(f"{path}#ema")), mine)
    assert np.array_equal(value(opened(f"{path}#raw")), others)
    assert convert(f"{path}#raw", str(tmp_path / "raw.safetensors"), "torch", num_heads=4) == 0
    assert np.array_equal(value(open_weights(tmp_path / "raw.safetensors")), others)
    model = libraries.load("timm", path, source.cfg)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, states["timm"]["blocks.1.mlp.fc1.weight"])


def test_deit_s_raw_weights_are_taken_and_the_averaged_named(tmp_path, states):
    content = {"model": states["timm"], "model_ema": states["other"], "epoch": 3, "scaler": {}}
    path = saved(tmp_path / "checkpoint.pth", content)
    source = opened(path)
    assert np.array_equal(value(source), states["timm"]["blocks.1.mlp.fc1.weight"])
    assert f"its averaged ones (model_ema) are {path}#ema" in source.notices[0]
    assert np.array_equal(value(opened(f"{path}#ema")), states["other"]["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("kind", ["none", "lightning"])
def test_weights_without_an_average_say_so(tmp_path, states, kind):
    state = states["timm"] if kind == "none" else prefixed(states["timm"], "model.")
    path = saved(tmp_path / "a.pth", {"state_dict": state})
    assert np.array_equal(value(opened(f"{path}#raw")), value(opened(path)))
    with pytest.raises(UserError, match="holds no averaged weights: leave #ema out"):
        opened(f"{path}#ema")


def test_averaged_weights_under_a_prefix(tmp_path, states):
    both = prefixed(states["timm"], "model.") | prefixed(states["other"], "ema_model.module.")
    path = saved(tmp_path / "lightning.ckpt", {"state_dict": both, "global_step": 7})
    source = opened(path)
    assert np.array_equal(value(source), states["timm"]["blocks.1.mlp.fc1.weight"])
    assert f"the raw weights of {path} are taken; its averaged ones are {path}#ema" in (
        source.notices
    )
    assert np.array_equal(value(opened(f"{path}#ema")), states["other"]["blocks.1.mlp.fc1.weight"])


def test_a_run_s_average_is_named_and_taken_on_request(tmp_path, capsys):
    flags = ("--preset=digits", "--steps=4", "--batch_size=64", "--warmup_steps=1", "--ema=0.5")
    assert train_here("torch", tmp_path / "run", *flags) == 0
    run = tmp_path / "run"
    raw, ema = (open_weights(f"{run}{end}") for end in ("", "#ema"))
    assert not np.array_equal(value(raw), value(ema)) and raw.step == ema.step == 4
    assert f"their moving average is {run}#ema" in raw.notices[0] and not ema.notices
    assert not open_weights(f"{run}#raw").notices
    capsys.readouterr()
    results = []
    for end in ("", "#ema"):
        assert evaluate([f"{run}{end}", "--device=cpu"]) == 0
        results.append(capsys.readouterr().out.rpartition(": ")[2])
    assert results[0] != results[1]
    next_run = ("--preset=digits", "--steps=1", "--batch_size=64", f"--init_from={run}#ema")
    assert train_here("torch", tmp_path / "next", "--stop_at=1", *next_run) == 0
    with pytest.raises(UserError, match="has no average of its weights"):
        open_weights(f"{tmp_path}/next#ema")


PREFIXES = ("net.", "backbone.", "encoder.", "student.", "model._orig_mod.module.", "a.b.c.vit.")


@pytest.mark.parametrize("format", ["timm", "torchvision", "huggingface"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_common_prefix_is_found_and_said(tmp_path, states, prefix, format):
    state = prefixed(states[format], prefix) | {"criterion.weight": torch.ones(7)}
    path = saved(tmp_path / "a.pth", {"state_dict": state})
    source = opened(path)
    assert source.format == format and np.array_equal(value(source), random_arrays(CFG, 0)[
        "blocks.1.mlp.fc1.weight"])  # fmt: skip
    told = prefix.partition("_orig_mod.")[0]  # formats know what wraps a model in torch
    assert f"names are read without the prefix {told!r}" in source.notices
    assert "left out: 1 arrays that are not the model's (criterion.weight)" in source.notices


def headless(state, *names):
    return {n: t for n, t in state.items() if not n.startswith(names)}


@pytest.mark.parametrize(
    "format, own, theirs",
    [
        ("torchvision", "heads", "heads.head"),
        ("torchvision", "heads.1", "heads.head"),
        ("timm", "head.1", "head"),
        ("timm", "fc", "head"),
        ("huggingface", "classifier.1", "classifier"),
    ],
)
def test_a_linear_head_of_another_name_is_read(tmp_path, states, format, own, theirs):
    state = {n.replace(theirs, own, 1): t for n, t in states[format].items()}
    assert f"{own}.weight" in state
    path = saved(tmp_path / "a.pth", state)
    source = opened(path)
    assert source.cfg.num_classes == 5 and f"its head is read from {own}" in source.notices
    assert np.array_equal(value(source, "head.weight"), random_arrays(CFG, 0)["head.weight"])
    model = libraries.load(format, path, source.cfg) if format != "huggingface" else None
    assert model is None or torch.equal(
        dict(model.named_parameters())[f"{theirs}.weight"], states[format][f"{theirs}.weight"]
    )


def test_a_head_beside_the_backbone_is_read(tmp_path, states):
    state = prefixed(headless(states["timm"], "head."), "model.backbone.")
    head = {f"model.classifier.{n}": states["timm"][f"head.{n}"] for n in ("weight", "bias")}
    source = opened(saved(tmp_path / "a.pth", {"state_dict": state | head}))
    assert np.array_equal(value(source, "head.weight"), random_arrays(CFG, 0)["head.weight"])


def test_a_head_of_several_layers_is_refused_by_name(tmp_path, states):
    head = {"head.0.weight": torch.ones(64), "head.0.bias": torch.ones(64)}
    head |= {"head.1.weight": torch.ones(5, 64), "head.1.bias": torch.ones(5)}
    path = saved(tmp_path / "a.pth", headless(states["timm"], "head.") | head)
    with pytest.raises(
        UserError, match=r"no single linear layer from 64 .* head\.0\.weight \[64\]"
    ):
        opened(path)


def test_a_head_of_another_width_is_refused(tmp_path, states):
    head = {"head.1.weight": torch.ones(5, 32), "head.1.bias": torch.ones(5)}
    path = saved(tmp_path / "a.pth", headless(states["timm"], "head.") | head)
    with pytest.raises(UserError, match=r"no single linear layer from 64 .*\[5, 32\]"):
        opened(path)


def test_dino_s_teacher_is_taken_without_its_projection(tmp_path, states):
    def model(state):
        backbone = prefixed(headless(state, "head."), "module.backbone.")
        head = {f"module.head.mlp.{i}.weight": torch.ones(9, 64 if i == 0 else 9) for i in (0, 2)}
        return backbone | head | {f"module.head.mlp.{i}.bias": torch.ones(9) for i in (0, 2)}

    content = {"student": model(states["other"]), "teacher": model(states["timm"]), "epoch": 9}
    path = saved(tmp_path / "dino.pth", content | {"optimizer": {"state": {0: torch.ones(2)}}})
    assert opened(path).cfg.num_classes == 0
    source = opened(path, num_classes=3)
    assert np.array_equal(value(source), states["timm"]["blocks.1.mlp.fc1.weight"])
    assert source.new_head and not value(source, "head.weight").any()
    told = "; ".join(source.notices)
    assert "(teacher); its raw ones (student)" in told and "left out: 4 arrays" in told
    assert (source.cfg.mean, source.cfg.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert any("the code of DINO" in text for text in source.assumed)


def test_a_masked_autoencoder_gives_its_encoder(tmp_path, states):
    decoder = {
        "mask_token": torch.ones(1, 1, 32), "decoder_embed.weight": torch.ones(32, 64),
        "decoder_blocks.0.attn.qkv.weight": torch.ones(96, 32), "decoder_pred.bias": torch.ones(12),
    }  # fmt: skip
    content = {"model": headless(states["timm"], "head.") | decoder}
    source = opened(saved(tmp_path / "mae.pth", content), num_classes=7)
    assert np.array_equal(value(source), states["timm"]["blocks.1.mlp.fc1.weight"])
    assert source.notices[0].startswith("left out: the decoder of a masked autoencoder, 4 arrays")
    assert source.cfg.mean == IMAGENET_MEAN and source.cfg.interpolation == "bicubic"
    assert any("the code of MAE" in text for text in source.assumed)


def test_bare_files_of_timm_keep_timm_s_values(tmp_path, states):
    bare = opened(saved(tmp_path / "a.pth", states["timm"]))
    assert bare.cfg.mean == (0.5, 0.5, 0.5) and "timm's defaults" in bare.assumed[0]
    deit = opened(saved(tmp_path / "b.pth", {"model": states["timm"]}))
    assert deit.cfg.mean == IMAGENET_MEAN and "DeiT" in deit.assumed[0]
    both = opened(saved(tmp_path / "c.pth", TIMM | {"state_dict": states["timm"]}))
    assert both.cfg.mean == (0.5, 0.5, 0.5)


def test_several_sets_without_a_known_name_are_named(tmp_path, states):
    content = {"actor": states["timm"], "critic": states["other"]}
    with pytest.raises(UserError, match="several sets of arrays, under the keys actor, critic"):
        opened(saved(tmp_path / "a.pth", content))
    source = opened(saved(tmp_path / "b.pth", {"actor": states["timm"], "step": 3}))
    assert np.array_equal(value(source), states["timm"]["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.filterwarnings("default")
def test_the_loads_say_what_was_taken_for_granted_and_take_what_convert_takes(
    tmp_path, states, name
):
    path = saved(tmp_path / "a.pth", headless(states["timm"], "head."))
    load = LOADS[name]
    if name == "twinvit":
        with pytest.raises(UserError, match="no head"):
            load(path, num_heads=4)
    else:
        with pytest.warns(UserWarning, match="does not say"):
            assert load(path, num_heads=4).cfg.num_classes == 0
    with pytest.warns(
        UserWarning, match=r"does not say, taken as usual: .*mean 0.5 0.5 0.5"
    ) as told:
        made = load(path, num_heads=4, num_classes=3, image_size=16)
    assert len(told) >= 1 and made.cfg.num_classes == 3 and made.cfg.image_size == 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changes = dict(mean=(0.1, 0.2, 0.3), std="0.5", interpolation="bilinear", eval_resize=0)
        made = load(path, num_heads=4, num_classes=3, **changes)
    assert made.cfg.mean == (0.1, 0.2, 0.3) and made.cfg.std == (0.5, 0.5, 0.5)
    assert (made.cfg.interpolation, made.cfg.eval_resize) == ("bilinear", 0)


def test_predict_says_and_sets_the_preparation(tmp_path, states, capsys):
    from PIL import Image

    path = saved(tmp_path / "a.pth", states["timm"])
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(tmp_path / "a.png")
    picture = (str(tmp_path / "a.png"),)
    shown = []
    for flags in ({}, {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}):
        assert predict(str(path), picture, num_heads=4, json=True, **flags) == 0
        out, err = capsys.readouterr()
        shown.append(out)
        assert "does not say, taken as usual" in err
        assert f"mean {'0.485 0.456 0.406' if flags else '0.5 0.5 0.5'}" in err
    assert shown[0] != shown[1]
    with pytest.raises(UserError, match="three numbers for red, green and blue"):
        predict(str(path), picture, num_heads=4, mean="1,2")


def test_convert_sets_the_preparation(tmp_path, states, capsys):
    path, made = saved(tmp_path / "a.pth", states["timm"]), tmp_path / "b.safetensors"
    flags = dict(mean="0.1,0.2,0.3", std="0.4", interpolation="bilinear", eval_resize=1.0)
    assert convert(str(path), str(made), "torch", num_heads=4, exif="turn", **flags) == 0
    cfg = open_weights(made).cfg
    assert (cfg.mean, cfg.std, cfg.exif) == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4), "turn")
    assert (cfg.interpolation, cfg.eval_resize) == ("bilinear", 1.0)
    assert "mean 0.1 0.2 0.3" in capsys.readouterr().out


def plan_of(path, *flags):
    argv = [f"--init_from={path}", "--preset=digits", "--num_heads=4", *flags]
    requested = parse(argv, "train").replace(device="cpu", world_size=1, precision="fp32")
    return make_plan(requested, "torch")


def test_weights_without_a_head_take_the_classes_of_the_data(tmp_path, states):
    path = saved(tmp_path / "a.pth", headless(states["timm"], "head."))
    plan = plan_of(path)
    assert plan.model.num_classes == 10
    assert "head: new, zero, for 10 classes; the weights have none" in describe_start(
        plan.weights.source, plan.model
    )
    assert not first_or_given_state(plan).params["head.weight"].any()
    assert plan_of(path, "--num_classes=12").model.num_classes == 12


def test_training_sets_the_preparation(tmp_path, states):
    path = saved(tmp_path / "a.pth", states["timm"])
    model = plan_of(path, "--mean=0.1,0.2,0.3", "--std=0.5", "--interpolation=bilinear").model
    assert model.mean == (0.1, 0.2, 0.3) and model.std == (0.5, 0.5, 0.5)
    assert model.interpolation == "bilinear" and plan_of(path).model.mean == (0.5, 0.5, 0.5)
