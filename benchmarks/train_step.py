"""Speed of a forward pass and of a whole training step: both twins, and other libraries' ViTs, on the same data.

    python benchmarks/train_step.py --model vit_b16 --batch_size 256 --precision bf16 --peers --json out.json

Each contender is a process of its own; they are measured in turn, round after round, so that a slow moment of the machine
falls on all. A training step is normalisation, forward, backward, clipping and AdamW; the images are on the device.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_vit.spec.config import ModelConfig, model_config  # noqa: E402
from shared_vit.spec.precision import PRECISIONS  # noqa: E402

TWINS = ["jax_vit", "torch_vit"]
PEERS = ["timm", "torchvision", "transformers"]
LIBRARIES = ("torch", "jax", "jaxlib", "flax", "timm", "torchvision", "transformers", "numpy")


def macs_per_image(cfg: ModelConfig) -> int:
    """Multiply-accumulates of one forward pass: L (4 N D^2 + 2 N D M + 2 N^2 D) + P D 3 p^2 + D C."""
    n, d, m = cfg.num_tokens, cfg.width, cfg.mlp_dim
    blocks = cfg.depth * (4 * n * d * d + 2 * n * d * m + 2 * n * n * d)
    return blocks + cfg.num_patches * d * 3 * cfg.patch_size**2 + d * cfg.num_classes


FORMULA = (
    "MACs per image = L (4 N D^2 + 2 N D M + 2 N^2 D) + P D 3 p^2 + D C; a training step takes 6 x MACs operations per image, "
    "a forward pass 2 x MACs"
)


def main() -> None:
    args = parse()
    if args.worker:
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        import contenders

        contenders.serve(args)
        return
    report = measure(args)
    print(table(report))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vit_b16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--peers", action="store_true", help="other libraries' models too")
    parser.add_argument("--only", help="these contenders, separated by commas; `:compile` for torch.compile")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; the median is reported")
    parser.add_argument("--seconds", type=float, default=0.5, help="least length of one measurement")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class Worker:
    """A contender's process: a line in, a line of JSON out."""

    def __init__(self, name: str, argv: list[str]):
        self.name = name
        # JAX would otherwise take three quarters of a GPU that all contenders share.
        env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, __file__, *argv, f"--worker={name}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, what: str) -> dict:
        try:
            print(what, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace) -> dict:
    """Every contender's seconds per step, in alternating rounds."""
    cfg = model_config(args.model, image_size=args.image_size)
    argv = [
        f"--{n}={getattr(args, n)}" for n in ("model", "image_size", "batch_size", "precision", "device", "seconds")
    ]
    load = os.getloadavg()[0]
    device = Worker("device", argv)
    about = device.ask("about")
    names = args.only.split(",") if args.only else contenders_on(about["gpu"], args.peers)
    results: dict[str, dict] = {}
    workers = []
    for name in names:
        print(f"preparing {name}", file=sys.stderr, flush=True)
        worker = Worker(name, argv)
        results[name] = worker.ask("prepare") | {"train": [], "forward": []}
        workers.append(worker)
    rates = []
    for number in range(args.repeats):
        print(f"round {number + 1} of {args.repeats}", file=sys.stderr, flush=True)
        rates.append(device.ask("rate")["flops"])
        for worker in workers:
            for what in ("forward", "train"):
                results[worker.name][what].append(worker.ask(what))
    for worker in workers:
        results[worker.name] |= worker.ask("memory")
        worker.close()
    device.close()
    rate = statistics.median(rates)
    for result in results.values():
        for what, factor in (("forward", 2), ("train", 6)):
            result[what] = summary(result[what], args.batch_size, factor * macs_per_image(cfg), rate)
    return {
        "command": " ".join(["python", *sys.argv]),
        "model": args.model,
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "repeats": args.repeats,
        "formula": FORMULA,
        "macs_per_image": macs_per_image(cfg),
        "matmul_flops": rate,
        "matmul_flops_rounds": rates,
        "machine": about | {"system": platform.platform(), "cores": os.cpu_count(), "load_at_start": load},
        "versions": {n: metadata.version(n) for n in LIBRARIES if installed(n)},
        "results": results,
    }


def contenders_on(gpu: bool, peers: bool) -> list[str]:
    names = [n for n in TWINS + (PEERS if peers else []) if installed(n)]
    return names + [f"{n}:compile" for n in ("torch_vit", "timm") if gpu and n in names]


def installed(name: str) -> bool:
    if name in TWINS:
        return installed(name.removesuffix("_vit"))
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def summary(rounds: list[dict], batch_size: int, flops_per_image: int, rate: float) -> dict:
    """Median and spread over the rounds: milliseconds, images/s, share of the measured matrix-product rate."""
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
        f"{report['model']}, {report['image_size']} px, batch {report['batch_size']}, {report['precision']}, on {m['device']} "
        f"({m['threads']} threads; load {m['load_at_start']:.1f} at the start), median of {report['repeats']}",
        f"matrix products run at {report['matmul_flops'] / 1e12:.2f} TFLOP/s here. {report['formula']}. "
        f"{report['macs_per_image'] / 1e9:.2f} GMACs per image.",
        "",
        "| | forward, images/s | train, images/s | spread | train, ms | of matmul rate | peak memory | compile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in sorted(results.items(), key=lambda item: item[1]["train"]["ms"]):
        t = r["train"]
        lines.append(
            f"| {name} | {r['forward']['images_per_second']:.1f} | {t['images_per_second']:.1f} "
            f"| {t['images_per_second_least']:.1f} to {t['images_per_second_most']:.1f} | {t['ms']:.1f} "
            f"| {100 * t['share_of_matmul_rate']:.0f} % | {r['peak_bytes'] / 2**30:.2f} GiB | {r['compile_seconds']:.1f} s |"
        )
    lines += ["", *ratios(results, "ms", "time")]
    if not m["gpu"]:
        lines += ratios(results, "cpu_ms", "processor time")
    return "\n".join(lines)


def ratios(results: dict[str, dict], clock: str, what: str) -> list[str]:
    """A training step of each twin against the fastest peer's, and of one twin against the other's."""
    spent = {n: r["train"][clock] for n, r in results.items()}
    peers = [n for n in spent if n.split(":")[0] in PEERS]
    lines = []
    if peers:
        best = min(peers, key=spent.get)
        lines = [f"{n} takes {spent[n] / spent[best]:.3f} of the {what} of {best}" for n in spent if n not in peers]
    if set(TWINS) <= set(spent):
        fastest = min(spent[n] for n in spent if n.startswith("torch_vit"))
        lines.append(f"jax_vit takes {spent['jax_vit'] / fastest:.3f} of the {what} of torch_vit")
    return lines


if __name__ == "__main__":
    main()
