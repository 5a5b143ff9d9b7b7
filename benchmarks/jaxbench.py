"""Google's JAXBench against the PyTorch modules of KernelBench that it was written after.

    python benchmarks/jaxbench.py JAXBENCH KERNELBENCH [--only 26k] [--json FILE]

JAXBENCH: a checkout of AI-Hypercomputer/accelerator-agents; KERNELBENCH: of
ScalingIntelligence/KernelBench. Each `NNk_*` workload is explained against the module of level 2
that its CONFIG names, on smaller arrays: the sizes at the head of the module's file are replaced,
no other line. Weights are the module's, which is in evaluation mode. JAXBench's own check, both
within 1e-2, is run beside it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from about import origin  # noqa: E402

from twinvit import port  # noqa: E402

TOLERANCE = 1e-2  # absolute and relative, JAXBench's
SIZES = {
    "batch_size": 11, "in_features": 24, "input_size": 24, "out_features": 48, "hidden_size": 48,
    "output_size": 28, "in_channels": 6, "out_channels": 16, "height": 9, "width": 10, "D": 5,
    "H": 6, "W": 7,
}  # fmt: skip
# What a workload writes as a number that its arrays must fit.
WRITTEN = {
    "23_Conv3d_GroupNorm_Mean": {"in_channels": 3, "out_channels": 24},
    "34_ConvTranspose3d_LayerNorm_GELU_Scaling": {
        "D": 1, "H": 2, "W": 32, "in_channels": 2, "out_channels": 64,
    },
    "37_Matmul_Swish_Sum_GroupNorm": {"in_features": 10, "out_features": 4096},
    "75_Gemm_GroupNorm_Min_BiasAdd": {"out_features": 1024},
    "88_Gemm_GroupNorm_Swish_Multiply_Swish": {"in_features": 10, "out_features": 8192},
}  # fmt: skip


def smaller(source: str, sizes: dict[str, int]) -> str:
    """A module's source with other sizes at its head or foot, of as many lines."""

    def replaced(line: re.Match) -> str:
        joint = "," if "," in line[1] else "="
        names = [n.strip() for n in line[1].split(joint)]
        if any(n not in sizes for n in names):
            return line[0]
        numbers = [str(sizes[n]) for n in names]
        return f"{line[1]} = {', '.join(numbers if joint == ',' else numbers[:1])}"

    assignment = r"^(\w+(?:\s*[,=]\s*[a-zA-Z]\w*)*)\s*=\s*\d+(?:\s*,\s*\d+)*\s*(?:#.*)?$"
    return re.sub(assignment, replaced, source, flags=re.M)


def module_of(path: Path, sizes: dict[str, int], folder: Path) -> tuple[torch.nn.Module, list]:
    """The PyTorch model, with weights drawn so that none is an identity, and its inputs."""
    file = folder / path.name
    file.write_text(smaller(path.read_text(), sizes))
    found = runpy.run_path(str(file))
    torch.manual_seed(0)
    model = found["Model"](*found["get_init_inputs"]())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype.is_floating_point and tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + (0.5 if "bias" not in name else -0.5))
    return model, [x.numpy() for x in found["get_inputs"]()]


def array_of(name: str, model: torch.nn.Module, layers: list[str]) -> np.ndarray:
    """The module's array that a workload's argument stands for: the module's own parameter of that
    name, a norm's, or else the next of the `layers`, which it is taken from."""
    state = {n: t.detach().numpy() for n, t in model.state_dict().items()}
    if name in state:
        return state[name]
    prefix, _, part = name.rpartition("_")
    if prefix in ("bn", "gn", "in", "ln") or name in ("gamma", "beta"):
        part = {"scale": "weight", "gamma": "weight", "beta": "bias", "mean": "running_mean",
                "var": "running_var"}.get(part, part)  # fmt: skip
        norm = next(n for n, m in model.named_modules() if "Norm" in type(m).__name__)
        if f"{norm}.{part}" in state:
            return state[f"{norm}.{part}"]
        width = getattr(model.get_submodule(norm), "num_features", 0)  # without parameters
        return np.full(width, float(part == "weight"), np.float32)
    kind = "weight" if "weight" in name or name.startswith("w") else "bias"
    found = next(n for n in layers if n.endswith(kind))
    layers.remove(found)
    return state[found]


def port_of(workload: Any, model: torch.nn.Module, inputs: list) -> port.Function:
    """The workload as a function of the module's weights, transposed where it takes them so."""
    names = list(inspect.signature(workload).parameters)[len(inputs) :]
    layers = [n for n, _ in model.named_parameters() if "." in n and "norm" not in n]
    layers = [n for n in layers if not n.startswith("bn.")]
    params = {n: array_of(n, model, layers) for n in names}
    turned = {n: a.T if a.ndim == 2 else a for n, a in params.items()}
    for given in (params, turned):
        given = {n: np.ascontiguousarray(a) for n, a in given.items()}
        try:
            jax.eval_shape(workload, *inputs, *given.values())
        except (TypeError, ValueError):
            continue
        return port.Function(lambda p, *x: workload(*x, *(p[n] for n in names)), given)
    raise ValueError("the workload refuses the module's arrays, also transposed")


def judged(workload_file: Path, kernelbench: Path, folder: Path) -> dict[str, Any]:
    """What is told of one workload, and what JAXBench's own check says of it."""
    found = runpy.run_path(str(workload_file))
    name, workload = found["CONFIG"]["name"], found["workload"]
    path = kernelbench / "KernelBench/level2" / f"{name}.py"
    sizes = SIZES | WRITTEN.get(name, {})
    model, inputs = module_of(path, sizes, folder)
    ported = port_of(workload, model, inputs)
    started = time.perf_counter()
    report = port.explain(model.eval(), ported, tuple(inputs))
    seconds = time.perf_counter() - started
    row: dict[str, Any] = {"workload": workload_file.parent.name, "module": f"{name}.py"}
    row |= {
        "verdict": report.verdict,
        "explained": report.explained,
        "line": str(report).splitlines()[0],
    }
    row["findings"] = [_shown(f, workload_file) for f in report.findings]
    row["seconds"] = round(seconds, 1)
    return row | {"jaxbench_passes": _passes(model, ported, inputs)}


def _shown(finding: Any, workload_file: Path) -> dict[str, Any]:
    places = [re.sub(r"[^\s(]*/(JAXBench/|KernelBench/)", r"\1", str(x)) for x in finding.jax_lines]
    return {"kind": finding.kind, "name": finding.cause, "port": places, "says": finding.text}


def _passes(model: torch.nn.Module, ported: port.Function, inputs: list) -> bool | None:
    """JAXBench's rule on its arrays; None where the shapes differ, which it refuses."""
    with torch.no_grad():
        theirs = model(*map(torch.from_numpy, inputs)).numpy()
    ours = np.asarray(ported.fn(ported.params, *map(jnp.asarray, inputs)))
    if ours.shape != theirs.shape:
        return None
    return bool(np.allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE))


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jaxbench", type=Path)
    parser.add_argument("kernelbench", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(args.jaxbench.glob("JAXBench/benchmark/*k_*/baseline.py"))
    if not files:
        parser.error(f"no JAXBench/benchmark/*k_*/baseline.py in {args.jaxbench}")
    rows, failed = [], 0
    for file in files:
        if args.only not in file.parent.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "KernelBench").mkdir()
            try:
                rows.append(judged(file, args.kernelbench, Path(folder) / "KernelBench"))
            except Exception as problem:  # one that fails is said, and the others go on
                failed += 1
                rows.append(
                    {"workload": file.parent.name, "error": f"{type(problem).__name__}: {problem}"}
                )
        print(json.dumps(rows[-1]), flush=True)
    verdicts = [row.get("verdict", "error") for row in rows]
    print({v: verdicts.count(v) for v in sorted(set(verdicts))})
    if args.json:
        about = origin(("torch", "jax"))
        commits = {"jaxbench": commit(args.jaxbench), "kernelbench": commit(args.kernelbench)}
        text = json.dumps(about | commits | {"rows": rows}, indent=1) + "\n"
        for folder, name in ((args.jaxbench, "JAXBENCH"), (args.kernelbench, "KERNELBENCH")):
            text = text.replace(str(folder), name)  # without this machine's folders
        args.json.write_text(text.replace(str(args.json), f"benchmarks/results/{args.json.name}"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
