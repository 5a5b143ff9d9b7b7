"""What agrees on the first inputs is tried on others, and with other weights, before it is said."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import port_models as models
import pytest
import torch
from torch import nn

from twinvit import port
from twinvit.port.call import Call
from twinvit.port.record.torch_program import record
from twinvit.port.redraw import redrawn_inputs, redrawn_weights
from twinvit.port.search.edits import checked
from twinvit.port.verify import captured

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 7, 12))
IDS = RNG.integers(0, 19, (3, 8))
MASK = (np.arange(8) < np.array([[8], [5], [6]])).astype(np.int64)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_(model: nn.Module) -> nn.Module:
    """The model with no constant weight; running variances stay positive."""
    generator = torch.Generator().manual_seed(0)
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_floating_point():
            with torch.no_grad():
                noise = torch.rand if "var" in name else torch.randn
                t.copy_(noise(t.shape, generator=generator) * 0.5 + (0.5 if "var" in name else 0))
    return model.eval()


def params(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


class Dense(nn.Module):
    """x -> activation(fc(x)) -> out; `fn` in place of the activation."""

    def __init__(self, fn: Callable[..., Any] = torch.relu) -> None:
        super().__init__()
        self.fc, self.out, self.fn = nn.Linear(12, 16), nn.Linear(16, 9), fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fn(self.fc(x)))


def dense(p: dict[str, jax.Array], x: jax.Array, fn: Callable[..., Any] = jax.nn.relu) -> jax.Array:
    h = fn(x @ p["fc.weight"].T + p["fc.bias"])
    return h @ p["out.weight"].T + p["out.bias"]


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def convolved(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    if x.shape[-1] != 3:
        raise ValueError("images are NHWC")
    x = jax.lax.conv_general_dilated(
        x, p["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if "mean" in p:
        x = (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5) * p["scale"]
    return jax.nn.relu(x + p["shift"]).mean((1, 2)) @ p["head"] + p["head_b"]


def convolved_params(model: nn.Module, folded: bool) -> dict[str, np.ndarray]:
    p = params(model)
    kernel = p["conv.weight"].transpose(2, 3, 1, 0)
    mean, var, scale, shift = (
        p[f"bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
    )
    head = {"head": p["out.weight"].T, "head_b": p["out.bias"]}
    if not folded:
        stats = {"mean": mean, "variance": var, "scale": scale}
        return {"kernel": kernel, "shift": shift, **stats, **head}
    factor = scale / np.sqrt(var + 1e-5)
    return {"kernel": kernel * factor, "shift": shift - mean * factor, **head}


class Tokens(nn.Module):
    """Ids, shifted right in place, and a mask of 0 and 1, to pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(19, 12), nn.Linear(12, 9)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shifted = torch.zeros_like(ids)
        shifted[:, 1:] = ids[:, :-1]
        x = self.out(self.table(shifted)).masked_fill(mask[..., None] == 0, 0.0)
        return x.sum(1) / mask.sum(1, keepdim=True)


def tokens(p: dict[str, jax.Array], ids: jax.Array, mask: jax.Array) -> jax.Array:
    ids = jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1]
    x = p["table.weight"][ids] @ p["out.weight"].T + p["out.bias"]
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


class Scaled(Dense):
    """Multiplied by a number, which is a parameter without axes, and with a table as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("table", torch.zeros(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale + self.table


def scaled(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return dense(p, x) * p["scale"] + p["table"]


class Branching(nn.Module):
    """Reads a number of its input, and branches by it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x) * float(x[0, 0, 0])
        return x.tanh() if x[0, 0, 1] > 0 else x.sin().exp()


def branching(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = (x @ p["fc.weight"].T + p["fc.bias"]) * x[0, 0, 0]
    return jnp.where(y[0, 0, 1] > 0, jnp.tanh(y), jnp.exp(jnp.sin(y)))


@dataclass
class Pair:
    reference: nn.Module
    call: Callable[..., Any]
    params: Any
    inputs: Any
    moved: int
    """Parameters that other weights are drawn for."""

    def explain(self, **arguments: Any) -> port.Report:
        return port.explain(
            self.reference, port.Function(self.call, self.params), self.inputs, **arguments
        )


def vit(stacked: bool) -> Pair:
    model = models.reference()
    return Pair(model, models.port, models.params(model, stacked), (models.images(),), 32)


def convolution(folded: bool) -> Pair:
    model = random_(Convolved())
    x = RNG.standard_normal((2, 3, 9, 9))
    held = convolved_params(model.double() if folded else model, folded)
    return Pair(model, convolved, held, (x,), 2 if folded else 7)


def plain(model: nn.Module, call: Callable[..., Any], inputs: Any, moved: int) -> Pair:
    model = random_(model)
    return Pair(model, call, params(model), inputs, moved)


RIGHT = {
    "vit": lambda: vit(False),
    "stacked layers": lambda: vit(True),
    "batch norm": lambda: convolution(False),
    "folded batch norm": lambda: convolution(True),
    "ids and a mask": lambda: plain(Tokens(), tokens, (IDS, MASK), 3),
    "ids by name": lambda: plain(
        Tokens(), lambda p, ids, mask: tokens(p, ids, mask), {"ids": IDS, "mask": MASK}, 3
    ),
    "control flow": lambda: plain(Branching(), branching, (X,), 2),
    "jitted": lambda: plain(Dense(), jax.jit(dense), (X,), 4),
    "a number and a table": lambda: plain(Scaled(), scaled, (X,), 5),
    "float32": lambda: plain(Dense(), dense, (X.astype(np.float32),), 4),
    "positive inputs": lambda: plain(Dense(), dense, (np.abs(X),), 4),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_is_the_same_on_other_inputs_and_weights(name):
    pair = RIGHT[name]()
    report = pair.explain()
    assert report.same and report.explained, report
    kinds = [d.kind for d in report.verified]
    assert kinds == ["inputs"] * (1 + (name == "positive inputs")) + ["weights"], report
    assert all(d.distances and d.distances[""] < 1e-13 for d in report.verified), report
    assert report.verified[-1].note.startswith(f"{pair.moved} of"), report


def own_scale(p: dict[str, jax.Array], x: jax.Array, scale: float) -> jax.Array:
    return dense(p, x, lambda h: h / scale)


class Normed(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(x) / self.fc.weight.norm())


def scaled_by_norm() -> Pair:
    pair = plain(Normed(), own_scale, (X,), 4)
    size = float(np.linalg.norm(pair.params["fc.weight"].astype(np.float64)))
    pair.call = partial(own_scale, scale=size)
    return pair


def hard_coded() -> Pair:
    pair = plain(Dense(), dense, (X,), 4)
    wide = {k: v.astype(np.float64) for k, v in pair.params.items()}
    h = np.maximum(X @ wide["fc.weight"].T + wide["fc.bias"], 0)
    out = h @ wide["out.weight"].T + wide["out.bias"]
    pair.call = lambda p, x: jnp.asarray(out)
    return pair


class Looked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.place, self.out = (
            nn.Embedding(19, 12),
            nn.Embedding(8, 12),
            nn.Linear(12, 9),
        )

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.table(ids) + self.place(positions)))


def unplaced(p: dict[str, jax.Array], ids: jax.Array, positions: jax.Array) -> jax.Array:
    x = jnp.tanh(p["table.weight"][ids] + p["place.weight"][jnp.arange(ids.shape[1])])
    return x @ p["out.weight"].T + p["out.bias"]


def clipped(p: dict[str, jax.Array], x: jax.Array, fn: Callable[..., Any]) -> jax.Array:
    return dense(p, x, lambda h: jnp.clip(fn(h), max=float(LARGEST)))


class Positive(Dense):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.relu(x))


LARGEST = (
    torch.nn.functional.gelu(
        torch.from_numpy(X) @ random_(Dense()).fc.weight.double().T + random_(Dense()).fc.bias
    ).max()
    + 1e-3
)

WRONG = {
    "hard-coded": (hard_coded, "inputs"),
    "a missing relu on positive inputs": (
        lambda: plain(Positive(), dense, (np.abs(X),), 4), "inputs",
    ),
    "positions that are not read": (
        lambda: plain(Looked(), unplaced, (IDS, np.tile(np.arange(8), (3, 1))), 4), "inputs",
    ),
    "a clip that is not reached": (
        lambda: plain(
            Dense(nn.functional.gelu), partial(clipped, fn=partial(jax.nn.gelu, approximate=False)),
            (X,), 4,
        ), "weights",
    ),
    "a number of these weights": (scaled_by_norm, "weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_port_that_agrees_on_the_first_inputs_alone_is_different(name):
    make, kind = WRONG[name]
    report = make().explain()
    assert report.verdict == "different" and not report.explained, report
    assert report.distance < 1e-12 and not report.findings
    assert report.reasons[0].startswith("the same on these inputs, but not on others: the output")
    assert max(d.distances[""] for d in report.verified if d.kind == kind) > 1e-4


def test_an_edit_that_holds_on_the_first_inputs_alone_does_not_explain():
    pair = plain(Dense(nn.functional.gelu), dense, (X,), 4)
    pair.call = partial(dense, fn=jax.nn.gelu)
    report = pair.explain()
    assert [f.cause for f in report.findings] == ["gelu_tanh"] and report.explained, report
    pair.call = partial(clipped, fn=jax.nn.gelu)
    report = pair.explain()
    assert [f.cause for f in report.findings] == ["gelu_tanh"] and not report.explained, report
    assert "with these edits the two agree on these inputs" in report.reasons[0]


def test_further_inputs_of_the_callers_are_verified_and_reported():
    right, wrong = WRONG["positions that are not read"][0](), RIGHT["ids by name"]()
    counted = np.tile(np.arange(8), (3, 1))
    draws = [(IDS, counted), (IDS[::-1].copy(), counted), (IDS, counted[:, ::-1].copy())]
    right.inputs = draws[:2]
    report = right.explain()
    assert [d.kind for d in report.verified][:2] == ["given", "inputs"]
    assert report.verified[0].distances[""] < 1e-14
    right.inputs = draws
    report = right.explain()
    given = [d.distances[""] for d in report.verified if d.kind == "given"]
    assert len(given) == 2 and given[0] < 1e-14 < 1e-3 < given[1]
    assert not report.same and "inputs 3" in report.reasons[0]
    wrong.inputs = [wrong.inputs, {"mask": MASK, "ids": IDS[::-1].copy()}]
    assert [d.kind for d in wrong.explain().verified] == ["given", "inputs", "weights"]


def test_a_list_of_arrays_is_one_draw():
    pair = RIGHT["ids and a mask"]()
    pair.inputs = [IDS, MASK]
    assert [d.kind for d in pair.explain().verified] == ["inputs", "weights"]


def test_as_many_of_the_ports_inputs_are_asked_for():
    pair = RIGHT["ids and a mask"]()
    pair.inputs = [(IDS, MASK), (IDS, MASK)]
    with pytest.raises(port.PortError, match="2 draws"):
        pair.explain(jax_inputs=[(IDS, MASK)])


def test_verify_converts_inputs_as_the_first_ones_were():
    report = vit(False).explain()
    assert report.verify((models.images(5),))[""] < 1e-14
    given = models.images(5).transpose(0, 2, 3, 1)
    assert report.verify((models.images(5),), (given,))[""] < 1e-14
    assert report.verify((models.images(5),), (given + 0.1,))[""] > 1e-3
    with pytest.raises(port.PortError, match=r"input 0 is \(1, 3, 12, 12\)"):
        report.verify((models.images(5)[:1],))
    with pytest.raises(port.PortError, match="int64"):
        report.verify((models.images(5).astype(np.int64),))
    with pytest.raises(port.PortError, match="input 0 of the port"):
        report.verify((models.images(5),), (models.images(5),))


def test_verify_tells_what_the_edits_do_not_explain():
    pair = plain(Dense(nn.functional.gelu), dense, (X,), 4)
    pair.call = partial(clipped, fn=jax.nn.gelu)
    report = pair.explain()
    assert report.verify((X[::-1].copy(),))[""] < 1e-13 < 1e-3 < report.verify((3 * X,))[""]


def test_an_input_that_was_made_from_another_is_not_drawn():
    pair = RIGHT["ids and a mask"]()
    hot = jax.nn.one_hot(IDS, 19)

    def call(p: dict[str, jax.Array], hot: jax.Array, mask: jax.Array) -> jax.Array:
        return tokens(p, hot.argmax(-1), mask)

    pair.call = call
    report = pair.explain(jax_inputs=(hot, MASK))
    assert report.same and report.verified[0].distances == {}
    assert "input 0 of the port is no rearrangement" in report.verified[0].note
    with pytest.raises(port.PortError, match="jax_inputs="):
        report.verify((IDS, MASK))


def test_a_draw_that_the_reference_refuses_or_returns_nan_for_proves_nothing():
    class Strict(Dense):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if (x < 0).any():
                raise ValueError("x is negative")
            return super().forward(x)

    report = plain(Strict(), dense, (np.abs(X),), 4).explain()
    assert report.same and report.verified[1].distances == {}, report
    assert "x is negative" in report.verified[1].note

    class Rooted(Dense):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.fc(torch.sqrt(x)))

    pair = plain(
        Rooted(), lambda p, x: dense(p, jnp.sqrt(jnp.abs(x)), lambda h: h), (np.abs(X),), 4
    )
    report = pair.explain()
    assert report.same and "NaN" in report.verified[1].note, report


def test_equal_numbers_stay_equal_in_every_layout():
    q, k, v = RNG.standard_normal((3, 12, 12))
    ones, bias, folded = np.ones(12), RNG.standard_normal(3), RNG.standard_normal((9, 9))
    blocks = np.zeros((24, 24))
    blocks[:12, :12], blocks[12:, 12:] = q + 1, k + 1
    mine = [np.concatenate([q, k, v]), ones, 2 * ones, bias, folded, np.stack([q + 1, k + 1])]
    per_head = np.stack([q, k, v], 1).reshape(6, 2, 3, 12)
    theirs = [per_head, np.stack([ones, 2 * ones]), bias, folded * 2, blocks]
    new = redrawn_weights(mine, theirs, [], 0)
    moved = np.concatenate([per_head[:, :, i].reshape(12, 12) for i in range(3)])
    assert np.array_equal(moved, mine[0])
    moved = np.concatenate([new.theirs[0][:, :, i].reshape(12, 12) for i in range(3)])
    assert np.array_equal(moved, new.mine[0]) and not np.allclose(moved, mine[0])
    assert np.array_equal(new.theirs[1], np.stack(new.mine[1:3])) and new.mine[1][0] != 1
    assert np.array_equal(new.theirs[2], new.mine[3]) and not np.allclose(new.mine[3], bias)
    assert np.array_equal(new.mine[4], folded) and new.alone == ([4], [3]) and new.moved == 5
    assert (
        np.array_equal(new.theirs[4][12:, 12:], new.mine[5][1])
        and not new.theirs[4][:12, 12:].any()
    )
    for a, b in zip(mine, new.mine):
        order = np.argsort(a, axis=None)
        assert (np.sign(a) == np.sign(b)).all() and (np.diff(b.reshape(-1)[order]) >= 0).all()
    new = redrawn_weights(mine, theirs, [k], 0)
    assert np.array_equal(new.mine[0], mine[0]) and np.array_equal(new.theirs[0], per_head)
    assert new.moved == 4


def test_numbers_that_the_sides_do_not_hold_equally_often_keep_their_values():
    mine = [np.ones(12), np.full(9, 0.25), np.zeros(8)]
    theirs = [np.ones(12), np.full(9, 0.25), np.ones(1), np.zeros(8)]
    new = redrawn_weights(mine, theirs, [], 0)
    assert (new.mine[0] == 1).all() and (new.theirs[0] == 1).all() and new.theirs[2] == 1
    assert np.array_equal(new.mine[1], new.theirs[1]) and new.mine[1][0] != 0.25
    assert new.moved == 1 and not any(new.alone)


def test_drawn_inputs_keep_what_their_lines_have_in_common():
    turned, _ = np.linalg.qr(RNG.standard_normal((4, 3, 3)))
    rows = RNG.standard_normal((5, 3))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    shares = RNG.random((5, 6))
    shares /= shares.sum(-1, keepdims=True)
    edges = np.sort(RNG.standard_normal((2, 6)))
    symmetric = RNG.standard_normal((4, 4))
    symmetric += symmetric.T
    first = [turned, rows, shares, edges, symmetric]
    t, r, s, e, m = new = redrawn_inputs(first, 0)
    assert all(0.01 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.5 for a, b in zip(first, new))
    assert np.allclose(t @ t.swapaxes(1, 2), np.eye(3)) and np.allclose((r * r).sum(-1), 1)
    assert np.allclose(s.sum(-1), 1) and (np.diff(e) > 0).all() and np.array_equal(m, m.T)


def test_drawn_inputs_are_of_the_same_kinds():
    ragged = np.array([[0, 7, 9], [0, 3, 5]])
    flags = np.array([[True, False], [True, True]])
    scores = np.where(flags, 0.0, -np.inf)
    x, ids, mask, added, steps = redrawn_inputs(
        [X, IDS, flags, scores, np.array([3.0, 7.0, 1.0, 9.0])], 0
    )
    assert 0.1 < np.std(x / X) < 0.3
    assert (np.sort(ids) == np.sort(IDS)).all() and (ids != IDS).any()
    assert (mask == flags[::-1]).all() and (added == scores[::-1]).all()
    assert set(steps) == {1.0, 3.0, 7.0, 9.0}
    assert (np.sort(redrawn_inputs([ragged], 1)[0]) == ragged).all()


def test_every_tensor_that_an_edit_holds_is_found():
    """Whatever the lists are called that are made on the way: an id is given again once one is
    freed."""
    graph = record(nn.Linear(3, 3), (np.ones((1, 3)),), lambda out: [out])
    place = next(n for n in graph.nodes if n.name == "addmm")
    held = [torch.full((3, 3), float(k)) for k in range(40)]
    seen: dict[int, Any] = {}
    for tensor in held:
        edit = checked(graph, place, Call(graph, place).with_args(a2=tensor))
        assert any(t is tensor for t in captured(edit, seen))
