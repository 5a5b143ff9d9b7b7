"""A finding is an edit that is proven by what comes after it, never by its own result."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from twinvit import port
from twinvit.port.index import Index
from twinvit.port.record.graph import Edit
from twinvit.port.record.torch_program import record
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.candidates import told
from twinvit.port.search.constants import narrow_everywhere
from twinvit.port.search.noise import measure_noise
from twinvit.port.search.proof import take_back, telling
from twinvit.port.search.session import Session
from twinvit.port.search.trial import AppliedEdit

WIDTH = 10
W = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
X = np.random.default_rng(0).standard_normal((4, WIDTH))
STRANGE = np.random.default_rng(7).standard_normal((4, WIDTH))  # that no operation makes


def session(reference, values, outputs) -> Session:
    """A reference of one input `X`, and a port that holds these values and returns these."""
    graph = record(reference, (X,), lambda out: list(out) if isinstance(out, tuple) else [out])
    index = Index()
    for value in (X, W.numpy(), *values, *outputs):
        index.add(np.asarray(value, np.float64), "made", "port.py:1", [])
    return Session(graph, index, measure_noise(graph), [np.asarray(o) for o in outputs])


def node(s: Session, name: str):
    return next(n for n in s.graph.nodes if n.name == name)


def judged(s: Session, name: str, fn):
    place = node(s, name)
    return s.judge({place.index: Edit(fn)}, place)


def product(x: torch.Tensor) -> torch.Tensor:
    return x.tanh() @ W


def test_the_edited_operation_itself_does_not_count():
    x = torch.from_numpy(X)
    s = session(product, [x.sin()], [x.cos() @ W])
    found = judged(s, "tanh", lambda x: x.sin())  # the port holds it, and goes on from another
    assert (found.regained, found.own) == (0, 1)
    found = judged(s, "tanh", lambda x: x.cos())
    assert (found.regained, found.own) == (1, 0)


def test_an_output_counts_where_it_agrees_number_by_number():
    x = torch.from_numpy(X)
    s = session(lambda x: x.tanh(), [], [x.sin()])
    assert judged(s, "tanh", lambda x: x.sin()).regained == 1
    assert judged(s, "tanh", lambda x: x.sin().flip(0)).regained == 0


def test_an_output_behind_a_reshape_counts():
    x = torch.from_numpy(X)
    s = session(lambda x: x.tanh().reshape(-1), [], [x.sin().reshape(-1)])
    assert judged(s, "tanh", lambda x: x.sin()).regained == 1


def test_each_edit_of_several_needs_a_value_of_its_own():
    x = torch.from_numpy(X)

    def two(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.tanh() @ W, x.sigmoid() @ W

    s = session(two, [], [x.sin() @ W, torch.sigmoid(x) @ W])
    first, second = node(s, "tanh"), node(s, "sigmoid")
    true, idle = Edit(lambda x: x.sin()), Edit(lambda x: x.sigmoid())
    assert s.judge({first.index: true}, first, enough=0).regained == 1
    assert s.judge({first.index: true, second.index: idle}, first, enough=0).regained == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_makes_nan_is_no_cause(bad):
    x = torch.from_numpy(X)
    wrong = x.sin().clone()
    wrong[0, 0] = bad
    s = session(product, [], [wrong @ W])
    assert judged(s, "tanh", lambda _: wrong) is None
    assert judged(s, "tanh", lambda x: x.sin()) is not None


@pytest.mark.parametrize(
    ("numbers_", "says"),
    [([0.0], False), ([1.0], False), ([0.75, 0.25], False), ([np.nan], False), ([0.3172], True)],
)
def test_few_plain_numbers_prove_nothing(numbers_, says):
    assert telling(np.array(numbers_)) is says


@pytest.mark.parametrize("t", [0.18215, 64**-0.5, 1 / 0.18215, np.sqrt(0.5), np.pi / 7, 1.7e-3])
def test_a_written_constant_is_told(t):
    assert told(float(t), 3.3)
    assert told(float(np.float32(0.1)), 3.3)


@pytest.mark.parametrize("t", [1.003670123456, 0.960937123456, 17.29384756])
def test_a_number_that_nobody_wrote_is_no_finding(t):
    assert not told(t, 1.0)
    assert told(0.123456789, 0.123456788), "one side's rounding"


def test_a_finding_that_nothing_needs_is_taken_back():
    x = torch.from_numpy(X)

    def reference(x: torch.Tensor) -> torch.Tensor:
        return (x.tanh() @ W).exp()

    s = session(reference, [x.sin() @ W], [(x.sin() @ W).exp()])
    accepted = [made(s, "tanh", lambda x: x.sin()), made(s, "mm", lambda a, b: (2 * a) @ (b / 2))]
    take_back(s, accepted)
    assert [a.node.name for a in accepted] == ["tanh"] and s.outputs_agree()


def test_of_two_that_each_suffice_one_stays():
    x = torch.from_numpy(X)

    def reference(x: torch.Tensor) -> torch.Tensor:
        return x.tanh().clamp(-9, 9) @ W

    s = session(reference, [], [x.sin() @ W])
    accepted = [made(s, name, lambda *_: x.sin()) for name in ("tanh", "clamp")]
    take_back(s, accepted)
    assert len(accepted) == 1 and s.outputs_agree()


def test_an_attempt_that_changed_nothing_goes_once_all_agrees():
    x = torch.from_numpy(X)
    for port_output, left in ((x.sin() @ W, 1), (x.cos() @ W, 2)):
        s = session(product, [], [port_output])
        idle = AppliedEdit("unknown", "", "", node(s, "tanh"), {}, {}, "", 1.0, 1.0)
        accepted = [idle, made(s, "tanh", lambda x: x.sin())]
        take_back(s, accepted)
        assert (idle in accepted) == (left == 2)


def made(s: Session, name: str, fn) -> AppliedEdit:
    """An edit, made."""
    place = node(s, name)
    before = {place.index: s.graph.nodes[place.index]}
    s.apply({place.index: Edit(fn)})
    after = {place.index: s.graph.nodes[place.index]}
    a = AppliedEdit("cause", name, name, place, {place.index: Edit(fn)}, {}, "", 1.0, 0.0)
    a.groups = [[place.index]]
    return a.took(before, after, {})


def test_values_are_as_they_were_after_a_search_that_takes_back():
    x = torch.from_numpy(X)
    s = session(product, [], [x.cos() @ W])
    before = [to_numpy(v).copy() for v in s.graph.values]
    a = made(s, "tanh", lambda x: x.sin())
    take_back(s, [a])
    assert all(np.array_equal(a, to_numpy(v)) for a, v in zip(before, s.graph.values))


# Whole pairs.


class Similarity(nn.Module):
    """Cosines of two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.a(x), dim=-1) @ F.normalize(self.b(y), dim=-1).T


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


def drawn(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model.eval()


def named(report: port.Report) -> set[str]:
    return {f.cause for f in report.findings}


def test_a_norm_with_eps_in_the_root_is_no_squared_relu():
    model = drawn(Similarity())

    def wrong(p, x, y):
        def unit(z):
            return z / jnp.sqrt((z**2).sum(-1, keepdims=True) + 1e-6)

        a, b = x @ p["a.weight"].T + p["a.bias"], y @ p["b.weight"].T + p["b.bias"]
        return unit(a) @ unit(b).T

    g = np.random.default_rng(0)
    inputs = (0.1 * g.standard_normal((9, 6)), g.standard_normal((9, 5)))
    report = port.explain(model, port.Function(wrong, weights(model)), inputs)
    assert "activation" not in named(report), report


class Two(nn.Module):
    """A layer whose activation the next one takes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x))).tanh()


def test_two_mistakes_next_to_each_other_are_both_named():
    model = drawn(Two())

    def wrong(p, x):
        h = jnp.maximum(x @ p["up.weight"].T + p["up.bias"], 0)
        return jnp.tanh(h @ p["down.weight"].T)

    report = port.explain(model, port.Function(wrong, weights(model)), (X,))
    assert named(report) == {"activation", "bias_missing"}, report
    assert report.explained


class Scaled(nn.Module):
    """Two factors around a product."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.v(self.w(x.tanh() * 0.5) * 0.25)


def test_an_edit_that_moves_the_outputs_away_stands_by_what_it_regains():
    model = drawn(Scaled())

    def wrong(p, x):
        return (jnp.tanh(x) * 5.0 @ p["w.weight"].T * 0.0255) @ p["v.weight"].T

    report = port.explain(model, port.Function(wrong, weights(model)), (X,))
    assert [f.cause for f in report.findings] == ["scale", "scale"], report
    assert report.explained and report.distance < 0.1


class Standard(nn.Module):
    """Standardised by the deviation of all numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - x.mean()) / (x.abs().mean() + 1e-8)).tanh().cumsum(0)


def test_a_factor_that_depends_on_the_input_is_no_constant():
    def wrong(p, x):
        y = (x - x.mean()) / (jnp.sqrt((x**2).mean()) + 1e-8)
        return jnp.cumsum(jnp.tanh(y), 0)

    report = port.explain(Standard(), port.Function(wrong, {}), (X,))
    assert {f.kind for f in report.findings} == {"expression"}, report
    assert "sqrt(mean(" in report.findings[0].text and report.explained


class Clipped(nn.Module):
    """The larger of two squared errors, one of a clipped value."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor, old: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        v = self.v(x)[:, 0]
        c = old + (v - old).clamp(-0.2, 0.2)
        return 0.5 * torch.max((v - target) ** 2, (c - target) ** 2).mean()


def test_a_missing_clip_is_named_and_no_residual():
    model = drawn(Clipped())

    def wrong(p, x, old, target):
        v = (x @ p["v.weight"].T + p["v.bias"])[:, 0]
        return 0.5 * ((v - target) ** 2).mean()

    g = np.random.default_rng(1)
    inputs = (g.standard_normal((16, WIDTH)), g.standard_normal(16), g.standard_normal(16))
    report = port.explain(model, port.Function(wrong, weights(model)), inputs)
    assert named(report) == {"clip_missing"}, report


@pytest.mark.parametrize(("factor", "found"), [(1 + 3e-7, True), (1 + 3e-4, False)])
def test_small_numbers_of_a_table_are_judged_by_their_own_size(factor, found):
    mine = np.geomspace(1, 1e-4, 12)
    theirs = mine.copy()
    theirs[-1] *= factor
    assert narrow_everywhere(mine, theirs) is found


def test_a_name_in_an_unexplained_report_reads_as_a_guess():
    model = drawn(Two())

    def wrong(p, x):
        h = jnp.maximum(x @ p["up.weight"].T + p["up.bias"], 0)
        return STRANGE * (h @ p["down.weight"].T + p["down.bias"])

    report = port.explain(model, port.Function(wrong, weights(model)), (X,))
    assert not report.explained and named(report) == {"activation", ""}, report
    texts = {f.cause: f.text for f in report.findings}
    assert texts["activation"].startswith("a guess: the port computes ReLU")
    assert not texts[""].startswith("a guess")


class Norms(nn.Module):
    """Two norms of one width, a layer behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.mix(self.first(x)).tanh())).tanh()


def test_an_exchange_whose_second_place_has_a_mistake_behind_it():
    model = Norms().eval()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))

    def wrong(p, x):
        def norm(x, name):
            d = x - x.mean(-1, keepdims=True)
            y = d / jnp.sqrt((d**2).mean(-1, keepdims=True) + 1e-5)
            return y * p[f"{name}.weight"] + p[f"{name}.bias"]

        h = jnp.tanh(norm(x, "second") @ p["mix.weight"].T + p["mix.bias"])
        return jnp.tanh(norm(h, "first") @ p["out.weight"].T)

    report = port.explain(model, port.Function(wrong, weights(model)), (X,))
    assert named(report) == {"weights_swapped", "bias_missing"}, report
    assert report.explained
