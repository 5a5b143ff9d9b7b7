"""Claim: the JAX twin's training step on a GPU stays as lean as it was made.

It needs jax's CUDA plug-in and no GPU: `python benchmarks/gpu_compile.py` says what to install.
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from gpu_program import device, hlo, report, step  # noqa: E402

from shared_vit.spec.config import model_config  # noqa: E402
from shared_vit.spec.recipe import Recipe  # noqa: E402

# (model, batch, kernels of the products): most MB an image outside products and attention, GB at
# the peak, kernels.
AIMS = {
    ("vit_b16", 256, "triton"): (350, 17.8, 800),
    ("vit_b16", 256, "cublaslt"): (400, 19.0, 820),
    ("vit_s16", 512, "triton"): (180, 17.0, 800),
}


@pytest.mark.slow
@pytest.mark.skipif(device.missing() is not None, reason=device.missing() or "")
@pytest.mark.parametrize("name, batch, products", AIMS)
def test_a_training_step_is_within_its_aims(name, batch, products):
    cfg, h100 = model_config(name), device.describe("h100")
    with device.pretend(h100):
        recipe = Recipe(model=cfg, batch_size=batch, precision="bf16")
        traced = step.ShapesTrainer(cfg, recipe, device.mesh(h100, 1)).trace()
        options = {} if products == "triton" else {"xla_gpu_enable_triton_gemm": False}
        compiled = traced.lower().compile(compiler_options=options)
    found = report.analyse(compiled, cfg, batch, report.assumed_rates(h100, products == "triton"))
    megabytes, gigabytes, kernels = AIMS[name, batch, products]
    assert found["mb_per_image_outside_products"] <= megabytes
    assert found["peak_bytes"] <= gigabytes * 1e9
    assert found["kernels"] <= kernels
    assert found["aliased_arrays"] == 3 * (12 * cfg.depth + 8)  # parameters and both moments
    assert sum(found["attention"].values()) == 2 * cfg.depth
    assert found["products"].get("f32 x f32 -> f32") == 3  # the head's


@pytest.mark.slow
@pytest.mark.skipif(device.missing() is not None, reason=device.missing() or "")
def test_eight_devices_reduce_gradients_and_gather_nothing():
    cfg, h100 = model_config("vit_b16", depth=2), device.describe("h100")
    with device.pretend(h100):
        recipe = Recipe(model=cfg, batch_size=2048, precision="bf16")
        traced = step.ShapesTrainer(cfg, recipe, device.mesh(h100, 8)).trace()
        compiled = traced.lower().compile()
    found = report.analyse(compiled, cfg, 256, report.assumed_rates(h100, True))
    assert {name.split("-start")[0] for name in found["collectives"]} == {"all-reduce"}


# The reading of programs, on a text as XLA prints it.

PROGRAM = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias) }, entry_layout={}

%slice_of (p: bf16[8,6]) -> bf16[8,2] {
  %p = bf16[8,6]{1,0} parameter(0)
  ROOT %s = bf16[8,2]{1,0} slice(%p), slice={[0:8], [0:2]}
}

%product (a: bf16[8,2], b: bf16[2,4]) -> f32[8,4] {
  %a = bf16[8,2]{1,0} parameter(0)
  %b = bf16[2,4]{1,0} parameter(1)
  ROOT %d = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[8,6], w: bf16[2,4]) -> f32[8,4] {
  %x = bf16[8,6]{1,0} parameter(0)
  %w = bf16[2,4]{1,0} parameter(1)
  %first = bf16[8,2]{1,0} fusion(%x), kind=kLoop, calls=%slice_of
  ROOT %out = f32[8,4]{1,0} fusion(%first, %w), kind=kCustom, calls=%product
}
"""


def test_kernels_bytes_and_products_are_read_from_a_program():
    module = hlo.parse(PROGRAM)
    first, product = hlo.kernels(module)
    assert (first.kind, product.kind) == ("other", "product")
    assert first.bytes == 2 * (8 * 2 + 8 * 2)  # of the operand, the slice
    assert product.bytes == 2 * (8 * 2 + 2 * 4) + 4 * 8 * 4
    (found,) = hlo.products(module)
    assert (found.types, found.flops) == ("bf16 x bf16 -> f32", 2 * 8 * 4 * 2)
    assert hlo.aliases(PROGRAM) == 1


def test_descriptions_say_what_a_program_asks_of_its_device():
    h100, h200 = device.describe("h100"), device.describe("h200")
    assert (h100.compute_capability, h100.cudnn_version) == ("9.0", 91000)
    assert h100.bytes_per_second < h200.bytes_per_second
    with pytest.raises(FileNotFoundError, match="h100, h200"):
        device.describe("h300")
