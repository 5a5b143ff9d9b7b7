"""Reports as JSON: real ones are held to the schema in the package, and read back alike."""

import copy
import importlib.resources
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.report import Downcast, Draw, Finding, Native, Operation, Output, Report
from twinvit.port.report_json import envelope

SCHEMA = json.loads((importlib.resources.files("twinvit.port") / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
X = np.random.default_rng(0).standard_normal((5, 9))
NUMBERS = np.random.default_rng(1).standard_normal((5, 12))  # that no operation makes
WHICH = ["same", "explained", "expression", "unknown", "undecided"]


class Layers(torch.nn.Module):
    """Two layers with an activation between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(9, 12), torch.nn.Linear(12, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.nn.functional.gelu(self.a(x)))


class Nan(torch.nn.Module):
    """Every number of its output is NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0 * 0


def call(p: dict[str, Any], x: Any, activation: Any) -> Any:
    return activation(x @ p["a.weight"].T + p["a.bias"]) @ p["b.weight"].T + p["b.bias"]


def real(which: str) -> Report:
    """A report that `explain` returns: same, explained, expression, unknown or undecided."""
    import jax
    import jax.numpy as jnp

    if which == "undecided":
        return port.explain(Nan(), port.Function(lambda p, x: x / 0 * 0, {}), X)
    activation = {
        "same": partial(jax.nn.gelu, approximate=False),
        "explained": partial(jax.nn.gelu, approximate=True),
        "expression": lambda x: jnp.arctan(x) * jnp.cos(3 * x) + 0.1 * jnp.sin(x) ** 3,
        "unknown": lambda x: x * NUMBERS,
    }[which]
    model = Layers()
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    return port.explain(model, port.Function(partial(call, activation=activation), params), X)


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {which: real(which) for which in WHICH}


def test_real_reports_are_what_their_names_say(reports):
    verdicts = {which: (r.verdict, r.explained) for which, r in reports.items()}
    assert verdicts == {
        "same": ("same", True),
        "explained": ("different", True),
        "expression": ("different", True),
        "unknown": ("different", False),
        "undecided": ("undecided", False),
    }
    kinds = {which: {f.kind for f in r.findings} for which, r in reports.items()}
    assert kinds["expression"] == {"expression"} and kinds["unknown"] == {"unknown"}


@pytest.mark.parametrize("which", WHICH)
def test_real_reports_obey_the_schema_and_are_read_back_alike(reports, which, tmp_path):
    reports[which].to_json(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=no_constant)
    VALIDATOR.validate(data)
    assert data["versions"]["torch"] == torch.__version__
    assert data["models"]["torch"] == ("Nan" if which == "undecided" else "Layers")
    assert data["inputs"][0]["shape"] and data["inputs"][0]["dtype"] == "float64"
    read = Report.from_json(tmp_path / "report.json")
    assert repr(read) == repr(reports[which])  # NaN is no equal of itself


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def full() -> Report:
    """A report that fills every field, with numbers that JSON lacks and names of other scripts."""
    finding = Finding("unknown", "", "größer, 層", "層: gelu", "\udcff.py:3", math.inf, math.nan)
    return Report(
        "different",
        False,
        math.inf,
        -math.inf,
        [
            finding,
            replace(finding, kind="cause", cause="gelu_tanh", places=["a", "b"]),
            replace(finding, kind="expression", operations=(0, 3), formulas={"jax": "x + 1"}),
        ],
        [Downcast("jax", "a.py:1", "float32"), Downcast("torch", "", "bfloat16", 1e-3)],
        ["no masked row"],
        ['"quoted"\n</script>'],
        [Operation(0, "a", "gelu", math.inf, math.nan, "lost")],
        reasons=["the port returns NaN"],
        outputs=[
            Output("0", "logits", (2, 9), (9, 2), True, 0.1, 0.0, math.inf, (1, 0), "moved"),
            Output(None, "aux", None, (), compared=False, before=math.nan),
        ],
        native=Native(np.float64(1e-7), None, "float32", "", "no GPU"),
        verified=[Draw("inputs", {"": 1e-16, "aux": math.nan}, "a note", 3.0)],
        reference="jax",
        seed=3,
        command="twinvit port explain",
        seconds=1.5,
    )


def test_every_field_survives(tmp_path):
    full().to_json(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=no_constant)
    VALIDATOR.validate(data)
    read = Report.from_json(tmp_path / "report.json")
    assert repr(read) == repr(full()).replace("\\udcff", "\\\\udcff").replace(
        "np.float64(1e-07)", "1e-07"
    )


def objects(schema: Any, data: Any) -> list[dict[str, Any]]:
    """Every object in a report that the schema describes, by identity."""
    if isinstance(data, dict):
        return [data, *(o for v in data.values() for o in objects(schema, v))]
    return [o for v in data for o in objects(schema, v)] if isinstance(data, list) else []


def closed(schema: Any) -> list[dict[str, Any]]:
    """Every part of the schema that describes an object with named fields."""
    if isinstance(schema, dict):
        own = [schema] if schema.get("type") == "object" and "properties" in schema else []
        return own + [o for v in schema.values() for o in closed(v)]
    return [o for v in schema for o in closed(v)] if isinstance(schema, list) else []


def test_the_schema_is_one_and_knows_every_field_and_no_other():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert len(closed(SCHEMA)) >= 8
    for part in closed(SCHEMA):
        assert part["additionalProperties"] is False
    for part in [SCHEMA, *(d for d in SCHEMA["$defs"].values() if d.get("type") == "object")]:
        assert part["required"] == list(part["properties"])
        assert all("description" in field for field in part["properties"].values())
    assert list(SCHEMA["properties"]) == list(envelope(full()))


def test_no_field_can_be_left_out_and_none_added(reports):
    for report in [*reports.values(), full()]:
        data = envelope(report)
        VALIDATOR.validate(data)
        for i, part in enumerate(objects(SCHEMA, data)):
            by_output = any(part is d["distances"] for d in data["verified"])
            optional = part is data["models"] or part is data["versions"]
            optional = optional or any(part is f["formulas"] for f in data["findings"])
            for key in [] if by_output or optional else part:
                changed = copy.deepcopy(data)
                del objects(SCHEMA, changed)[i][key]
                assert not VALIDATOR.is_valid(changed), key
            changed = copy.deepcopy(data)
            objects(SCHEMA, changed)[i]["surprise"] = "a word"
            assert not VALIDATOR.is_valid(changed), part


def test_the_schema_refuses_what_a_report_cannot_say():
    def valid(**changes: Any) -> bool:
        return VALIDATOR.is_valid(envelope(full()) | changes)

    assert valid()
    assert not valid(verdict="same") and not valid(explained=True)
    assert not valid(verdict="undecided", reasons=[]) and not valid(findings=[], reasons=[])
    assert not valid(distance="1e-3") and not valid(schema=1) and not valid(reference="numpy")


FIRST = {
    "format": 1,
    "same": False,
    "explained": False,
    "distance": 0.1,
    "remaining": "inf",
    "findings": [],
    "narrowings": [{"side": "jax", "where": "a.py:1", "dtype": "float32", "cost": None}],
    "unseen": [],
    "notes": ["a note"],
    "operations": [[0, "a", "gelu", "inf", 1e-16, "lost"]],
}
FIRST_FINDING = {
    "kind": "cause",
    "cause": "gelu_tanh",
    "text": "tanh",
    "torch": "act: gelu",
    "jax": "",
    "before": "nan",
    "after": 0.0,
    "places": ["act: gelu"],
    "what": "forward",
}


def test_files_without_the_newest_fields_load(tmp_path: Path):
    data = envelope(full())
    for name in ("tool", "operations_after"):
        del data[name]
    (tmp_path / "report.json").write_text(json.dumps(data))
    read = Report.from_json(tmp_path / "report.json")
    assert read.verdict == "different" and read.operations_after == []


def test_operations_after_the_edits_are_rounding_where_it_is_explained(reports):
    report = reports["explained"]
    before = {op.index: op for op in report.operations}
    assert any(op.status == "lost" for op in report.operations)
    assert [op.index for op in report.operations_after] == list(before)
    assert all(op.status != "lost" and op.distance < 1e-12 for op in report.operations_after)
    assert reports["same"].operations_after == []
    assert any(op.status == "lost" for op in reports["unknown"].operations_after)


def test_files_of_the_first_format_load(tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(FIRST))
    read = Report.from_json(path)
    assert read.verdict == "different" and read.reasons and math.isinf(read.remaining)
    path.write_text(json.dumps(FIRST | {"findings": [FIRST_FINDING]}))
    read = Report.from_json(path)
    assert read.findings[0].fix == "" and math.isnan(read.findings[0].before)
    good = FIRST | {"same": True, "explained": True, "distance": 1e-15, "remaining": 1e-15}
    path.write_text(json.dumps(good))
    assert Report.from_json(path).same
    for lie in ({"distance": 0.1}, {"distance": "nan"}, {"findings": [FIRST_FINDING]}):
        path.write_text(json.dumps(good | lie))
        read = Report.from_json(path)
        assert read.verdict == "undecided" and "a former version" in read.reasons[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no report"),
        ("{}", "no field schema"),
        ("words", "not JSON"),
        ('{"schema": 3}', "reads 1 and 2"),
        ('{"schema": 2}', "no whole report"),
        ('{"format": 1}', "no whole report"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Report.from_json(tmp_path / "report.json")


def test_a_file_whose_verdict_lies_is_refused(tmp_path):
    data = envelope(full()) | {"verdict": "same", "explained": True}
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="contradicts itself"):
        Report.from_json(tmp_path / "report.json")


def test_a_dash_is_standard_output(capsys):
    full().to_json("-")
    VALIDATOR.validate(json.loads(capsys.readouterr().out))
