"""Recordings of JAX models (`twinvit.port.recording`) as ports."""

from __future__ import annotations

from typing import Any

from twinvit.port.models.base import Mode, Pure


def accepts(port: Any) -> bool:
    return hasattr(type(port), "stored_pure")


def pure(port: Any, mode: Mode) -> Pure:
    found: Pure = port.stored_pure()
    return found
