"""An agent's loop on a wrong port: explain, fix, explain again, until the two are the same.

    python examples/agent_rounds.py [--out rounds.json]

A small PyTorch model is ported to JAX with three mistakes. Each round runs `twinvit port explain`
as an agent would, reads its JSON, and mends one finding at the line that it names; the fourth says
that the port is the same. The edits stand in a table here: what an agent contributes is that it
turns a finding into an edit. The rounds are printed as JSON, as docs/agents.md shows them.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from twinvit.port import cli

REFERENCE = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 30), nn.Linear(30, 12)
        self.norm, self.act = nn.LayerNorm(12, eps=1e-6), nn.GELU()

    def forward(self, x):
        x = x + self.down(self.act(self.up(x)))
        return self.norm(x)


def make():
    torch.manual_seed(0)
    net = Net()
    nn.init.normal_(net.norm.weight, 1, 0.3)
    nn.init.normal_(net.norm.bias, 0, 0.3)
    return net
"""

PORT = """\
import jax
import jax.numpy as jnp

from twinvit import port


def net(p, x):
    hidden = x @ p["up.weight"].T + p["up.bias"]
    hidden = jax.nn.gelu(hidden)
    x = x + hidden @ p["down.weight"].T
    mean = x.mean(-1, keepdims=True)
    var = x.var(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    return x * p["norm.weight"] + p["norm.bias"]


def make(model):
    state = model.state_dict()
    return port.Function(net, {n: v.numpy() for n, v in state.items()})
"""

# What an agent makes of each finding: at the line that the report names, this for that.
EDITS = {
    "gelu_tanh": ("gelu(hidden)", "gelu(hidden, approximate=False)"),
    "bias_missing": ('p["down.weight"].T', 'p["down.weight"].T + p["down.bias"]'),
    "norm_eps": ("1e-5", "1e-6"),
}


def explain(reference: Path, port: Path) -> dict[str, Any]:
    """`twinvit port explain REFERENCE PORT --json`: the report, with its exit status."""
    written = io.StringIO()
    models = [f"{reference}:make", f"{port}:make"]
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()):
        status = cli.main(["explain", *models, "--shape", "5,12", "--json", "--quiet"])
    if status == 3:
        raise SystemExit("no verdict: the models do not run, or the arguments are wrong")
    return json.loads(written.getvalue()) | {"exit_status": status}


def mended(text: str, finding: dict[str, Any]) -> str:
    """The port's text with one finding's edit made at the line that it names."""
    lines = text.splitlines(keepends=True)
    at = int(finding["jax_lines"][0].rpartition(":")[2]) - 1
    old, new = EDITS[finding["cause"]]
    if old not in lines[at]:
        raise SystemExit(f"the finding {finding['cause']} names another line: {lines[at]!r}")
    lines[at] = lines[at].replace(old, new)
    return "".join(lines)


def told(number: int, report: dict[str, Any]) -> dict[str, Any]:
    """What an agent reads of a report."""
    names = ("cause", "text", "fix", "torch", "jax_lines")
    findings = [{n: f[n] for n in names} for f in report["findings"]]
    for finding in findings:
        finding["jax_lines"] = [Path(line).name for line in finding["jax_lines"]]
    fields = {n: report[n] for n in ("exit_status", "verdict", "explained", "reasons")}
    return {"round": number, **fields, "findings": findings}


def rounds(folder: Path) -> list[dict[str, Any]]:
    """Explain and mend until the two are the same; what each round read."""
    reference, text, found = folder / "net.py", PORT, []
    reference.write_text(REFERENCE)
    for number in range(1, len(EDITS) + 2):
        # A folder a round: a module is imported once in a process.
        port = folder / f"round_{number}" / "port.py"
        port.parent.mkdir()
        port.write_text(text)
        report = explain(reference, port)
        found.append(told(number, report))
        if report["verdict"] == "same":
            break
        text = mended(text, report["findings"][0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent's loop on a wrong port, as JSON.")
    parser.add_argument("--out", type=Path, help="write the rounds to this file, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(rounds(Path(folder)), indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
