"""Kill both twins with SIGKILL at random times and resume them: every resumed run must be the
uninterrupted one, bit for bit.

    python benchmarks/kill_resume.py [--kills 30] [--seed 0]

Each twin trains the digits once without a stop. Then it is started again, killed after a random
time or as soon as it is seen writing a checkpoint, resumed, killed again, and so on until its end,
in one folder after another, until `--kills` kills have met a live process. After every kill the
arrays of the newest intact checkpoint must equal, byte for byte, those that the uninterrupted run
wrote at that step, and so must the metrics up to it; at the end, all of both.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import TWINS, digests, start, train, wait_for  # noqa: E402
from shared_vit.run import checkpoint  # noqa: E402

STEPS = 60
FLAGS = (
    "--preset=digits", "--device=cpu", f"--steps={STEPS}", "--batch_size=32", "--dropout=0.1",
    "--warmup_steps=10", "--eval_every=15", "--checkpoint_every=2", "--keep=3",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, counts, failures = random.Random(args.seed), Counter(), []
    with tempfile.TemporaryDirectory(prefix="kill_resume_") as folder:
        references = {twin: _Reference(twin, Path(folder)) for twin in TWINS}
        number = 0
        while counts["alive"] < args.kills or not counts["finished"]:
            number += 1
            twin = TWINS[number % 2]
            failures += _one_run(
                references[twin], Path(folder) / f"{twin}{number}", rng, counts, args.kills
            )
    print(
        f"{counts['alive']} kills landed while the run was alive ({counts['starting']} before its "
        f"first new checkpoint, {counts['writing']} while it wrote one; {counts['late']} more came "
        f"after the end and do not count); {counts['resumes']} resumes and {counts['finished']} "
        f"finished runs compared; {len(failures)} differed"
    )
    print(*failures, sep="\n")
    return 1 if failures else 0


class _Reference:
    """A run that nothing stopped, with all its checkpoints, and how long it took."""

    def __init__(self, twin: str, folder: Path):
        self.twin, self.run_dir = twin, folder / f"{twin}_whole"
        train(twin, folder / f"{twin}_first", *FLAGS)  # fills JAX's cache of compiled programs
        begin = time.monotonic()
        train(twin, self.run_dir, *FLAGS, f"--keep={STEPS}")
        self.seconds = time.monotonic() - begin
        self.digests = digests(self.run_dir)
        self.lines = (self.run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        print(f"{twin}: {self.seconds:.1f} s without a stop", flush=True)

    def metrics_up_to(self, step: int) -> bytes:
        return b"".join(self.lines[: step + step // 15])  # an evaluation each 15 steps


def _one_run(
    whole: _Reference, run_dir: Path, rng: random.Random, counts: Counter, kills: int
) -> list[str]:
    """Start, kill and resume one run until it ends by itself; returns what differed."""
    failures = []
    while True:
        new = not (run_dir / "config.json").exists()
        flags = FLAGS if new else ("--resume",)
        counts["resumes"] += not new
        before = _newest_step(run_dir)
        process = start(whole.twin, run_dir, *flags)
        if counts["alive"] < kills:
            if rng.random() < 0.4:
                skip = rng.randrange(1, 10)  # of the checkpoints seen being written
                seen = set()

                def writing(seen=seen, skip=skip):
                    seen.update(run_dir.glob("checkpoints/.step_*.tmp"))
                    return len(seen) >= skip

                wait_for(writing, process)
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, whole.seconds))
        else:
            process.wait()
        process.kill()
        if process.wait() != -9:
            if process.returncode != 0:
                return [*failures, f"{run_dir.name}: exit status {process.returncode}"]
            counts["late"] += counts["alive"] < kills
            counts["finished"] += 1
            return failures + _compare_end(whole, run_dir)
        counts["alive"] += 1
        counts["writing"] += any(run_dir.glob("checkpoints/.step_*.tmp"))
        step = _newest_step(run_dir)
        counts["starting"] += step == before
        difference = _compare(whole, run_dir, step)
        failures += difference
        print(
            f"kill {counts['alive']}: {run_dir.name} at step {step}: "
            f"{'; '.join(difference) or 'equal'}",
            flush=True,
        )


def _newest_step(run_dir: Path) -> int:
    found = checkpoint.newest(run_dir)
    if found is not None and found.skipped:
        raise AssertionError(f"a checkpoint that is there and not intact: {found.skipped}")
    return found.step if found else 0


def _compare(whole: _Reference, run_dir: Path, step: int) -> list[str]:
    """What is different in the newest checkpoint and in the metrics up to it."""
    differs = []
    for name, digest in digests(run_dir).items():
        if name != "metrics.jsonl" and whole.digests.get(name) != digest:
            differs.append(name)
    expected = whole.metrics_up_to(step)
    if step and (run_dir / "metrics.jsonl").read_bytes()[: len(expected)] != expected:
        differs.append("metrics.jsonl")
    return [f"{run_dir.name}: {name} differs" for name in differs]


def _compare_end(whole: _Reference, run_dir: Path) -> list[str]:
    differs = _compare(whole, run_dir, STEPS)
    if (
        digests(run_dir)["metrics.jsonl"] != whole.digests["metrics.jsonl"]
        or _newest_step(run_dir) != STEPS
    ):
        differs.append(f"{run_dir.name}: the finished run differs")
    shutil.rmtree(run_dir)
    return differs


if __name__ == "__main__":
    sys.exit(main())
