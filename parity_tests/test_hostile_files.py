"""Claim: an altered file of ours is refused or gives its own values.

An altered foreign one neither crashes nor runs code. A sample of what `benchmarks/mutate_files.py`
does by thousands.
"""

import importlib.util
import random

import numpy as np
import pytest
from whole_runs import ROOT

from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.weights.containers import safetensors

_spec = importlib.util.spec_from_file_location(
    "mutate_files", ROOT / "benchmarks" / "mutate_files.py"
)
mutate_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutate_files)


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_altered_files_of_ours(kind, tmp_path):
    assert _outcomes(mutate_files.own_cases(tmp_path), kind, count=100) == {"refused"}


def test_altered_foreign_files(tmp_path):
    cases = mutate_files.foreign_cases(tmp_path)
    assert {case.name for case in cases} == {
        "timm",
        "torchvision",
        "huggingface",
        "google",
        "big_vision",
    }
    for case in cases:
        assert _outcomes([case], case.name, count=15) <= {"refused", "equal", "changed"}


def test_a_reader_that_checks_nothing_is_caught(tmp_path, monkeypatch):
    """The test of the tests above: without checksums, altered values are read."""
    monkeypatch.setattr(safetensors, "_verify", lambda *_: None)
    assert "FAILED" in _outcomes(mutate_files.own_cases(tmp_path), "weights", count=20)


def test_every_bit_of_state_json_counts(tmp_path):
    (case, _) = mutate_files.own_cases(tmp_path)
    path = case.folder / "step/state.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"state\.json"):
            checkpoint.load(case.folder / "step")
    path.write_bytes(whole)
    assert checkpoint.load(case.folder / "step")[0].step == 12345


def _outcomes(cases, kind: str, count: int) -> set[str]:
    """What `count` alterations of one kind of file ended in."""
    (case,) = [c for c in cases if c.name == kind]
    original, rng, outcomes = case.read(), random.Random(1), set()
    assert all(np.isfinite(a).all() for a in original)
    for _ in range(count):
        path = case.folder / rng.choice(case.files)
        whole = path.read_bytes()
        path.write_bytes(mutate_files.mutate(whole, rng))
        outcome, detail = mutate_files.read_altered(case, original)
        outcomes.add(outcome)
        path.write_bytes(whole)
    return outcomes
