"""`twinvit audit`: from each checkpoint of a run on disk, the next steps taken by both twins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from shared_vit.errors import UserError, some
from shared_vit.run import checkpoint
from shared_vit.run.command_line import parse
from shared_vit.run.plan import Plan
from shared_vit.run.record import Record, differences, read_record
from shared_vit.run.state import StepScalars, TrainState
from shared_vit.weights import checkpoints
from twinvit import lockstep
from twinvit.frameworks import FRAMEWORKS, Framework
from twinvit.lockstep import record, trainer_run
from twinvit.lockstep.twins import Pair, due, judged_by_reference
from twinvit.pages.verdicts import Verdict, announce
from twinvit.parity.curves import without_nudge
from twinvit.parity.noise_rule import machine_epsilon
from twinvit.port.verdict import UNDECIDED, worst_of
from twinvit.verdict_flags import checked


def audit(
    run: Path,
    /,
    steps: int = 1,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    world_size: int = 1,
    data_dir: str | None = None,
    output: Path | None = None,
    json: str | None = None,
    quiet: bool = False,
    github: bool = False,
) -> int:
    """Take the next steps from every checkpoint of a run by both twins, on the batches due then.

    Exit status 0: all are the same; 1: one differs; 2: one is undecided, and none differs.

    Args:
        run: a run directory; --keep=all in training retains every checkpoint.
        steps: how many steps from each; in bf16, and in tf32 on a GPU, at least 16.
        device: where to audit it, which need not be where it was trained.
        world_size: devices of the JAX twin.
        data_dir: where the data are now.
        output: where to write the result with its checksum; the run's audit.json if not given.
        json: where to write the verdict as JSON; without a path to standard output, where nothing
            else is written then.
        quiet: print the verdict's line only.
        github: print annotations of a GitHub workflow, too.
    """
    flags = checked(json, quiet, github)
    return announce(flags, lambda: _audit(run, steps, device, world_size, data_dir, output))


def _audit(
    run: Path, steps: int, device: str, world_size: int, data_dir: str | None, output: Path | None
) -> Verdict:
    """Audit every checkpoint, print, and write the result. Raises UserError."""
    if steps < 1:
        raise UserError(f"--steps={steps}: audit at least one step of each checkpoint")
    known = read_record(run)
    plan = _plan(run, known, device, world_size, data_dir)
    folder = run / "checkpoints"
    found = sorted(checkpoints.steps(folder))
    if not found:
        raise UserError(f"{run} has no checkpoint to audit: {folder} holds none")
    if steps < lockstep.WINDOW and judged_by_reference(plan.recipe.precision, plan.runtime.device):
        steps = lockstep.WINDOW
        print(f"note: {plan.recipe.precision} is judged by {steps} steps from each", flush=True)
    results: list[dict[str, Any]] = []
    pair: Pair | None = None
    of_this_run = checkpoints.of_run(known.id, known.first_version)
    for step in found:
        path = folder / f"step_{step}"
        try:
            opened = checkpoints.opened(path)
            of_this_run(path, opened)
            state, extra = checkpoint.load(checkpoint.Found(path, step, [], opened))
            if state.step != step:
                raise UserError(f"{path} is of step {state.step}")
        except UserError as error:
            results.append(_unread(step, error))
            continue
        written_by = extra.get("versions", {})
        leader = _leader(written_by)
        state = dataclasses.replace(state, config=plan.model)
        if pair is None or pair.leading != leader:
            pair = Pair(plan, state, leader)
            versions = pair.versions()
        else:
            pair.load(state)
        for note in _other_machine(written_by, pair):
            print(f"note: {path.name} {note}", flush=True)
        results.append(_audited(plan, pair, state, steps) | {"written_by": written_by})
        print(f"{path.name}: {results[-1]['line']}", flush=True)
    if pair is None:
        raise UserError(f"no checkpoint of {run} can be read: {results[-1]['line']}")
    how = {"run": known.id, "steps_each": steps, "versions": versions}
    how |= trainer_run.about(plan)
    how |= {"verdict": worst_of(entry["verdict"] for entry in results)}
    record.write_json(output or run / record.AUDIT, how | {"checkpoints": results})
    return record.verdict_of("audit", how | {"checkpoints": results, "run_dir": str(run)})


def _audited(plan: Plan, pair: Pair, state: TrainState, steps: int) -> dict[str, Any]:
    """The verdict on the steps from one checkpoint."""
    lines: list[record.Line] = []
    stream = plan.batches("train", state.step)
    try:
        for i in range(steps):
            # The last checkpoint is at the schedule's end: its learning rate of zero is replaced by
            # the last.
            scalars = StepScalars(plan.lr(min(state.step + i, plan.total_steps - 1)))
            step = pair.step(next(stream), scalars, *due(i + 1))
            lines.append(record.line_of(step, scalars))
    finally:
        stream.close()
    lines += [record.altered_line(*found) for found in pair.altered()]
    verdicts = record.judge(lines, machine_epsilon(plan.recipe.precision))
    about = {"step": state.step, "weights": record.digest(state.params)}
    return about | record.summary(lines, *verdicts)


def _plan(run: Path, known: Record, device: str, world_size: int, data_dir: str | None) -> Plan:
    """The run as it would go on here. Raises UserError where its data are not those here."""
    requested = parse(["--resume", f"--run_dir={run}"], prog="twinvit audit")
    changes: dict[str, Any] = {"device": None if device == "auto" else device, "compile": None}
    changes |= {"world_size": world_size, "nudge": None}
    if data_dir is not None:
        changes["data_dir"] = data_dir
    plan = trainer_run.resolve(requested.replace(**changes))
    if changed := differences(without_nudge(known), plan.record()):
        raise UserError(f"cannot audit {run} here: {some(changed)}")
    return plan


def _leader(written_by: Mapping[str, Any]) -> Framework:
    """The twin that wrote the checkpoint; torch where it does not say."""
    framework = written_by.get("framework", FRAMEWORKS[0])
    if framework not in FRAMEWORKS:
        raise UserError(f"the checkpoint was written by {framework!r}, which is none of the twins")
    return framework


def _other_machine(written_by: Mapping[str, Any], pair: Pair) -> list[str]:
    """What differs between the machine that wrote a checkpoint and this one."""
    here = pair.leader.trainer.versions()
    return [
        f"was written with {name} {value}; it is audited with {here[name]}"
        for name, value in written_by.items()
        if name in here and str(value) != here[name]
    ]


def _unread(step: int, error: UserError) -> dict[str, Any]:
    line = f"lockstep: {UNDECIDED} ({error})"
    print(f"step_{step}: {line}", flush=True)
    return {"step": step, "line": line, "verdict": UNDECIDED, "exit_status": 2}
