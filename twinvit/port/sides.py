"""Texts about port and reference where the JAX model is the reference."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinvit.port.report import Report

NAMES = {"torch": "the PyTorch model", "jax": "the JAX model"}


def turned(text: str, reference: str) -> str:
    """A text of the search as it reads with this side right: by framework where that is JAX.

    The search edits the PyTorch model whichever side is right, and its texts call it the
    reference. What they advise is for the JAX model, and left out where that one is right.
    """
    if reference != "jax":
        return text
    text = re.sub(r"; pass [^;\n]*", "", text)
    text = re.sub(r"\b([Tt])he port\b", r"\1he JAX model", text)
    return re.sub(r"\b([Tt])he reference\b", r"\1he PyTorch model", text)


def turn(report: Report) -> None:
    """Turn every text that a report stores; nothing changes when it is done again."""

    def here(text: str) -> str:
        return turned(text, report.reference)

    report.findings = [replace(f, text=here(f.text)) for f in report.findings]
    report.outputs = [replace(o, note=here(o.note)) for o in report.outputs]
    report.verified = [replace(d, note=here(d.note)) for d in report.verified]
    if report.native is not None:
        report.native = replace(report.native, text=here(report.native.text))
    report.unseen = [here(text) for text in report.unseen]
    report.notes = [here(text) for text in report.notes]
    report.reasons = [here(text) for text in report.reasons]
