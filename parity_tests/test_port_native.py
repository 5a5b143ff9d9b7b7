"""Both programs as they run: NaN and infinity that float64 does not show, and where they begin."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import port_models as models
import pytest
import torch

from twinvit import port
from twinvit.port.native.run import run_native
from twinvit.port.outputs import labelled, pick, pick_torch
from twinvit.port.pair import Pair
from twinvit.port.record import jax_trace, torch_program
from twinvit.port.record.jax_interpreter import Interpreter

RNG = np.random.default_rng(0)


def native(reference, called, params, inputs, **arguments):
    """Both programs as they run."""
    given = port.Function(called, params) if params is not None else called
    pair = Pair(reference, given, inputs, None, None, lambda text: None)
    graph = torch_program.record(
        reference, inputs, lambda out: [t for _, t in pick_torch(out, None)]
    )
    names = []
    torch_program.record(
        reference, inputs, lambda out: [names.append(n) or t for n, t in pick_torch(out, None)]
    )
    traced, arrays, pure = pair.trace()
    values = [*pair.leaves, *arrays]
    outs, _ = jax_trace.evaluate(traced, values, [-1] * len(values), Interpreter())
    theirs = pick(labelled(traced.labels, outs, pure.stateful), None, "JAX")
    mine = [(n, graph.values[o]) for n, o in zip(names, graph.outputs)]
    return run_native(pair, pure, arrays, mine, theirs, **arguments)


def line(fn, text):
    """ "file.py:12" of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(fn)
    k = next(i for i, one in enumerate(lines) if text in one)
    return f"test_port_native.py:{first + k}"


class Scores(torch.nn.Module):
    """A softmax over large scores, (B, 9) to (B, 9)."""

    def __init__(self, scale=25.0):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(9, 9)
        self.scale = scale

    def forward(self, x):
        return torch.softmax(self.a(x) * self.scale, -1)


def held(model):
    return {k: v.numpy() for k, v in model.state_dict().items()}


def unshifted(p, x):
    scores = (x @ p["a.weight"].T + p["a.bias"]) * 25.0
    weights = jnp.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


def shifted(p, x):
    return jax.nn.softmax((x @ p["a.weight"].T + p["a.bias"]) * 25.0, -1)


X = 3 * RNG.standard_normal((12, 9)).astype(np.float32)


def test_a_softmax_without_its_maximum_is_nan_as_it_runs():
    model = Scores()
    found = native(model, unshifted, held(model), (X,))
    (broken,) = found.broken
    assert broken.side == "jax" and broken.kind == "NaN" and broken.size == 108
    with np.errstate(all="ignore"):
        own = np.isnan(np.asarray(unshifted(held(model), jnp.asarray(X)))).sum()
    assert 0 < broken.count <= own
    assert broken.where.endswith(line(unshifted, "jnp.exp"))
    assert found.failure("jax").startswith(
        f"the port as it runs returns NaN in {broken.count} of 108"
    )
    assert found.failure("jax").endswith(broken.where)


def test_a_right_port_is_not_blamed_and_its_distance_is_rounding():
    model = Scores()
    found = native(model, shifted, held(model), (X,))
    assert not found.broken and not found.failure("jax") and not found.notes
    assert 1e-9 < found.torch < 1e-4 and 1e-9 < found.jax < 1e-4
    assert found.dtypes == {"torch": "float32", "jax": "float32"} and found.jitted
    assert set(found.outputs) == {("torch", ""), ("jax", "")}


class Masked(torch.nn.Module):
    """Scores with a causal mask and one of padding, (B, 6, 9): row 0 is masked by both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(9, 9)

    def forward(self, x):
        y = self.a(x)
        low = torch.finfo(torch.float32).min
        n = y.shape[1]
        causal = torch.ones(n, n).triu(1) * low
        causal[0, 0] = low  # the first key is padding
        pad = torch.zeros(n, 1)
        pad[0] = low  # and so is the first query
        return torch.softmax((y @ y.transpose(1, 2) + causal + pad).clamp(min=low), -1) @ y


def masked(p, x, clamp):
    y = x @ p["a.weight"].T + p["a.bias"]
    low = jnp.finfo(jnp.float32).min
    n = y.shape[1]
    mask = jnp.where(jnp.triu(jnp.ones((n, n), bool), 1).at[0, 0].set(True), low, 0.0)
    both = mask + jnp.where(jnp.arange(n)[:, None] == 0, low, 0.0)
    scores = y @ y.swapaxes(1, 2) + both
    scores = jnp.maximum(scores, low) if clamp else scores
    weights = jax.nn.softmax(scores, -1)
    return weights @ y


Y = RNG.standard_normal((2, 6, 9)).astype(np.float32)


def test_two_masks_that_are_added_overflow():
    model = Masked()
    wrong = native(model, lambda p, x: masked(p, x, False), held(model), (Y,))
    (broken,) = wrong.broken
    assert broken.side == "jax" and broken.count == 2 * 9 and broken.size == 2 * 6 * 9
    assert broken.where.endswith(line(masked, "both = mask +"))
    assert broken.own == broken.count
    right = native(model, lambda p, x: masked(p, x, True), held(model), (Y,))
    assert not right.broken, right


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_an_exponential_overflows_in_half_precision_alone(dtype):
    class Gate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a = torch.nn.Linear(9, 9)

        def forward(self, x):
            return torch.sigmoid(self.a(x) * 4)

    model = Gate().to(getattr(torch, dtype))
    params = {
        k: jnp.asarray(v.float().numpy()).astype(dtype) for k, v in model.state_dict().items()
    }

    def call(p, x):
        e = jnp.exp((x.astype(p["a.weight"].dtype) @ p["a.weight"].T + p["a.bias"]) * 4)
        return e / (1 + e)

    found = native(model, call, params, (X,))
    assert found.dtypes == {"torch": dtype, "jax": dtype}
    assert bool(found.broken) == (dtype == "float16"), found
    for broken in found.broken:
        assert broken.kind == "NaN" and broken.where.endswith(line(call, "e = jnp.exp"))


def test_nan_on_both_sides_blames_neither_and_the_references_alone_is_a_note():
    class Naive(Scores):
        def forward(self, x):
            e = torch.exp(self.a(x) * self.scale)
            return e / e.sum(-1, keepdim=True)

    model = Naive()
    both = native(model, unshifted, held(model), (X,))
    assert {b.side for b in both.broken} == {"torch", "jax"}
    assert not both.failure("jax") and all(not b.own for b in both.broken)
    alone = native(model, shifted, held(model), (X,))
    (broken,) = alone.broken
    assert broken.side == "torch" and not alone.failure("jax")
    assert broken.where.endswith(line(Naive.forward, "torch.exp"))
    assert alone.report().text == f"the reference as it runs {broken.text}"
    assert alone.failure("torch") == f"the reference as it runs {broken.text}"
    blamed = port.explain(model, port.Function(shifted, held(model)), (X,), reference="jax")
    assert blamed.verdict == "different" and "the PyTorch model as it runs" in str(blamed)
    kept = port.explain(model, port.Function(shifted, held(model)), (X,))
    assert kept.same and kept.native is not None and kept.native.text.startswith("the reference as")


def test_a_number_beyond_the_types_range_is_rightly_infinite():
    model = Scores()

    def call(p, x):
        return (x @ p["a.weight"].T + p["a.bias"]) * 1e30 * 1e30

    class Big(Scores):
        def forward(self, x):
            return self.a(x) * 1e30 * 1e30

    found = native(Big(), call, held(model), (X,))
    assert not found.broken


def test_what_cannot_be_run_is_said():
    model = Scores()

    def call(p, x):
        if x.dtype != jnp.float64:
            raise TypeError("float64 alone")
        return shifted(p, x)

    found = native(model, call, held(model), (X,))
    assert found.jax is None and found.torch is not None
    assert any("port could not be run" in n and "float64 alone" in n for n in found.notes)


def test_neither_model_nor_the_state_of_random_numbers_changes():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a = torch.nn.Linear(9, 9)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.a(x + 0 * torch.rand(()) + 0 * np.random.rand())

    model = Counting().train()
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    native(model, lambda p, x: x @ p["a.weight"].T + p["a.bias"], held(model), (X,))
    assert model.training and float(model.calls) == 0
    assert model.a.weight.dtype == torch.float32
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    assert not jax.config.jax_enable_x64


def test_integers_and_float64_inputs_are_taken_as_frameworks_take_them():
    seen = []

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.e = torch.nn.Embedding(30, 9)

        def forward(self, ids, x):
            return self.e(ids) + x

    def call(p, ids, x):
        seen.append((str(ids.dtype), str(x.dtype)))
        return p["e.weight"][ids] + x

    model = Table()
    ids = RNG.integers(0, 30, (3, 5))
    found = native(model, call, held(model), (ids, RNG.standard_normal((3, 5, 9))))
    assert seen[-1] == ("int32", "float32") and found.dtypes["torch"] == "float32"
    assert not found.notes


def test_a_scan_is_entered_to_find_the_place():
    model = Scores()

    def call(p, x):
        def step(c, _):
            c = jnp.exp(c * 3)
            return c / (1 + c), None

        y, _ = jax.lax.scan(step, x @ p["a.weight"].T + p["a.bias"] + 40, None, length=2)
        return y

    found = native(model, call, held(model), (X,))
    (broken,) = found.broken
    assert broken.where.endswith(line(call, "jnp.exp"))


def test_a_whole_model_is_rounding_away_from_float64():
    model = models.reference()
    found = native(model, models.port, models.params(model), (models.images(),))
    assert 0 < found.jax < 1e-5 and 0 < found.torch < 1e-5 and not found.broken


def test_the_report_says_first_that_the_program_as_it_runs_is_broken():
    model = Scores()
    report = port.explain(model, port.Function(unshifted, held(model)), (X,))
    assert report.verdict == "different" and not report.findings and not report.explained
    assert report.distance < 1e-12
    assert report.reasons[0].startswith("in float64 the same, but the port as it runs returns NaN")
    assert report.reasons[0].endswith(line(unshifted, "jnp.exp"))
    assert "returns NaN" in str(report).splitlines()[0]
    right = port.explain(model, port.Function(shifted, held(model)), (X,))
    assert right.same and right.native.text == ""
    assert right.native.jax < 1e-4 and right.native.jax_dtype == "float32"


def test_a_port_whose_integers_overflow_as_it_runs_is_not_the_same():
    class Hashed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = torch.nn.Embedding(17, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table((x * 1000003) % 17)

    model = Hashed().eval()
    ids = np.arange(30000, 30016).reshape(2, 8)

    def hashed(p: dict, x: jax.Array) -> jax.Array:  # int32 as it runs
        return p["table.weight"][(x * 1000003) % 17]

    report = port.explain(model, port.Function(hashed, held(model)), (ids,))
    assert report.verdict == "different" and "overflow" in report.reasons[0], report
    small = port.explain(model, port.Function(hashed, held(model)), (ids - 29000,))
    assert small.same, small
