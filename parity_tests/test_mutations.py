"""Claim: every committed mistake can be planted, and a test that does not see one is found out."""

import mutate
import pytest
from mutate import Mutation


@pytest.mark.quick
def test_every_text_is_in_its_file_once():
    mutations = mutate.read_list()
    assert not [fault for m in mutations if (fault := m.fault(mutate.ROOT))]
    assert len(mutations) >= 60 and sum(m.quick for m in mutations) >= 25
    assert not [m.name for m in mutations if m.text == m.replacement or not m.tests]


@pytest.mark.quick
def test_quick_ones_are_seen_by_files_of_the_quick_tier():
    for mutation in mutate.read_list():
        if mutation.quick:
            files = {test.split("::")[0] for test in mutation.tests}
            for file in files:
                text = (mutate.ROOT / "parity_tests" / file).read_text()
                assert "mark.quick" in text, f"{mutation.name}: {file} has no quick test"


def test_what_survives_and_what_is_seen(tmp_path):
    """In a repository of one function, one test of it, and mistakes of each outcome."""
    (tmp_path / "parity_tests").mkdir()
    (tmp_path / "parity_tests/test_x.py").write_text(
        "import pytest\nfrom x import f\n\n\n@pytest.mark.quick\ndef test_f(): assert f(2) == 4\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    quick\n    slow\n")
    (tmp_path / "x.py").write_text("def f(x):\n    return x * x\n")
    results = {}
    for replacement in ("x + x", "x + 1", "y +"):
        mistake = Mutation("m", "x.py", "x * x", replacement, ["test_x.py"], True)
        assert mistake.fault(tmp_path) is None
        results[replacement] = mutate.planted(tmp_path, mistake, quick=True)[0]
    assert results == {"x + x": "survives", "x + 1": "seen", "y +": "broken"}
    assert (tmp_path / "x.py").read_text() == "def f(x):\n    return x * x\n"
    assert "0 times" in Mutation("m", "x.py", "z", "", ["test_x.py"]).fault(tmp_path)
