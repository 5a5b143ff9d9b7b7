"""`twinvit parity` and `twinvit curves`: proof, as a command, that the twins draw the same training curve."""

import concurrent.futures
import dataclasses
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from shared_vit.cores import cores
from shared_vit.errors import UserError, some
from shared_vit.run.command_line import parse
from shared_vit.run.record import Record, differences, read_record
from shared_vit.spec.config import name_of
from twinvit import noise_rule, plots

NUDGES = (1, 2, 3)
FIRST_NOISE_STEPS = (
    300  # nudged runs stop here, and go on only while rounding is still below what the rule decides
)


def parity(argv: list[str]) -> int:
    """Train both twins from the same flags, and one three times more with --nudge, each in its own process; say whether the
    curves match by the noise rule, in a table and in curves.png. Exit status 1 where they do not."""
    asked = parse(argv, prog="twinvit parity")
    own = [f"--{n}" for n in ("nudge", "resume", "stop_at", "mode") if n in asked.given]
    if own:
        raise UserError(f"twinvit parity sets {', '.join(own)} itself: leave that out")
    if asked.precision == "fp16":
        raise UserError(
            "fp16 is PyTorch's alone, there is no twin to compare: use --precision=bf16"
        )
    out = Path(asked.run_dir) if asked.run_dir else _free_dir(asked.preset)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another --run_dir")
    flags = asked.argv("run_dir")
    runs = {name: out / name for name in ("jax", "torch", *(f"torch-nudge-{i}" for i in NUDGES))}
    print(f"parity run in {out}: jax, torch, and torch with three nudges", flush=True)
    quiet = [
        "--eval_every=0",
        "--checkpoint_every=0",
        f"--stop_at={FIRST_NOISE_STEPS}",
        "--wandb=off",
    ]
    jobs = [("jax", flags), ("torch", flags)]
    jobs += [(f"torch-nudge-{i}", [*flags, *quiet, f"--nudge={i}"]) for i in NUDGES]
    _run_all([(name, _command(name, f, runs[name])) for name, f in jobs])
    total = read_record(runs["torch"]).recipe.steps
    steps = FIRST_NOISE_STEPS
    while True:
        verdict = _judge(
            runs["jax"],
            runs["torch"],
            runs["torch"],
            [runs[f"torch-nudge-{i}"] for i in NUDGES],
        )
        if steps >= total or max(v.max() for v in verdict.noise.values()) > noise_rule.DECIDABLE:
            break
        steps *= 4
        names = [f"torch-nudge-{i}" for i in NUDGES]
        _run_all([(n, _command(n, ["--resume", f"--stop_at={steps}"], runs[n])) for n in names])
    _report(out / "curves.png", {"JAX": runs["jax"], "PyTorch": runs["torch"]}, verdict)
    return 0 if verdict.matched else 1


parity.takes_training_flags = True


def curves(
    run_a: tyro.conf.Positional[Path],
    run_b: tyro.conf.Positional[Path],
    /,
    noise: tuple[Path, ...] = (),
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("curves.png"),
) -> int:
    """Compare the curves of two runs on disk; with nudged runs, judge them by the noise rule (exit status 1: no match).

    Args:
        run_a: a run directory.
        run_b: another.
        noise: three or more runs of run_b's twin and flags with --nudge=1, 2, 3, ...
        output: where to write the figure.
    """
    if noise:
        verdict = _judge(run_a, run_b, run_b, list(noise))
        _report(output, {run_a.name: run_a, run_b.name: run_b}, verdict)
        return 0 if verdict.matched else 1
    a, b = noise_rule.read_curve(run_a), noise_rule.read_curve(run_b)
    for quantity in noise_rule.QUANTITIES:
        print(
            f"{quantity}: largest gap {noise_rule.gap(a, b, quantity)[-1]:.2e} over {min(len(a), len(b))} steps"
        )
    print(
        "no verdict: name three nudged runs by --noise to judge the gap by what rounding alone does"
    )
    plots.plot_curves(output, {run_a.name: a, run_b.name: b}, None, f"{run_a} and {run_b}")
    print(f"figure: {output}")
    return 0


def _judge(a: Path, b: Path, base: Path, nudged: list[Path]) -> noise_rule.Verdict:
    """The noise rule on runs on disk, after a check that they were made alike."""
    own = _without_nudge(read_record(b))
    for run in (a, *nudged):
        if different := differences(own, _without_nudge(read_record(run))):
            raise UserError(
                f"{b} and {run} were not made with the same settings: {some(different)}"
            )
    read, eps = noise_rule.read_curve, noise_rule.machine_epsilon(own.recipe.precision)
    return noise_rule.noise_rule(read(a), read(b), read(base), [read(n) for n in nudged], eps)


def _without_nudge(record: Record) -> Record:
    return dataclasses.replace(record, recipe=dataclasses.replace(record.recipe, nudge=None))


def _report(figure: Path, runs: dict[str, Path], verdict: noise_rule.Verdict) -> None:
    recipe = read_record(list(runs.values())[1]).recipe
    print(f"\n{verdict.describe()}")
    title = f"{name_of(recipe.model)}, {recipe.data}, {recipe.precision}: " + (
        "curves match" if verdict.matched else "curves do not match"
    )
    plots.plot_curves(
        figure, {label: noise_rule.read_curve(run) for label, run in runs.items()}, verdict, title
    )
    print(f"figure: {figure}")


def _command(name: str, flags: list[str], run_dir: Path) -> list[str]:
    framework = name.split("-")[0]
    return [
        sys.executable,
        "-m",
        "twinvit",
        "train",
        f"--framework={framework}",
        *flags,
        f"--run_dir={run_dir}",
    ]


def _run_all(commands: list[tuple[str, list[str]]]) -> None:
    """Run each command in its own process; on CPUs as many at once as there are cores, each with its share of them."""
    at_once = 1 if _has_gpu() else min(len(commands), cores())
    env = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // at_once)))
    }
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(_run_one, name, command, env) for name, command in commands]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise


def _run_one(name: str, command: list[str], env: dict[str, str]) -> None:
    begin = time.perf_counter()
    lines = []
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            print(f"[{name}] {line}", end="", flush=True)
    if process.returncode:
        raise UserError(
            f"the {name} run ended with status {process.returncode}: {''.join(lines[-15:]).strip()}"
        )
    print(f"[{name}] finished in {time.perf_counter() - begin:.0f} s", flush=True)


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def _free_dir(preset: str | None) -> Path:
    base = Path("runs") / f"parity-{preset or 'run'}"
    names = itertools.chain(
        [base], (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    )
    return next(p for p in names if not p.exists())
