"""Claim: the examples run, and show what their text says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_explain_a_port(tmp_path):
    page = tmp_path / "page.html"
    command = [sys.executable, str(ROOT / "examples/explain_a_port.py"), "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "the port = the reference + these 3 edits" in done.stdout
    found = [line.split()[1] for line in done.stdout.splitlines() if line[:2] in ("1.", "2.", "3.")]
    assert found == ["attention_scale", "gelu_tanh", "norm_eps"]
    text = page.read_text()
    assert all(cause in text for cause in found) and "http" not in text.replace(
        "http://www.w3.org", ""
    )
