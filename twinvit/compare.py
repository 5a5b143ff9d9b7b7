"""`twinvit compare`: the same inputs through two models, with the first divergent layer named."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Precision
from shared_vit.weights.lazy import Arrays, in_memory
from twinvit.noise_rule import relative_l2

# The most that two right implementations differ by, relative L2 of any layer's output. Measured at
# ViT-B/16: right implementations are 3e-15 apart in float64 and 2.5e-6 in float32, a wrong GELU
# 5e-4. For the others it is about twice what bfloat16 and TF32 themselves cost.
LIMITS = {"fp64": 1e-12, "fp32": 5e-6, "tf32": 5e-3, "bf16": 4e-2}

Twin = Literal["jax", "torch"]
Outputs = dict[str, np.ndarray]  # canonical module name: output; "" is the logits


def compare(
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    /,
    precision: Precision = "fp32",
    twin_a: Twin = "jax",
    twin_b: Twin = "torch",
    batch_size: int = 2,
    seed: int = 0,
    num_heads: int | None = None,
    html: Path | None = None,
) -> int:
    """Run the same random images through two weight files and name the first divergent layer.

    Args:
        a: a weight file of any known format, a run or a checkpoint directory, or a name on the
            Hugging Face hub, hf:OWNER/NAME[@REVISION][/FILE].
        b: another, or the same to compare the twins on it.
        precision: of both; fp64 shows a wrong formula that fp32 may hide.
        twin_a: which implementation computes a.
        twin_b: which implementation computes b.
        batch_size: how many images.
        seed: of the images.
        num_heads: for files that do not say.
        html: where to write the comparison as a page.
    """
    if precision not in LIMITS:
        raise UserError(
            f"--precision={precision}: only the PyTorch twin has it; choose from "
            f"{', '.join(LIMITS)}"
        )
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        raise UserError(f"--html={html}: name a file in a folder that exists")
    cfg_a, arrays_a = weights.read(a, num_heads=num_heads)
    cfg_b, arrays_b = weights.read(b, num_heads=num_heads)
    if cfg_a.image_size != cfg_b.image_size:
        raise UserError(
            f"{a} takes images of {cfg_a.image_size} px and {b} of {cfg_b.image_size} px: convert "
            "one with --image_size first"
        )
    functions = [f"the functions differ: {line}" for line in differences(cfg_a, cfg_b)]
    if functions:
        print(*functions, sep="\n")
    size = cfg_a.image_size
    images = np.random.default_rng(seed).standard_normal((batch_size, size, size, 3))
    images = images.astype(np.float32)
    found = compared(
        trace(twin_a, cfg_a, arrays_a, images, precision),
        trace(twin_b, cfg_b, arrays_b, images, precision),
        LIMITS[precision],
        f"{twin_a} {a}",
        f"{twin_b} {b}",
        precision,
    )
    status = report(found)
    if html is not None:
        from twinvit.compare_page import compare_page

        inputs = f"{batch_size} images of {size} px, normal, from seed {seed}"
        compare_page(html, found, functions, (arrays_a, arrays_b), images, inputs)
        print(f"page: {html}")
    return status


def trace(
    twin: Twin, cfg: ModelConfig, arrays: Arrays, images: np.ndarray, precision: Precision
) -> Outputs:
    """Every module's output, as float64, of one twin on normalised images [B, H, W, 3]."""
    inputs = images.astype(np.float64 if precision == "fp64" else np.float32)
    run = _trace_jax if twin == "jax" else _trace_torch
    return run(cfg, in_memory(arrays), inputs, precision)


def _trace_jax(
    cfg: ModelConfig, arrays: dict[str, np.ndarray], inputs: np.ndarray, precision: Precision
) -> Outputs:
    import jax

    import jax_vit

    if precision == "fp64":
        jax.config.update("jax_enable_x64", True)
    outputs = jax_vit.from_arrays(cfg, arrays, precision).trace(inputs)
    return {name: np.asarray(value).astype(np.float64) for name, value in outputs.items()}


def _trace_torch(
    cfg: ModelConfig, arrays: dict[str, np.ndarray], inputs: np.ndarray, precision: Precision
) -> Outputs:
    import torch

    import torch_vit
    from torch_vit.precision import set_backend_precision

    set_backend_precision(precision)
    channels_first = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        outputs = torch_vit.from_arrays(cfg, arrays, precision).trace(channels_first)
    return {name: value.double().numpy() for name, value in outputs.items()}


@dataclass(frozen=True)
class Comparison:
    """Two models' outputs on the same inputs. distances: {module: relative L2}, in the order of
    `a`; "" is the logits. alone: modules that one of them has. constant: whether every input gives
    the same logits."""

    name_a: str
    name_b: str
    precision: str
    limit: float
    distances: dict[str, float]
    alone: list[str]
    constant: bool

    @property
    def first(self) -> str | None:
        """The first module beyond the limit."""
        return next((n for n, d in self.distances.items() if not d <= self.limit), None)

    @property
    def exit_status(self) -> int:
        """0: same; 1: different."""
        return 0 if self.first is None and not self.alone else 1

    def sentences(self) -> list[str]:
        """The verdict, last, and what is to be known beside it."""
        found = []
        if self.alone:
            found.append(f"only one of them has: {', '.join(self.alone)}")
        if self.constant:
            found.append(
                "every image gives the same logits (a zero head?): the last layers' agreement "
                "shows nothing"
            )
        if self.exit_status == 0:
            found.append(f"SAME: every output within {self.limit:g}")
        elif self.first is None:
            found.append("DIFFERENT: the models have other layers")
        else:
            where = self.first or "the logits"
            found.append(f"DIFFERENT: the first divergence is at {where} (limit {self.limit:g})")
        return found


def compared(
    a: Outputs, b: Outputs, limit: float, name_a: str, name_b: str, precision: str
) -> Comparison:
    """The distance of each output that both have."""
    distances = {n: relative_l2(a[n], b[n]) for n in a if n in b}
    constant = not np.ptp(a[""], axis=0).any()
    return Comparison(
        name_a, name_b, precision, limit, distances, sorted(set(a) ^ set(b)), constant
    )


def report(found: Comparison) -> int:
    """Print each output's distance and the verdict; the exit status."""
    names = f"{found.name_a}  against  {found.name_b}"
    print(f"{names}, {found.precision}; relative L2 of each output")
    for layer, distance in found.distances.items():
        mark = "  <-- first divergence" if layer == found.first else ""
        print(f"  {layer or 'logits':<28} {distance:9.2e}{mark}")
    print(*found.sentences(), sep="\n")
    return found.exit_status


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """The fields in which two configurations differ, as `name: this, that`."""
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return [f"{name}: {x}, {y}" for name, x, y in pairs if x != y]
