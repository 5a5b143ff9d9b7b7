"""Explaining anybody's port between PyTorch and JAX: what is wrong, where, and the proof."""

from __future__ import annotations

import importlib
from typing import Any

# Read where they are used, so that `import twinvit.port` needs neither framework.
_WHERE = {
    "PortError": "errors",
    "Finding": "report",
    "Narrowing": "report",
    "Report": "report",
    "Function": "record_jax",
    "explain": "explainer",
    "assert_same": "explainer",
    "explain_optimizer": "optimizer",
    "WeightMap": "weight_map",
    "map_weights": "weight_map",
    "blind_spots": "audit",
    "cause": "causes",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
