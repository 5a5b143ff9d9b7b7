"""Explain any port between PyTorch and JAX: what differs, where, and the proof."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and the documentation read
    from twinvit.port.audit import blind_spots
    from twinvit.port.causes import cause
    from twinvit.port.errors import PortError
    from twinvit.port.explainer import assert_same, explain
    from twinvit.port.hugging_face import small_model
    from twinvit.port.models import Function
    from twinvit.port.optimizer import explain_optimizer
    from twinvit.port.recording.explain import explain_recordings
    from twinvit.port.recording.record import record_model
    from twinvit.port.report import Downcast, Draw, Finding, Native, Output, Report
    from twinvit.port.weight_map import WeightMap, map_weights

__all__ = [
    "explain",
    "assert_same",
    "record_model",
    "explain_recordings",
    "explain_optimizer",
    "Report",
    "Finding",
    "Downcast",
    "Output",
    "Native",
    "Draw",
    "Function",
    "map_weights",
    "WeightMap",
    "blind_spots",
    "small_model",
    "cause",
    "PortError",
]

# Read where they are used, so that `import twinvit.port` needs neither framework.
_WHERE = {
    "PortError": "errors",
    "Finding": "report",
    "Downcast": "report",
    "Output": "report",
    "Native": "report",
    "Draw": "report",
    "Report": "report",
    "Function": "models",
    "explain": "explainer",
    "record_model": "recording.record",
    "explain_recordings": "recording.explain",
    "assert_same": "explainer",
    "explain_optimizer": "optimizer",
    "WeightMap": "weight_map",
    "map_weights": "weight_map",
    "small_model": "hugging_face",
    "blind_spots": "audit",
    "cause": "causes",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
