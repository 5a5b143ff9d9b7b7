"""`twinvit convert --verify`: the same inputs through both files, with a certificate of the result.

Normal noise goes through both twins and the formats' own libraries, and images go through the
libraries' own preprocessing. Each framework runs in its own process, on the CPU; as a module
this is such a process, and reads a task (JSON).
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.data.preprocess import evaluation_input, normalize, resize_to_cover
from shared_vit.errors import UserError, some
from shared_vit.files import atomic_write
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.settings import written
from shared_vit.spec.sides import shown
from shared_vit.weights.adapt import adapt
from shared_vit.weights.class_names import Names
from shared_vit.weights.formats import AUTHORS
from shared_vit.weights.formats.twinvit import OWN
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.locate import checksum
from shared_vit.weights.read import Source, open_weights
from twinvit.compare.trace import rounding, trace
from twinvit.convert.same_function import (
    LIMITS,
    Outputs,
    judged,
    names_apart,
    nothing_in,
    settings_apart,
    weights_apart,
)
from twinvit.convert.synthetic_images import drawn_images, plain_images
from twinvit.pages.verdicts import Verdict
from twinvit.parity.noise_rule import relative_l2
from twinvit.port.verdict import DIFFERENT, SAME, UNDECIDED, Evidence, decide

PRECISIONS = ("fp64", "fp32")
# The most that a pixel may differ by, in levels of 255: two right resizes round differently.
LEVELS = 1.01
_BATCH, _SEED = 2, 0
_REFERENCE = "torch twin, source"
_PIXELS, _ON_IMAGES, _PLAIN = "pixels", "logits of images", "pixels of one colour"
_ROUNDING = "rounding, "
_WHOLE = 0.01  # levels: float32's rounding of what mean and std do is 1e-4
_WORDS = {SAME: "same", DIFFERENT: "DIFFERENT", UNDECIDED: "UNDECIDED"}
# timm's converters read authors' files.
_WHO = {"torch": "torch twin", "jax": "jax twin"} | {n: f"timm, of {n}" for n in AUTHORS}

Task = dict[str, Any]


def certify(
    source: Source, src: Path, dst: Path, to: str, num_heads: int | None, changes: dict[str, Any]
) -> Verdict:
    """Compare outputs, weights, settings, names and preprocessing of both files.

    Prints a table and writes `<dst>.parity.json`. `changes` are the arguments of `adapt` with which
    DST was made. Differences are relative L2 against the PyTorch twin on the source, in the same
    precision, and for pixels in levels of 255.
    """
    cfg, arrays = adapt(source.cfg, source.arrays, **changes)
    kind = source.format.partition(",")[0]
    here = source.origin.path if source.origin else src
    files: dict[str, Task] = {
        "source": dict(path=str(here), format=kind, num_heads=num_heads, changes=changes),
        "target": dict(path=str(dst), format=to, num_heads=None, changes={}),
    }
    tasks, not_run = _tasks(files)
    _without_float64(tasks, not_run, cfg)
    runs, refused = _all_runs(tasks)
    rounding = {
        name.removeprefix(_ROUNDING): runs.pop(name)
        for name in [n for n in runs if n.startswith(_ROUNDING)]
    }
    constant = bool(np.ptp(runs[f"{_REFERENCE}, fp64"][""], axis=0).max() == 0)
    if constant:
        not_run.append(
            "a test of the head: every image has the same logits, so that they show nothing of it; "
            "it is compared as an array"
        )
    seen = {name: runs.pop(name) for name in [n for n in runs if n.endswith(", images")]}
    rows = _rows(runs, rounding)
    images = _preprocessing_rows(cfg, seen)
    names = None if cfg.num_classes != source.cfg.num_classes else source.class_names
    weights = _weights_row(cfg, arrays, names, dst, to)
    found = _evidence(rows, images, weights, refused)
    verdict = decide(found)
    certificate = {
        "verdict": verdict,
        "reasons": found.wrong or found.open,
        "limits": {name: LIMITS[name] for name in PRECISIONS},
        "measure": f"relative L2 against: {_REFERENCE}; each number within its measured rounding",
        "inputs": f"{_BATCH} images of normal noise, {shown(cfg.image_shape)}, "
        f"default_rng({_SEED})",
        "source": {
            "name": source.origin.name if source.origin else src.name,
            "revision": source.origin.commit if source.origin else None,
            "format": source.format,
            "step": source.step,
            "sha256": _checksums(source.files, here),
        },
        "target": {"name": dst.name, "format": to, "sha256": _checksums(_files(dst), dst)},
        "changes": {key: value for key, value in changes.items() if value is not None},
        "model_config": written(cfg),
        "num_arrays": len(source.arrays),
        "logits_are_constant": constant,
        "weights": weights,
        "rows": rows,
        "preprocessing": images,
        "not_run": not_run,
    }
    out = certificate_path(dst)
    with atomic_write(out) as file:
        file.write((json.dumps(certificate, indent=2) + "\n").encode())
    line = f"{_WORDS[verdict]}: {out}"
    _print(rows, images, not_run, found, line)
    own = {k: v for k, v in certificate.items() if k not in ("verdict", "reasons")}
    return Verdict("convert", verdict, line, found.wrong or found.open, own | {"file": str(out)})


def certificate_path(dst: Path) -> Path:
    """The certificate that goes with a converted file or folder."""
    return dst.with_name(dst.name + ".parity.json")


def _all_runs(tasks: list[Task]) -> tuple[dict[str, Outputs], list[str]]:
    """Outputs by who, file and precision; which libraries refused a file, and why."""
    runs: dict[str, Outputs] = {}
    refused = []
    with tempfile.TemporaryDirectory() as folder:
        for i, task in enumerate(tasks):
            print(f"verify {i + 1} of {len(tasks)}: {_shown(task)}", file=sys.stderr, flush=True)
            try:
                runs |= _run(task | {"out": str(Path(folder) / f"{i}.npz")})
            except UserError as error:
                if task["run"] in ("torch", "jax"):
                    raise
                last = str(error).strip().splitlines()[-1]
                refused.append(f"{task['run']}, {', '.join(task['files'])}: {last}")
    return runs, refused


def _shown(task: Task) -> str:
    """Who runs which files, in words."""
    who = task["run"] if task["run"] not in ("torch", "jax") else f"the {task['run']} twin"
    return f"{who} on {' and '.join(task['files'])}, {' and '.join(task['precisions'])}"


def _weights_row(
    cfg: ModelConfig, arrays: Arrays, names: Names, dst: Path, to: str
) -> dict[str, Any]:
    """What of the target's arrays, settings and class names is not the source's."""
    target = open_weights(dst, to)
    lost = names is not None and target.class_names is None
    return {
        "different_arrays": weights_apart(arrays, target.arrays),
        "different_settings": [
            f"{name}: {values}"
            for name, values, matters in settings_apart(cfg, target.cfg)
            if matters
        ],
        "class_names": "the target has none" if lost else names_apart(names, target.class_names),
        "all_zero": nothing_in(arrays),
    }


def _evidence(
    rows: list[dict[str, Any]],
    images: list[dict[str, Any]],
    weights: dict[str, Any],
    refused: list[str],
) -> Evidence:
    """What is wrong with the target, and what could not be checked."""
    apart = weights["different_arrays"]
    wrong = [f"{some(apart)}: other values than the source's"] if apart else []
    wrong += weights["different_settings"]
    wrong += [weights["class_names"]] if weights["class_names"] else []
    for row in rows:
        wrong += [f"{row['who']}, {row['precision']}: {text}" for text in row["wrong"]]
    wrong += [f"{row['who']}: {row['why']}" for row in images if row["verdict"] == DIFFERENT]
    open_ = [f"{row['who']}, {row['precision']}: {text}" for row in rows for text in row["open"]]
    open_ += [f"{text} (it did not run this file)" for text in refused]
    if weights["all_zero"]:
        open_.append("all weights are zero: there is nothing to compare")
    return Evidence(wrong, open_, len(rows) - 1)


def _tasks(files: dict[str, Task]) -> tuple[list[Task], list[str]]:
    both = list(PRECISIONS)
    tasks = [dict(run="torch", files=files, precisions=both)]
    tasks += [dict(run="jax", files=files, precisions=[precision]) for precision in both]
    not_run = []
    for side, file in files.items():
        if file["format"] in OWN:
            continue
        from twinvit.convert.libraries import installed

        if any(value is not None for value in file["changes"].values()):
            not_run.append(
                f"{file['format']} on the {side}: the target is of another size, head or type by "
                "request"
            )
        elif not installed(file["format"]):
            not_run.append(f"{file['format']} on the {side}: its library is not installed")
        else:
            tasks.append(dict(run=file["format"], files={side: file}, precisions=both))
    return tasks, not_run


def _without_float64(tasks: list[Task], not_run: list[str], cfg: ModelConfig) -> None:
    """Leave the comparison in float64 out of libraries that compute parts in float32 even there."""
    for task in tasks:
        if task["run"] in ("torch", "jax"):
            continue
        from twinvit.convert.libraries import in_float32

        if parts := in_float32(task["run"], cfg):
            task["precisions"] = [p for p in task["precisions"] if p != "fp64"]
            sides = " and ".join(task["files"])
            not_run.append(f"{task['run']} on the {sides} in fp64: it computes {parts} in float32")


def _run(task: Task) -> dict[str, Outputs]:
    """`{"who, file, precision": outputs}` of one process; "who, file, images" for images."""
    x64 = task["run"] == "jax" and task["precisions"] == ["fp64"]
    own = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "JAX_ENABLE_X64": str(int(x64))}
    where = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "twinvit.convert.certificate", json.dumps(task)],
        env={**os.environ, **own, "PYTHONPATH": where},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise UserError(
            f"--verify: {task['run']} did not run these weights:\n{done.stderr.strip()[-2000:]}"
        )
    out: dict[str, Outputs] = {}
    with np.load(task["out"]) as arrays:
        for key in arrays:
            name, module = key.split("|")
            out.setdefault(name, {})[module] = arrays[key]
    return out


def _worker(task: Task) -> None:
    outputs: Outputs = {}
    who = _WHO.get(task["run"], task["run"])
    for side, file in task["files"].items():
        changes = file["changes"]
        known = {key: changes.get(key) for key in ("num_classes", "image_size")}
        opened = open_weights(file["path"], file["format"], num_heads=file["num_heads"], **known)
        cfg, arrays = adapt(opened.cfg, opened.arrays, **changes)
        images = np.random.default_rng(_SEED).standard_normal((_BATCH, *cfg.image_shape, 3))
        for precision in task["precisions"]:
            traced = _traced(task["run"], file, cfg, arrays, precision, images)
            named = f"{who}, {side}, {precision}"
            outputs |= {f"{named}|{name}": traced[name] for name in _wanted(cfg)}
            if f"{who}, {side}" == _REFERENCE:
                moved = rounding(cfg, arrays, images, precision, traced)
                outputs |= {f"{_ROUNDING}{precision}|{name}": moved[name] for name in _wanted(cfg)}
        for name, array in _on_images(task["run"], file, cfg, arrays).items():
            outputs[f"{who}, {side}, images|{name}"] = array
    np.savez(task["out"], **outputs)  # type: ignore[arg-type]


def _traced(
    run: str, file: Task, cfg: ModelConfig, arrays: Arrays, precision: Any, images: np.ndarray
) -> Outputs:
    if run in ("jax", "torch"):
        return trace(run, cfg, arrays, images, precision)  # type: ignore[arg-type]
    return _traced_by_peer(run, file, cfg, images, precision)


def _wanted(cfg: ModelConfig) -> list[str]:
    """The outputs that libraries have as well: logits, blocks, the last norm."""
    norm = [cfg.norm_name] if cfg.final_norm else []
    return ["", *(f"blocks.{i}" for i in range(cfg.depth)), *norm]


def _traced_by_peer(
    run: str, file: Task, cfg: ModelConfig, images: np.ndarray, precision: str
) -> Outputs:
    import torch

    from twinvit.convert import libraries

    dtype = torch.float64 if precision == "fp64" else torch.float32
    inputs = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)
    model = libraries.load(run, Path(file["path"]), cfg).to(dtype)
    traced = libraries.trace(run, model, inputs, cfg)
    return {name: value.double().numpy() for name, value in traced.items()}


def _on_images(run: str, file: Task, cfg: ModelConfig, arrays: Arrays) -> Outputs:
    """What is made of images, and their logits: by a library, or by this project in PyTorch."""
    if run == "jax":
        return {}
    images = drawn_images(cfg.image_shape)
    if run == "torch":
        preprocess: Callable[[np.ndarray], np.ndarray] = functools.partial(_preprocess, cfg)
        pixels = np.stack([preprocess(image) for image in images])
        logits = trace("torch", cfg, arrays, pixels, "fp32")[""]
    else:
        from twinvit.convert import libraries

        preprocess = libraries.preprocess(run, Path(file["path"]), cfg)
        pixels = np.stack([preprocess(image) for image in images])
        logits = _traced_by_peer(run, file, cfg, pixels, "fp32")[""]
    plain = np.stack([preprocess(image) for image in plain_images(cfg.image_shape)])
    return {_PIXELS: pixels, _ON_IMAGES: logits, _PLAIN: plain}


def _preprocess(cfg: ModelConfig, image: np.ndarray) -> np.ndarray:
    return normalize(evaluation_input(image, cfg), cfg)


def _rows(runs: dict[str, Outputs], rounding: dict[str, Outputs]) -> list[dict[str, Any]]:
    rows = []
    for name, outputs in runs.items():
        who, precision = name.rsplit(", ", 1)
        reference = runs[f"{_REFERENCE}, {precision}"]
        found = judged(reference, outputs, precision, LIMITS[precision], rounding.get(precision))
        gaps = {key or "logits": gap for key, gap in found.distances.items()}
        inner = {key: gap for key, gap in gaps.items() if key != "logits"}
        missing = [f"{key or 'logits'}: not computed" for key in reference if key not in outputs]
        rows.append(
            dict(
                who=who,
                precision=precision,
                logits=gaps.get("logits"),
                worst_inside=max(inner.values()),
                inside=inner,
                wrong=missing + [f"{k or 'logits'}: {why}" for k, why in found.wrong.items()],
                open=[f"{k or 'logits'}: {why}" for k, why in found.open.items()],
            )
        )
    return rows


def _preprocessing_rows(cfg: ModelConfig, seen: dict[str, Outputs]) -> list[dict[str, Any]]:
    """A row for each preprocessing that was run, against this project's on the source."""
    reference, images = seen[f"{_REFERENCE}, images"], drawn_images(cfg.image_shape)
    rows = []
    for name, outputs in seen.items():
        if name.startswith(_REFERENCE):
            continue
        theirs = levels(outputs[_PIXELS], cfg)
        found = [_shift(image, pixels, cfg) for image, pixels in zip(images, theirs)]
        plain = [np.abs(evaluation_input(i, cfg) - p) for i, p in zip(images, theirs)]
        shifted = sum(offset != (0, 0) for offset, _ in found)
        why = wrong_pixels(found, theirs)
        if not why and _PLAIN in outputs:
            why = _wrong_colours(levels(outputs[_PLAIN], cfg), cfg)
        rows.append(
            dict(
                who=name.removesuffix(", images"),
                verdict=DIFFERENT if why else SAME,
                why=why,
                images=len(found),
                shifted_by_a_pixel=shifted,
                largest_in_levels=float(np.max(plain)),
                mean_in_levels=float(np.mean(plain)),
                logits=_gap(outputs[_ON_IMAGES], reference[_ON_IMAGES]),
            )
        )
    return rows


def levels(pixels: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """What a model's input is in levels of 255, before mean and std of `cfg`."""
    return (pixels * np.array(cfg.std) + np.array(cfg.mean)) * 255


def wrong_pixels(found: list[tuple[tuple[int, int], float]], theirs: np.ndarray) -> str:
    """Why images become other inputs than the twins'; "" where they do not.

    Resizes give whole levels, which mean and std only scale: levels that are not whole are of
    another mean or std. Two right resizes round a level apart, at most.
    """
    worst = max(gap for _, gap in found)
    if worst > LEVELS:
        return f"pixels differ by up to {worst:.2f} levels of 255"
    apart = float(np.abs(theirs - np.round(theirs)).max())
    if apart > _WHOLE:
        return f"pixels are {apart:.2g} of a level off whole levels: another mean or std"
    return ""


def _wrong_colours(theirs: np.ndarray, cfg: ModelConfig) -> str:
    """The same of images of one colour each, which every resize leaves as they are."""
    ours = np.stack([evaluation_input(image, cfg) for image in plain_images(cfg.image_shape)])
    apart = float(np.abs(theirs - ours).max())
    return (
        f"one colour becomes another by {apart:.2g} levels: mean or std" if apart > _WHOLE else ""
    )


def _shift(
    image: np.ndarray, theirs: np.ndarray, cfg: ModelConfig
) -> tuple[tuple[int, int], float]:
    """`(offset, largest difference in levels)` of the crop within a pixel that is nearest to the
    twins'.

    Libraries round the offset of a crop with an odd margin up, down or to the even number.
    """
    plain = float(np.abs(evaluation_input(image, cfg) - theirs).max())
    if plain <= LEVELS or cfg.eval_resize == 0:
        return (0, 0), plain
    size = cfg.image_shape
    resized = resize_to_cover(image, cfg.resized_shape, cfg.interpolation)
    top, left = (round((side - inner) / 2) for side, inner in zip(resized.shape, size))
    best = (0, 0), plain
    for offset in [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]:
        y, x = top + offset[0], left + offset[1]
        crop = resized[max(y, 0) : y + size[0], max(x, 0) : x + size[1]]
        if crop.shape == theirs.shape:
            gap = float(np.abs(crop - theirs).max())
            best = (offset, gap) if gap < best[1] else best
    return best


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return 0.0 if np.array_equal(a, b) else relative_l2(a, b)  # a head of zeros has logits of zeros


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.safetensors"))


def _checksums(files: list[Path], base: Path) -> dict[str, str]:
    """By name, or within a folder by the way from it."""
    names = [f.relative_to(base).as_posix() if f.is_relative_to(base) else f.name for f in files]
    return {name if name != "." else f.name: checksum(f) for name, f in zip(names, files)}


def _print(
    rows: list[dict], images: list[dict], not_run: list[str], found: Evidence, verdict: str
) -> None:
    width = max(len(row["who"]) for row in rows)
    head = "logits worst inside   limit   (relative L2 against"
    print(f"{'':<{width}}            {head}: {_REFERENCE})")
    for row in rows:
        print(
            f"{row['who']:<{width}}  {row['precision']}  {row['logits']:>10.2e}  "
            f"{row['worst_inside']:>11.2e}  {LIMITS[row['precision']]:>8.0e}"
        )
    for row in images:
        shifted = row["shifted_by_a_pixel"]
        moved = f", the crop is a pixel off in {shifted} of them" if shifted else ""
        print(
            f"{row['who']:<{width}}  preprocessing of {row['images']} images {row['verdict']}: "
            f"pixels differ by {row['mean_in_levels']:.3f} of 255 on average, "
            f"{row['largest_in_levels']:.0f} at most{moved}; their logits by {row['logits']:.2e}"
        )
    for line in not_run:
        print(f"not run: {line}")
    for line in found.wrong or found.open:
        print(f"  {line}")
    print(verdict)


if __name__ == "__main__":
    _worker(json.loads(sys.argv[1]))
