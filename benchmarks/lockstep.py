"""Lockstep of whole trainings, of many short sound ones, an audit of a run by each twin, and what a
compared step costs.

    python benchmarks/lockstep.py --work DIR --cifar DIR --json benchmarks/results/lockstep_cpu.json
    python benchmarks/lockstep.py --work DIR --only sound_pairs --pairs 200 --json FILE

`--cifar` is a folder of train/<class>/ and val/<class>/ with CIFAR-10's images; without it that
part is left out. A part that is done in `--work` is read and not run again, one that was
interrupted goes on. The exit status is 1 where a verdict is not "same"; of short runs that diverge
in float32 or bfloat16 (`DIVERGES`), where it is "different".
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from about import origin

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ("--preset=digits", "--device=cpu", "--eval_every=0")
CIFAR = ("--preset=cifar10", "--data=folder", "--device=cpu", "--precision=fp32", "--stop_at=100")
RECIPES = {
    "everything": (
        "--mixup=0.2", "--cutmix=1", "--label_smoothing=0.1", "--randaug=2,10", "--drop_path=0.1",
        "--ema=0.999", "--layer_decay=0.8", "--repeat_aug=3",
    ),
    "sam and sgd": (
        "--sam_rho=0.05", "--sam_groups=2", "--optimizer=sgd", "--lr=0.05", "--weight_decay=0.01",
        "--stop_at=300",
    ),
}  # fmt: skip
ONLY = ("audit", "cost_in_seconds", "digits", "families", "headless", "lockstep", "sound_pairs")
# Named models whose functions small ones on digits have, by lockstep and by curves.
FAMILIES = ("dinov2_s14", "dinov2r_g14", "dinov3_splus16", "siglip_b16", "eva02_b14", "beit_b16")
SMALL = dict(
    image_size=8, patch_size=2, width=64, depth=4, num_heads=4, mlp_dim=128, num_classes=10
)
NANO = dict(depth=2, num_classes=0)
ROUNDS = 5
QUIET = ("--eval_every=0", "--checkpoint_every=0")
AUDITED = (
    *DIGITS, "--precision=fp32", "--steps=30", "--checkpoint_every=10", "--keep=all",
)  # fmt: skip


def twinvit(*args: str | Path) -> int:
    """Run the command; returns its exit status."""
    return subprocess.run([sys.executable, "-m", "twinvit", *map(str, args)]).returncode


def begun(run_dir: Path) -> list[str]:
    """The flag that lets a run go on that was interrupted."""
    return ["--resume"] * (run_dir / "config.json").exists()


def verdict(path: Path, *args: str | Path) -> dict[str, Any]:
    """What `twinvit *args` writes to `path`; a verdict that is there already is read.

    Without a verdict the command failed, also with status 2: that is "cannot be judged" and any
    mistake of the user's.
    """
    if not _ended(path):
        status = twinvit(*args)
        if not _ended(path):
            said = "was interrupted, call this again" if status == 75 else "gave no verdict"
            raise SystemExit(f"twinvit {' '.join(map(str, args))} {said} (exit status {status})")
    return json.loads(path.read_text())


def _ended(path: Path) -> bool:
    """Whether the verdict is there; a lockstep that has begun has a file without it."""
    return path.exists() and not {"line", "checkpoints"}.isdisjoint(json.loads(path.read_text()))


def locksteps(work: Path, cifar: Path | None, whole: bool = False) -> dict[str, dict]:
    """The verdicts of trainings; the `whole` ones are those on digits in each precision."""
    parts = {f"digits {p}": (*DIGITS, *QUIET, f"--precision={p}") for p in ("fp64", "bf16", "fp32")}
    if not whole:
        for name, flags in RECIPES.items():
            parts[f"digits fp32, {name}"] = (*DIGITS, *QUIET, "--precision=fp32", *flags)
    if cifar is not None:
        parts["cifar10 fp32, 100 steps"] = (*CIFAR, *QUIET, f"--data_dir={cifar}")
    found = {}
    for name, flags in parts.items():
        run_dir = work / name.replace(" ", "_").replace(",", "")
        command = ["parity", "--lockstep", *flags, f"--run_dir={run_dir}", *begun(run_dir)]
        found[name] = verdict(run_dir / "lockstep.json", *command)
    return found


def families(work: Path) -> dict[str, dict]:
    """200 updates of a small model of each of `FAMILIES`: lockstep in float32, and in float64 the
    curves of two runs by the noise rule."""
    from shared_vit import weights
    from shared_vit.spec import init
    from shared_vit.spec.config import model_config

    found = {}
    for name in FAMILIES:
        cfg, first = model_config(name, **SMALL), work / f"{name}.safetensors"
        weights.write(first, cfg, init.draw(cfg, 0))
        flags = (*DIGITS, *QUIET, "--steps=200", f"--init_from={first}", "--warmup_steps=20")
        run_dir = work / f"lockstep_{name}"
        command = ["parity", "--lockstep", *flags, "--precision=fp32", f"--run_dir={run_dir}"]
        found[name] = verdict(run_dir / "lockstep.json", *command, *begun(run_dir))
        found[f"{name}, curves in fp64"] = _curves(work / f"curves_{name}", *flags)
    return found


def headless(work: Path, names: tuple[str, ...] = FAMILIES) -> dict[str, dict]:
    """Weights without a head, fine-tuned from the command line: 200 updates in lockstep, and a run
    that JAX begins and PyTorch ends.

    The weights are a folder as timm writes it.
    """
    from shared_vit import weights
    from shared_vit.spec import init
    from shared_vit.spec.config import model_config

    found = {}
    for name in names:
        cfg, first = model_config(name, **SMALL | NANO), work / f"{name}_headless"
        if not first.exists():
            weights.write(first, cfg, init.draw(cfg, 1), "timm")
        flags = (*DIGITS, *QUIET, f"--init_from={first}", "--warmup_steps=20", "--precision=fp32")
        run_dir = work / f"headless_{name}"
        command = ["parity", "--lockstep", *flags, "--steps=200", f"--run_dir={run_dir}"]
        found[name] = verdict(run_dir / "lockstep.json", *command, *begun(run_dir))
        found[f"{name}, from JAX to PyTorch"] = _handed_over(work / f"handed_{name}", *flags)
    return found


def _handed_over(run_dir: Path, *flags: str) -> dict[str, Any]:
    """A run whose first half is JAX's and whose second half is PyTorch's, beside one that is
    PyTorch's alone: the largest difference of their losses, which float32 bounds."""
    alone = run_dir.with_name(f"{run_dir.name}_alone")
    parts = ((run_dir, "jax", 20), (run_dir, "torch", 40), (alone, "torch", 40))
    for folder, framework, stop in parts:
        if len(_losses(folder)) < stop:
            more = begun(folder) or [*flags, "--steps=40"]  # a run that goes on has its weights
            more += ["--device=cpu", f"--stop_at={stop}", f"--run_dir={folder}"]
            if status := twinvit("train", f"--framework={framework}", *more):
                raise SystemExit(f"{folder} in {framework}: exit status {status}")
    starts = map(json.loads, (run_dir / "timing.jsonl").read_text().splitlines())
    frameworks = [line["framework"] for line in starts if "framework" in line]
    pairs = list(zip(_losses(run_dir), _losses(alone), strict=True))
    gap = max(abs(a - b) for a, b in pairs)
    went_on = frameworks == ["jax", "torch"] and len(pairs) == 40 and gap < 1e-4
    return {
        "frameworks": frameworks,
        "losses": [a for a, _ in pairs][:: len(pairs) - 1],
        "largest_gap": gap,
        "line": f"20 steps of JAX, 20 of PyTorch: losses within {gap:.1e} of PyTorch's alone",
        "exit_status": int(not went_on),
    }


def _losses(run_dir: Path) -> list[float]:
    """Of the steps of a run; none where it has not begun."""
    rows = _read_rows(run_dir / "metrics.jsonl")
    return [row["loss"] for row in rows if "loss" in row]


def _curves(run_dir: Path, *flags: str) -> dict[str, Any]:
    """What `twinvit parity` says of whole runs in float64; kept beside them."""
    path = run_dir.with_suffix(".json")
    if not path.exists():
        command = ["parity", *flags, "--precision=fp64", f"--run_dir={run_dir}"]
        done = subprocess.run(
            [sys.executable, "-m", "twinvit", *command], stdout=subprocess.PIPE, text=True
        )
        said = [line for line in done.stdout.splitlines() if line.strip()]
        said = [line for line in said if not line.startswith("figure")]
        path.write_text(json.dumps({"exit_status": done.returncode, "line": said[-1]}))
    return json.loads(path.read_text())


def audits(work: Path) -> dict[str, dict]:
    found = {}
    for twin in ("torch", "jax"):
        run_dir = work / f"audited_{twin}"
        if not (run_dir / "audit.json").exists():
            train = [f"--framework={twin}", *AUDITED, f"--run_dir={run_dir}", *begun(run_dir)]
            if status := twinvit("train", *train):
                raise SystemExit(f"twinvit train {' '.join(train)}: exit status {status}")
        found[twin] = verdict(run_dir / "audit.json", "audit", run_dir, "--steps=2")
    return found


# What short runs of small models differ in; settings go round at different lengths.
PAIRS = {
    "precision": ("fp32", "fp64", "bf16"),
    "leader": ("torch", "jax"),
    "warmup_steps": (1, 2, 3, 4, 5),
    "flags": (
        ("--clip=1",), ("--clip=1e9", "--lr=0.5"), ("--dropout=0.1", "--grad_accum=2"),
        ("--ema=0.9", "--mixup=0.2"), ("--optimizer=sgd", "--lr=0.05"), ("--lr=1e-6",),
        ("--optimizer=adam", "--weight_decay=0", "--pool=mean", "--pos_embed=sincos2d"),
    ),
    "depth": (1, 2), "steps": (3, 6, 9, 20),
}  # fmt: skip


DIVERGES = "--clip=1e9 --lr=0.5"  # rounding alone is beyond what float32 and bfloat16 decide


def diverges(row: dict[str, Any]) -> bool:
    return DIVERGES in row["flags"] and "--precision=fp64" not in row["flags"]


def is_fault(row: dict[str, Any]) -> bool:
    """Whether a verdict on sound twins is wrong. Where training diverges it may be undecided in
    float32 and bfloat16; different it may never be."""
    return row["verdict"] not in (("same", "undecided") if diverges(row) else ("same",))


def pair_of(number: int) -> dict[str, Any]:
    """The settings of a short run: every combination of two settings occurs within 200."""
    rng = random.Random(number)
    return {name: rng.choice(values) for name, values in PAIRS.items()} | {"seed": number}


def sound_pair(number: int) -> dict[str, Any]:
    """The verdict on one short run of sound twins."""
    from shared_vit.run.command_line import parse
    from shared_vit.run.plan import first_or_given_state
    from shared_vit.run.state import StepScalars
    from twinvit.lockstep import record, trainer_run
    from twinvit.lockstep.twins import Pair, due
    from twinvit.parity.noise_rule import machine_epsilon

    of = pair_of(number)
    size = ("--width=32", "--num_heads=2", "--mlp_dim=64", "--patch_size=4", "--image_size=8")
    own = (f"--{n}={of[n]}" for n in ("precision", "warmup_steps", "depth", "steps", "seed"))
    flags = (*DIGITS, *size, "--batch_size=16", *own, *of["flags"])
    plan = trainer_run.resolve(parse([*flags, "--workers=0", "--run_dir=none"], "pair"))
    pair = Pair(plan, first_or_given_state(plan), of["leader"])
    stream, lines = plan.batches("train", 0), []
    for i in range(of["steps"]):
        scalars = StepScalars(plan.lr(i))
        step = pair.step(next(stream), scalars, *due(i + 1))
        lines.append(record.line_of(step, scalars))
    stream.close()
    lines += [record.altered_line(*found) for found in pair.altered()]
    verdicts = record.judge(lines, machine_epsilon(plan.recipe.precision))
    found = record.summary(lines, *verdicts)
    return {"flags": " ".join((*flags, f"--framework={of['leader']}")), "number": number} | {
        n: found[n] for n in ("verdict", "line", "exit_status", "largest")
    }


def sound_pairs(work: Path, count: int) -> dict[str, Any]:
    """Verdicts on `count` short runs, and on those between them that diverge. Some are in a
    process, since compiled programs stay in it.

    JAX_COMPILATION_CACHE_DIR, where it is set, spares most of the compilations.
    """
    path = work / "sound_pairs.jsonl"
    found = _read_rows(path)
    while sum(not diverges(row) for row in found) < count:
        numbers = [len(found), len(found) + 10]
        subprocess.run(
            [sys.executable, __file__, "--work", work, "--part", json.dumps(numbers)], check=True
        )
        found = _read_rows(path)
    calm = [row for row in found if not diverges(row)]
    return {
        "pairs": len(calm),
        "verdicts": _counted(calm),
        "diverging": _counted([row for row in found if diverges(row)]),
        "others": [row for row in found if row["verdict"] != "same"],
        "largest_own_update": max(row["largest"]["own"]["gap"] for row in found),
        "by_precision": {
            p: sum(f"--precision={p}" in row["flags"] for row in calm) for p in PAIRS["precision"]
        },
    }


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def _counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(row["verdict"] for row in rows))


def part_of_pairs(work: Path, first: int, last: int) -> None:
    import torch

    torch.set_num_threads(1)
    for number in range(first, last):
        row = sound_pair(number)
        print(number, row["line"], flush=True)
        with open(work / "sound_pairs.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def cost(leader: str, flags: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Seconds of a compared step and of the leader's own, one torch thread: of the processor, and
    of the clock, where the twins of a compared step work side by side. The median of `ROUNDS`
    rounds of `steps` steps of each kind."""
    import gc

    import numpy as np
    import torch

    from shared_vit.run.command_line import parse
    from shared_vit.run.plan import first_or_given_state
    from shared_vit.run.state import StepScalars
    from twinvit.lockstep import NOISE_EVERY, trainer_run
    from twinvit.lockstep.twins import OWN_EVERY, Pair

    torch.set_num_threads(1)
    plan = trainer_run.resolve(parse([*flags, "--workers=0", "--run_dir=none"], "cost"))
    pair = Pair(plan, first_or_given_state(plan), leader)  # type: ignore[arg-type]
    stream, scalars = plan.batches("train", 0), StepScalars(1e-4)
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    trainer = pair.leader.trainer

    def alone(batch):
        pair.free_step(trainer.to_device(batch), scalars, False).get()

    kinds = {
        "own": alone,
        "compared": lambda batch: pair.step(batch, scalars, False),
        "with_others_own": lambda batch: pair.step(batch, scalars, False, True),
        "with_noise": lambda batch: pair.step(batch, scalars, True),
    }
    seconds: dict[str, list] = {kind: [] for kind in kinds}
    for step in kinds.values():  # what is compiled
        step(batches[0])
    gc.freeze()
    for _ in range(ROUNDS):  # in turn: what else the machine does is alike for all
        for kind, step in kinds.items():
            step(batches[0])  # a state may be read and loaded anew
            begin = time.process_time(), time.perf_counter()
            for batch in batches:
                step(batch)
            end = time.process_time(), time.perf_counter()
            seconds[kind].append([(y - x) / steps for x, y in zip(begin, end)])
    times = np.median(np.array([seconds[kind] for kind in kinds]), axis=1).T
    found: dict[str, Any] = {"leader": leader, "flags": " ".join(flags)}
    for clock, row in zip(("processor", "wall"), times.tolist(), strict=True):
        own, compared, with_others_own, with_noise = row
        every_step = compared + (with_noise - compared) / NOISE_EVERY
        every_step += (with_others_own - compared) * (1 / OWN_EVERY - 1 / NOISE_EVERY)
        found[clock] = dict(zip(kinds, row, strict=True)) | {
            "ratio_every_1": every_step / own,
            "ratio_every_100": (99 * own + every_step) / (100 * own),
        }
    return found


def costs(work: Path, cifar: Path | None) -> list[dict]:
    path = work / "costs.json"
    if not path.exists():
        parts = [(leader, (*DIGITS, "--precision=fp32"), 8) for leader in ("torch", "jax")]
        if cifar is not None:
            parts += [("torch", (*CIFAR, f"--data_dir={cifar}"), 3)]
        path.write_text(json.dumps([_alone(*part) for part in parts]))
    return json.loads(path.read_text())


def _alone(leader: str, flags: tuple[str, ...], steps: int) -> dict:
    """`cost` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--cost", json.dumps([leader, flags, steps])],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _named_here(found: dict, folders: list[Path | None]) -> str:
    """As JSON, without this machine's folders."""
    text = json.dumps(found, indent=1)
    for folder in filter(None, folders):
        text = text.replace(str(folder), "DIR")
    return text + "\n"


def _judged(found: dict[str, Any]) -> dict[str, dict]:
    """The verdicts of whole runs, by name."""
    parts = (found.get(part, {}) for part in ("lockstep", "families", "headless"))
    return {name: verdict for part in parts for name, verdict in part.items()}


def mismatches(found: dict[str, Any]) -> list[str]:
    """A line for each verdict that is not "same"."""
    verdicts = _judged(found)
    for row in found.get("sound_pairs", {}).get("others", ()):
        if is_fault(row):
            verdicts[f"sound pair {row['number']}"] = row
    for twin, audit in found.get("audit", {}).items():
        verdicts |= {f"audit of {twin}, step {c['step']}": c for c in audit["checkpoints"]}
    return [f"{name}: {v['line']}" for name, v in verdicts.items() if v["exit_status"] != 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=ONLY)
    parser.add_argument("--pairs", type=int, default=200, help="short runs of sound twins")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), known)))
    if args.cost:
        leader, flags, steps = json.loads(args.cost)
        print(json.dumps(cost(leader, tuple(flags), steps)))
        return 0
    if args.work is None:
        parser.error("--work is needed: a folder for the runs")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.part:
        part_of_pairs(args.work, *json.loads(args.part))
        return 0
    parts: dict[str, Callable[[], Any]] = {
        "audit": lambda: audits(args.work),
        "cost_in_seconds": lambda: costs(args.work, args.cifar),
        "families": lambda: families(args.work),
        "headless": lambda: headless(args.work),
        "lockstep": lambda: locksteps(args.work, args.cifar),
        "sound_pairs": lambda: sound_pairs(args.work, args.pairs),
    }
    if args.only == "digits":
        args.only, parts["lockstep"] = "lockstep", lambda: locksteps(args.work, None, True)
    chosen = [args.only] if args.only else list(parts)
    found = origin(("torch", "jax")) | {name: parts[name]() for name in chosen}
    for name, part in _judged(found).items():
        print(f"{name}: {part['line']}")
    if pairs := found.get("sound_pairs"):
        print(f"{pairs['pairs']} short runs of sound twins: {pairs['verdicts']}")
        print(f"short runs that diverge: {pairs['diverging']}")
    if args.json:
        args.json.write_text(_named_here(found, [args.cifar, args.work]))
    if wrong := mismatches(found):
        print("not the same:", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
