"""What `port.explain` is given wrongly is refused in one sentence; what only looks wrong is run."""

from functools import partial
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from twinvit import port
from twinvit.port.given_inputs import checked_inputs

X = np.random.default_rng(0).standard_normal((5, 9))


class Layers(torch.nn.Module):
    """Two layers with an activation between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(9, 12), torch.nn.Linear(12, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.nn.functional.gelu(self.a(x)))


class Several(Layers):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * y


class Flax(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(linen.Dense(12, name="a")(x), approximate=False)
        return linen.Dense(9, name="b")(x)


class Nnx(nnx.Module):
    """The same in NNX."""

    def __init__(self) -> None:
        self.a, self.b = nnx.Linear(9, 12, rngs=nnx.Rngs(0)), nnx.Linear(12, 9, rngs=nnx.Rngs(0))
        for name, layer in (("a", self.a), ("b", self.b)):
            layer.kernel[...], layer.bias[...] = P[f"{name}.weight"].T, P[f"{name}.bias"]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(jax.nn.gelu(self.a(x), approximate=False))


def call(p: dict[str, Any], x: jax.Array) -> jax.Array:
    x = jax.nn.gelu(x @ p["a.weight"].T + p["a.bias"], approximate=False)
    return x @ p["b.weight"].T + p["b.bias"]


MODEL = Layers().eval()
P = {k: v.numpy() for k, v in MODEL.state_dict().items()}
FUNCTION = port.Function(call, P)
VARIABLES = {
    "params": {k: {"kernel": P[f"{k}.weight"].T, "bias": P[f"{k}.bias"]} for k in ("a", "b")}
}
PAIR = (Flax(), VARIABLES)
ABSTRACT = jax.eval_shape(lambda: {k: jnp.asarray(v) for k, v in P.items()})

MODELS = {
    "exchanged, a function's": (FUNCTION, MODEL, "the models are exchanged: torch_model is a port"),
    "exchanged, Linen's": (PAIR, MODEL, "exchanged: torch_model is a pair with a Linen module"),
    "exchanged, NNX's": (Nnx(), MODEL, r"exchanged: torch_model is an nnx.Module \(Nnx\)"),
    "exchanged functions": (partial(call, P), MODEL, "exchanged: torch_model is a function"),
    "exchanged, jitted": (jax.jit(partial(call, P)), call, "torch_model is a function of jax.jit"),
    "PyTorch twice": (MODEL, MODEL, "jax_model is the nn.Module Layers, a PyTorch model"),
    "JAX twice": (FUNCTION, FUNCTION, "torch_model is a port.Function, a JAX model"),
    "a class of PyTorch": (Layers, FUNCTION, "torch_model is the class Layers; give an instance"),
    "a class of NNX": (MODEL, Nnx, "jax_model is the class Nnx; give an instance"),
    "a class in a pair": (MODEL, (Flax, VARIABLES), "holds the class Flax; give an instance"),
    "a state_dict": (MODEL.state_dict(), FUNCTION, "torch_model is a state_dict"),
    "parameters": (MODEL, P, "jax_model is a dict"),
    "no model": (None, FUNCTION, "torch_model is a NoneType, which cannot be called"),
    "no port": (MODEL, None, "jax_model is a NoneType, which cannot be called"),
    "no variables": (MODEL, Flax(), "the Linen module Flax without its variables"),
    "bare params": (MODEL, (Flax(), VARIABLES["params"]), 'no collection "params" .they have a, b'),
    "a pair turned round": (MODEL, PAIR[::-1], "give .module, variables."),
    "no numbers": (Layers().to("meta"), FUNCTION, "4 parameters .* meta device .*a.weight first"),
    "no numbers in JAX": (MODEL, port.Function(call, ABSTRACT), "ShapeDtypeStruct and holds no"),
}


def test_random_generators_may_hold_no_numbers():
    """A converter that makes its model by eval_shape leaves those of dropout so."""
    rngs = {"count": jax.ShapeDtypeStruct((), np.uint32)}
    rngs["key"] = jax.eval_shape(lambda: jax.random.key(0))
    other = port.Function(lambda p, x: call(p["weights"], x), {"weights": P, "rngs": rngs})
    report = port.explain(MODEL, other, (X,))
    assert report.same and "2 states of the port's random generators" in str(report)


@pytest.mark.parametrize("mistake", MODELS)
def test_a_model_that_is_none_is_refused_in_one_sentence(mistake):
    model, other, message = MODELS[mistake]
    with pytest.raises(port.PortError, match=message) as raised:
        port.explain(model, other, X)
    assert "\n" not in str(raised.value)


INPUTS = {
    "None": (None, "inputs= is None"),
    "a word": ("x", "inputs= is a str"),
    "no input": ((), "inputs= is empty, and the PyTorch model takes x"),
    "no named input": ({}, "inputs= is empty, and the PyTorch model takes x"),
    "None among them": ((X, None), r"inputs\[1\] is None"),
    "a mapping among them": ((X, {"x": X}), r"inputs\[1\] is a dict"),
    "a word by name": ({"x": "x"}, r"inputs\['x'\] is a str"),
    "no numbers": (X[:0], r"holds no numbers \(shapes \(0, 9\)\)"),
    "objects": (np.array([X, None], dtype=object), r"inputs\[0\] holds object values"),
    "a ragged list": (([[1.0], [1.0, 2.0]],), r"inputs\[0\] is a list of 2 values that are no one"),
    "arrays of two shapes": (((X, X[0]),), r"inputs\[0\] is a tuple of 2 values that are no one"),
    "the meta device": (torch.empty(5, 9, device="meta"), r"inputs\[0\] is on the meta device"),
}


@pytest.mark.parametrize("mistake", INPUTS)
def test_inputs_that_are_none_are_refused_in_one_sentence(mistake):
    inputs, message = INPUTS[mistake]
    with pytest.raises(port.PortError, match=message) as raised:
        port.explain(MODEL, FUNCTION, inputs)
    assert "\n" not in str(raised.value)


WORDS = {
    "weights": ("transfre", 'no file of that name; did you mean "transfer"'),
    "what": ("grads", 'none of "forward", "grad", "train"; did you mean "grad"'),
    "reference": ("Jax", 'none of "torch", "jax"; did you mean "jax"'),
}


@pytest.mark.parametrize("argument", WORDS)
def test_a_misspelt_word_is_refused_before_anything_runs(argument, monkeypatch):
    monkeypatch.setattr("twinvit.port.explainer.Pair", None)
    word, message = WORDS[argument]
    with pytest.raises(port.PortError, match=message):
        port.explain(MODEL, FUNCTION, X, **{argument: word})
    if argument == "what":
        for wrong, message in (((), "what= is empty"), (3, "what=3 is none of")):
            with pytest.raises(port.PortError, match=message):
                port.explain(MODEL, FUNCTION, X, what=wrong)


@pytest.mark.parametrize(
    "inputs",
    [X.tolist(), [X.tolist()], (X.tolist(),), iter([X]), {"x": X.tolist()}, jnp.asarray(X)],
    ids=["a list", "one in a list", "one in a tuple", "an iterator", "by name", "JAX's"],
)
def test_lists_and_iterators_of_numbers_are_inputs(inputs):
    report = port.explain(MODEL, FUNCTION, inputs)
    assert report.same and report.inputs[0].shape == (5, 9), report


def test_lists_are_as_many_inputs_as_the_model_takes():
    two = [X.tolist(), X.tolist()]
    notes: list[str] = []
    assert [x.shape for x in checked_inputs("inputs", two, Several(), notes)] == [(5, 9)] * 2
    assert [x.shape for x in checked_inputs("inputs", two, Layers(), notes)] == [(2, 5, 9)]
    assert [x.shape for x in checked_inputs("inputs", 2.0, Layers(), notes)] == [()]
    assert not notes


def test_a_number_is_an_input():
    report = port.explain(Several(), port.Function(lambda p, x, y: call(p, x) * y, P), (X, 2.5))
    assert report.same and report.inputs[1].shape == ()


def test_a_pair_of_arrays_is_one_input_and_that_is_said():
    report = port.explain(
        lambda x, pair: x * pair[0] + pair[1],
        port.Function(lambda p, x, pair: x * pair[0] + pair[1], {}),
        (X, (X + 1, X - 1)),
    )
    assert report.same and "inputs[1], 2 arrays, was given as one of shape (2, 5, 9)" in str(report)


def test_tensors_are_inputs_of_the_port_too():
    x = torch.tensor(X, requires_grad=True)
    assert port.explain(MODEL, FUNCTION, x, jax_inputs=x).same
    half = x.detach().bfloat16()
    assert port.explain(MODEL, FUNCTION, half, jax_inputs=half).same


WRAPPED = {
    "compiled": (lambda: torch.compile(Layers()), "OptimizedModule; the Layers within"),
    "parallel": (lambda: torch.nn.DataParallel(Layers()), "DataParallel; the Layers within"),
    "both": (
        lambda: torch.compile(torch.nn.DataParallel(Layers())),
        "DataParallel; the Layers within",
    ),
    "in train mode": (lambda: Layers().train(), "is in train mode; it was run in evaluation mode"),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapped_model_is_compared_without_its_wrapper(wrapping):
    make, note = WRAPPED[wrapping]
    model = make()
    mode, wrong = model.training, port.Function(partial(tanh), P)
    report = port.explain(model, wrong, X)
    assert [f.cause for f in report.findings] == ["gelu_tanh"] and report.explained
    assert note in " ".join(report.notes) and model.training == mode
    assert not any("_orig_mod" in p or "module" in p for p in report.findings[0].places)
    assert port.explain(model, FUNCTION, X).same


def tanh(p: dict[str, Any], x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ p["a.weight"].T + p["a.bias"]) @ p["b.weight"].T + p["b.bias"]


@pytest.mark.parametrize(
    "other",
    [list(PAIR), Flax().bind(VARIABLES), nnx.split(Nnx()), Nnx(), PAIR],
    ids=["a list", "bound", "split", "nnx", "a pair"],
)
def test_other_ways_to_hold_a_port_are_ports(other):
    report = port.explain(MODEL, other, X)
    assert report.same, report


NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def rounded_alone(report):
    """Whether weights that were rounded are all that was found, and explain the outputs."""
    (finding,) = report.findings
    return (
        (report.verdict, finding.kind, report.explained) == ("different", "weights", True)
        and 1e-5 < report.distance < 0.1
        and report.remaining < 1e-14
        and 1e-5 < finding.before < 0.1
    )


@pytest.mark.parametrize("dtype", NARROW)
def test_weights_equal_after_rounding_are_told_and_the_rest_is_compared_rounded_alike(dtype):
    held = {k: v.astype(jnp.dtype(dtype)) for k, v in P.items()}
    report = port.explain(MODEL, port.Function(call, held), X)
    assert rounded_alone(report), report
    assert f"the port holds 4 weights of the reference rounded to {dtype}" in str(report)
    wrong = port.explain(MODEL, port.Function(tanh, held), X)
    assert [f.cause for f in wrong.findings] == ["", "gelu_tanh"] and wrong.explained
    assert wrong.findings[0].kind == "weights"
    narrow = Layers().to(NARROW[dtype])
    report = port.explain(narrow, FUNCTION, X)
    assert rounded_alone(report), report
    assert f"the reference holds 4 weights of the port rounded to {dtype}" in str(report)
    assert torch.equal(MODEL.a.weight, Layers().a.weight)  # the caller's model stays


def test_only_what_is_equal_after_rounding_is_rounded():
    held = {k: v.astype(jnp.bfloat16) if k == "a.weight" else v for k, v in P.items()}
    report = port.explain(MODEL, port.Function(call, held), X)
    assert rounded_alone(report), report
    assert "the port holds 1 weights of the reference rounded" in str(report)
    held["a.weight"] = held["a.weight"].copy()
    held["a.weight"][3, 4] *= 2  # no rounding makes this
    report = port.explain(MODEL, port.Function(call, held), X)
    assert not report.same and "rounded to" not in str(report)


def test_a_fused_weight_is_rounded_alike_part_by_part():
    both = np.concatenate([P["a.weight"].reshape(-1), P["b.weight"].reshape(-1)])
    held = {"w": both.astype(jnp.bfloat16), "a.bias": P["a.bias"], "b.bias": P["b.bias"]}

    def fused(p: dict[str, Any], x: jax.Array) -> jax.Array:
        a, b = p["w"][:108].reshape(12, 9), p["w"][108:].reshape(9, 12)
        return call({**p, "a.weight": a, "b.weight": b}, x)

    report = port.explain(MODEL, port.Function(fused, held), X)
    assert rounded_alone(report), report
    assert "the port holds 2 weights of the reference rounded" in str(report)


def test_a_split_weight_is_rounded_alike():
    held: dict[str, Any] = {k: v.astype(jnp.bfloat16) for k, v in P.items()}
    for k, part in (("q", slice(0, 8)), ("k", slice(8, 10)), ("v", slice(10, 12))):
        held[k] = held["a.weight"][part].T
    del held["a.weight"]

    def split(p: dict[str, Any], x: jax.Array) -> jax.Array:
        return call({**p, "a.weight": jnp.concatenate([p["q"], p["k"], p["v"]], 1).T}, x)

    report = port.explain(MODEL, port.Function(split, held), X)
    assert rounded_alone(report), report
    assert "the port holds 4 weights of the reference rounded" in str(report)


def test_a_table_whose_numbers_occur_somewhere_is_not_rounded():
    class Table(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", 1.1 ** -torch.arange(9.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * self.table)

    model = Table()
    table = model.table.numpy()
    rows = np.random.default_rng(1).permuted(np.tile(table, (3, 4)), axis=1)
    held = {k: v.astype(jnp.bfloat16) for k, v in {**P, "unused": rows[:, 1:]}.items()}
    right = port.Function(lambda p, x: call(p, x * jnp.asarray(table)), held)
    report = port.explain(model, right, X)
    assert rounded_alone(report), report
    assert "the port holds 4 weights of the reference rounded" in str(report)


class Images(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = torch.nn.Conv2d(3, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(x)


def images(p: dict[str, Any], x: jax.Array, wrong: bool = False) -> jax.Array:
    y = jax.lax.conv_general_dilated(x, p["c.weight"], (1, 1), "VALID")
    return y + (jnp.zeros(7) if wrong else 0) + p["c.bias"][:, None, None]


def test_images_of_whole_numbers_are_told_to_be_converted():
    model = Images()
    held = port.Function(images, {k: v.numpy() for k, v in model.state_dict().items()})
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 6, 6)).astype(np.uint8)
    with pytest.raises(port.PortError, match=r"input 0 holds whole numbers \(uint8\) .* convert"):
        port.explain(model, held, x)
    assert port.explain(model, held, x / 255).same


def test_nhwc_is_spoken_of_only_where_shapes_say_so():
    model = Images()
    params = {k: v.numpy() for k, v in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6))
    wrong = port.Function(partial(images, wrong=True), params)
    with pytest.raises(port.PortError, match=r"\(2, 3, 6, 6\) .* as NHWC \(\(2, 6, 6, 3\)\)"):
        port.explain(model, wrong, x)
    with pytest.raises(port.PortError, match="are its images NHWC"):
        port.explain(model, wrong, x, jax_inputs=x)
    with pytest.raises(port.PortError) as raised:
        port.explain(MODEL, FUNCTION, X, jax_inputs=X[:, :5])
    assert "NHWC" not in str(raised.value)


def test_an_output_that_one_side_lacks_is_refused_with_what_each_has():
    def named(name: str) -> port.Function:
        return port.Function(lambda p, x: {name: call(p, x), "input": x}, P)

    class Named(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            return {"tokens": super().forward(x), "input": x}

    with pytest.raises(port.PortError, match="JAX .* no 'tokens'; it has logits, input, the other"):
        port.explain(Named(), named("logits"), X, output="tokens")
    with pytest.raises(port.PortError, match="other model's tokens, input; give output= a func"):
        port.explain(Named(), named("logits"), X, output="tokens")
    with pytest.raises(port.PortError, match="PyTorch .* tokens, input; did you mean 'tokens'"):
        port.explain(Named(), named("tokens"), X, output="toknes")
    with pytest.raises(port.PortError, match="both models return an array alone"):
        port.explain(MODEL, FUNCTION, X, output="tokens")
    assert port.explain(Named(), named("tokens"), X, output="tokens").same
    report = port.explain(Named(), FUNCTION, X, output="tokens")
    assert report.same and report.outputs[0].name == "tokens", report
    wrong = port.explain(Named(), port.Function(tanh, P), X, output="tokens")
    assert [f.cause for f in wrong.findings] == ["gelu_tanh"]


@pytest.mark.parametrize("wrong", [False, True])
def test_outputs_of_other_names_are_paired_in_the_ports_own_order(wrong):
    def two(p: dict[str, Any], x: jax.Array) -> dict[str, jax.Array]:
        y = call(p, x)
        return {"z": -y, "a": y} if wrong else {"z": y, "a": -y}  # JAX sorts these keys

    class Two(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return y, -y

    report = port.explain(Two(), port.Function(two, P), X)
    assert [(o.torch, o.jax) for o in report.outputs] == [("0", "z"), ("1", "a")]
    assert report.same != wrong, report


def test_every_output_of_the_side_that_is_right_must_be_compared():
    class One(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            return {"a": super().forward(x)}

    class Both(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            return {"a": super().forward(x), "b": x.sin()}

    one = port.Function(lambda p, x: {"a": call(p, x)}, P)
    both = port.Function(lambda p, x: {"a": call(p, x), "b": jnp.sin(x)}, P)
    assert port.explain(One(), both, X).same
    assert port.explain(Both(), one, X, reference="jax").same
    report = port.explain(Both(), one, X)
    assert report.verdict == "undecided" and "PyTorch" not in report.reasons[0], report
    report = port.explain(One(), both, X, reference="jax")
    assert report.verdict == "undecided", report
    assert "UNDECIDED: the JAX model's output b was not compared" in str(report)
    assert port.explain(One(), both, X, reference="jax", output="a").same
    assert port.explain(Both(), both, X, reference="jax").same
