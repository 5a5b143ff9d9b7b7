"""A pytest fixture for ports: `def test_port(port_same): port_same(model, port, (images,))`.

pytest finds it where the package is installed. Where it is only on the path, enable it with
`pytest_plugins = ["twinvit.port.pytest_plugin"]` in conftest.py, or with `-p` and that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def port_same() -> Callable[..., Any]:
    """`port.assert_same`: fails with the report as its message; arguments as of `port.explain`."""
    from twinvit.port.explainer import assert_same

    return assert_same


@pytest.fixture
def assert_same_port(port_same: Callable[..., Any]) -> Callable[..., Any]:
    """The former name of `port_same`."""
    return port_same
