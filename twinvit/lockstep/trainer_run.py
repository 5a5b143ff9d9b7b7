"""`twinvit parity --lockstep`: one run by one twin, each EVERY-th step taken by the other too."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_vit.errors import UserError
from shared_vit.run import loop
from shared_vit.run.command_line import parse
from shared_vit.run.plan import Plan, make_plan
from shared_vit.run.requested import RequestedConfig
from shared_vit.run.state import StepScalars, TrainState
from shared_vit.spec.config import name_of
from shared_vit.spec.recipe import enabled_features
from twinvit.frameworks import Framework, take_framework
from twinvit.lockstep import record
from twinvit.lockstep.twins import LockstepTrainer, Pair, Step, judged_by_reference
from twinvit.pages.verdicts import Verdict

FLAG = "--lockstep"
_FIXED = ("leader", "every", "rule")  # with the versions: of all lines of one lockstep


def wanted(argv: list[str]) -> bool:
    """Whether a command line of `twinvit parity` requests a lockstep."""
    return any(arg == FLAG or arg.startswith(FLAG + "=") for arg in argv)


def run(argv: list[str]) -> int:
    """Train by the flags; returns 0 where every compared step is the same, 1 where one differs, 2
    where one is undecided. Raises UserError before any device works."""
    found = judged(argv)
    return found if isinstance(found, int) else found.exit_status


def judged(argv: list[str]) -> Verdict | int:
    """Train by the flags; returns the verdict on the compared steps, or the exit status of a run
    that was interrupted before there was one. Raises UserError before any device works."""
    every, leader, rest = _own_flags(argv)
    requested = parse(rest, prog="twinvit parity --lockstep")
    own = [f"--{n}" for n in ("nudge", "mode") if n in requested.given]
    if own:
        raise UserError(f"a lockstep sets {', '.join(own)} itself: leave that out")
    plan = resolve(requested)
    begin = time.perf_counter()
    how = {"leader": leader, "every": every} | about(plan)
    before = _begun(plan)
    how |= {name: before[name] for name in ("weights", "versions") if name in before}
    _refuse_changes(before, how)

    trained = False

    def make_trainer(state: TrainState) -> LockstepTrainer:
        nonlocal trained
        pair = Pair(plan, state, leader)
        how["versions"] = pair.versions()
        _refuse_changes(before, how)
        weights = {"step": state.step, "sha256": record.digest(state.params)}
        how.setdefault("weights", weights)
        record.write_json(plan.run_dir / record.RESULT, how)
        record.cut_lines(plan.run_dir, state.step)
        if record.has_lines(plan.run_dir):
            checked = not before or record.is_checked(before)
            pair.noise = record.known_noise(record.read_lines(plan.run_dir, checked))
        out = record.Writer(plan.run_dir)

        def write(step: Step, scalars: StepScalars) -> None:
            if not gc.get_freeze_count():
                # Compiled by now: the frameworks' million objects need not be searched each step.
                gc.freeze()
            out.write(record.line_of(step, scalars))

        def alter(step: int, name: str) -> None:
            out.write(record.altered_line(step, name))

        trained = True
        return LockstepTrainer(pair, every, write, alter)

    print(f"lockstep: {leader} leads, every {every}. step taken by the other twin too", flush=True)
    if requested.precision == "tf32" and how["rule"] == "noise":
        print("lockstep: tf32 on a CPU is fp32, and is compared by noise", flush=True)
    try:
        status = loop.run(plan, 0, make_trainer)
    except UserError as error:
        if not trained or not record.ends_not_finite(plan.run_dir):
            raise
        # Weights that are no longer finite stop the run: the steps up to there are compared.
        print(f"lockstep: the run stopped: {error}", flush=True)
        return conclude(plan.run_dir, how | {"stopped": str(error)})
    if status:
        print(f"lockstep: interrupted, no verdict yet; {record.goes_on(plan.run_dir, how)}")
        return status
    if not trained and "line" in before:  # it had ended: its lines are compared again
        return conclude(plan.run_dir, {n: v for n, v in before.items() if n not in record.JUDGED})
    until = {"until": plan.end, "seconds": round(time.perf_counter() - begin, 1)}
    return conclude(plan.run_dir, how | until)


def _begun(plan: Plan) -> dict[str, Any]:
    """How the lockstep that is continued was begun; empty for one that begins."""
    path = plan.run_dir / record.RESULT
    return record.read_json(path) if plan.resume and path.exists() else {}


def _refuse_changes(before: Mapping[str, Any], how: Mapping[str, Any]) -> None:
    """All lines of a lockstep are made in one way, which is printed once."""
    old, new = ({n: d[n] for n in _FIXED if n in d} | d.get("versions", {}) for d in (before, how))
    changed = [f"{n} was {old[n]}, is {new[n]}" for n in old if n in new and old[n] != new[n]]
    if changed:
        raise UserError(
            f"cannot go on with this lockstep: {'; '.join(changed)}. Go on as it began, or begin "
            "another one in a new --run_dir"
        )


def conclude(run_dir: Path, how: dict[str, Any]) -> Verdict:
    """The verdict on the lines of a run; print it, and write lockstep.json and the figure."""
    lines = record.read_lines(run_dir, record.is_checked(how))
    if not any(not line.altered for line in lines):
        raise UserError(f"{run_dir}: no step was compared")
    if how.get("lines", len(lines)) != len(lines):
        raise UserError(
            f"{run_dir / record.LINES} has {len(lines)} lines, and {how['lines']} were written: "
            "restore the original, or make the lockstep again in a new --run_dir"
        )
    found = record.concluded(how, lines) | {"lines": len(lines)}
    path = run_dir / record.RESULT
    if not path.exists() or record.read_json(path) != {"format": how.get("format"), **found}:
        record.write_json(path, found)
    from twinvit.lockstep.figure import plot_lockstep

    lines = [line for line in lines if not line.altered]
    figure = plot_lockstep(run_dir / record.FIGURE, lines, found)
    print("\n" + record.table(lines, lines[0].gradients.distances is not None))
    for name, where in found["undecided_at"].items():
        print(f"undecided: {name} at {where}")
    for difference in found["differences"]:
        print(f"differs: {difference}")
    print(figure)
    print(found["line"], flush=True)
    return record.verdict_of("lockstep", found | {"run_dir": str(run_dir)})


def refuse_fp16(requested: RequestedConfig) -> None:
    """Raises UserError for the precision that one twin has."""
    if requested.precision == "fp16":
        raise UserError(
            "fp16 is PyTorch's alone, there is no twin to compare: use --precision=bf16"
        )


def resolve(requested: RequestedConfig) -> Plan:
    """The plan of a run by both twins in this process: JAX on `world_size` devices, torch on one.

    Raises UserError.
    """
    refuse_fp16(requested)
    # Both frameworks use one GPU's memory: JAX must not allocate most of it at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax_vit.devices
    import torch_vit.devices

    requested = jax_vit.devices.resolve(requested)
    if (requested.num_processes or 1) > 1:
        raise UserError("a lockstep runs in one process: leave --num_processes out")
    one = torch_vit.devices.resolve(requested.replace(world_size=1))
    return make_plan(requested.replace(compile=one.compile), "lockstep")


def about(plan: Plan) -> dict[str, Any]:
    """What was run and where, for the record."""
    recipe = plan.recipe
    by_reference = judged_by_reference(recipe.precision, plan.runtime.device)
    return {
        "model": name_of(recipe.model),
        "data": plan.record().data,
        "precision": recipe.precision,
        "rule": "distance from float64" if by_reference else "noise",
        "steps_of_run": recipe.steps,
        "warmup_steps": recipe.warmup_steps,
        "schedule": recipe.schedule,
        "cooldown_steps": recipe.cooldown_steps,
        "batch_size": recipe.batch_size,
        "grad_accum": recipe.grad_accum,
        "dropout": recipe.model.dropout,
        "optimizer": recipe.optimizer,
        "pieces": enabled_features(recipe),
        "device": plan.runtime.device,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _own_flags(argv: list[str]) -> tuple[int, Framework, list[str]]:
    """EVERY and the leader, and the training flags."""
    leader, argv = take_framework(argv)
    every, rest = "1", []
    for arg in argv:
        name, equals, value = arg.partition("=")
        if name == FLAG:
            every = value if equals else "1"
        else:
            rest.append(arg)
    if not every.isdecimal() or int(every) < 1:
        raise UserError(f"{FLAG}={every}: name a number of steps of at least 1")
    return int(every), leader or "torch", rest
