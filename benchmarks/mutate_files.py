"""Read altered files: none may crash, hang or run code, none of ours may load with other values.

    python benchmarks/mutate_files.py [--own 2000] [--foreign 2000] [--seed 0]

Ours are the three files of a checkpoint and a weight file: each altered one must be refused in one
message, or give the values of the original. Foreign ones are those of timm, torchvision, Hugging
Face (with its config.json), Google and big_vision; a flipped bit in their payload cannot be seen,
so that the promise is one message, or finite values of the right shapes. The files are read in a
process of its own. It is killed after a minute on one file, may not take more than 8 GB, and an
audit hook notes if it starts processes, connects, or unpickles foreign names.
"""

import argparse
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch_vit  # noqa: E402, F401 - registers the reader of .pth files
from shared_vit import weights  # noqa: E402
from shared_vit.errors import UserError  # noqa: E402
from shared_vit.run import checkpoint  # noqa: E402
from shared_vit.run.state import first_state  # noqa: E402
from shared_vit.spec import canonical, init  # noqa: E402
from shared_vit.spec.config import ModelConfig  # noqa: E402

MODEL = ModelConfig(
    image_size=16, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=48, num_classes=5
)
SECONDS_PER_FILE = 60
LONGEST_MESSAGE = 3000
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "pty.spawn",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--own", type=int, default=2000)
    parser.add_argument("--foreign", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutate_files_") as folder:
        failures = run(own_cases(Path(folder)), args.own, args.seed)
        failures += run(foreign_cases(Path(folder)), args.foreign, args.seed + 1)
    print(*failures, sep="\n")
    print(f"{args.own} of our own and {args.foreign} foreign: {len(failures)} failures")
    return 1 if failures else 0


class Case:
    """A kind of file: its folder, the files in it to alter, and the `entry` that is read."""

    def __init__(self, name: str, folder: Path, files: list[str], entry: str, own: bool):
        self.name, self.folder, self.files, self.entry, self.own = name, folder, files, entry, own

    def read(self) -> list[np.ndarray]:
        """Everything that is read, as arrays; raises what the reader raises."""
        path = self.folder / self.entry
        if self.name == "checkpoint":
            state, extra = checkpoint.load(path)
            numbers = [state.step, *state.scalars.values(), extra["epoch"], extra["seed"]]
            groups = (state.params, *state.slots.values())
            return [
                np.array(numbers),
                *(np.asarray(a) for arrays in groups for a in arrays.values()),
            ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cfg, arrays = weights.read(path, num_heads=MODEL.num_heads)
        canonical.check(cfg, arrays)
        if not all(np.isfinite(a).all() for a in arrays.values()):
            raise AssertionError("read values that are not finite")
        return list(arrays.values())


def own_cases(folder: Path) -> list[Case]:
    """A checkpoint and a weight file of this project, with values that are all different."""
    rng = np.random.default_rng(0)
    state = first_state(MODEL, init.draw(MODEL, 0), "fp32")
    for arrays in (state.params, *state.slots.values()):
        arrays.update({n: rng.random(a.shape).astype(np.float32) for n, a in arrays.items()})
    state.step = state.scalars["adam_count"] = 12345
    (folder / "own/step").mkdir(parents=True)
    checkpoint.write(folder / "own/step", state, {"epoch": 2.5, "seed": 7})
    weights.write(folder / "own/weights.safetensors", MODEL, state.params)
    files = [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE]
    return [
        Case("checkpoint", folder / "own", [f"step/{f}" for f in files], "step", own=True),
        Case("weights", folder / "own", ["weights.safetensors"], "weights.safetensors", own=True),
    ]


def foreign_cases(folder: Path) -> list[Case]:
    """A file of each format and container, without this project's checksums and cards."""
    from safetensors.numpy import load_file, save_file

    arrays = init.draw(MODEL, 0)
    cases = []
    for name, format in (
        ("a.safetensors", "timm"), ("b.pth", "timm"),
        ("c.pth", "torchvision"), ("d.safetensors", "torchvision"),
        ("e", "huggingface"), ("f.npz", "google"), ("g.npz", "big_vision"),
    ):  # fmt: skip
        base = folder / f"{format}_{name[0]}"
        base.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights.write(base / name, MODEL, arrays, format=format)
        for card in base.glob("*.json"):
            card.unlink()
        for file in base.rglob("*.safetensors"):
            save_file(load_file(file), file)
        files = [str(p.relative_to(base)) for p in sorted(base.rglob("*")) if p.is_file()]
        cases.append(Case(format, base, files, name, own=False))
    return cases


def run(cases: list[Case], count: int, seed: int) -> list[str]:
    """Read `count` altered files in a process of its own; returns the failures.

    Prints what happened to each kind.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_work, args=(cases, count, seed, queue))
    process.start()
    counts, failures, done = Counter(), [], 0
    while done < count:
        if queue.empty():
            if process.exitcode is not None and queue.empty():
                return [
                    *failures,
                    f"the process ended at file {done} with exit code {process.exitcode}",
                ]
            time.sleep(0.01)
            continue
        name, outcome, detail = queue.get()
        done += 1
        counts[name, outcome] += 1
        if outcome == "FAILED":
            failures.append(f"file {done} ({name}): {detail}")
    process.join()
    for name in sorted({key[0] for key in counts}):
        print(
            f"{name:<24}"
            + ", ".join(
                f"{n} {outcome}" for (kind, outcome), n in sorted(counts.items()) if kind == name
            )
        )
    return failures


def _work(cases: list[Case], count: int, seed: int, queue) -> None:
    rng, noted = random.Random(seed), []
    originals = [case.read() for case in cases]  # also imports all that reading needs
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    sys.addaudithook(lambda event, args: noted.append(event) if event in FORBIDDEN else None)
    for _ in range(count):
        number = rng.randrange(len(cases))
        case, file = cases[number], rng.choice(cases[number].files)
        path = case.folder / file
        whole = path.read_bytes()
        path.write_bytes(mutate(whole, rng))
        signal.alarm(SECONDS_PER_FILE)
        outcome = read_altered(case, originals[number])
        signal.alarm(0)
        if noted:
            outcome = ("FAILED", f"code was run: {noted}")
            noted.clear()
        path.write_bytes(whole)
        label = (
            case.name
            if case.own and case.entry == file
            else f"{case.name} {Path(file).suffix or file}"
        )
        queue.put((label, *outcome))


def read_altered(case: Case, original: list[np.ndarray]) -> tuple[str, str]:
    """How the reading of a case ended.

    Refused, equal to the original, changed (foreign only), or FAILED and why.
    """
    try:
        read = case.read()
    except UserError as error:
        text = str(error)
        if len(text) > LONGEST_MESSAGE or not text:
            return "FAILED", f"a message of {len(text)} characters"
        if not case.own and "after it was written" in text:
            return "FAILED", f"claims to have seen what cannot be seen: {text}"
        return "refused", text
    except BaseException as error:
        return "FAILED", f"{type(error).__name__}: {error}"
    same = len(read) == len(original) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(read, original)
    )
    if same:
        return "equal", ""
    return ("FAILED", "read other values than were written") if case.own else ("changed", "")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to three changes, half of them near an end of the file, where the structure is kept.

    A bit flipped, bytes replaced, a stretch removed, doubled, zeroed, or the file cut.
    """
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(out)
        if not size:
            break
        at = rng.choice(
            (
                rng.randrange(size),
                rng.randrange(size),
                rng.randrange(min(size, 2000)),
                -1 - rng.randrange(min(size, 2000)),
            )
        )
        at %= size
        length = rng.choice((1, 2, 8, 64, 1000))
        kind = rng.randrange(8)
        if kind < 3:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            out[at : at + length] = rng.randbytes(len(out[at : at + length]))
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length]
        elif kind == 6:
            out[at : at + length] = bytes(len(out[at : at + length]))
        else:
            del out[at:]
    return bytes(out)


if __name__ == "__main__":
    sys.exit(main())
