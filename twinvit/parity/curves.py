"""`twinvit curves`: the curves of runs on disk, their gaps, and the noise rule's verdict on two."""

from __future__ import annotations

import dataclasses
from json import loads
from pathlib import Path
from typing import Annotated

import numpy as np

from shared_vit.cli.function_command import Flag
from shared_vit.errors import UserError, some
from shared_vit.run.record import Record, differences, read_record
from shared_vit.spec.config import name_of
from twinvit.pages import verdicts
from twinvit.parity import noise_rule, plots
from twinvit.parity.noise_rule import QUANTITIES, Curve, Verdict, gap, machine_epsilon, read_curve
from twinvit.parity.run_ends import judge_ends
from twinvit.verdict_flags import checked


def curves(
    runs: tuple[Path, ...],
    /,
    noise: tuple[Path, ...] = (),
    output: Annotated[Path, Flag(aliases=("-o",))] = Path("curves.png"),
    json: str | None = None,
    quiet: bool = False,
    github: bool = False,
) -> int:
    """Plot the curves of runs on disk, one or several over one another, with the gaps between them.

    With nudged runs, two curves are compared by the noise rule. Exit status 0: same; 1: different;
    2: undecided.

    Args:
        runs: run directories.
        noise: three or more runs of the second run's twin and flags with --nudge=1, 2, 3, ...
        output: where to write the figure.
        json: where to write the verdict as JSON; without a path to standard output, where nothing
            else is written then. It needs --noise, as the next two do.
        quiet: print the verdict's line only.
        github: print annotations of a GitHub workflow, too.
    """
    flags = checked(json, quiet, github)
    if not runs:
        raise UserError("twinvit curves needs a run directory, or several")
    if flags.given() and not noise:
        raise UserError("--json, --quiet and --github say a verdict: name three runs by --noise")
    if noise and len(runs) != 2:
        raise UserError(f"--noise compares two runs, not {len(runs)}")
    folders = [run.resolve() for run in (*runs, *noise)]
    if twice := [str(f) for f in dict.fromkeys(folders) if folders.count(f) > 1]:
        raise UserError(f"named twice: {some(twice)}; name each run once")
    plots.check_figure(output)
    labels = _labels(runs)
    if noise:

        def work() -> verdicts.Verdict:
            verdict = judge(runs[0], runs[1], list(noise))
            report(output, dict(zip(labels, runs)), verdict)
            return verdict_of("curves", verdict, list(runs), list(noise), output)

        return verdicts.announce(flags, work)
    found = {label: read_curve(run) for label, run in zip(labels, runs)}
    trained_by = {label: frameworks_of(run) for label, run in zip(labels, runs)}
    for label, curve in found.items():
        print(_summary(label, curve, trained_by[label]))
    first, *others = found.values()
    for label, curve in zip(labels[1:], others):
        print(f"{labels[0]} and {label}:")
        for quantity in QUANTITIES:
            steps = min(len(first), len(curve))
            print(
                f"{quantity}: largest gap {gap(first, curve, quantity)[-1]:.2e} over {steps} steps"
            )
    if len(runs) == 2:
        print("no verdict: name three nudged runs by --noise to compare the gap with rounding's")
    print(plots.plot_curves(output, found, None, " and ".join(labels[:3]), trained_by))
    return 0


def judge(a: Path, b: Path, nudged: list[Path]) -> Verdict:
    """The noise rule on runs on disk, their last weights and their evaluations; the nudged ones are
    of `b`'s twin. Raises UserError for runs of different settings, and for other nudged runs."""
    own = without_nudge(read_record(b))
    for run in (a, *nudged):
        if different := differences(own, without_nudge(read_record(run))):
            raise UserError(
                f"{b} and {run} were not made with the same settings: {some(different)}"
            )
    _check_nudged(b, nudged)
    base, eps = read_curve(b), machine_epsilon(own.recipe.precision)
    noise = [read_curve(n) for n in nudged]
    verdict = noise_rule.noise_rule(read_curve(a), base, base, noise, eps)
    judge_ends(verdict, a, b, nudged, eps)
    return verdict


def _check_nudged(base: Path, nudged: list[Path]) -> None:
    """Raise UserError unless these are runs of the base's twin, each with its own nudge."""
    seeds: dict[int, Path] = {}
    if read_record(base).recipe.nudge is not None:
        raise UserError(
            f"{base} was nudged itself: the noise is measured against a run that is not"
        )
    twin = {name for _, name in frameworks_of(base)}
    for run in nudged:
        seed = read_record(run).recipe.nudge
        if seed is None:
            raise UserError(f"{run} was not nudged: the noise is that of runs with --nudge=1, 2, 3")
        if seed in seeds:
            raise UserError(
                f"{run} and {seeds[seed]} were both made with --nudge={seed}: each needs its own"
            )
        seeds[seed] = run
        of_run = {name for _, name in frameworks_of(run)}
        if twin and of_run and of_run != twin:
            raise UserError(
                f"{run} is of the {' and '.join(sorted(of_run))} twin, and {base} of the "
                f"{' and '.join(sorted(twin))} twin: the noise must be that of the second run's "
                "own twin; name the runs in the other order, or make other nudged runs"
            )


def verdict_of(
    tool: str, verdict: Verdict, runs: list[Path], noise: list[Path], figure: Path
) -> verdicts.Verdict:
    """A verdict on two runs as programs read it."""

    def ends(values: dict[str, np.ndarray]) -> dict[str, float]:
        """Each quantity's number at the last step that was decided."""
        at = int(np.searchsorted(verdict.steps, max(verdict.decided_until, int(verdict.steps[0]))))
        return {name: float(numbers[at]) for name, numbers in values.items()}

    own = {
        "runs": [str(run) for run in runs],
        "noise_runs": [str(run) for run in noise],
        "steps": verdict.total,
        "decided": verdict.decided_until,
        "gaps": ends(verdict.gaps),
        "noise": ends(verdict.noise),
        "bounds": ends(verdict.bound),
        "compared": verdict.compared,
        "not_compared": verdict.left,
        "figure": str(figure),
    }
    return verdicts.Verdict(tool, verdict.verdict, verdict.headline(), verdict.reasons, own)


def report(figure: Path, runs: dict[str, Path], verdict: Verdict) -> None:
    """Print a verdict on two labelled runs, and write its figure."""
    recipe = read_record(list(runs.values())[1]).recipe
    print(f"\n{verdict.describe()}")
    said = verdict.verdict
    if verdict.matched:
        said = f"same up to step {verdict.decided_until:,} of {verdict.total:,}"
    title = f"{name_of(recipe.model)}, {recipe.data}, {recipe.precision}: curves {said}"
    found = {label: read_curve(run) for label, run in runs.items()}
    print(plots.plot_curves(figure, found, verdict, title))


def frameworks_of(run: Path) -> list[tuple[int, str]]:
    """`(step, framework)` of a run's first start and of each later one in the other framework, as
    its timing.jsonl has them; none where that file is missing.

    Steps that were trained again, after a crash, count as of the last start.
    """
    try:
        lines = (run / "timing.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    starts: list[tuple[int, str]] = []
    for line in lines:
        try:
            row = loads(line)
            start = int(row["step"]), str(row["framework"])
        except (ValueError, KeyError, TypeError, OverflowError):  # no start, or a line that was cut
            continue
        starts = [kept for kept in starts if kept[0] < start[0]]
        if not starts or starts[-1][1] != start[1]:
            starts.append(start)
    return starts


def without_nudge(record: Record) -> Record:
    """What a nudged run has in common with the run that it is the noise of."""
    return dataclasses.replace(record, recipe=dataclasses.replace(record.recipe, nudge=None))


def _labels(runs: tuple[Path, ...]) -> list[str]:
    """The folders' names, or their paths where names are equal."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _summary(label: str, curve: Curve, trained_by: list[tuple[int, str]]) -> str:
    then = [f"{framework} after step {step}" for step, framework in trained_by[1:]]
    by = ", ".join([framework for _, framework in trained_by[:1]] + then)
    return (
        f"{label}: {len(curve)} updates{f' by {by}' if by else ''}, loss {curve.loss[0]:.4f} to "
        f"{curve.loss[-1]:.4f}, grad norm {curve.grad_norm[0]:.3g} to {curve.grad_norm[-1]:.3g}"
    )
