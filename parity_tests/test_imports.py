"""Claim: each package imports only what it may, and `--help` waits for no framework."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
JAX, TORCH = {"jax", "jaxlib", "flax", "optax"}, {"torch", "torchvision"}
PACKAGES = ("jax_vit", "torch_vit", "shared_vit", "twinvit")

# Package: what of this project it may import besides itself. The most specific one counts.
MAY_IMPORT = {
    "shared_vit": {"shared_vit.spec"},  # errors, files, checksummed, cores, version
    "shared_vit.spec": {"shared_vit"},
    "shared_vit.cli": {"shared_vit"},
    "shared_vit.data": {"shared_vit", "shared_vit.cli", "shared_vit.spec"},
    "shared_vit.weights": {"shared_vit", "shared_vit.spec"},
    "shared_vit.run": {f"shared_vit{part}" for part in ("", ".cli", ".spec", ".data", ".weights")},
    "jax_vit": {f"shared_vit{part}" for part in ("", ".spec", ".data", ".weights", ".run")},
    "torch_vit": {f"shared_vit{part}" for part in ("", ".spec", ".data", ".weights", ".run")},
    "twinvit": {"everything"},
    "twinvit.pages": set(),
    "twinvit.port": {"twinvit.pages", "shared_vit.cli"},
}
FRAMEWORKS = {"jax_vit": JAX, "torch_vit": TORCH, "twinvit": JAX | TORCH, "shared_vit": set()}


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Every module that a file imports, by statements or by importlib with a constant name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            (name,) = node.args
            if isinstance(name, ast.Constant):
                yield str(name.value)
            elif isinstance(name, ast.JoinedStr):  # f"jax_vit.{...}": the part that is known
                yield ast.unparse(name).removeprefix("f").strip("\"'").split("{")[0].rstrip(".")
            else:
                assert module.startswith("twinvit"), f"{module}: importlib with {ast.unparse(name)}"


def package_of(name: str) -> str | None:
    """The package that a module of this project belongs to; None for modules of others."""
    packages = [
        package for package in MAY_IMPORT if name == package or name.startswith(package + ".")
    ]
    return max(packages, key=len, default=None)


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def test_no_package_imports_against_the_arrows():
    wrong = []
    for module, path in modules().items():
        own = package_of(module)
        for name in imports(ast.parse(path.read_text()), module):
            package = package_of(name)
            allowed = MAY_IMPORT[own]
            if package not in (None, own) and not allowed & {package, "everything"}:
                if not (module == own and name.startswith(own + ".")):  # a package's own surface
                    wrong.append(f"{module} imports {name}")
            if name.split(".")[0] in JAX | TORCH - FRAMEWORKS[module.split(".")[0]]:
                if name.split(".")[0] not in FRAMEWORKS[module.split(".")[0]]:
                    wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_importlib():
    tree = ast.parse(
        "import importlib\nimportlib.import_module('torch_vit.pth')\nfrom jax import lax"
    )
    assert {"torch_vit.pth", "jax.lax"} <= set(imports(tree, "shared_vit.x"))
    with pytest.raises(AssertionError, match="importlib with name"):
        list(imports(ast.parse("import_module(name)"), "shared_vit.x"))


def test_packages_import_nothing_that_is_not_installed():
    """The commands work without the repository's top folder."""
    beside = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()} - {*PACKAGES}
    assert {"train_torch", "benchmarks", "parity_tests"} <= beside
    for module, path in modules().items():
        found = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), module)}
        assert not found & beside, module


def test_benchmarks_import_no_tests():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "parity_tests" not in path.read_text(), path


@pytest.mark.parametrize(
    "module, absent",
    [
        (
            "jax_vit.model, jax_vit.trainer",
            "torch grain simplejpeg cv2 wandb tensorflow_datasets",
        ),
        (
            "torch_vit.model, torch_vit.trainer",
            "flax optax grain simplejpeg cv2 wandb tensorflow_datasets",
        ),
        (
            "twinvit.training.command, twinvit.cli",
            "torch jax flax grain sklearn matplotlib wandb",
        ),
        ("twinvit", "torch jax flax grain sklearn matplotlib wandb"),
        ("shared_vit.run.command_line", "numpy shared_vit.data shared_vit.weights"),
        ("shared_vit.weights", "torch jax grain wandb"),
        ("twinvit.port", "torch jax jax_vit.model torch_vit.model"),
    ],
)
def test_import_paths(module, absent):
    """GPU machines may have only the frameworks."""
    code = f"import {module}, sys; print([m for m in {absent.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    "absent", ["torch", "jax jaxlib flax", "torch_vit jax_vit shared_vit", "equinox keras haiku"]
)
def test_the_explainer_is_imported_without(absent):
    """`import twinvit.port` needs no framework and none of the Vision Transformers."""
    code = (
        f"import sys\nfor name in {absent.split()!r}: sys.modules[name] = None\n"
        "import twinvit.port\nprint(twinvit.port.PortError.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "PortError", done.stderr


def test_the_explainer_runs_without_the_vision_transformers():
    code = (
        "import sys\n"
        "for name in ('torch_vit', 'jax_vit', 'shared_vit', 'equinox', 'keras'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np, torch, jax.numpy as jnp\n"
        "from twinvit import port\n"
        "x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)\n"
        "print(port.explain(torch.tanh, jnp.tanh, (x,)).verdict)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


def test_a_reader_of_an_installed_package_is_found_by_its_entry_point():
    """`.pth` files are read where nothing has imported torch_vit yet."""
    code = (
        "from shared_vit.weights.containers import container\n"
        "print(callable(container('pth').write))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


SCRIPTS = [
    path for name in ("benchmarks", "examples", "docs") for path in (ROOT / name).glob("*.py")
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_import_names_that_are_there(path):
    """Also inside functions, which no test calls where a run takes long."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if of_this_project(node)]
    for node in nodes:
        module = importlib.import_module(node.module)
        for name in node.names:
            found = hasattr(module, name.name) or importlib.util.find_spec(
                f"{node.module}.{name.name}"
            )
            assert found, f"line {node.lineno}: {node.module} has no {name.name}"


def of_this_project(node) -> bool:
    module = node.module if isinstance(node, ast.ImportFrom) else None
    return module is not None and module.startswith(PACKAGES)
