"""Law 12, on the texts of findings: what is said of which side, and which is to be changed."""

import pytest
from laws import pairs
from laws.pairs import Pair, activation
from torch import nn

X = pairs.draws(7, 5)


def normalisation(torch_eps: float, jax_eps: float) -> Pair:
    def body(m, x):
        return m.fc2(m.norm(m.fc1(x)))

    def port(p, x, wrong):
        h = pairs.layer_norm(p, "norm", pairs.dense(p, "fc1", x), jax_eps)
        return pairs.dense(p, "fc2", h)

    parts = {"fc1": nn.Linear(5, 9), "norm": nn.LayerNorm(9, eps=torch_eps), "fc2": nn.Linear(9, 6)}
    return Pair(pairs.net(body, **parts), port, (X,))


def owner(text: str, reference: str) -> str:
    """The framework that the first clause of a finding's text is about."""
    start = text.lower()
    if start.startswith("the port"):
        return "jax" if reference == "torch" else "torch"
    assert start.startswith(("the jax model", "the pytorch model")), text
    return "jax" if start.startswith("the jax model") else "torch"


@pytest.mark.parametrize("reference", ["torch", "jax"])
@pytest.mark.parametrize("theirs", ["torch", "jax"])
def test_a_mistake_is_told_of_the_side_that_makes_it(theirs, reference):
    report = activation(theirs).told(reference=reference)
    pairs.different(report)
    assert report.explained and len(report.findings) == 1
    text = report.findings[0].text
    clause = text.lower().split(";")[0].split(",")[0]
    assert ("tanh" in clause) == (owner(text, reference) == theirs), text


@pytest.mark.parametrize("reference", ["torch", "jax"])
def test_the_numbers_of_a_constant_stand_beside_their_sides(reference):
    report = normalisation(1e-5, 1e-3).told(reference=reference)
    finding = report.findings[0]
    assert finding.cause == "norm_eps"
    first = min(("1e-05", "0.001"), key=lambda n: (finding.text + n).find(n))
    assert first == {"torch": "1e-05", "jax": "0.001"}[owner(finding.text, reference)]


def test_a_fix_speaks_of_the_side_that_is_to_be_changed():
    """The JAX model has the tanh form: as the port it is changed, as the reference it is right."""
    ours = str(activation("jax").told())
    theirs = str(activation("jax").told(reference="jax"))
    assert "approximate=False" in ours and "approximate=False" not in theirs, theirs
    assert "approximate" in theirs and "tanh" in theirs, theirs
