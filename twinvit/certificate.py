"""`twinvit convert --verify`: the same inputs through both files, in both twins and in the formats' own libraries.

Each framework runs in a process of its own, on the CPU. Run as a module it is such a process: it reads a task (JSON).
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import whole_file
from shared_vit.weights.adapt import adapt
from shared_vit.weights.formats.twinvit import OWN
from shared_vit.weights.lazy import in_memory
from shared_vit.weights.locate import checksum
from shared_vit.weights.read import Source, open_weights
from twinvit.noise_rule import relative_l2

LIMITS = {"fp64": 1e-12, "fp32": 5e-6}  # relative L2 of logits and of each output inside
_BATCH, _SEED = 2, 0
_REFERENCE = "torch twin, source"


def certify(
    source: Source, src: Path, dst: Path, to: str, num_heads: int | None, changes: dict
) -> int:
    """Compare logits, each block's output and the last norm's; 1 where something differs, else 0.

    Prints a table and writes `<dst>.parity.json`.
    `changes` are the arguments of `adapt` with which DST was made. Differences are relative L2 against the PyTorch twin
    on the source, in the same precision.
    """
    cfg, _ = adapt(source.cfg, source.arrays, **changes)
    files = {
        "source": dict(
            path=str(src),
            format=source.format.partition(",")[0],
            num_heads=num_heads,
            changes=changes,
        ),
        "target": dict(path=str(dst), format=to, num_heads=None, changes={}),
    }
    tasks, not_run = _tasks(files)
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for i, task in enumerate(tasks):
            runs |= _run(task | {"out": str(Path(folder) / f"{i}.npz")})
    constant = bool(np.ptp(runs[f"{_REFERENCE}, fp64"][""], axis=0).max() == 0)
    rows = []
    for name, outputs in runs.items():
        who, precision = name.rsplit(", ", 1)
        reference = runs[f"{_REFERENCE}, {precision}"]
        gaps = {key or "logits": _gap(outputs[key], reference[key]) for key in outputs}
        inner = {key: gap for key, gap in gaps.items() if key != "logits"}
        rows.append(
            dict(
                who=who,
                precision=precision,
                logits=gaps["logits"],
                worst_inside=max(inner.values()),
                inside=inner,
            )
        )
    good = all(max(row["logits"], row["worst_inside"]) <= LIMITS[row["precision"]] for row in rows)
    certificate = {
        "verdict": "equal" if good else "different",
        "limits": LIMITS,
        "measure": f"relative L2 against: {_REFERENCE}",
        "inputs": f"{_BATCH} images of normal noise, {cfg.image_size} px, numpy default_rng({_SEED})",
        "source": {"name": src.name, "format": source.format, "sha256": _checksums(src)},
        "target": {"name": dst.name, "format": to, "sha256": _checksums(dst)},
        "changes": {key: value for key, value in changes.items() if value is not None},
        "model_config": asdict(cfg),
        "num_arrays": len(source.arrays),
        "logits_are_constant": constant,
        "rows": rows,
        "not_run": not_run,
    }
    out = dst.with_name(dst.name + ".parity.json")
    with whole_file(out) as file:
        file.write((json.dumps(certificate, indent=2) + "\n").encode())
    if constant:
        not_run.append(
            "a test of the head: its weights are zero, so that the logits show nothing of it"
        )
    _print(rows, not_run, good, out)
    return 0 if good else 1


def _tasks(files: dict[str, dict]) -> tuple[list[dict], list[str]]:
    tasks = [dict(run="torch_vit", files=files, precisions=["fp64", "fp32"])]
    tasks += [
        dict(run="jax_vit", files=files, precisions=[precision]) for precision in ("fp64", "fp32")
    ]
    not_run = []
    for side, file in files.items():
        if file["format"] in OWN:
            continue
        if any(
            file["changes"].get(key) is not None for key in ("image_size", "num_classes", "dtype")
        ):
            not_run.append(
                f"{file['format']} on the {side}: the target is of another size, head or type by request"
            )
        elif not importlib.import_module("twinvit.peers").installed(file["format"]):
            not_run.append(f"{file['format']} on the {side}: its library is not installed")
        else:
            tasks.append(dict(run=file["format"], files={side: file}, precisions=["fp64", "fp32"]))
    return tasks, not_run


def _run(task: dict) -> dict[str, dict[str, np.ndarray]]:
    """`{"who, file, precision": {module: output}}` of one process."""
    x64 = task["run"] == "jax_vit" and task["precisions"] == ["fp64"]
    own = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "JAX_ENABLE_X64": str(int(x64))}
    where = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "twinvit.certificate", json.dumps(task)],
        env={**os.environ, **own, "PYTHONPATH": where},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise UserError(
            f"--verify: {task['run']} did not run these weights:\n{done.stderr.strip()[-2000:]}"
        )
    out: dict[str, dict[str, np.ndarray]] = {}
    with np.load(task["out"]) as arrays:
        for key in arrays:
            name, module = key.split("|")
            out.setdefault(name, {})[module] = arrays[key]
    return out


def _worker(task: dict) -> None:
    outputs = {}
    for side, file in task["files"].items():
        changes = file["changes"]
        known = {key: changes.get(key) for key in ("num_classes", "image_size")}
        opened = open_weights(file["path"], file["format"], num_heads=file["num_heads"], **known)
        cfg, arrays = adapt(opened.cfg, opened.arrays, **changes)
        images = np.random.default_rng(_SEED).standard_normal(
            (_BATCH, cfg.image_size, cfg.image_size, 3)
        )
        for precision in task["precisions"]:
            batch = images.astype(np.float64 if precision == "fp64" else np.float32)
            traced = _trace(task["run"], file, cfg, arrays, precision, batch)
            who = {"torch_vit": "torch twin", "jax_vit": "jax twin"}.get(task["run"], task["run"])
            outputs |= {
                f"{who}, {side}, {precision}|{name}": array for name, array in traced.items()
            }
    np.savez(task["out"], **outputs)


def _trace(
    run: str, file: dict, cfg, arrays, precision: str, batch: np.ndarray
) -> dict[str, np.ndarray]:
    if run == "jax_vit":
        traced = (
            importlib.import_module("jax_vit")
            .from_arrays(cfg, in_memory(arrays), precision=precision)
            .trace(batch)
        )
    else:
        torch = importlib.import_module("torch")
        channels_first = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        if run == "torch_vit":
            model = importlib.import_module("torch_vit").from_arrays(
                cfg, in_memory(arrays), precision=precision
            )
            with torch.no_grad():
                traced = model.trace(channels_first)
        else:
            peers = importlib.import_module("twinvit.peers")
            model = peers.load(run, Path(file["path"]), cfg).to(channels_first.dtype)
            traced = peers.trace(run, model, channels_first, cfg)
    wanted = ["", *(f"blocks.{i}" for i in range(cfg.depth)), cfg.norm_name]
    return {name: np.asarray(traced[name]) for name in wanted}


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return 0.0 if np.array_equal(a, b) else relative_l2(a, b)  # a head of zeros has logits of zeros


def _checksums(path: Path) -> dict[str, str]:
    files = (
        sorted(path.glob("*.safetensors")) + sorted(path.glob("*.bin")) if path.is_dir() else [path]
    )
    return {file.name: checksum(file) for file in files}


def _print(rows: list[dict], not_run: list[str], good: bool, out: Path) -> None:
    width = max(len(row["who"]) for row in rows)
    print(
        f"{'':<{width}}            logits worst inside   limit   (relative L2 against: {_REFERENCE})"
    )
    for row in rows:
        print(
            f"{row['who']:<{width}}  {row['precision']}  {row['logits']:>10.2e}  {row['worst_inside']:>11.2e}  "
            f"{LIMITS[row['precision']]:>8.0e}"
        )
    for line in not_run:
        print(f"not run: {line}")
    print(f"{'equal' if good else 'DIFFERENT'}: {out}")


if __name__ == "__main__":
    _worker(json.loads(sys.argv[1]))
