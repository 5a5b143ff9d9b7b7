"""A finding's line is that of the mistake, on both sides."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from placed import modules
from placed import reference as placed_reference

from twinvit import port

F = torch.nn.functional


HERE = Path(__file__).parent


def line_of(mark):
    """The line, of this file or of the package `placed`, that ends with a comment of this name."""
    found = []
    for path in (Path(__file__), *HERE.glob("placed/**/*.py")):
        for i, text in enumerate(path.read_text().splitlines(), 1):
            if text.rstrip().endswith(f"# {mark}"):
                found.append(f"{path.relative_to(HERE.parent)}:{i}")
    (line,) = found
    return line


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.q, self.k = torch.nn.LayerNorm(8), *(torch.nn.Linear(8, 8) for _ in "qk")
        self.out = torch.nn.Linear(8, 6)
        for p in self.norm.parameters():
            torch.nn.init.normal_(p)

    def forward(self, x):
        x = self.norm(x)  # torch norm
        q = self.q(x)
        k = self.k(x)
        scores = q @ k.transpose(-2, -1) / 8**0.5  # torch scale
        weights = F.softmax(scores, -1)  # torch softmax
        y = F.gelu(weights @ x)  # torch gelu
        return self.out(y)


def right(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(variance + 1e-5)
    x = x * p["norm.weight"] + p["norm.bias"]
    q = x @ p["q.weight"].T + p["q.bias"]
    k = x @ p["k.weight"].T + p["k.bias"]
    weights = jax.nn.softmax(q @ k.swapaxes(-2, -1) / 8**0.5)
    y = jax.nn.gelu(weights @ x, approximate=False)
    return y @ p["out.weight"].T + p["out.bias"]


def eps(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    variance = variance + 1e-3  # jax eps
    x = (x - mean) / jnp.sqrt(variance)
    return rest(p, x * p["norm.weight"] + p["norm.bias"])


def ddof(p, x):
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    squares = (centred**2).sum(-1, keepdims=True)
    variance = squares / 7  # jax ddof
    x = centred / jnp.sqrt(variance + 1e-5)
    x = x * p["norm.weight"]
    x = x + p["norm.bias"]
    return rest(p, x)


def bias(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(variance + 1e-5)
    x = x * p["norm.weight"]  # jax bias
    return rest(p, x)


def rest(p, x):
    q = x @ p["q.weight"].T + p["q.bias"]
    k = x @ p["k.weight"].T + p["k.bias"]
    scores = q @ k.swapaxes(-2, -1) / 8**0.5
    weights = jax.nn.softmax(scores)
    return head(p, jax.nn.gelu(weights @ x, approximate=False))


def head(p, y):
    return y @ p["out.weight"].T + p["out.bias"]


def normed(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(variance + 1e-5)
    return x * p["norm.weight"] + p["norm.bias"]


def scale(p, x):
    x = normed(p, x)
    q = x @ p["q.weight"].T + p["q.bias"]
    k = x @ p["k.weight"].T + p["k.bias"]
    scores = q @ k.swapaxes(-2, -1)
    scores = scores / 8  # jax scale
    weights = jax.nn.softmax(scores)
    y = weights @ x
    return head(p, jax.nn.gelu(y, approximate=False))


def axis(p, x):
    x = normed(p, x)
    q = x @ p["q.weight"].T + p["q.bias"]
    k = x @ p["k.weight"].T + p["k.bias"]
    scores = q @ k.swapaxes(-2, -1) / 8**0.5
    weights = jax.nn.softmax(scores, axis=-2)  # jax softmax
    y = weights @ x
    return head(p, jax.nn.gelu(y, approximate=False))


def tanh(p, x):
    x = normed(p, x)
    q = x @ p["q.weight"].T + p["q.bias"]
    k = x @ p["k.weight"].T + p["k.bias"]
    weights = jax.nn.softmax(q @ k.swapaxes(-2, -1) / 8**0.5)
    y = weights @ x
    inner = y + 0.044715 * y**3
    gate = 1 + jnp.tanh((2 / jnp.pi) ** 0.5 * inner)  # jax written gelu
    y = 0.5 * y * gate
    return head(p, y)


def library(p, x):
    x = normed(p, x)
    q = x @ p["q.weight"].T + p["q.bias"]
    k = x @ p["k.weight"].T + p["k.bias"]
    weights = jax.nn.softmax(q @ k.swapaxes(-2, -1) / 8**0.5)
    y = weights @ x
    y = jax.nn.gelu(y)  # jax gelu
    return head(p, y)


def explained(fn, tokens=5):
    reference = Reference().eval()
    params = {n: jnp.asarray(p.detach().numpy()) for n, p in reference.named_parameters()}
    x = np.random.default_rng(0).normal(size=(3, tokens, 8)).astype(np.float32)
    return port.explain(reference, port.Function(fn, params), (x,))


def test_the_right_port_is_the_same():
    assert explained(right).verdict == "same"


CASES = [
    (eps, "torch norm", "jax eps"), (ddof, "torch norm", "jax ddof"),
    (bias, "torch norm", "jax bias"), (scale, "torch scale", "jax scale"),
    (axis, "torch softmax", "jax softmax"), (library, "torch gelu", "jax gelu"),
]  # fmt: skip


@pytest.mark.parametrize("fn, mine, theirs", CASES, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("tokens", [5, 1])
def test_the_line_is_that_of_the_mistake(fn, mine, theirs, tokens, tmp_path):
    if tokens == 1 and fn in (scale, axis):
        return  # a softmax over one position is one
    check(explained(fn, tokens), line_of(mine), line_of(theirs), tmp_path)


def check(report, mine, theirs, folder):
    """These lines alone, in the text, in JSON and in HTML."""
    assert report.verdict == "different", str(report)
    (finding,) = report.findings
    assert finding.jax_lines == [finding.jax] == [theirs], str(report)
    assert finding.torch_lines == [finding.torch_line] == [mine], str(report)
    assert theirs in next(line for line in str(report).splitlines() if line.startswith("1. "))
    assert f"({mine})" in str(report)
    report.to_json(folder / "report.json")
    (written,) = json.loads((folder / "report.json").read_text())["findings"]
    assert written["jax_lines"] == [theirs] and written["torch_lines"] == [mine]
    report.to_html(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert theirs in page and mine in page


KINDS = {"nnx": modules.Nnx, "linen": modules.linen, "equinox": modules.equinox,
         "keras": modules.keras_model, "nested": modules.nested}  # fmt: skip


@pytest.mark.parametrize("wrong", ["", "eps", "gelu", "pool"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_line_is_the_users_in_each_kind_of_model(kind, wrong, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    report = port.explain(placed_reference.Reference().eval(), KINDS[kind](wrong), (x,))
    if not wrong:
        assert report.verdict == "same", str(report)
        return
    check(report, line_of(f"reference {wrong}"), line_of(f"{kind} {wrong}"), tmp_path)


def test_the_line_within_a_written_out_gelu():
    (finding,) = explained(tanh).findings
    first = int(finding.jax.split(":")[1])
    last = int(line_of("jax written gelu").split(":")[1])
    assert finding.cause == "gelu_tanh" and last - 1 <= first <= last
