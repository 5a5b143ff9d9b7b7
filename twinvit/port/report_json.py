"""Reports as JSON files: one envelope, described by `report.schema.json` next to this module."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from twinvit.pages import verdicts
from twinvit.pages.verdicts import SCHEMA, plain
from twinvit.port.report import (
    FAR,
    Downcast,
    Draw,
    Finding,
    Input,
    Native,
    Operation,
    Output,
    Report,
)

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def envelope(report: Report) -> dict[str, Any]:
    """The report as what JSON can hold: "schema" and "tool", then the fields of `Report`."""
    report.check()
    names = [f.name for f in fields(report) if not f.name.startswith("_")]
    return {"schema": SCHEMA, "tool": "explain"} | {n: plain(getattr(report, n)) for n in names}


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report to a file, or to standard output if the path is "-"."""
    verdicts.write(envelope(report), path)


def read(path: str | os.PathLike[str]) -> Report:
    """Read a report's file of this version or a former one. Raises ValueError on another file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no report: it is not JSON ({error})") from error
    if not isinstance(data, dict) or ("schema" not in data and "format" not in data):
        raise ValueError(f"{path} is no report: it has no field schema")
    data.pop("tool", None)
    version = data.pop("schema") if "schema" in data else data.pop("format")
    if version not in (1, SCHEMA):
        raise ValueError(
            f"{path} is a report of schema {version!r}; this version reads 1 and {SCHEMA}"
        )
    try:
        return _report(_from_first(data) if version == 1 else data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no whole report: {error!r}") from error


def _from_first(data: dict[str, Any]) -> dict[str, Any]:
    """A report of format 1, which had `same` for a verdict, no reasons, and no laws to obey."""
    data = dict(data)
    same = data.pop("same")
    findings = data["findings"]
    data["verdict"] = "same" if same else "different"
    far = float(data["distance"])
    if same and (not far <= FAR or any(f["kind"] != "precision" for f in findings)):
        data["verdict"] = "undecided"
        data["reasons"] = [f"a former version called this the same, {far:.1e} apart"]
    unknown = any(f["kind"] == "unknown" for f in findings)
    if unknown or data["verdict"] == "undecided" or not float(data["remaining"]) <= FAR:
        data["explained"] = False
    if not same and not findings:
        data["reasons"] = ["nothing that was tried explains the difference"]
    return data


def _report(data: dict[str, Any]) -> Report:
    data = dict(data)
    native = data.get("native")
    return Report(
        **data
        | {
            "distance": float(data["distance"]),
            "remaining": float(data["remaining"]),
            "findings": [_finding(f) for f in data["findings"]],
            "narrowings": [_narrowing(n) for n in data["narrowings"]],
            "operations": _operations(data["operations"]),
            "operations_after": _operations(data.get("operations_after", [])),
            "outputs": [_output(o) for o in data.get("outputs", [])],
            "native": None if native is None else Native(**_numbers(native, "torch", "jax")),
            "verified": [_draw(d) for d in data.get("verified", [])],
            "inputs": [Input(**i | {"shape": tuple(i["shape"])}) for i in data.get("inputs", [])],
        }
    )


def _operations(rows: list[Any]) -> list[Operation]:
    return [Operation(i, s, n, float(d), float(e), st) for i, s, n, d, e, st in rows]


def _finding(data: dict[str, Any]) -> Finding:
    data = _numbers(data, "before", "after")
    if data.get("operations") is not None:
        data["operations"] = tuple(data["operations"])
    return Finding(**data)


def _narrowing(data: dict[str, Any]) -> Downcast:
    measured = [n for n in ("cost", "largest", "divergence", "agreement") if n in data]
    return Downcast(**_numbers(data, *measured))


def _output(data: dict[str, Any]) -> Output:
    data = _numbers(data, "before", "after", "worst")
    for name in ("shape_torch", "shape_jax", "permuted"):
        if data[name] is not None:
            data[name] = tuple(data[name])
    return Output(**data)


def _draw(data: dict[str, Any]) -> Draw:
    return Draw(
        **_numbers(data, "worst")
        | {"distances": {k: float(d) for k, d in data["distances"].items()}}
    )


def _numbers(data: dict[str, Any], *names: str) -> dict[str, Any]:
    """`data` with its numbers as floats: "inf" and "nan" are strings in JSON."""
    return data | {n: None if data[n] is None else float(data[n]) for n in names}
