"""Speed of a forward pass and of a whole training step: both twins, and other libraries' ViTs, on
the same data.

    python benchmarks/train_step.py --model vit_b16 --batch_size 256 --precision bf16 --peers --json
    out.json

Each contender is a process of its own; they are measured in turn, round after round, so that a slow
moment of the machine falls on all. A training step is normalisation, forward, backward, clipping
and AdamW; the images are on the device.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from about import origin  # noqa: E402

from shared_vit.spec.config import ModelConfig, model_config  # noqa: E402
from shared_vit.spec.precision import PRECISIONS  # noqa: E402

TWINS = ["jax_vit", "torch_vit"]
PEERS = ["timm", "torchvision", "transformers"]
LIBRARIES = ("torch", "jax", "jaxlib", "flax", "timm", "torchvision", "transformers", "numpy")


def macs_per_image(cfg: ModelConfig) -> int:
    """Multiply-accumulates of a forward pass: L (4 N D^2 + 2 N D M + 2 N^2 D) + P D 3 p^2 + D C."""
    n, d, m = cfg.num_tokens, cfg.width, cfg.mlp_dim
    blocks = cfg.depth * (4 * n * d * d + 2 * n * d * m + 2 * n * n * d)
    return blocks + cfg.num_patches * d * 3 * cfg.patch_size**2 + d * cfg.num_classes


FORMULA = (
    "MACs per image = L (4 N D^2 + 2 N D M + 2 N^2 D) + P D 3 p^2 + D C; a training step takes 6 "
    "x MACs operations per image, "
    "a forward pass 2 x MACs"
)


def main() -> None:
    args = parse()
    if args.worker:
        import contenders

        contenders.serve(args)
        return

    def keep(report: dict) -> None:
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n")

    report = measure(args, keep)
    keep(report)
    print(table(report))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vit_b16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--peers", action="store_true", help="other libraries' models too")
    parser.add_argument(
        "--only", help="these contenders, separated by commas; `:compile` for torch.compile"
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds; the median is reported")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="least length of one measurement"
    )
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class ContenderFailed(Exception):
    """A contender's process ended, or answered with an error."""


class Worker:
    """A contender's process: a line in, a line of JSON out."""

    def __init__(self, name: str, argv: list[str]):
        self.name = name
        self.cache = tempfile.TemporaryDirectory(prefix="compiled-")
        env = os.environ | {
            # JAX would otherwise take three quarters of a GPU that all contenders share.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            # An empty one: a program that an earlier run compiled would be found and not compiled.
            "JAX_COMPILATION_CACHE_DIR": self.cache.name,
        }
        command = [sys.executable, __file__, *argv, f"--worker={name}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, what: str) -> dict:
        """The answer to a question. Raises ContenderFailed."""
        try:
            print(what, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ContenderFailed(f"the process ended with status {self.process.wait()}")
        answer = json.loads(answer)
        if "failed" in answer:
            raise ContenderFailed(answer["failed"])
        return answer

    def close(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()
        self.cache.cleanup()


def measure(args: argparse.Namespace, keep: Callable[[dict], None] = lambda report: None) -> dict:
    """Every contender's seconds per step, in alternating rounds.

    A contender that fails is reported and passed over. One that fails while it prepares, beside the
    others, is measured once more when they have gone, alone on the device. `keep` is given the
    report after each round.
    """
    cfg = model_config(args.model, image_size=args.image_size)
    names = ("model", "image_size", "batch_size", "precision", "device", "seconds")
    argv = [f"--{n}={getattr(args, n)}" for n in names]
    load, came_from = os.getloadavg()[0], origin(LIBRARIES)
    device = Worker("device", argv)
    about = device.ask("about")
    contenders = args.only.split(",") if args.only else contenders_on(about["gpu"], args.peers)
    results: dict[str, dict] = {}
    failed: dict[str, str] = {}
    rates: list[float] = []

    def report() -> dict:
        rate = statistics.median(rates)
        return came_from | {
            **{n: getattr(args, n) for n in ("model", "image_size", "batch_size", "precision")},
            "repeats": args.repeats,
            "formula": FORMULA,
            "macs_per_image": macs_per_image(cfg),
            "matmul_flops": rate,
            "matmul_flops_rounds": rates,
            "machine": came_from["machine"] | about | {"load_at_start": load},
            "results": {
                name: summarised(result, args.batch_size, macs_per_image(cfg), rate)
                for name, result in results.items()
                if result["train"] and "peak_bytes" in result
            },
            "failed": failed,
        }

    def compete(names: list[str], together: bool) -> None:
        workers = [w for name in names if (w := _prepared(name, argv, results, failed, together))]
        for number in range(args.repeats):
            print(f"round {number + 1} of {args.repeats}", file=sys.stderr, flush=True)
            rates.append(device.ask("rate")["flops"])
            for worker in list(workers):
                try:
                    for what in ("forward", "train"):
                        results[worker.name][what].append(worker.ask(what))
                    results[worker.name] |= worker.ask("memory")
                except ContenderFailed as error:
                    failed[worker.name] = str(error)
                    print(f"{worker.name} failed: {error}", file=sys.stderr, flush=True)
                    workers.remove(worker)
                    worker.close()
            keep(report())
        for worker in workers:
            worker.close()

    compete(contenders, together=True)
    for name in [n for n in contenders if n not in results and about["gpu"]]:
        compete([name], together=False)
    device.close()
    return report()


def _prepared(
    name: str, argv: list[str], results: dict, failed: dict[str, str], together: bool
) -> Worker | None:
    """A contender ready to be measured; None, and its reason in `failed`, if it cannot be."""
    print(f"preparing {name}", file=sys.stderr, flush=True)
    worker = Worker(name, argv)
    try:
        prepared = worker.ask("prepare")
    except ContenderFailed as error:
        failed[name] = str(error)
        print(f"{name} failed: {error}", file=sys.stderr, flush=True)
        worker.close()
        return None
    failed.pop(name, None)
    results[name] = prepared | {"beside_others": together, "train": [], "forward": []}
    return worker


def summarised(result: dict, batch_size: int, macs: int, rate: float) -> dict:
    """A contender's result with its rounds summarised."""
    rounds = {what: summary(result[what], batch_size, factor * macs, rate)
              for what, factor in (("forward", 2), ("train", 6))}  # fmt: skip
    return result | rounds


def contenders_on(gpu: bool, peers: bool) -> list[str]:
    """The twins and, if asked, the installed peers; those of PyTorch compiled too on GPUs."""
    names = [n for n in TWINS + (PEERS if peers else []) if installed(n)]
    return names + [f"{n}:compile" for n in names if gpu and n != "jax_vit"]


def installed(name: str) -> bool:
    if name in TWINS:
        return installed(name.removesuffix("_vit"))
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def summary(rounds: list[dict], batch_size: int, flops_per_image: int, rate: float) -> dict:
    """Median and spread over the rounds: milliseconds, images/s, share of the measured matrix-
    product rate."""
    seconds = [r["seconds"] for r in rounds]
    median = statistics.median(seconds)
    return {
        "ms": 1e3 * median,
        "ms_rounds": [1e3 * s for s in seconds],
        "cpu_ms": 1e3 * statistics.median(r["cpu_seconds"] for r in rounds),
        "images_per_second": batch_size / median,
        "images_per_second_least": batch_size / max(seconds),
        "images_per_second_most": batch_size / min(seconds),
        "share_of_matmul_rate": batch_size / median * flops_per_image / rate,
    }


def table(report: dict) -> str:
    """The report in Markdown."""
    m = report["machine"]
    results = report["results"]
    lines = [
        f"{report['model']}, {report['image_size']} px, batch {report['batch_size']}, "
        f"{report['precision']}, on {m['device']} "
        f"({m['threads']} threads; load {m['load_at_start']:.1f} at the start), median of "
        f"{report['repeats']}",
        f"matrix products run at {report['matmul_flops'] / 1e12:.2f} TFLOP/s here. "
        f"{report['formula']}. "
        f"{report['macs_per_image'] / 1e9:.2f} GMACs per image.",
        "",
        "| | forward, images/s | train, images/s | spread | train, ms | of matmul rate | peak "
        "memory | compile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in sorted(results.items(), key=lambda item: item[1]["train"]["ms"]):
        t = r["train"]
        lines.append(
            f"| {name} | {r['forward']['images_per_second']:.1f} | {t['images_per_second']:.1f} "
            f"| {t['images_per_second_least']:.1f} to {t['images_per_second_most']:.1f} | "
            f"{t['ms']:.1f} "
            f"| {100 * t['share_of_matmul_rate']:.0f} % | {r['peak_bytes'] / 2**30:.2f} GiB | "
            f"{r['compile_seconds']:.1f} s |"
        )
    lines += ["", *ratios(results, "ms", "time")]
    if not m["gpu"]:
        lines += ratios(results, "cpu_ms", "processor time")
    lines += [f"attention of {n}: {r['attention']}" for n, r in results.items()]
    lines += [f"{n} failed: {reason}" for n, reason in report["failed"].items()]
    return "\n".join(lines)


def ratios(results: dict[str, dict], clock: str, what: str) -> list[str]:
    """A training step of each twin against the fastest peer, and of one twin against the other."""
    spent = {n: r["train"][clock] for n, r in results.items()}
    peers = [n for n in spent if n.split(":")[0] in PEERS]
    lines = []
    if peers:
        best = min(peers, key=spent.get)
        lines = [
            f"{n} takes {spent[n] / spent[best]:.3f} of the {what} of {best}"
            for n in spent
            if n not in peers
        ]
    of_torch = [s for n, s in spent.items() if n.startswith("torch_vit")]
    if of_torch and "jax_vit" in spent:
        fastest = min(of_torch)
        lines.append(f"jax_vit takes {spent['jax_vit'] / fastest:.3f} of the {what} of torch_vit")
    return lines


if __name__ == "__main__":
    main()
