"""Claim: `twinvit compare` says same only of one function, and undecided where nothing shows it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import random_arrays

from shared_vit import weights
from shared_vit.run.record import Record, write_record
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from twinvit.compare import command as module
from twinvit.compare.command import compare

CFG = ModelConfig(
    image_size=16, patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=24, num_classes=5
)
CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def pair(tmp_path, x64, capsys):
    """`pair(change, cfg=..., names=..., **flags)`: the status and what is said of a file and one
    with `change(arrays)`, another function or other names."""

    def run(change=None, cfg=CFG, start=None, names=(None, None), arrays=None, **flags):
        mine = random_arrays(CFG) if arrays is None else arrays
        if start is not None:
            start(mine)
        theirs = {n: a.copy() for n, a in mine.items()}
        if cfg != CFG and arrays is None:
            theirs = {n: theirs.get(n, a) for n, a in random_arrays(cfg).items()}
        if change is not None:
            change(theirs)
        a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        for path, model, values, known in ((a, CFG, mine, names[0]), (b, cfg, theirs, names[1])):
            weights.write_weights(path, model, values, class_names=known)
        flags = {"twin_a": "torch", "twin_b": "torch"} | flags
        return SimpleNamespace(status=compare(a, b, **flags), said=capsys.readouterr().out)

    return run


def zeroed(*names):
    def change(arrays):
        for name in names:
            arrays[name][:] = 0

    return change


def test_both_twins_are_the_same_by_default_in_float64(pair):
    found = pair(twin_a="jax")
    assert found.status == 0 and ", fp64;" in found.said, found.said
    assert "SAME: every output within 1e-12" in found.said


@pytest.mark.parametrize(
    "changes",
    [
        dict(mean=(0.489, 0.456, 0.406)),
        dict(std=(0.229, 0.224, 0.23)),
        dict(eval_resize=0.0),
        dict(eval_resize=1.5),
        dict(interpolation="bicubic"),
        dict(norm_eps=1e-5),
        dict(gelu="tanh"),
        dict(num_heads=4),
        dict(pool="mean"),
    ],
    ids=str,
)
def test_another_function_is_different(pair, changes):
    found = pair(cfg=dataclasses.replace(CFG, **changes))
    (name,) = changes
    assert found.status == 1 and f"the functions differ: {name}" in found.said, found.said


@pytest.mark.parametrize(
    "changes",
    [dict(dropout=0.1), dict(drop_path=0.2), dict(mean=tuple(map(float, np.float32(CFG.mean))))],
    ids=str,
)
def test_what_is_of_training_alone_is_not_another_function(pair, changes):
    found = pair(cfg=dataclasses.replace(CFG, **changes))
    assert found.status == 0 and "the functions differ" not in found.said, found.said
    assert f"a setting differs, and not the function: {next(iter(changes))}" in found.said


def test_other_heads_behind_a_zero_are_another_function(pair):
    zero = zeroed("blocks.0.attn.proj.weight")
    found = pair(start=zero, cfg=dataclasses.replace(CFG, num_heads=4))
    assert found.status == 1 and "the functions differ: num_heads: 2, 4" in found.said


def test_classes_are_paired_by_name(pair):
    same = pair(names=(CLASSES, CLASSES))
    assert same.status == 0
    assert pair(names=(CLASSES, None)).status == 0
    other = pair(names=(CLASSES, CLASSES[::-1]))
    assert other.status == 1 and "class 0 is 'ant', 'eel'" in other.said
    assert "the same names in another order" in other.said


def test_weights_that_are_all_zero_are_nothing_to_compare(pair):
    def everything(arrays):
        zeroed(*arrays)(arrays)

    found = pair(start=everything)
    assert found.status == 2 and "UNDECIDED: all weights are zero" in found.said, found.said


def test_a_zero_head_hides_no_other_weights(pair):
    """Equal arrays behind a zero are the same; others are undecided, and said by name."""
    zero = zeroed("head.weight")
    sound = pair(start=zero, twin_a="jax")
    assert sound.status == 0 and "head.weight: zero, so that outputs show nothing" in sound.said
    still = zeroed("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias")

    def moved(arrays):  # of what GELU(0) = 0 multiplies
        arrays["blocks.0.mlp.fc2.weight"] *= 1.5

    hidden = pair(moved, start=still)
    assert hidden.status == 2, hidden.said
    assert "no output shows anything: blocks.0.mlp.fc2.weight" in hidden.said


def test_a_twin_that_is_wrong_behind_a_zero_is_seen(pair, monkeypatch):
    """The JAX twin's attention without its scale, where attention's output is multiplied by 0."""
    import jax_vit.ops
    from jax_vit import attention

    right = jax_vit.ops.attention
    monkeypatch.setattr(attention, "attention", lambda qkv, *rest: right(1.1 * qkv, *rest))
    found = pair(start=zeroed("blocks.0.attn.proj.weight"), twin_a="jax")
    assert found.status == 1 and "with random weights instead" in found.said, found.said


def test_one_class_beside_a_large_one_is_seen(pair):
    """1 % of one class, in float32, beside a bias of 1e6: 3e-9 of the logits' norm."""

    def large(arrays):
        arrays["head.bias"][0] = 1e6

    def off(arrays):
        arrays["head.weight"][3] *= 1.01

    assert pair(start=large, precision="fp32").status == 0
    found = pair(off, start=large, precision="fp32")
    assert found.status == 1 and "the first divergence is at head" in found.said, found.said
    assert "numbers differ by more than rounding" in found.said


def test_modules_of_one_side_alone_are_different(pair):
    found = pair(cfg=dataclasses.replace(CFG, pre_logits=16))
    assert found.status == 1 and "only one of them has: pre_logits" in found.said


def test_one_image_is_no_zero_head(pair):
    found = pair(batch_size=1)
    assert found.status == 0 and "zero head" not in found.said
    assert "zero head" in pair(start=zeroed("head.weight")).said


def test_numbers_that_are_none_decide_nothing(monkeypatch):
    a = {"norm": np.array([[1.0, np.nan]]), "": np.array([[1.0, 2.0]])}
    both = module.compared(a, a, 1e-12, "a", "b", "fp64")
    assert both.verdict == "undecided" and "norm: not finite in either" in both.sentences()[-1]
    one = module.compared(a, a | {"norm": np.ones((1, 2))}, 1e-12, "a", "b", "fp64")
    other = module.compared(a | {"norm": np.ones((1, 2))}, a, 1e-12, "a", "b", "fp64")
    assert one.verdict == other.verdict == "different"


def test_two_trainings_are_said_to_be_two(tmp_path, x64, capsys):
    for seed, name in enumerate(("one", "two")):
        folder = tmp_path / name
        folder.mkdir()
        recipe = Recipe(model=CFG, data="digits", steps=5)
        write_record(folder, Record(recipe, RuntimeConfig(), None, {"name": "", "fingerprint": ""}))
        weights.write(folder / "model.safetensors", CFG, random_arrays(CFG, seed))
    paths = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert compare(*paths, twin_a="torch") == 1
    said = capsys.readouterr().out
    assert "are two trainings, of one recipe" in said and "twinvit curves" in said
    assert "DIFFERENT: the first divergence is at patch_embed" in said
    assert compare(paths[0], paths[0], twin_a="torch") == 0
    assert "two trainings" not in capsys.readouterr().out
