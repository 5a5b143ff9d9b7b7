"""`twinvit presets`: the named settings, and what accuracy is known of them."""

from __future__ import annotations

import textwrap
from typing import Any

from shared_vit.run.presets import ABOUT, PRESETS


def presets() -> None:
    """Print each preset: what it is for, a published accuracy, what was run here, its flags."""
    for name, settings in PRESETS.items():
        print(f"{name}\n{_wrapped(ABOUT[name])}\n{_wrapped(_flags(settings))}\n")


def _flags(settings: dict[str, Any]) -> str:
    return " ".join(f"--{name}={value}" for name, value in settings.items() if value is not None)


def _wrapped(text: str) -> str:
    indent = "    "
    return textwrap.fill(
        text, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
