"""What a compiled training step costs: kernels, products, bytes by class, memory, a roofline."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import jax

from gpu_program import hlo
from gpu_program.device import Description
from shared_vit.spec.config import ModelConfig

CLASSES = ("LayerNorm and stream", "GELU", "qkv", "ends", "optimizer")


@dataclass(frozen=True)
class Rates:
    """What the roofline assumes of a device; guesses until they are measured on it."""

    product_flops: float  # of large square products in bf16
    product_share: float  # of that, reached by the products of a ViT
    attention_forward_flops: float
    attention_backward_flops: float
    bytes_per_second: float  # of a copy


def assumed_rates(description: Description, triton: bool) -> Rates:
    """790 TFLOP/s for large products, of which XLA's Triton kernels reach 0.70 and cuBLASLt 0.85;
    nine tenths of the memory's bandwidth."""
    copy = 0.9 * description.bytes_per_second
    return Rates(790e12, 0.70 if triton else 0.85, 300e12, 250e12, copy)


def analyse(compiled: jax.stages.Compiled, cfg: ModelConfig, batch: int, rates: Rates) -> dict:
    """The report of a step on `batch` images a device; bytes and times are for each image."""
    text = compiled.as_text()
    module = hlo.parse(text)
    kernels = hlo.kernels(module)
    products = hlo.products(module)
    memory = compiled.memory_analysis()
    moved = Counter({name: 0 for name in CLASSES})
    for kernel in kernels:
        name = classify(kernel, cfg, batch) if kernel.kind == "other" else kernel.kind
        moved[name] += kernel.bytes / batch
    outside = sum(moved[name] for name in CLASSES)
    flops = sum(p.flops for p in products) / batch
    attention = 4 * cfg.depth * cfg.num_tokens**2 * cfg.width  # of a forward pass
    seconds = {
        "products": max(
            flops / (rates.product_flops * rates.product_share),
            moved["product"] / rates.bytes_per_second,
        ),
        "attention": attention
        * (1 / rates.attention_forward_flops + 2 / rates.attention_backward_flops),
        "bytes": outside / rates.bytes_per_second,
    }
    total = sum(seconds.values())
    return {
        "kernels": len(kernels),
        "kernels_by_kind": dict(Counter(k.kind for k in kernels)),
        "products": dict(sorted(Counter(p.types for p in products).items())),
        "product_gflops_per_image": flops / 1e9,
        "attention": dict(sorted(_calls(kernels, "attention").items())),
        "collectives": dict(sorted(_collectives(kernels).items())),
        "mb_per_image": {name: n / 1e6 for name, n in moved.items()},
        "mb_per_image_outside_products": outside / 1e6,
        "peak_bytes": peak(memory),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "aliased_arrays": hlo.aliases(text),
        "aliased_bytes": memory.alias_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "roofline": {
            "us_per_image": {n: 1e6 * s for n, s in seconds.items()},
            "images_per_second": 1 / total,
            "share_of_product_rate": (flops + 3 * attention) / total / rates.product_flops,
        },
    }


def peak(memory) -> int:
    """Arguments, temporaries and those outputs that take over no argument's memory."""
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def classify(kernel: hlo.Kernel, cfg: ModelConfig, batch: int) -> str:
    """The class of a kernel by the largest feature axis among its arrays of all tokens."""
    rows = [batch * n for n in (cfg.num_tokens, cfg.num_tokens + 1)]  # with or without padding
    features = {a.elements / n for a in kernel.whole_reads + kernel.writes for n in rows}
    if cfg.mlp_dim in features:
        return "GELU"
    if 3 * cfg.width in features:
        return "qkv"
    if features & {cfg.width, 1}:
        return "LayerNorm and stream"
    by_row = any(batch in a.shape for a in kernel.whole_reads + kernel.writes)
    return "ends" if by_row else "optimizer"


def _calls(kernels: list[hlo.Kernel], kind: str) -> Counter:
    return Counter(k.instruction.target for k in kernels if k.kind == kind)


def _collectives(kernels: list[hlo.Kernel]) -> Counter:
    """By operation and element type, as `all-reduce-start f32`."""
    found = [k for k in kernels if k.kind == "collective"]
    return Counter(f"{k.instruction.opcode} {k.reads[0].dtype}" for k in found)


def table(reports: list[dict]) -> str:
    """The reports in Markdown."""
    heads = ["", "batch", *CLASSES, "sum, MB/image", "products", "peak, GB", "kernels", "images/s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in reports:
        moved = r["mb_per_image"]
        cells = [f"{r['model']} {r['device']} {r['kernels_of_products']}", str(r["batch_size"])]
        cells += [f"{moved[name]:.1f}" for name in CLASSES]
        cells += [f"{r['mb_per_image_outside_products']:.1f}", f"{moved['product']:.1f}"]
        cells += [f"{r['peak_bytes'] / 1e9:.1f}", str(r["kernels"])]
        cells += [f"{r['roofline']['images_per_second']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
