"""The pytest fixture for ports, as a user's test of another project meets it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = "twinvit.port.pytest_plugin"
TESTS = """
import numpy as np, torch
from twinvit import port

X = np.random.default_rng(0).standard_normal((5, 9))

def test_right(port_same):
    assert port_same(torch.tanh, port.Function(lambda p, x: jnp.tanh(x), {}), X).same

def test_wrong(port_same):
    port_same(torch.tanh, port.Function(lambda p, x: jnp.sin(x), {}), X)

def test_former_name(assert_same_port, port_same):
    assert assert_same_port is port_same

import jax.numpy as jnp
"""


def test_the_fixture_fails_with_the_report_as_its_message(tmp_path):
    (tmp_path / "test_user.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(f'pytest_plugins = ["{PLUGIN}"]\n')
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "E       AssertionError: the port differs from its reference" in run.stdout
    assert "DIFFERENT" in run.stdout


def test_pytest_finds_the_plugin_where_the_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Under the module's own name: a conftest.py that names it does not register it twice.
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
