"""Before the comparison: the port against itself, preprocessing, and causes that tie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinvit import port
from twinvit.port.causes import _REGISTRY, Variant

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)


class Conv(torch.nn.Module):
    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.conv = torch.nn.Conv2d(3, 5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv((x - 0.5) / 0.25 if self.scaled else x).flatten(1)


def parts(scaled: bool) -> tuple[Conv, port.Function]:
    torch.manual_seed(0)
    model = Conv(scaled)
    params = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p, x):
        x = (x - 0.5) / 0.25 if scaled else x
        return jnp.einsum("bchw,ochw->bo", x, p["conv.weight"]) + p["conv.bias"]

    return model, port.Function(call, params)


@pytest.mark.parametrize("scaled", [False, True])
def test_preprocessing_that_is_no_part_of_the_models_is_not_seen(scaled):
    report = port.explain(*parts(scaled), (IMAGES,))
    assert report.same, report
    assert any("preprocessing" in text for text in report.unseen) != scaled


def test_other_inputs_are_said_to_be_others():
    report = port.explain(*parts(False), (IMAGES,), jax_inputs=(IMAGES * 2 + 1,))
    assert not report.same and any("other numbers" in note for note in report.notes)
    report = port.explain(*parts(False), (IMAGES,), jax_inputs=(IMAGES,))
    assert report.same and not any("other numbers" in note for note in report.notes)


def test_a_port_that_differs_from_itself_cannot_be_judged():
    model, exact = parts(False)
    rng = np.random.default_rng(1)

    def call(p, x):
        return exact.fn(p, x) + rng.standard_normal((2, 5))

    with pytest.raises(port.PortError, match="JAX model differs from itself"):
        port.explain(model, port.Function(call, exact.params), (IMAGES,))


def test_causes_that_explain_equally_well_are_a_tie():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 11), torch.nn.GELU(), torch.nn.Linear(11, 8), torch.nn.Linear(8, 8)
    )
    params = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p, x):
        x = jnp.tanh(x @ p["0.weight"].T + p["0.bias"])
        return (x @ p["2.weight"].T + p["2.bias"]) @ p["3.weight"].T + p["3.bias"]

    @port.cause("other_name", on="aten.gelu")
    def other(call):
        "The same formula under another name."
        yield Variant("the port has tanh here", lambda x, **_: torch.tanh(x))

    try:
        x = RNG.standard_normal((4, 9)).astype(np.float32)
        report = port.explain(model, port.Function(call, params), (x,))
    finally:
        _REGISTRY[:] = [c for c in _REGISTRY if c.name != "other_name"]
    (finding,) = report.findings
    assert report.explained and finding.cause == "activation", report
    assert "a tie: other_name (the port has tanh here)" in finding.text


def test_the_port_runs_on_the_cpu_whatever_the_default_device_is():
    model, exact = parts(False)
    devices = []

    def call(p, x):
        devices.append(jax.config.jax_default_device)
        return exact.fn(p, x)

    with jax.default_device(jax.devices()[3]):  # in the place of an accelerator
        assert port.explain(model, port.Function(call, exact.params), (IMAGES,)).same
    assert set(devices) == {jax.local_devices(backend="cpu")[0]}


class Mean(torch.nn.Module):
    """The mean over positions, taken in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(9, 9), torch.nn.Linear(9, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).mean(1, dtype=torch.float32).double())


def summed() -> tuple[torch.nn.Module, port.Function]:
    torch.manual_seed(0)
    model = Mean()

    def call(p, x):
        return (x @ p["a.weight"].T + p["a.bias"]).sum(1) @ p["b.weight"].T + p["b.bias"]

    return model, port.Function(call, {k: v.numpy() for k, v in model.state_dict().items()})


def test_an_edited_operation_keeps_its_narrowing():
    report = port.explain(*summed(), RNG.standard_normal((5, 7, 9)))
    assert [f.cause for f in report.findings] == ["reduction"], report
    (narrowing,) = report.narrowings
    assert narrowing.side == "torch" and narrowing.cost is not None
    assert 1e-9 < narrowing.cost < 1e-6


def test_a_cause_that_raises_is_noted():
    @port.cause("broken", on="aten.mean")
    def broken(call):
        "A cause with a mistake in it."
        raise RuntimeError("no such operation")

    try:
        report = port.explain(*summed(), RNG.standard_normal((5, 7, 9)))
    finally:
        _REGISTRY[:] = [c for c in _REGISTRY if c.name != "broken"]
    assert report.explained
    assert any("broken at mean: RuntimeError: no such" in note for note in report.notes)


# Programs that run are judged


class Two(torch.nn.Module):
    """Two linear layers with `between` them, (B, 9) to (B, 8)."""

    def __init__(self, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(9, 9), torch.nn.Linear(9, 8)
        self.between = between or (lambda y: y)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def arrays(model):
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def layer(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def both(between, theirs, wrong, inputs=None):
    """Reports of the exact port and of a wrong one."""
    model = Two(between)
    x = (RNG.standard_normal((4, 9)).astype(np.float32),) if inputs is None else inputs

    def judged(fn):
        function = port.Function(lambda p, x: layer(p, "b", fn(layer(p, "a", x))), arrays(model))
        return port.explain(model, function, x)

    return judged(theirs), judged(wrong)


def test_a_model_that_casts_to_float32_is_judged():
    exact, wrong = both(
        lambda y: torch.nn.functional.gelu(y.float()),
        lambda y: jax.nn.gelu(y.astype(jnp.float32), approximate=False),
        lambda y: jax.nn.gelu(y, approximate=True),
    )
    assert exact.same, exact
    assert [f.cause for f in wrong.findings] == ["gelu_tanh"] and wrong.explained, wrong


def test_a_reference_that_draws_in_eval_mode_is_refused():
    model = Two(lambda y: torch.nn.functional.dropout(y, 0.5, training=True))
    function = port.Function(lambda p, x: layer(p, "b", layer(p, "a", x)), arrays(model))
    state = torch.random.get_rng_state()
    with pytest.raises(port.PortError, match="PyTorch model differs from itself"):
        port.explain(model, function, (RNG.standard_normal((4, 9)),))
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_expert_without_tokens_is_judged():
    """Rows of each of three experts; the second has none."""
    route = np.array([0, 0, 2, 2])

    def torch_experts(y):
        out = torch.zeros_like(y)
        for k in range(3):
            (rows,) = torch.where(torch.from_numpy(route) == k)
            out = out.index_add(0, rows, torch.softmax(y[rows] @ y.T, -1) @ y * (k + 1))
        return out

    def experts(y, scale=1):
        out = jnp.zeros_like(y)
        for k in range(3):
            rows = np.flatnonzero(route == k)
            out = out.at[rows].add(jax.nn.softmax(y[rows] @ y.T, -1) @ y * (k + 1) * scale)
        return out

    exact, wrong = both(torch_experts, experts, lambda y: experts(y, 1.01))
    assert exact.same, exact
    assert wrong.verdict == "different" and wrong.distance > 1e-4


def test_products_of_empty_arrays_are_zeros_of_the_right_shape():
    from twinvit.port.record.jax_rules import RULES

    for left, right, where in (
        ((0, 9), (9, 4), (0, 4)),
        ((3, 0), (0, 4), (3, 4)),
        ((3, 9), (9, 0), (3, 0)),
        ((0, 0), (0, 0), (0, 0)),
    ):
        out = RULES["dot_general"](
            {"dimension_numbers": (((1,), (0,)), ((), ()))}, np.zeros(left), np.zeros(right)
        )
        assert out.shape == where and not out.any()


def test_control_flow_that_follows_the_inputs_is_said():
    def doubled(y):
        return y * 2 if y.sum() > 0 else y * 3

    x = np.abs(RNG.standard_normal((4, 9))).astype(np.float32)
    taken = {}
    for sign in (1, -1):
        model = Two(doubled)
        with torch.no_grad():
            model.a.weight.copy_(sign * model.a.weight.abs())
        function = port.Function(
            lambda p, x: (lambda y: layer(p, "b", jnp.where(y.sum() > 0, y * 2, y * 3)))(
                layer(p, "a", x)
            ),
            arrays(model),
        )
        report = port.explain(model, function, (x,))
        assert report.same, report
        taken[sign] = [u for u in report.unseen if "only what these inputs lead to" in u]
    assert taken[1] == taken[-1] and len(taken[1]) == 1
    assert taken[1][0].startswith("test_port_harness.py:") or "test_port_harness.py:" in taken[1][0]


def test_control_flow_that_follows_a_constant_is_not_said():
    exact, _ = both(
        lambda y: y * 2 if torch.ones(3).sum() > 0 else y, lambda y: y * 2, lambda y: y * 3
    )
    assert exact.same and not any("these inputs lead to" in u for u in exact.unseen)


def test_a_mask_of_attention_is_no_control_flow():
    mask = np.tril(np.ones((5, 5), bool))

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a = torch.nn.Linear(9, 9)

        def forward(self, x, ok):
            y = self.a(x)
            return torch.nn.functional.scaled_dot_product_attention(y, y, y, attn_mask=ok)

    model = Attention()

    def call(p, x, ok):
        y = layer(p, "a", x)
        s = jnp.where(ok, y @ y.swapaxes(1, 2) / 3, -jnp.inf)
        return jax.nn.softmax(s, -1) @ y

    x = RNG.standard_normal((2, 5, 9)).astype(np.float32)
    report = port.explain(model, port.Function(call, arrays(model)), (x, mask))
    assert report.same and not any("these inputs lead to" in u for u in report.unseen), report


def test_outputs_in_data_classes_and_beside_text_are_taken():
    @dataclasses.dataclass
    class Out:
        logits: object
        hidden: object = None
        name: str = "two"

    class Data(Two):
        def forward(self, x):
            y = self.a(x)
            return Out(y, self.b(y))

    model = Data()
    for scale, verdict in ((1.0, "same"), (1.001, "different")):

        def call(p, x, scale=scale):
            y = layer(p, "a", x)
            return Out(y * scale, layer(p, "b", y))

        x = RNG.standard_normal((4, 9)).astype(np.float32)
        report = port.explain(model, port.Function(call, arrays(model)), (x,))
        assert report.verdict == verdict, report


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_of_the_old_kind_is_copied():
    torch.manual_seed(0)
    model = torch.nn.utils.weight_norm(torch.nn.Linear(9, 8))

    def call(p, x, squared=True):
        v = p["weight_v"]
        size = jnp.sqrt((v * v).sum(1, keepdims=True)) if squared else jnp.abs(v).sum(1)[:, None]
        return x @ (p["weight_g"] * v / size).T + p["bias"]

    x = RNG.standard_normal((4, 9)).astype(np.float32)
    assert port.explain(model, port.Function(call, arrays(model)), (x,)).same
    wrong = port.Function(lambda p, x: call(p, x, False), arrays(model))
    assert port.explain(model, wrong, (x,)).verdict == "different"


class Image(torch.nn.Module):
    """Two convolutions of images with as many channels as rows and columns, (B, 6, 6, 6)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Conv2d(6, 8, 1), torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def convolved(p, x, layout, act=jax.nn.relu):
    def conv(name, x):
        kernel = p[f"{name}.weight"].transpose(2, 3, 1, 0)
        bias = p[f"{name}.bias"]
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=(layout, "HWIO", layout)
        )
        return y + (bias if layout == "NHWC" else bias[:, None, None])

    return conv("b", act(conv("a", x)))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_both_layouts_are_tried_where_the_shape_does_not_tell(layout):
    model = Image()
    x = RNG.standard_normal((2, 6, 6, 6)).astype(np.float32)
    report = port.explain(
        model, port.Function(lambda p, x: convolved(p, x, layout), arrays(model)), (x,)
    )
    assert report.same, report
    assert any(f"given as {layout}" in note for note in report.notes)
    wrong = port.explain(
        model,
        port.Function(lambda p, x: convolved(p, x, layout, jax.nn.silu), arrays(model)),
        (x,),
    )
    assert [f.cause for f in wrong.findings] == ["activation"] and wrong.explained, wrong
    assert any(f"given as {layout}" in note for note in wrong.notes)


def test_a_layout_that_was_given_is_kept():
    model = Image()
    x = RNG.standard_normal((2, 6, 6, 6)).astype(np.float32)
    function = port.Function(lambda p, x: convolved(p, x, "NHWC"), arrays(model))
    report = port.explain(model, function, (x,), jax_inputs=(x,))
    assert report.verdict == "different"
    assert port.explain(model, function, (x,), jax_inputs=(x.transpose(0, 2, 3, 1),)).same


@pytest.mark.parametrize("masked", [False, True])
def test_zeros_that_are_computed_hide_nothing(masked):
    """A first cell state of zeros, an empty row, a mask: their size is no sign of their weight."""
    keep = np.array([True, True, True, False])

    def zeros(y):
        state = torch.sigmoid(y) * torch.zeros_like(y)
        y = y + state
        if masked:
            low = torch.zeros(4, 4, dtype=y.dtype).masked_fill(~torch.from_numpy(keep), -torch.inf)
            y = torch.softmax(y @ y.T + low.expand(4, 4), -1) @ y
        return y

    def theirs(y, scale=1.0):
        y = y + jax.nn.sigmoid(y) * jnp.zeros_like(y)
        if masked:
            y = jax.nn.softmax(jnp.where(keep, y @ y.T, -jnp.inf), -1) @ y
        return y * scale

    exact, wrong = both(zeros, theirs, lambda y: theirs(y, 1.001))
    assert exact.same, exact
    assert wrong.verdict == "different"


def test_an_energy_whose_gradient_alone_is_returned_is_judged():
    def force(y):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return torch.autograd.grad(torch.tanh(y).pow(2).sum(), y)[0]

    def theirs(y, power=2):
        return jax.grad(lambda z: (jnp.tanh(z) ** power).sum())(y)

    exact, wrong = both(force, theirs, lambda y: theirs(y, 3))
    assert exact.same, exact
    assert wrong.verdict == "different"
