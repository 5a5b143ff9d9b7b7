"""Claim: the tables of the documents are what the code says now; each names the command that
writes it."""

import importlib.resources
import importlib.util
import json
from pathlib import Path

import pytest
from strangers import rows

from twinvit import models
from twinvit.pages.verdicts import SCHEMA_FILE

pytestmark = pytest.mark.quick

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_models():
    page = (DOCS / "models.md").read_text()
    assert models.table() in page and models.files_table() in page


def test_the_list_of_checkpoints_of_other_programs():
    page = (DOCS / "checkpoints.md").read_text()
    assert rows.table() in page, "python -m strangers.rows writes it"


def test_the_fields_of_the_json():
    """The generated half of docs/machine.md, and every field that the schema describes."""
    spec = importlib.util.spec_from_file_location("site_machine", DOCS / "site_machine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "machine.md").read_text()
    assert page.endswith(module.tables()), "run `python docs/site_machine.py`"
    schema = (importlib.resources.files("twinvit.pages") / SCHEMA_FILE.name).read_text()
    for part in objects(json.loads(schema)["$defs"]):
        for name, field in part.get("properties", {}).items():
            assert "description" not in field or f"| `{name}` |" in page, name


def objects(data) -> list[dict]:
    """Every object within a JSON document."""
    if isinstance(data, dict):
        return [data, *(o for v in data.values() for o in objects(v))]
    return [o for v in data for o in objects(v)] if isinstance(data, list) else []
