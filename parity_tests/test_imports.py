"""Claim: each room imports only what it may, and `--help` waits for no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"jax", "jaxlib", "flax", "optax", "torch", "jax_vit", "torch_vit"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT) for p in (ROOT / "shared_vit").rglob("*.py")), ids=str)
def test_shared_imports_no_framework(path):
    assert not imports(ROOT / path) & FRAMEWORKS


@pytest.mark.parametrize(
    "twin, other", [("jax_vit", {"torch", "torch_vit"}), ("torch_vit", {"jax", "flax", "optax", "jax_vit"})]
)
def test_twins_do_not_import_each_other(twin, other):
    for path in (ROOT / twin).rglob("*.py"):
        assert not imports(path) & other, path


@pytest.mark.parametrize(
    "module, absent",
    [
        ("jax_vit.model, jax_vit.trainer", "torch grain simplejpeg cv2 tyro wandb tensorflow_datasets"),
        ("torch_vit.model, torch_vit.trainer", "flax optax grain simplejpeg cv2 tyro wandb tensorflow_datasets"),
        ("twinvit.train, twinvit.cli", "torch jax flax grain sklearn matplotlib wandb"),
        ("shared_vit.weights", "torch jax grain tyro wandb"),
    ],
)
def test_import_paths(module, absent):
    """GPU machines may have only the frameworks."""
    code = f"import {module}, sys; print([m for m in {absent.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
