"""Images per second of this input pipeline, of torchvision's, and of a bare decode-and-resize loop.

    python benchmarks/input_pipeline.py --data_dir DIR [--json FILE] [--train_steps 8]

DIR has class folders in train/ (or val/, or test/). The three read the same files at random, over
and over, and give training batches at 224 px. They run in turn for several rounds, each in a
process of its own, so that slower moments of the machine hit all three. torchvision's path is its
own code: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize and a DataLoader with the best
number of workers for this machine. The bare loop reads, decodes, crops and resizes in as many
threads as there are cores, without order, labels or batches. Then each twin trains for a few steps
and reports the share of time that it waited for data.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
from about import origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_vit.cli.function_command import Flag, run  # noqa: E402

PACKAGES = (
    "numpy", "grain", "simplejpeg", "opencv-python-headless", "pillow", "torch", "torchvision",
)  # fmt: skip
SIZE = 224
BATCH = 64
WARM_UP = 1  # seconds
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def benchmark(
    data_dir: Path,
    json_file: Annotated[Path | None, Flag("json")] = None,
    seconds: float = 8,
    rounds: int = 5,
    memory_images: int = 20_000,
    workers: int | None = None,
    train_steps: int = 8,
    train_model: str = "vit_ti16",
    train_batch_size: int = 32,
) -> None:
    """Measure, print a table, and write it as JSON.

    Args:
        data_dir: Folder with class folders in train/, val/ or test/.
        json_file: Where to write the numbers.
        seconds: Of each measurement.
        rounds: Measurements of each of the three; medians are reported.
        memory_images: How many images to read for the curve of memory; 0 leaves it out.
        workers: The pipeline's --workers; by default its own choice.
        train_steps: Length of each twin's training; 0 leaves it out.
        train_model: Its model.
        train_batch_size: Its batch size.
    """
    from shared_vit.cores import cores

    threads = cores()
    load_before = os.getloadavg()
    best = max(
        (0, *sorted({1, threads, 2 * threads})),
        key=lambda n: _run(_torchvision, data_dir, seconds / 2, n),
    )
    candidates = {
        "ours": lambda: _run(_ours, data_dir, seconds, workers),
        "torchvision": lambda: _run(_torchvision, data_dir, seconds, best),
        "bare_loop": lambda: _run(_bare_loop, data_dir, seconds, threads),
    }
    measured = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            measured[name].append(measure())
    rates = {name: [rate for rate, _ in pairs] for name, pairs in measured.items()}
    result = {f"{name}_per_s": round(statistics.median(rates[name]), 1) for name in rates}
    for name, pairs in measured.items():
        result[f"{name}_per_cpu_s"] = round(statistics.median(cpu for _, cpu in pairs), 1)
    result |= origin(PACKAGES, [data_dir]) | {
        "threads": threads,
        "ours_over_torchvision": round(result["ours_per_s"] / result["torchvision_per_s"], 3),
        "ours_over_bare_loop": round(result["ours_per_s"] / result["bare_loop_per_s"], 3),
        "ours_per_s_per_core": round(result["ours_per_s"] / threads, 1),
        "torchvision_workers": best,
        "rounds": {name: [round(v, 1) for v in values] for name, values in rates.items()},
        "image_size": SIZE,
        "batch_size": BATCH,
        "load_before": [round(v, 2) for v in load_before],
        "load_after": [round(v, 2) for v in os.getloadavg()],
    }
    if memory_images:
        result["memory_mb"] = _run(_memory, data_dir, memory_images, workers)
    if train_steps:
        flags = [
            f"--model={train_model}",
            f"--batch_size={train_batch_size}",
            f"--image_size={SIZE}",
        ]
        result["training"] = {"flags": flags, "steps": train_steps}
        for twin in ("jax", "torch"):
            result["training"][twin] = _train(twin, data_dir, train_steps, flags)
    _print_table(result)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1) + "\n")


def _run(measure, *args):
    """`measure(*args)` in a fresh process, without threads, caches or memory of another."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, measure, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        sys.exit(f"{measure.__name__}{args} failed with status {process.exitcode}, see above")
    finally:
        process.join()


def _send(sender, measure, args) -> None:
    sender.send(measure(*args))


def _split(data_dir: Path) -> Path:
    for name in ("train", "val", "test"):
        if (data_dir / name).is_dir():
            return data_dir / name
    sys.exit(f"{data_dir} has no folder train, val or test")


def _our_batches(data_dir: Path, workers: int | None):
    from shared_vit.data import Dataset, batches
    from shared_vit.data.sources.folder import FolderSplit
    from shared_vit.data.sources.listing import list_split
    from shared_vit.spec.config import ModelConfig
    from shared_vit.spec.recipe import Recipe
    from shared_vit.spec.runtime import RuntimeConfig

    listing = list_split(data_dir, _split(data_dir).name)
    split = FolderSplit(data_dir, listing)
    dataset = Dataset("folder", split, split, listing.class_names, fingerprint="")
    recipe = Recipe(model=ModelConfig(image_size=SIZE), batch_size=BATCH)
    return batches(recipe, dataset=dataset, machine=RuntimeConfig(workers=workers))


def _rate(stream, seconds: float) -> tuple[float, float]:
    """Images per second, and per second of processor time; the stream yields numbers of images."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP:
        next(stream)
    count, begin, cpu = 0, time.perf_counter(), _cpu_seconds()
    while (passed := time.perf_counter() - begin) < seconds:
        count += next(stream)
    return count / passed, count / (_cpu_seconds() - cpu)


def _family() -> list[int]:
    """This process and its children."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children())]


def _cpu_seconds() -> float:
    """Processor time of this process and its children so far."""
    ticks = 0
    for process in _family():
        with open(f"/proc/{process}/stat") as file:
            ticks += sum(int(v) for v in file.read().rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def _ours(data_dir: Path, seconds: float, workers: int | None) -> tuple[float, float]:
    stream = _our_batches(data_dir, workers)
    rate = _rate((len(batch.images) for batch in stream), seconds)
    stream.close()
    return rate


def _torchvision(data_dir: Path, seconds: float, workers: int) -> tuple[float, float]:
    import torch

    from twinvit.convert.libraries import without_torchvision_operators

    without_torchvision_operators()
    from torchvision import datasets, transforms

    warnings.filterwarnings("ignore", message="This DataLoader will create")
    folder = datasets.ImageFolder(
        str(_split(data_dir)),
        transforms.Compose([
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]),
    )  # fmt: skip
    sampler = torch.utils.data.RandomSampler(folder, replacement=True, num_samples=10**8)
    loader = torch.utils.data.DataLoader(
        folder,
        BATCH,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fork, Linux's default: children of this spawned process would be spawned too
    return _rate((len(images) for images, _ in loader), seconds)


def _bare_loop(data_dir: Path, seconds: float, threads: int) -> tuple[float, float]:
    import cv2
    import simplejpeg

    from shared_vit.data.augment import NUM_UNIFORMS, crop_box

    cv2.setNumThreads(0)
    paths = sorted(
        str(p) for p in _split(data_dir).rglob("*") if p.suffix.lower() in (".jpeg", ".jpg")
    )
    uniforms = np.random.default_rng(0).random((len(paths), NUM_UNIFORMS))
    sizes = [simplejpeg.decode_jpeg_header(Path(p).read_bytes())[:2] for p in paths]
    boxes = [crop_box(u, *size) for u, size in zip(uniforms, sizes)]
    counts = [0] * threads
    stop = threading.Event()

    def loop(number: int) -> None:
        i = number
        while not stop.is_set():
            with open(paths[i % len(paths)], "rb") as file:
                image = simplejpeg.decode_jpeg(file.read(), "RGB")
            top, left, height, width = boxes[i % len(paths)]
            crop = image[top : top + height, left : left + width]
            cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR_EXACT)
            counts[number] += 1
            i += 7

    pool = [threading.Thread(target=loop, args=(n,)) for n in range(threads)]
    for thread in pool:
        thread.start()
    done = 0

    def stream():
        nonlocal done
        while True:
            time.sleep(0.05)
            before, done = done, sum(counts)
            yield done - before

    rate = _rate(stream(), seconds)
    stop.set()
    for thread in pool:
        thread.join()
    return rate


def _memory(data_dir: Path, images: int, workers: int | None) -> dict:
    """Proportional set size (MB) of the process and its workers at ten points of the stream."""
    stream = _our_batches(data_dir, workers)
    points, count = [], 0
    while count < images:
        count += len(next(stream).images)
        if count * 10 // images > len(points):
            points.append(round(_family_memory(), 1))
    stream.close()
    return {"images": count, "curve": points, "growth": round(points[-1] - points[1], 1)}


def _train(twin: str, data_dir: Path, steps: int, flags: list[str]) -> dict:
    """Images per second and share of time waiting for data, in a short training's second half."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as place:
        for name in ("train", "val"):
            (Path(place) / name).symlink_to(_split(data_dir).resolve())
        flags = [
            *flags,
            f"--steps={steps}",
            f"--eval_every={steps // 2}",
            "--checkpoint_every=0",
            "--warmup_steps=1",
        ]
        command = [
            sys.executable,
            root / f"train_{twin}.py",
            "--data=folder",
            f"--data_dir={place}",
            *flags,
        ]
        done = subprocess.run([*command, f"--run_dir={place}/run"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"train_{twin}.py failed with status {done.returncode}:\n{done.stderr}")
        last = json.loads((Path(place) / "run" / "timing.jsonl").read_text().splitlines()[-1])
    return {name: round(last[name], 4) for name in ("images_per_second", "data_wait_share")}


def _family_memory() -> float:
    total = 0
    for process in _family():
        with open(f"/proc/{process}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


def _print_table(result: dict) -> None:
    print(
        f"{SIZE} px, batches of {BATCH}, {result['threads']} cores; "
        f"median of {len(result['rounds']['ours'])} rounds\n"
    )
    print(f"{'':<28}{'images/s':>10}{'per core':>10}{'per CPU s':>11}")
    for name, label in (
        ("ours", "this pipeline"),
        ("torchvision", f"torchvision, {result['torchvision_workers']} workers"),
        ("bare_loop", "bare decode, crop, resize"),
    ):
        rate = result[f"{name}_per_s"]
        print(
            f"{label:<28}{rate:>10.0f}{rate / result['threads']:>10.0f}"
            f"{result[name + '_per_cpu_s']:>11.0f}"
        )
    print(
        f"\n{result['ours_over_torchvision']:.2f} times torchvision, "
        f"{result['ours_over_bare_loop']:.0%} of the bare loop"
    )
    if "memory_mb" in result:
        memory = result["memory_mb"]
        print(f"memory over {memory['images']:,} images: {memory['curve']} MB")
    for twin in ("jax", "torch"):
        if found := result.get("training", {}).get(twin):
            rate, share = found["images_per_second"], found["data_wait_share"]
            print(
                f"training in {twin}: {rate:.1f} images/s, {share:.2%} of the time waiting for data"
            )


def main() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (sys.path[0], os.environ.get("PYTHONPATH")))
    )
    run(benchmark, sys.argv[1:], "input_pipeline.py")


if __name__ == "__main__":
    main()
