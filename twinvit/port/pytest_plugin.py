"""A pytest fixture for ports: `def test_port(assert_same_port): assert_same_port(model, port,
(images,))`.

Enable it with `pytest_plugins = ["twinvit.port.pytest_plugin"]` in conftest.py, or `-p
twinvit.port.pytest_plugin`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_same_port() -> Callable[..., Any]:
    """`port.assert_same`: fails with the report as its message; arguments as of `port.explain`."""
    from twinvit.port.explainer import assert_same

    return assert_same
