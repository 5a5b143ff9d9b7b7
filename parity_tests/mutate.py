"""Plants the mistakes of mutations.toml, one at a time, and says which of them no test sees.

    python parity_tests/mutate.py [--quick | --rest] [--only WORDS] [--jobs N]

Each is planted in a copy of the repository, in which the tests that the list names run until the
first failure. Before that they must pass as they are. Exit status 1 if a mistake survives, or if
a text of the list is not in its file exactly once; 2 if the tests fail without a mistake.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import multiprocessing
import multiprocessing.context
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name("mutations.toml")
SECONDS = 900  # a mistake may also make a program run for ever: that is seen
_PASSED, _FAILED = 0, 1  # pytest's exit statuses


@dataclass(frozen=True)
class Mutation:
    """A mistake: `text` of `file` becomes `replacement`, which `tests` must see.

    tests: files of parity_tests/, or `file::test`. quick: whether the quick tier sees it.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: list[str]
    quick: bool = False

    def fault(self, root: Path) -> str | None:
        """Why it cannot be planted in the repository at `root`; None if it can."""
        path = root / self.file
        found = path.read_text().count(self.text) if path.is_file() else 0
        if found != 1:
            return f"{self.file} has the text {found} times, not once: {self.text!r}"
        files = [root / "parity_tests" / test.split("::")[0] for test in self.tests]
        missing = [path.name for path in files if not path.is_file()]
        return f"there is no test file {', '.join(missing)}" if missing else None


def read_list() -> list[Mutation]:
    """The committed mutations, in their order. Raises ValueError where two have one name."""
    found = [Mutation(**row) for row in tomllib.loads(LIST.read_text())["mutation"]]
    names = [m.name for m in found]
    if len(set(names)) < len(names):
        raise ValueError(f"named twice: {sorted(n for n in names if names.count(n) > 1)}")
    return found


def copy_repository(root: Path, to: Path) -> None:
    """Copy what git tracks or would track, so that a mistake touches no file of the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, to / name)


def run_tests(
    copy: Path, tests: list[str], quick: bool, seconds: float | None = SECONDS
) -> tuple[int, str]:
    """pytest's exit status and its last lines; a run without end counts as failed."""
    arguments = ["-x", "-m", "quick" if quick else "not slow", "-p", "no:xdist"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported already
    arguments += [f"parity_tests/{test}" for test in dict.fromkeys(tests)]
    log = copy.with_name(copy.name + ".log")
    process = _processes().Process(target=_pytest, args=(copy, arguments, log))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return _FAILED, f"not done after {seconds} s"
    assert process.exitcode is not None
    return process.exitcode, "\n".join(log.read_text(errors="replace").splitlines()[-15:])


@functools.cache
def _processes() -> multiprocessing.context.ForkServerContext:
    """Processes that have the frameworks imported, which is most of a short test's time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jax", "flax.nnx", "optax", "torch", "hypothesis", "pytest"])
    return context


def _pytest(copy: Path, arguments: list[str], log: Path) -> None:
    """Run pytest in the copy, with the copy's packages, also in the processes that tests start."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    # No bytecode: that of a file that changes twice in a second can be stale.
    sys.dont_write_bytecode = True
    own = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ.update(own)
    others = [p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "parity_tests")]
    sys.path[:] = [str(copy), *others]
    import pytest

    sys.exit(int(pytest.main(arguments)))


def planted(copy: Path, mutation: Mutation, quick: bool) -> tuple[str, str]:
    """("seen", "survives" or "broken"; the last lines of the tests) of a mistake in the copy.

    broken: the tests could not begin, which shows nothing.
    """
    path = copy / mutation.file
    sound = path.read_text()
    path.write_text(sound.replace(mutation.text, mutation.replacement))
    try:
        status, said = run_tests(copy, mutation.tests, quick)
    finally:
        path.write_text(sound)
    return {_FAILED: "seen", _PASSED: "survives"}.get(status, "broken"), said


def try_all(copies: list[Path], mutations: list[Mutation], quick: bool) -> list[str]:
    """Plant each, in as many copies at once as there are; a line for each that is not seen."""
    free: queue.Queue[Path] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def one(mutation: Mutation) -> str | None:
        copy, begin = free.get(), time.perf_counter()
        try:
            result, said = planted(copy, mutation, quick)
        finally:
            free.put(copy)
        print(f"{result:<9} {time.perf_counter() - begin:5.0f} s  {mutation.name}", flush=True)
        if result == "broken":
            print(said, flush=True)
        return None if result == "seen" else f"{result}: {mutation.name} ({mutation.file})"

    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:
        return [line for line in pool.map(one, mutations) if line]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="those that the quick tier sees")
    parser.add_argument("--rest", action="store_true", help="those that it does not see")
    parser.add_argument("--only", default="", help="those whose name has these words")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    requested = parser.parse_args(argv)
    kinds = {True: not requested.rest, False: not requested.quick}
    chosen = [m for m in read_list() if requested.only in m.name and kinds[m.quick]]
    faults = [f"{m.name}: {fault}" for m in chosen if (fault := m.fault(ROOT))]
    chosen = [m for m in chosen if not m.fault(ROOT)]
    with tempfile.TemporaryDirectory(prefix="twinvit_mutations_") as folder:
        copies = [Path(folder) / str(i) for i in range(max(1, requested.jobs))]
        for copy in copies:
            copy_repository(ROOT, copy)
        status, said = run_tests(
            copies[0], [t for m in chosen for t in m.tests], requested.quick, seconds=None
        )
        if status != _PASSED:
            print(f"{said}\nthe tests fail as they are: mend that first")
            return 2
        unseen = try_all(copies, chosen, requested.quick)
    print(*faults, *unseen, sep="\n")
    print(f"{len(chosen) - len(unseen)} of {len(chosen) + len(faults)} mistakes are seen")
    return 1 if faults or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
