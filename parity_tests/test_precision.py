"""Claim: both twins obey the precision policy of `shared_vit/spec/precision.py`, and in bf16 are
equally far from float64."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from helpers import (
    SMALL,
    TINY,
    jax_trainer,
    random_arrays,
    random_images,
    random_state,
    run,
    to_torch,
    torch_trainer,
)
from helpers import train_config as config
from torch.utils._python_dispatch import TorchDispatchMode

import jax_vit
import torch_vit
from jax_vit import ops
from jax_vit.bridge import state_arrays
from jax_vit.objective import Objective as JaxObjective
from shared_vit.data import batches
from shared_vit.errors import UserError
from shared_vit.run.state import StepScalars
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import PRECISIONS
from torch_vit import ops as torch_ops
from torch_vit.objective import Objective as TorchObjective
from torch_vit.precision import backend_precision, set_backend_precision

RATE = StepScalars(1e-3)
B, N, CLASSES = 2, SMALL.num_tokens, SMALL.num_classes
# Forward products of SMALL but attention's and the head: patch embedding, and qkv, proj, fc1, fc2
# of each block.
LINEAR = 1 + 4 * SMALL.depth


def images_and_labels(cfg: ModelConfig, seed: int = 0, batch: int = B):
    rng = np.random.default_rng(seed)
    shape = (batch, cfg.image_size, cfg.image_size, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(0, cfg.num_classes, batch)


def jax_objective(cfg: ModelConfig, arrays, precision: str):
    """The training objective, parameters and fixed arrays of the JAX twin."""
    graphdef, params, fixed = nnx.split(jax_vit.from_arrays(cfg, arrays, precision), nnx.Param, ...)
    return JaxObjective(graphdef, cfg, np.dtype(PRECISIONS[precision].param)), params, fixed


# Which types a training step computes in, read from uncompiled code: compilers drop roundings.


@dataclasses.dataclass
class Operation:
    name: str
    inputs: list[tuple[str, tuple[int, ...]]]  # dtype and shape of each float array
    outputs: list[tuple[str, tuple[int, ...]]]
    params: dict = dataclasses.field(default_factory=dict)

    @property
    def dtypes(self) -> set[str]:
        return {dtype for dtype, _ in self.inputs + self.outputs}

    def has_size(self, size: int) -> bool:
        return any(size in shape for _, shape in self.inputs)


def jax_operations(precision: str) -> list[Operation]:
    objective, params, fixed = jax_objective(SMALL, random_arrays(SMALL), precision)
    found = []

    def describe(variables):
        avals = [v.aval for v in variables]
        return [(str(a.dtype), a.shape) for a in avals if jnp.issubdtype(a.dtype, jnp.floating)]

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            found.append(
                Operation(
                    eqn.primitive.name, describe(eqn.invars), describe(eqn.outvars), eqn.params
                )
            )
            for inner in eqn.params.values():
                if hasattr(inner, "jaxpr"):
                    walk(inner.jaxpr)

    images, labels = images_and_labels(SMALL)
    walk(
        jax.make_jaxpr(jax.value_and_grad(objective))(
            params, fixed, images, labels.astype(np.int32)
        ).jaxpr
    )
    return found


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))

        def describe(values):
            tensors = [
                t
                for t in jax.tree.leaves(values)
                if isinstance(t, torch.Tensor) and t.is_floating_point()
            ]
            return [(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in tensors]

        self.found.append(
            Operation(func.overloadpacket.__name__, describe([args, kwargs]), describe(out))
        )
        return out


def torch_operations(precision: str) -> list[Operation]:
    objective = TorchObjective(torch_vit.from_arrays(SMALL, random_arrays(SMALL), precision))
    with Recorder() as recorder:
        objective(*map(torch.from_numpy, images_and_labels(SMALL))).backward()
    return recorder.found


def named(operations: list[Operation], pattern: str) -> list[Operation]:
    return [o for o in operations if re.fullmatch(pattern, o.name)]


def check_jax(operations: list[Operation], compute: str) -> None:
    products = named(operations, "dot_general")
    head = [o for o in products if o.has_size(CLASSES)]
    assert len(head) == 3 and all(o.dtypes == {"float32"} for o in head)
    others = [o for o in products if o not in head]
    assert len(others) == 3 * LINEAR + 6 * SMALL.depth
    rounded = [o for o in others if o.outputs[0][0] == compute]
    if compute != "float32":  # the gradients of inputs, which the product itself rounds once
        assert len(rounded) == LINEAR
    for o in others:
        assert [d for d, _ in o.inputs] == [compute] * 2, o
        assert o in rounded or o.outputs[0][0] == "float32", o
    softmax = [
        o
        for o in named(operations, "exp|reduce_max")
        if o.inputs[0][1] == (B, SMALL.num_heads, N, N)
    ]
    assert len(softmax) == 2 * SMALL.depth
    norms = named(operations, "rsqrt")
    assert len(norms) == 2 * SMALL.depth + 1
    residual = [
        o for o in named(operations, "add") if [s for _, s in o.inputs] == [(B, N, SMALL.width)] * 2
    ]
    assert len(residual) == 2 * SMALL.depth
    loss = [
        o
        for o in named(operations, "exp|log|reduce_max")
        if o.inputs[0][1][0] == B and len(o.inputs[0][1]) < 3
    ]
    assert loss
    wide = ((1, SMALL.mlp_dim), (1, 3 * SMALL.width))
    bias = [o for o in named(operations, "add") if o.inputs and o.inputs[-1][1] in wide]
    assert len(bias) == 2 * SMALL.depth
    for o in (*softmax, *norms, *residual, *loss, *bias):
        assert o.dtypes == {"float32"}, o


def check_torch(operations: list[Operation], compute: str) -> None:
    products = named(operations, "mm|addmm|bmm|baddbmm|linear|linear_backward")
    head = [o for o in products if o.has_size(CLASSES)]
    assert len(head) == 3 and all(o.dtypes == {"float32"} for o in head)
    others = [o for o in products if o not in head]
    assert len(others) == 3 * LINEAR - 1  # no gradient of the images
    fused = named(operations, "_scaled_dot_product_.*")
    assert len(fused) == 2 * SMALL.depth
    gelu = named(operations, "gelu|gelu_backward")
    assert len(gelu) == 2 * SMALL.depth
    for o in (*others, *gelu):
        assert o.dtypes == {compute}, o
    for o in fused:
        # The log of each softmax's sum is the one float32 that fused attention lets out.
        assert {d for d, s in o.inputs + o.outputs if len(s) == 4} == {compute}, o
    softmax = named(operations, ".*softmax.*")
    norms = named(operations, "native_layer_norm|native_layer_norm_backward")
    assert len(norms) == 2 * (2 * SMALL.depth + 1)
    residual = [
        o for o in named(operations, "add") if [s for _, s in o.inputs] == [(B, N, SMALL.width)] * 2
    ]
    assert len(residual) >= 2 * SMALL.depth
    for o in (*softmax, *norms, *residual, *named(operations, "nll_loss.*")):
        assert o.dtypes == {"float32"}, o


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_torch_computes_in_the_types_of_the_policy(precision):
    check_torch(torch_operations(precision), PRECISIONS[precision].compute)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_jax_computes_in_the_types_of_the_policy(precision):
    operations = jax_operations(precision)
    check_jax(operations, PRECISIONS[precision].compute)
    asked = jax.lax.Precision.DEFAULT if precision == "tf32" else jax.lax.Precision.HIGHEST
    assert {o.params["precision"] for o in named(operations, "dot_general")} == {(asked, asked)}


def test_fp64_is_float64_throughout(x64):
    for operations in (jax_operations("fp64"), torch_operations("fp64")):
        assert {d for o in operations for d in o.dtypes} == {"float64"}


def test_torch_rounds_no_float32_product_unless_asked():
    try:
        for precision, asked in (("tf32", "high"), ("bf16", "highest"), ("fp32", "highest")):
            set_backend_precision(precision)
            assert torch.get_float32_matmul_precision() == asked
            assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
            assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    finally:
        set_backend_precision("fp32")


def test_the_outputs_of_modules_have_the_same_types():
    arrays = random_arrays(SMALL)
    images = random_images(SMALL)
    a = jax_vit.from_arrays(SMALL, arrays, "bf16").trace(images)
    b = torch_vit.from_arrays(SMALL, arrays, "bf16").trace(to_torch(images))
    types = {name: str(value.dtype) for name, value in a.items()}
    assert types == {name: str(value.dtype).removeprefix("torch.") for name, value in b.items()}
    assert {types[n] for n in ("blocks.0", "blocks.0.norm1", "norm", "head", "")} == {"float32"}
    assert {types[f"blocks.0.{n}"] for n in ("attn", "mlp.fc1", "mlp")} == {"bfloat16"}


def jax_product_in_bf16(x, kernel, bias, policy):
    x, kernel, bias = (jnp.asarray(a).astype(policy.compute) for a in (x, kernel, bias))
    return x @ kernel + bias


def jax_residual_in_bf16(self, x, *_):
    return (x + self.attn(self.norm1(x), ()) + self.mlp(self.norm2(x), None, 0)).astype(
        jnp.bfloat16
    )


def test_a_wrong_type_in_jax_is_caught(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("jax_vit.ops.product", jax_product_in_bf16)
        with pytest.raises(AssertionError):
            check_jax(jax_operations("bf16"), "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr("jax_vit.model.Block.__call__", jax_residual_in_bf16)
        with pytest.raises(AssertionError):
            check_jax(jax_operations("bf16"), "bfloat16")
    softmax = jax.nn.softmax
    with monkeypatch.context() as patch:
        patch.setattr(
            ops.jax.nn, "softmax", lambda x, axis: softmax(x.astype(jnp.bfloat16), axis=axis)
        )
        with pytest.raises(AssertionError):
            check_jax(jax_operations("bf16"), "bfloat16")


def test_a_wrong_type_in_torch_is_caught(monkeypatch):
    real = F.scaled_dot_product_attention
    for name, mutant in {
        "scaled_dot_product_attention": lambda q, k, v, bias: real(
            q.float(), k.float(), v.float(), bias
        ).to(q.dtype),
        "layer_norm": lambda x, shape, w, b, eps: torch.layer_norm(
            x.bfloat16(), shape, w.bfloat16(), b.bfloat16(), eps
        ).float(),
        "erf": lambda x: F.gelu(x.float()).to(x.dtype),
    }.items():  # fmt: skip
        with monkeypatch.context() as patch:
            if name in torch_ops._ACTIVATIONS:
                patch.setitem(torch_ops._ACTIVATIONS, name, mutant)
            else:
                patch.setattr(F, name, mutant)
            with pytest.raises(AssertionError):
                check_torch(torch_operations("bf16"), "bfloat16")


# How far bf16 is from float64, in each twin.

DRAWS, BATCH = 4, 16


def bf16_errors(cfg: ModelConfig) -> tuple[dict[str, float], dict[str, float]]:
    """{tensor: relative L2 distance of bf16 from float64} of the logits ("") and each gradient, in
    JAX and in torch.

    The root of the mean square over several draws, because the error of a small tensor in one draw
    is luck.
    """
    squares: list[dict[str, float]] = [{}, {}]
    for seed, of_jax in enumerate(jax_values(cfg)):
        exact = torch_values(cfg, "fp64", seed)
        for total, values in zip(squares, (of_jax, torch_values(cfg, "bf16", seed))):
            errors = {
                n: (np.linalg.norm(values[n] - exact[n]), np.linalg.norm(exact[n])) for n in exact
            }
            whole = np.linalg.norm([e for n, e in errors.items() if n], axis=0)
            for name, (error, size) in (errors | {"all gradients": whole}).items():
                total[name] = total.get(name, 0) + (error / size) ** 2 / DRAWS
    jax_errors, torch_errors = ({n: v**0.5 for n, v in total.items()} for total in squares)
    return jax_errors, torch_errors


def torch_values(cfg, precision, seed) -> dict[str, np.ndarray]:
    model = torch_vit.from_arrays(cfg, random_arrays(cfg, seed), precision)
    objective = TorchObjective(model)
    images, labels = map(torch.from_numpy, images_and_labels(cfg, seed, BATCH))
    objective(images, labels).backward()
    values = {"": objective.logits(images)} | {n: p.grad for n, p in model.named_parameters()}
    return {n: v.detach().double().numpy() for n, v in values.items()}


def jax_values(cfg):
    objective, *_ = jax_objective(cfg, random_arrays(cfg), "bf16")
    gradient, logits = jax.jit(jax.grad(objective)), jax.jit(objective.logits)
    for seed in range(DRAWS):
        _, params, fixed = jax_objective(cfg, random_arrays(cfg, seed), "bf16")
        images, labels = images_and_labels(cfg, seed, BATCH)
        values = state_arrays(gradient(params, fixed, images, labels.astype(np.int32)))
        values[""] = np.asarray(logits(params, fixed, images))
        yield {n: v.astype(np.float64) for n, v in values.items()}


def beyond_the_contract(jax_errors, torch_errors) -> list[str]:
    """1.25 for the logits and the whole gradient, 2 for a single tensor, in either direction."""
    ratios = {
        n: max(jax_errors[n] / torch_errors[n], torch_errors[n] / jax_errors[n]) for n in jax_errors
    }
    return [
        f"{n!r}: {r:.2f}"
        for n, r in ratios.items()
        if not r <= (1.25 if n in ("", "all gradients") else 2)
    ]


WIDER = dataclasses.replace(
    SMALL, image_size=32, width=96, num_heads=4, mlp_dim=384, num_classes=20
)


def test_bf16_errors_are_alike():
    jax_errors, torch_errors = bf16_errors(WIDER)
    assert 1e-3 < torch_errors[""] < 5e-2  # bf16 was in use
    assert not beyond_the_contract(jax_errors, torch_errors)


def test_a_bias_added_in_bf16_is_caught(monkeypatch):
    monkeypatch.setattr("jax_vit.ops.product", jax_product_in_bf16)
    assert any("bias" in line for line in beyond_the_contract(*bf16_errors(WIDER)))


# fp16 and its gradient scaler.


def fp16_trainer(scale: float):
    state = random_state(TINY, "fp16")
    return torch_trainer(
        dataclasses.replace(state, scalars=state.scalars | {"scale": scale}), config("fp16")
    )


def test_a_skipped_step_is_a_step():
    trainer = fp16_trainer(scale=2.0**30)  # overflows for certain
    before = trainer.state()
    stream = batches(config("fp16"), "train")
    metrics = trainer.train_step(trainer.to_device(next(stream)), RATE).get()
    after = trainer.state()
    assert metrics.skipped and np.isfinite(metrics.loss) and not np.isfinite(metrics.grad_norm)
    assert after.step == 1
    assert after.scalars == {"adam_count": 0, "scale": 2.0**29, "growth_tracker": 0}
    for name in before.params:
        np.testing.assert_array_equal(after.params[name], before.params[name])
    assert not any(array.any() for arrays in after.slots.values() for array in arrays.values())
    while trainer.train_step(trainer.to_device(next(stream)), RATE).get().skipped:
        pass
    stream.close()
    later = trainer.state()
    assert later.step > 2 and later.scalars["adam_count"] == later.scalars["growth_tracker"] == 1
    assert all(np.isfinite(a).all() for a in later.params.values())
    assert (later.params["head.weight"] != before.params["head.weight"]).any()


def test_fp16_resumes_bit_for_bit_with_its_scaler():
    train = config("fp16")
    whole = fp16_trainer(scale=2.0**24)
    first = fp16_trainer(scale=2.0**24)
    stream = batches(train, "train")
    data = [next(stream) for _ in range(12)]
    stream.close()
    for batch in data:
        whole.train_step(whole.to_device(batch), RATE)
    for batch in data[:5]:
        first.train_step(first.to_device(batch), RATE)
    state = first.state()
    # the skipped steps are among those before the stop
    assert state.scalars["adam_count"] < state.step
    second = torch_trainer(state, train)
    for batch in data[5:]:
        second.train_step(second.to_device(batch), RATE)
    a, b = whole.state(), second.state()
    assert (a.step, a.scalars) == (b.step, b.scalars)
    for name in a.params:
        np.testing.assert_array_equal(a.params[name], b.params[name])


def test_jax_refuses_fp16():
    with pytest.raises(UserError, match="PyTorch"):
        jax_vit.create(TINY, precision="fp16")


# In training.


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_in_low_precision_follows_float32(precision):
    """20 steps of both twins stay near float32's, and move."""
    train = config(precision)
    exact = run(torch_trainer(random_state(TINY, "fp32"), config("fp32")), config("fp32"), 20)
    for make in (torch_trainer, jax_trainer):
        curve = run(make(random_state(TINY, precision), train), train, 20)
        assert np.ptp(curve.loss) > 0.1
        np.testing.assert_allclose(curve.loss, exact.loss, rtol=0.05)
        np.testing.assert_allclose(curve.grad_norm, exact.grad_norm, rtol=0.25)


def test_a_callers_switches_are_his_again_after_backend_precision():
    matmul = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [torch.get_float32_matmul_precision(), *(getattr(matmul, n) for n in names)]
    try:
        torch.set_float32_matmul_precision("medium")
        for name in names:
            setattr(matmul, name, True)
        with backend_precision("fp32"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not any(getattr(matmul, n) for n in names)
        assert torch.get_float32_matmul_precision() == "medium"
        assert all(getattr(matmul, n) for n in names)
    finally:
        torch.set_float32_matmul_precision(before[0])
        for name, value in zip(names, before[1:]):
            setattr(matmul, name, value)
