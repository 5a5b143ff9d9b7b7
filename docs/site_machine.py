"""The tables of machine.md, from the schemas in the package: `python docs/site_machine.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/machine.md"
EXPLAIN = ROOT / "twinvit/port/report.schema.json"
OTHERS = ROOT / "twinvit/pages/verdicts.schema.json"
START = "## Fields of every command\n"
COMMON = ("schema", "tool", "verdict", "reasons", "command", "versions", "seconds")
PARTS = ("input", "spot", "rule", "side", "largest", "checkpoint")


def tables() -> str:
    """Everything from the first generated heading on."""
    explain, others = (json.loads(path.read_text()) for path in (EXPLAIN, OTHERS))
    defs = others["$defs"]
    every = {n: f for n, f in defs["compare"]["properties"].items() if n in COMMON}
    every["tool"] = {"enum": ["explain", *others["properties"]["tool"]["enum"]]} | {
        "description": "The command."
    }
    lines = [START, *_table(every, COMMON), "", "## `explain`", ""]
    lines += [explain["description"] + " Of lists, the name of an entry stands in the type.", ""]
    lines += _table(_own(explain), explain["required"])
    for name, part in explain["$defs"].items():
        if "properties" in part:
            lines += ["", f"### `{name}`", "", part["description"], ""]
            lines += _table(part["properties"], part["required"])
    operation = explain["$defs"]["operation"]
    lines += ["", "### `operation`", "", operation["description"]]
    for tool in others["properties"]["tool"]["enum"]:
        lines += ["", f"## `{tool}`", "", defs[tool]["description"], ""]
        lines += _table(_own(defs[tool]), defs[tool]["required"])
        for name, field in _own(defs[tool]).items():
            lines += _within(name, field)
    for name in PARTS:
        lines += ["", f"### `{name}` of these", "", defs[name]["description"], ""]
        lines += _table(defs[name]["properties"], defs[name]["required"])
    return "\n".join(lines) + "\n"


def _own(schema: dict[str, Any]) -> dict[str, Any]:
    return {n: f for n, f in schema["properties"].items() if n not in COMMON}


def _within(name: str, field: dict[str, Any]) -> list[str]:
    """The table of an object that stands in a field alone."""
    inner = field.get("items", field)
    if "properties" not in inner:
        return []
    if all("description" not in f for f in inner["properties"].values()):
        return []
    return ["", f"Of `{name}`:", "", *_table(inner["properties"], inner["required"])]


def _table(properties: dict[str, Any], required: Any) -> list[str]:
    rows = ["| field | type | what it is |", "|---|---|---|"]
    for name, field in properties.items():
        text = field.get("description", "").replace("|", "\\|")
        if name not in required:
            text += " May be absent."
        rows.append(f"| `{name}` | {_type(field)} | {text} |")
    return rows


def _type(field: dict[str, Any]) -> str:
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        items = field.get("items")
        return f"list of {_type(items)}" if items else "list"
    inner = field.get("additionalProperties")
    if kind == "object" and isinstance(inner, dict) and inner:
        return f"object of {_type(inner)} by name"
    return kind


if __name__ == "__main__":
    before = PAGE.read_text().partition(START)[0]
    PAGE.write_text(before + tables())
