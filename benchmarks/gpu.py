"""Everything that is to be shown on a GPU, by one command:

    python benchmarks/gpu.py --cifar DIR

DIR is CIFAR-10, as `cifar-10-batches-py` or as class folders under `train` and `test` (or `val`).
The parts, which --only chooses from, are each written to benchmarks/results/ (or --out) as JSON as
soon as they are done; one that fails is reported and passed over.

    smoke    fused attention against plain operations in float32, forward and gradient
    parity   logits and gradients of both twins in every precision, against float64
    cifar    a small ViT trained by both twins to a real accuracy
    seeds    three seeds of a shorter run by both twins: bands of loss and grad norm
    speed    B/16, S/16 and L/16 in bf16 against other libraries (benchmarks/train_step.py); one
             model alone is speed:vit_b16, speed:vit_s16 or speed:vit_l16


--minutes=M is for a machine that is lent for so long: the parts that matter most come first (smoke,
speed of B/16 of both twins and of compiled timm, parity, speed of S/16, cifar), one is begun only
where there is time for it, and one that is not done in time is stopped; what it wrote stays.

--rehearse does all of it in miniature, on made-up images if there is no DIR, and writes to a
temporary folder unless --out is given. A training that was finished by the same code on the same
data is read from the folder and not repeated. Needs numpy, jax, flax, optax, torch, ml_dtypes and
safetensors; PIL for class folders, matplotlib for the figures; peers are left out where they are
not installed.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

import trainers  # noqa: E402
from about import origin, versions  # noqa: E402

from shared_vit.data.batch import Batch  # noqa: E402
from shared_vit.run.schedule import learning_rate  # noqa: E402
from shared_vit.run.state import StepScalars  # noqa: E402
from shared_vit.spec import canonical  # noqa: E402
from shared_vit.spec.config import model_config  # noqa: E402

SPEEDS = {"vit_b16": 256, "vit_s16": 512, "vit_l16": 128}  # batch by model
PARTS = ["smoke", "parity", "cifar", "seeds", *(f"speed:{model}" for model in SPEEDS)]
# In the order in which they are wanted of a short loan, and the seconds below which there is no use
# in beginning.
LOANED = {"smoke": 60, "speed:vit_b16": 180, "parity": 120, "speed:vit_s16": 120, "cifar": 240}
SHORT_OF_TIME = "jax_vit,torch_vit:compile,timm:compile"  # the contenders of a loan
PRECISIONS = {
    "jax": ["fp64", "fp32", "tf32", "bf16"],
    "torch": ["fp64", "fp32", "tf32", "bf16", "fp16"],
}
PACKAGES = ("numpy", "torch", "jax", "jaxlib", "flax", "optax")
LR = 1e-3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def main() -> None:
    args = parse()
    if args.job:
        JOBS[args.job[0]](args, *args.job[1:])
        return
    parts = chosen(args.only)
    if args.cifar or not args.rehearse and {"cifar", "seeds"} & set(parts):
        find_cifar(args.cifar)  # before hours of other parts
    if args.out is None:
        args.out = Path(tempfile.mkdtemp(prefix="rehearsal-")) if args.rehearse else RESULTS
    (args.out / "work").mkdir(parents=True, exist_ok=True)
    if args.minutes is not None:
        failed = in_time(args, parts)
    else:
        failed = [part for part in parts if not do(args, part)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def chosen(only: str) -> list[str]:
    """The parts named, `speed` as one part for each model."""
    parts = [p for name in only.split(",") for p in PARTS if p == name or p.startswith(name + ":")]
    unknown = [n for n in only.split(",") if not any(p.split(":")[0] == n or p == n for p in PARTS)]
    if unknown:
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return parts


def in_time(args: argparse.Namespace, parts: list[str]) -> list[str]:
    """The parts of `LOANED` that are among `parts`, each in a process of its own, within
    `args.minutes`; what failed, ran out of time or was not begun."""
    end = time.monotonic() + 60 * args.minutes
    undone = []
    for part, least in LOANED.items():
        if part not in parts:
            continue
        left = end - time.monotonic()
        if left < least and not args.rehearse or left <= 0:
            print(f"{part}: not begun, {left:.0f} s are left and it takes {least}", flush=True)
            undone.append(part)
            continue
        process = subprocess.Popen(command(args, f"--only={part}"), start_new_session=True)
        try:
            done = process.wait(left) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the processes that it has started, too
            process.wait()
            print(f"{part}: stopped, the time is over", flush=True)
            done = False
        undone += [] if done else [part]
    return undone


def do(args: argparse.Namespace, part: str) -> bool:
    """One part, to its JSON; False, and why on stderr, if it failed."""
    begin = time.perf_counter()
    name, _, model = part.partition(":")
    path = args.out / f"{part.replace(':', '-')}.json"

    def keep(report: dict) -> None:
        about = origin(PACKAGES, [args.cifar]) | {"seconds": time.perf_counter() - begin}
        path.write_text(json.dumps(about | report, indent=1) + "\n")

    try:
        if name == "speed":
            keep(speed(args, model, keep))
        else:
            keep({"smoke": smoke, "parity": parity, "cifar": cifar, "seeds": seeds}[name](args))
    except Exception:
        print(f"{part} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return False
    print(f"{part}: {time.perf_counter() - begin:.0f} s, {path}", flush=True)
    return True


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, help="where CIFAR-10 is")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--out", type=Path, help="where to write (default: benchmarks/results)")
    parser.add_argument("--epochs", type=int, default=100, help="of the part cifar")
    parser.add_argument("--short_epochs", type=int, default=10, help="of the part seeds")
    parser.add_argument("--minutes", type=float, help="stop in time, the most important first")
    parser.add_argument("--contenders", help="of speed (default: both twins and all peers)")
    parser.add_argument("--rehearse", action="store_true", help="in miniature")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def start(args: argparse.Namespace, *job: str) -> None:
    """Run a job in a process of its own, so that each framework has the GPU, and its settings, for
    itself."""
    subprocess.run(command(args, "--job", *map(str, job)), check=True)


def command(args: argparse.Namespace, *flags: str) -> list[str]:
    """This program once more, with the settings that it was started with."""
    found = [sys.executable, __file__, f"--out={args.out}", f"--epochs={args.epochs}"]
    found += ["--rehearse"] * args.rehearse + ([f"--cifar={args.cifar}"] if args.cifar else [])
    if contenders := args.contenders or (args.minutes is not None and SHORT_OF_TIME):
        found.append(f"--contenders={contenders}")
    return [*found, *flags]


# Fused attention.


def smoke(args) -> dict:
    """Relative L2 distances of the JAX twin's attention in bf16 from float32, by number of tokens.

    Products and softmax in bf16 are beside it: fused attention may be no further than twice as far.
    """
    path = args.out / "work" / "smoke.json"
    start(args, "attention", path)
    report = json.loads(path.read_text())
    bad = [n for n, r in report["tokens"].items() if not r["fused"] <= 2 * r["plain"]]
    print(json.dumps(report))
    if bad:
        raise RuntimeError(f"fused attention is wrong at {', '.join(bad)} tokens: {report}")
    return report


def write_attention(args, path: str) -> None:
    """Job: attention of 17, 50, 65 and 197 tokens, output and gradient, three ways."""
    import jax
    import jax.numpy as jnp

    from jax_vit import fused, ops
    from shared_vit.spec.precision import PRECISIONS

    low, full = PRECISIONS["bf16"], PRECISIONS["fp32"]
    report = {"device": jax.devices()[0].device_kind, "tokens": {}}
    for n in (17, 50, 65, 197):
        rng = np.random.default_rng(n)
        qkv, g = rng.standard_normal((4, n, 3, 6, 64)), rng.standard_normal((4, n, 6, 64))
        qkv, g = jnp.asarray(qkv, jnp.bfloat16), jnp.asarray(g, jnp.bfloat16)

        def values(attention, x, g):
            def both(x, g):
                out, pull_back = jax.vjp(attention, x)
                return out, pull_back(g)[0]

            return [np.asarray(a).astype(np.float64).ravel() for a in jax.jit(both)(x, g)]

        applies = fused.applies((4, n + n % 2, 6, 64), low)
        padding = n % 2 if applies else 0

        def padded(x, n=n, padding=padding):
            x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0), (0, 0)))
            return ops.attention(*jnp.unstack(x, axis=2), low, n)[:, :n]

        def plain(x, policy):
            return ops._attention(*jnp.unstack(x, axis=2), None, policy.tf32)

        wide = (array.astype("float32") for array in (qkv, g))
        exact = values(lambda x: plain(x, full), *wide)
        found = {"fused": padded, "plain": lambda x: plain(x, low)}
        distances = {
            name: max(
                float(np.linalg.norm(a - b) / np.linalg.norm(b))
                for a, b in zip(values(attention, qkv, g), exact)
            )
            for name, attention in found.items()
        }
        report["tokens"][str(n)] = distances | {"is_fused": applies}
    Path(path).write_text(json.dumps(report))


# Logits and gradients.


def parity(args) -> dict:
    """Distances from float64, of logits and gradients, by twin and precision."""
    for twin, precisions in PRECISIONS.items():
        for precision in precisions:
            start(args, "values", twin, precision)

    paths = {
        (twin, precision): args.out / "work" / f"{twin}-{precision}.npz"
        for twin, precisions in PRECISIONS.items()
        for precision in precisions
    }

    def values(twin, precision):
        with np.load(paths[twin, precision]) as file:
            return {n: file[n].astype(np.float64) for n in file.files}

    exact = values("torch", "fp64")
    report = {"model": parity_model(args).to_json(), "distances": {}}
    for twin, precisions in PRECISIONS.items():
        for precision in precisions:
            report["distances"][f"{twin} {precision}"] = distances(values(twin, precision), exact)
    between = distances(values("jax", "fp32"), values("torch", "fp32"))
    report["jax fp32 from torch fp32"] = between
    for path in paths.values():  # up to 0.7 GB each
        path.unlink()
    low = {t: report["distances"][f"{t} bf16"] for t in PRECISIONS}
    report["bf16: jax's distance over torch's"] = {
        n: low["jax"][n] / low["torch"][n] for n in ("logits", "all gradients")
    }
    ratios = {
        n: low["jax"]["tensors"][n] / low["torch"]["tensors"][n] for n in low["jax"]["tensors"]
    }
    report["bf16: the same, extreme tensors"] = {
        n: ratios[n] for n in (min(ratios, key=ratios.get), max(ratios, key=ratios.get))
    }
    print(f"{'from float64':>14}{'logits':>12}{'gradient':>12}{'worst tensor':>14}")
    for name, d in report["distances"].items():
        print(
            f"{name:>14}{d['logits']:>12.2e}{d['all gradients']:>12.2e}"
            f"{max(d['tensors'].values()):>14.2e}"
        )
    return report


def distances(values: dict, exact: dict) -> dict:
    """Relative L2: logits, the whole gradient, each tensor's gradient."""
    errors = {n: (np.linalg.norm(values[n] - exact[n]), np.linalg.norm(exact[n])) for n in exact}
    error, size = np.linalg.norm([e for n, e in errors.items() if n != "logits"], axis=0)
    tensors = {n: float(e / s) for n, (e, s) in errors.items() if n != "logits"}
    return {
        "logits": float(errors["logits"][0] / errors["logits"][1]),
        "all gradients": float(error / size),
        "tensors": tensors,
    }


def parity_model(args):
    return model_config("vit_ti16", image_size=32) if args.rehearse else model_config("vit_b16")


def write_values(args, twin: str, precision: str) -> None:
    """Job: the logits and the gradients of one batch."""
    cfg = parity_model(args)
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in canonical.shapes(cfg).items():  # none zero or constant
        scale = (
            1.0 / np.sqrt(np.prod(shape[1:])) if name.endswith("weight") and len(shape) > 1 else 0.2
        )
        values = (
            1.0 if name.endswith("weight") and len(shape) == 1 else 0.0
        ) + scale * rng.standard_normal(shape)
        arrays[name] = values.astype(np.float32)
    batch = 4 if args.rehearse else 16
    images = rng.integers(0, 256, (batch, *cfg.image_shape, 3), dtype=np.uint8)
    labels = rng.integers(0, cfg.num_classes, batch)
    values = {"jax": jax_values, "torch": torch_values}[twin](
        cfg, arrays, precision, images, labels
    )
    np.savez(args.out / "work" / f"{twin}-{precision}.npz", **values)


def torch_values(cfg, arrays, precision, images, labels) -> dict[str, np.ndarray]:
    import torch

    import torch_vit
    from torch_vit.objective import Objective
    from torch_vit.precision import set_backend_precision

    set_backend_precision(precision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    objective = Objective(torch_vit.from_arrays(cfg, arrays, precision)).to(device)
    images, labels = (torch.from_numpy(a).to(device) for a in (images, labels))
    scale = 2.0**10 if precision == "fp16" else 1.0
    (objective(images, labels) * scale).backward()
    values = {"logits": objective.logits(images)} | {
        n: p.grad / scale for n, p in objective.model.named_parameters()
    }
    return {n: v.detach().double().cpu().numpy() for n, v in values.items()}


def jax_values(cfg, arrays, precision, images, labels) -> dict[str, np.ndarray]:
    import jax

    jax.config.update("jax_enable_x64", precision == "fp64")
    from flax import nnx

    import jax_vit
    from jax_vit.bridge import state_arrays
    from jax_vit.objective import Objective

    graphdef, params, fixed = nnx.split(jax_vit.from_arrays(cfg, arrays, precision), nnx.Param, ...)
    objective = Objective(graphdef, cfg, np.dtype("float64" if precision == "fp64" else "float32"))
    gradients = jax.jit(jax.grad(objective))(params, fixed, images, labels.astype(np.int32))
    return {"logits": np.asarray(jax.jit(objective.logits)(params, fixed, images))} | state_arrays(
        gradients
    )


# CIFAR-10.


def cifar(args) -> dict:
    """Both twins to the end of a real run, and the figure of their curves."""
    epochs = 2 if args.rehearse else args.epochs
    runs = {twin: run(args, twin, 0, epochs) for twin in PRECISIONS}
    report = {
        "epochs": epochs,
        "precision": {t: r["precision"] for t, r in runs.items()},
        "val_top1": {t: r["val_top1"] for t, r in runs.items()},
        "images_per_second_with_augmentation": {
            t: r["images_per_second_with_augmentation"] for t, r in runs.items()
        },
    }
    draw(args.out / "cifar.png", {t: [r] for t, r in runs.items()})
    print(
        "top-1 at the end: "
        + ", ".join(f"{t} {100 * v[-1]:.2f} %" for t, v in report["val_top1"].items())
    )
    return report


def seeds(args) -> dict:
    """Three seeds by both twins: at how many steps do the bands of smoothed loss and grad norm
    overlap?"""
    epochs = 2 if args.rehearse else args.short_epochs
    runs = {twin: [run(args, twin, seed, epochs) for seed in range(3)] for twin in PRECISIONS}
    report = {
        "epochs": epochs,
        "val_top1": {t: [r["val_top1"][-1] for r in rs] for t, rs in runs.items()},
    }
    for quantity in ("loss", "grad_norm"):
        (low_a, high_a), (low_b, high_b) = (band(rs, quantity) for rs in runs.values())
        report[f"share of steps where the bands of {quantity} overlap"] = float(
            np.mean((low_a <= high_b) & (low_b <= high_a))
        )
    draw(args.out / "seeds.png", runs)
    print({k: v for k, v in report.items() if k.startswith("share")})
    return report


def run(args, twin: str, seed: int, epochs: int) -> dict:
    """A run's numbers; one that was finished before is not repeated."""
    key = f"{code()}-{data(args)}"
    path = args.out / "work" / f"cifar-{twin}-{seed}-{epochs}{'-small' * args.rehearse}-{key}.json"
    if not path.exists():
        start(args, "train", twin, seed, epochs, path)
    return json.loads(path.read_text())


@functools.cache
def code() -> str:
    """A short digest of the code that trains, committed or not, and of its packages' versions."""
    digest = hashlib.sha256(json.dumps(versions(PACKAGES)).encode())
    files = [
        p for name in ("jax_vit", "torch_vit", "shared_vit") for p in (ROOT / name).rglob("*.py")
    ]
    for path in sorted([*files, *(ROOT / "benchmarks" / n for n in ("gpu.py", "trainers.py"))]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def data(args) -> str:
    """A short digest of the data's folder: paths, sizes and times of its files."""
    if not args.cifar:
        return "made"
    folder, digest = find_cifar(args.cifar)[0], hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def train(args, twin: str, seed: str, epochs: str, path: str) -> None:
    """Job: train one twin with its own Trainer, on batches that are pure functions of seed and
    step."""
    (images, labels), held_out = load_cifar(args)
    size = 32 if args.rehearse else 512
    model = model_config(
        "vit_nano2" if args.rehearse else "vit_ti4", num_classes=10, image_size=images.shape[1]
    )
    model = dataclasses.replace(model, mean=MEAN, std=STD)
    steps_per_epoch = len(images) // size
    steps = steps_per_epoch * int(epochs)
    flags = dict(
        batch_size=size, seed=int(seed), lr=LR, weight_decay=0.1,
        warmup_steps=min(1000, steps // 5), steps=steps,
    )  # fmt: skip
    make = {"jax": trainers.jax_trainer, "torch": trainers.torch_trainer}[twin]
    trainer, cfg, _ = make(model, **flags)
    in_flight, loss, grad_norm, accuracy, training = [], [], [], [], 0.0

    def read(lag):
        while len(in_flight) > lag:
            metrics = in_flight.pop(0).get()
            loss.append(metrics.loss)
            grad_norm.append(metrics.grad_norm)

    for epoch in range(int(epochs)):
        begin = time.perf_counter()
        order = np.random.default_rng([int(seed), epoch]).permutation(len(images))
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            rows = order[i * size : (i + 1) * size]
            batch = Batch(
                augment(images[rows], int(seed), step),
                labels[rows],
                np.ones(size, np.float32),
                np.arange(size),
                step,
            )
            lr = learning_rate(step, steps, cfg.lr, cfg.warmup_steps)
            in_flight.append(trainer.train_step(trainer.to_device(batch), StepScalars(lr)))
            read(2)
        read(0)
        training += time.perf_counter() - begin if epoch else 0.0  # the first compiles
        accuracy.append(evaluate(trainer, *held_out, size))
        if epoch % 10 == 9 or epoch + 1 == int(epochs):
            print(
                f"{twin} seed {seed} epoch {epoch + 1}: loss {loss[-1]:.3f}, top-1 "
                f"{100 * accuracy[-1]:.2f} %",
                flush=True,
            )
    report = {
        "loss": loss, "grad_norm": grad_norm, "val_top1": accuracy,
        "images_per_second_with_augmentation": (
            (steps - steps_per_epoch) * size / training if training else None
        ),
        "precision": cfg.precision, "versions": trainer.versions(),
    }  # fmt: skip
    Path(path).write_text(json.dumps(report))


def evaluate(trainer, images, labels, size: int) -> float:
    """Top-1 over all the images, the last batch padded with weight 0."""
    results = []
    for begin in range(0, len(images), size):
        part, own = images[begin : begin + size], labels[begin : begin + size]
        pad = size - len(part)
        weight = np.r_[np.ones(len(part), np.float32), np.zeros(pad, np.float32)]
        part, own = np.pad(part, [(0, pad), (0, 0), (0, 0), (0, 0)]), np.pad(own, (0, pad))
        batch = Batch(part, own, weight, np.arange(size), begin // size)
        results.append(trainer.eval_step(trainer.to_device(batch)))
    counts = [r.get() for r in results]
    return sum(c.correct1 for c in counts) / sum(c.examples for c in counts)


def augment(images: np.ndarray, seed: int, step: int) -> np.ndarray:
    """Shifts by up to an eighth of the side, and mirror images."""
    n, side = images.shape[:2]
    pad = side // 8
    rng = np.random.default_rng([seed, 1, step])
    y, x = rng.integers(0, 2 * pad + 1, (2, n, 1))
    padded = np.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    rows = y + np.arange(side)
    columns = np.where(rng.random((n, 1)) < 0.5, x + np.arange(side), x + np.arange(side)[::-1])
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def load_cifar(args):
    """((images uint8 [N, 32, 32, 3], labels int32 [N]) of training, the same of test); kept beside
    the results."""
    if args.rehearse and not args.cifar:
        rng = np.random.default_rng(0)
        prototypes = rng.integers(0, 256, (10, 8, 8, 3))
        made = []
        for n in (640, 100):
            labels = rng.integers(0, 10, n, dtype=np.int32)
            noise = rng.integers(-90, 91, (n, 8, 8, 3))
            made.append((np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8), labels))
        return made
    kept = args.out / "work" / f"cifar10-{data(args)}.npz"
    if not kept.exists():
        folder, is_binary = find_cifar(args.cifar)
        (a, b), (c, d) = from_batches(folder) if is_binary else from_folders(folder)
        np.savez(kept, a=a, b=b, c=c, d=d)
    with np.load(kept) as file:
        return (file["a"], file["b"]), (file["c"], file["d"])


def find_cifar(folder: Path | None) -> tuple[Path, bool]:
    """(the folder of CIFAR-10, whether it holds Krizhevsky's batches). SystemExit if it is none."""
    if folder is None:
        raise SystemExit("the parts cifar and seeds need --cifar=DIR")
    for binary in (folder, folder / "cifar-10-batches-py"):
        if all((binary / name).is_file() for name in BATCHES):
            return binary, True
    if (folder / "train").is_dir() and any((folder / n).is_dir() for n in ("test", "val")):
        return folder, False
    raise SystemExit(
        f"--cifar={folder}: neither {', '.join(BATCHES)} nor class folders under train and test"
    )


def from_batches(folder: Path):
    """CIFAR-10 as Krizhevsky publishes it for Python."""

    def read(name):
        with (folder / name).open("rb") as file:
            part = pickle.load(file, encoding="bytes")
        images = part[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(part[b"labels"], np.int32)

    parts = [read(name) for name in BATCHES[:-1]]
    return tuple(np.concatenate(x) for x in zip(*parts)), read(BATCHES[-1])


def from_folders(folder: Path):
    from PIL import Image

    def read(split):
        classes = sorted(p for p in split.iterdir() if p.is_dir())
        paths = [(p, i) for i, c in enumerate(classes) for p in sorted(c.iterdir())]
        images = np.stack([np.asarray(Image.open(p).convert("RGB")) for p, _ in paths])
        return images, np.array([i for _, i in paths], np.int32)

    return read(folder / "train"), read(
        next(folder / n for n in ("test", "val") if (folder / n).is_dir())
    )


def smooth(values, width: int = 20) -> np.ndarray:
    return np.convolve(values, np.ones(width) / width, mode="valid")


def band(runs: list[dict], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest smoothed value over the runs, at each step."""
    values = np.array([smooth(r[quantity]) for r in runs])
    return values.min(axis=0), values.max(axis=0)


def draw(path: Path, runs: dict[str, list[dict]]) -> None:
    """Loss and grad norm of both twins; a band where there are several runs."""
    try:
        import matplotlib
    except ImportError:
        print(f"no matplotlib: {path} was not drawn")
        return
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, quantity in zip(axes, ("loss", "grad_norm")):
        for (twin, rs), colour in zip(runs.items(), ("tab:blue", "tab:orange")):
            low, high = band(rs, quantity)
            axis.plot(
                np.mean([smooth(r[quantity]) for r in rs], axis=0), color=colour, label=twin, lw=1
            )
            axis.fill_between(np.arange(len(low)), low, high, color=colour, alpha=0.3, lw=0)
        axis.set(xlabel="step", ylabel=quantity.replace("_", " "))
        axis.legend()
    figure.savefig(path, dpi=120)


# Speed.


def speed(args, model: str, keep) -> dict:
    """`train_step.py` for a model, printed as a Markdown table; `keep` is given parts of it."""
    import train_step

    argv = [f"--model={model}", f"--batch_size={SPEEDS[model]}", "--precision=bf16", "--peers"]
    argv += ["--seconds=2", "--repeats=5"]  # a card throttles under a load that lasts
    if args.rehearse:
        argv = ["--model=vit_ti16", "--image_size=32", "--batch_size=2", "--precision=bf16"]
        argv += ["--peers", "--repeats=1", "--seconds=0.01"]
    if args.contenders:
        argv.append(f"--only={args.contenders}")
    report = train_step.measure(train_step.parse(argv), keep)
    print(train_step.table(report) + "\n", flush=True)
    return report


JOBS = {"attention": write_attention, "values": write_values, "train": train}

if __name__ == "__main__":
    main()
