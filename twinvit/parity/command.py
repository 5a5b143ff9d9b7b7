"""`twinvit parity`: proof, as a command, that the twins produce the same training curve."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from shared_vit.cores import cores
from shared_vit.errors import UserError
from shared_vit.run.command_line import help_of_flags, parse
from shared_vit.run.record import read_record
from twinvit.lockstep import trainer_run
from twinvit.pages import verdicts
from twinvit.parity import noise_rule
from twinvit.parity.curves import judge, report, verdict_of
from twinvit.verdict_flags import take_verdict_flags

NUDGES = (1, 2, 3)
# Nudged runs stop here, and go on only while rounding is still below what the rule decides.
FIRST_NOISE_STEPS = 300
OWN_FLAGS = ("nudge", "resume", "stop_at", "mode")
HELP = """usage: twinvit parity [--flag=value ...]

Trains both twins from the same flags, and PyTorch three times more with --nudge=1, 2 and 3, each in
its own process. The noise rule then says whether the curves differ by rounding only,
the last weights and the evaluations: a table and a verdict on the screen, the figure in curves.png.
Exit status 0: same, 1: different, 2: undecided, 3: no verdict.

  --run_dir=DIR          where the five runs and the figure go. Default: runs/parity-<preset>,
                         numbered where that is taken
  --lockstep[=EVERY]     one run instead, of which each step, or every EVERY-th, is taken by both
                         twins from the same state
  --framework=TWIN       of a lockstep: the twin that goes on, torch (default) or jax
  --json[=PATH]          the verdict as JSON, to a file or to standard output, where nothing else is
                         written then
  --quiet                print the verdict's line only
  --github               print annotations of a GitHub workflow, too

Runs on disk are compared by `twinvit curves RUN_A RUN_B --noise RUN RUN RUN`.

All other flags are those of training, listed below, without --nudge, --resume, --stop_at and
--mode, which the comparison sets itself. fp16 is PyTorch's alone.

"""


def parity(argv: list[str]) -> int:
    """`twinvit parity` with its flags; returns the exit status. Raises UserError."""
    if {"-h", "--help"} & set(argv):
        print(HELP + help_of_flags(without=(*OWN_FLAGS, "run_dir")), end="")
        return 0
    how, argv = take_verdict_flags(argv)
    run = trainer_run.judged if trainer_run.wanted(argv) else _parity
    return verdicts.announce(how, lambda: run(argv))


def _parity(argv: list[str]) -> verdicts.Verdict:
    """Train both twins and the nudged ones, and compare their curves. Raises UserError."""
    requested = parse(argv, prog="twinvit parity")
    own = [f"--{n}" for n in OWN_FLAGS if n in requested.given]
    if own:
        raise UserError(f"twinvit parity sets {', '.join(own)} itself: leave that out")
    trainer_run.refuse_fp16(requested)
    out = Path(requested.run_dir) if requested.run_dir else _free_dir(requested.preset)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: name another --run_dir")
    flags = requested.argv("run_dir")
    runs = {name: out / name for name in ("jax", "torch", *(f"torch-nudge-{i}" for i in NUDGES))}
    print(f"parity run in {out}: jax, torch, and torch with three nudges", flush=True)
    quiet = [
        "--eval_every=0",
        "--checkpoint_every=0",
        f"--stop_at={FIRST_NOISE_STEPS}",
        "--wandb=off",
        "--tensorboard=off",
        "--keep_best=off",
    ]
    jobs = [("jax", flags), ("torch", flags)]
    jobs += [(f"torch-nudge-{i}", [*flags, *quiet, f"--nudge={i}"]) for i in NUDGES]
    _run_all([(name, _command(name, f, runs[name])) for name, f in jobs])
    total = read_record(runs["torch"]).recipe.steps
    steps = FIRST_NOISE_STEPS
    while True:
        verdict = judge(runs["jax"], runs["torch"], [runs[f"torch-nudge-{i}"] for i in NUDGES])
        if steps >= total or max(v.max() for v in verdict.noise.values()) > noise_rule.DECIDABLE:
            break
        steps *= 4
        names = [f"torch-nudge-{i}" for i in NUDGES]
        _run_all([(n, _command(n, ["--resume", f"--stop_at={steps}"], runs[n])) for n in names])
    report(out / "curves.png", {"JAX": runs["jax"], "PyTorch": runs["torch"]}, verdict)
    if verdict.matched and verdict.rest():
        print(f"every step is decided by: {by_lockstep(flags)}")
    nudged = [runs[f"torch-nudge-{i}"] for i in NUDGES]
    figure = out / "curves.png"
    return verdict_of("parity", verdict, [runs["jax"], runs["torch"]], nudged, figure)


def by_lockstep(flags: list[str]) -> str:
    """The command that decides each step of a run with these flags."""
    return shlex.join(["twinvit", "parity", "--lockstep", *flags])


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
    """Run each command in its own process.

    On CPUs as many run at once as there are cores, each with an equal number of them.
    """
    at_once = 1 if _has_gpu() else min(len(commands), cores())
    env = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // at_once)))
    }
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(_run_one, name, command, env) for name, command in commands]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        except BaseException:  # Ctrl-C as well: no further run begins
            pool.shutdown(cancel_futures=True)
            raise


def _run_one(name: str, command: list[str], env: dict[str, str]) -> None:
    begin = time.perf_counter()
    lines = []
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
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
