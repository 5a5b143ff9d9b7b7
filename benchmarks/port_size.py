"""Time and peak memory of `port.explain` by the number of parameters.

    python benchmarks/port_size.py [--sizes 0.2M,24M,150M] [--kinds named,transplant,unknown]
        [--stages]

A language model of 64 tokens with an embedding table, in PyTorch and as a JAX function with the
same float32 weights and one planted mistake: one of the catalogue (GELU's tanh form, "named"), one
that is explained by a part of the port's own program (an added term, "transplant"), or one whose
place is told and whose cause is not (a projection on stored numbers, "unknown"). Each row is a
process of its own. The memory is what the process held at most, less what it held when both models
were made, by parameter of one model. `--stages` prints what is held as it goes on.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

RESULTS = ROOT / "benchmarks/results/port_size.json"
TOKENS = 64
SIZES = {  # width, layers, vocabulary
    "0.2M": (64, 3, 512),
    "24M": (384, 10, 16384),
    "150M": (1024, 10, 24576),
}
KINDS = ("named", "transplant", "unknown")


def models(size: str, kind: str) -> tuple[Any, Any, Any]:
    """The reference, the port and the tokens."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    from twinvit import port

    width, layers, vocabulary = SIZES[size]
    heads = width // 32

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, d = x.shape
            q, k, v = (
                t.reshape(b, n, heads, 32).transpose(1, 2)
                for t in self.qkv(self.norm1(x)).chunk(3, -1)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, n, d))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, width)
            self.position = nn.Parameter(torch.zeros(TOKENS, width))
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 32, bias=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens) + self.position
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    reference = Model().eval()
    with torch.no_grad():
        for p in reference.parameters():
            if p.ndim < 2 or not p.any():
                p.add_(0.1 * torch.randn_like(p))
    params = {k: jnp.asarray(v.numpy()) for k, v in reference.state_dict().items()}
    stored = np.random.default_rng(3).standard_normal((width, 8)).astype(np.float32)

    def norm(p: Any, name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * p[name + ".weight"] + p[name + ".bias"]

    def dense(p: Any, name: str, x: Any) -> Any:
        return x @ p[name + ".weight"].T + p[name + ".bias"]

    def fn(p: Any, tokens: Any) -> Any:
        x = p["embed.weight"][tokens] + p["position"]
        mask = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))
        for k in range(layers):
            name = f"blocks.{k}."
            y = dense(p, name + "qkv", norm(p, name + "norm1", x))
            b, n, _ = x.shape
            q, key, v = (
                t.reshape(b, n, heads, 32).transpose(0, 2, 1, 3) for t in jnp.split(y, 3, -1)
            )
            scores = jnp.where(mask, q @ key.swapaxes(-1, -2) / jnp.sqrt(32), -jnp.inf)
            y = (jax.nn.softmax(scores, -1) @ v).transpose(0, 2, 1, 3).reshape(b, n, width)
            x = x + dense(p, name + "out", y)
            wrong = kind == "named"
            y = jax.nn.gelu(dense(p, name + "fc1", norm(p, name + "norm2", x)), approximate=wrong)
            x = x + dense(p, name + "fc2", y)
            if kind == "transplant" and k == 0:
                x = x + 0.01 * jnp.tanh(x) * x
            if kind == "unknown" and k == 0:
                x = x + 0.01 * jnp.tanh(x @ stored) @ stored.T
        return norm(p, "norm", x) @ p["head.weight"].T

    tokens = np.random.default_rng(0).integers(0, vocabulary, (1, TOKENS))
    return reference, port.Function(fn, params), (tokens,)


def held() -> int:
    """Bytes that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Peak:
    """The most that the process holds while it is watched, by what it says that it does."""

    def __init__(self, stages: bool) -> None:
        self.stages, self.most, self.now, self.doing = stages, 0, 0, ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.start = time.perf_counter()
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            present = held()
            self.most, self.now = max(self.most, present), max(self.now, present)

    def say(self, text: str) -> None:
        """The comparison goes on to something else."""
        if self.stages:
            seconds = time.perf_counter() - self.start
            print(f"  {seconds:6.1f} s  {self.now / 1e6:7.0f} MB at most: {self.doing}", flush=True)
        self.doing, self.now = text, held()

    def end(self) -> int:
        """Stop watching; the most bytes."""
        self.say("")
        self._done.set()
        self._thread.join()
        return self.most


def row(size: str, kind: str, stages: bool) -> dict[str, Any]:
    """One explanation, in this process."""
    import jax
    import torch

    from twinvit import port
    from twinvit.port.memory import give_back

    torch.set_num_threads(1)
    reference, theirs, inputs = models(size, kind)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        port.explain(*models("0.2M", "named"))  # imports, and what JAX keeps
    count = sum(p.numel() for p in reference.parameters())
    gc.collect()
    give_back()  # what the models and the first explanation left
    before = held()
    peak = Peak(stages)
    started, worked = time.perf_counter(), time.process_time()
    report = port.explain(reference, theirs, inputs, progress=peak.say)
    seconds, most = time.perf_counter() - started, peak.end()
    return {
        "parameters": count,
        "seconds": round(seconds, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
        "load": round(os.getloadavg()[0], 1),
        "models_bytes": 8 * count,
        "peak_bytes": most,
        "beyond": most - before,
        "bytes_per_parameter": round((most - before) / count, 1),
        "verdict": report.verdict,
        "explained": report.explained,
        "findings": [[f.kind, f.cause, f.torch] for f in report.findings],
        "edits_tried": report.notes[-1],
    }


def main() -> None:
    """Run every row, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="0.2M,24M")
    parser.add_argument("--kinds", default="named,unknown")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--row", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        found = row(*arguments.row.split("/"), arguments.stages)
        print(json.dumps(found), flush=True)
        return
    from about import origin

    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else {}
    for size in arguments.sizes.split(","):
        for kind in arguments.kinds.split(","):
            command = [sys.executable, __file__, "--row", f"{size}/{kind}"]
            command += ["--stages"] if arguments.stages else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            lines = done.stdout.splitlines()
            print("\n".join(lines[:-1]))
            rows[f"{size}/{kind}"] = (
                json.loads(lines[-1]) if done.returncode == 0 else {"failed": done.returncode}
            )
            print(f"{size}/{kind}", rows[f"{size}/{kind}"], flush=True)
    result = {**origin(("torch", "jax", "numpy")), "tokens": TOKENS, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
