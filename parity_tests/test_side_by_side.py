"""Claim: the twins' files mirror each other: same classes, methods, attributes, in the same order."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def outline(path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """`{class: (methods, attributes set on self)}` in the order of the file."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            methods = [f.name for f in node.body if isinstance(f, ast.FunctionDef)]
            targets = [t for a in ast.walk(node) if isinstance(a, ast.Assign) for t in a.targets]
            names = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
            found[node.name] = (
                ["forward" if m == "__call__" else m for m in methods],
                [e.attr for e in names if isinstance(e, ast.Attribute) and getattr(e.value, "id", "") == "self"],
            )
    return found


def test_models():
    a, b = (outline(ROOT / package / "model.py") for package in ("jax_vit", "torch_vit"))
    assert list(a) == list(b) == ["Linear", "PatchEmbed", "Attention", "Mlp", "Block", "VisionTransformer"]
    for name in a:
        assert a[name][0] == b[name][0], name
        attributes = [x for x in a[name][1] if x != "tf32"]  # torch's switch is process-wide
        if name == "Linear":  # torch's own class holds weight and bias
            attributes = [x for x in attributes if x not in ("kernel", "bias")]
        assert list(dict.fromkeys(attributes)) == list(dict.fromkeys(b[name][1])), name


def test_trainers():
    a, b = (outline(ROOT / package / "trainer.py") for package in ("jax_vit", "torch_vit"))
    assert list(a) == list(b) == ["DeviceBatch", "Objective", "Trainer"]
    public = [[m for m in x["Trainer"][0] if not m.startswith("_")] for x in (a, b)]
    assert public[0] == public[1] == ["load", "state", "snapshot", "put", "train_step", "eval_step", "versions"]


@pytest.mark.parametrize("package", ["jax_vit", "torch_vit"])
def test_models_stay_short(package):
    assert len((ROOT / package / "model.py").read_text().splitlines()) < 180
