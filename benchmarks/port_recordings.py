"""Is a port explained from recordings as it is from the models themselves?

    python benchmarks/port_recordings.py [--only TEXT]

40 pairs of `port_zoo`, each explained twice: where both models are, and from recordings that were
made in three processes of their own. The first cannot import JAX, the second not PyTorch, and the
third, which explains, neither the libraries of layers nor the models. A pair is equal if the
verdict and every finding are: kind, cause, text, lines, places, formulas and fix, beside what is
unseen, the narrowings and the reasons. With `--only` the other rows of the results are kept.
"""

import argparse
import importlib.abc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

RESULTS = ROOT / "benchmarks/results/port_recordings.json"
BLOCKED = {
    "torch": ("jax", "jaxlib", "flax", "equinox", "ml_dtypes", "optax"),
    "jax": ("torch", "torchvision"),
    "explain": ("flax", "equinox", "haiku", "keras", "transformers", "timm", "port_zoo"),
    "models": (),
}
SOLVED = [  # a constant is solved from the port's values
    "vit/linen/norm_eps", "vit/equinox/norm_eps_large", "vit/nnx/branch_scale",
    "conv/linen/norm_eps", "conv/equinox/leaky", "conv/nnx/branch_scale",
    "decoder/nnx/norm_eps", "decoder/equinox/rope_base", "decoder/linen/rope_offset",
    "decoder/nnx/label_smoothing", "decoder/equinox/branch_scale", "sequence/nnx/norm_eps",
    "sequence/linen/skip_scale",
]  # fmt: skip
EXPRESSIONS = [
    "vit/nnx/softmax_skewed", "vit/equinox/abs_values", "vit/linen/clip_activation",
    "vit/nnx/position_sine", "conv/equinox/stem_clip", "conv/nnx/pool_centred",
    "conv/linen/shortcut_abs", "decoder/linen/unit_queries", "decoder/equinox/clip_gate",
    "decoder/nnx/logit_cap", "sequence/nnx/up_abs",
]  # fmt: skip
OTHERS = [
    "vit/scan/gelu_tanh", "vit/linen/dim_first", "vit/equinox/swapped", "vit/nnx/norm_missing",
    "vit/nnx/gelu_tanh+norm_eps+bias_missing", "conv/nnx/same_padding", "conv/linen/flatten_order",
    "decoder/nnx/mask_offset", "decoder/linen/untied", "decoder/equinox/scaled_embedding",
    "sequence/equinox/gru_order", "sequence/nnx/kernel_flip",
    "vit/nnx/", "conv/equinox/", "vit/nnx/gelu_quick grad", "conv/linen/relu6 train",
]  # fmt: skip
GROUPS = {"solved": SOLVED, "expression": EXPRESSIONS, "other": OTHERS}


class Blocker(importlib.abc.MetaPathFinder):
    """Makes packages as good as not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse these packages, and leave all others to the next finder."""
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is not installed in this environment", name=name)


def parts(case: str) -> tuple[str, str, list[str], tuple[str, ...]]:
    """Model, style, mutations, and what is compared."""
    path, _, more = case.partition(" ")
    model, style, names = path.split("/")
    return model, style, [n for n in names.split("+") if n], ("forward", *more.split())


def folder_of(root: Path, case: str) -> Path:
    folder = root / case.replace("/", "-").replace(" ", "-").replace("+", "-")
    folder.mkdir(exist_ok=True)
    return folder


def record_reference(case: str, folder: Path) -> Any:
    """Record the reference, and write what a converter would be given."""
    import port_zoo

    from twinvit import port

    model, _, names, what = parts(case)
    rng, cfg, _ = port_zoo.configs(model, 0, names)
    reference, given = port_zoo.reference_of(model, cfg, rng)
    np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in reference.state_dict().items()})
    np.savez(folder / "inputs.npz", given)
    target = folder / "reference.rec"
    port.record_model(target, reference, (given,), framework="torch", what=what)


def record_port(case: str, folder: Path) -> Any:
    """Record the port, with the weights of the reference."""
    import port_zoo

    from twinvit import port

    model, style, names, what = parts(case)
    _, _, port_cfg = port_zoo.configs(model, 0, names)
    state = dict(np.load(folder / "weights.npz"))
    given = np.load(folder / "inputs.npz")["arr_0"]
    found, theirs = port_zoo.port_of(model, style, port_cfg, state, given)
    port.record_model(
        folder / "port.rec",
        port_zoo.explainable(style, found),
        (given,),
        framework="jax",
        what=what,
        jax_inputs=(theirs,),
    )


def explain_recordings(case: str, folder: Path) -> Any:
    """The report of two recordings."""
    from twinvit import port

    _, _, _, what = parts(case)
    paths = folder / "reference.rec", folder / "port.rec"
    report = port.explain_recordings(*paths, what=what)
    given = np.load(folder / "inputs.npz")["arr_0"]
    other = given[::-1].copy() if given.dtype.kind in "iu" else given * np.float32(1.1)
    relaid = other.ndim == 4 and parts(case)[1] != "equinox"
    apart = report.verify((other,), (other.transpose(0, 2, 3, 1) if relaid else other,))
    return {**told(report), "verify": max(apart.values())}


def explain_models(case: str, folder: Path) -> Any:
    """The report of the models themselves."""
    import port_zoo

    from twinvit import port

    model, style, names, what = parts(case)
    pair = port_zoo.build(model, style, 0, names)
    given = pair.torch_model, pair.explainable(), pair.inputs
    return told(port.explain(*given, jax_inputs=pair.jax_inputs, what=what))


def told(report: Any) -> dict[str, Any]:
    """What a report says, without times and distances."""
    findings = [
        {k: v for k, v in vars(f).items() if k not in ("before", "after")} for f in report.findings
    ]
    return {
        "verdict": report.verdict,
        "explained": report.explained,
        "findings": json.loads(json.dumps(findings, default=str)),
        "unseen": report.unseen,
        "reasons": report.reasons,
        "narrowings": [[n.side, n.where, n.dtype] for n in report.narrowings],
        "notes": report.notes[:-1],  # the last says how long it took
        "drawn": [[d.kind, d.note] for d in report.verified],
    }


STAGES = {
    "torch": record_reference,
    "jax": record_port,
    "explain": explain_recordings,
    "models": explain_models,
}


def stage(name: str, root: Path, cases: list[str]) -> None:
    """One process: every case in an environment of its own."""
    sys.meta_path.insert(0, Blocker(BLOCKED[name]))
    for case in cases:
        folder, started = folder_of(root, case), time.perf_counter()
        try:
            result = STAGES[name](case, folder)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        (folder / f"{name}.json").write_text(json.dumps(result))
        print(f"{name:8} {time.perf_counter() - started:6.1f} s  {case}", flush=True)
    wrong = [n for n in BLOCKED[name] if n in sys.modules]
    if wrong:
        raise SystemExit(f"{wrong} were imported in the environment without them")


def compared(root: Path, group: str, case: str) -> dict[str, Any]:
    """One row."""
    folder = folder_of(root, case)
    found = {n: json.loads((folder / f"{n}.json").read_text()) for n in STAGES}
    errors = [r["error"] for r in found.values() if r and "error" in r]
    if errors:
        return {"group": group, "equal": False, "errors": errors}
    mine, theirs = found["models"], found["explain"]
    apart = [k for k in mine if mine[k] != theirs[k]]
    return {
        "group": group,
        "equal": not apart,
        **({"apart": apart} if apart else {}),
        "verdict": theirs["verdict"],
        "explained": theirs["explained"],
        "findings": [[f["kind"], f["cause"], f["text"]] for f in theirs["findings"]],
        "verify": theirs["verify"],
        "bytes": sum(f.stat().st_size for f in folder.glob("*.rec/*")),
    }


def main() -> None:
    """Run every stage, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    parser.add_argument("--root", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = [c for group in GROUPS.values() for c in group if arguments.only in c]
    if arguments.stage:
        stage(arguments.stage, Path(arguments.root), cases)
        return
    with tempfile.TemporaryDirectory() as root:
        for name in STAGES:
            command = [sys.executable, __file__, "--stage", name, "--root", root]
            subprocess.run([*command, "--only", arguments.only], check=True, env=os.environ)
        rows = {
            c: compared(Path(root), group, c)
            for group, held in GROUPS.items()
            for c in held
            if c in cases
        }
    if arguments.only and RESULTS.is_file():  # the others stay
        rows = json.loads(RESULTS.read_text())["rows"] | rows
    from about import origin

    result = {
        **origin(("torch", "jax", "numpy", "flax", "equinox")),
        "blocked": BLOCKED,
        "equal": sum(r["equal"] for r in rows.values()),
        "cases": len(rows),
        "rows": rows,
    }
    print(f"{result['equal']} of {result['cases']} equal")
    for case, row in rows.items():
        if not row["equal"]:
            print(case, row.get("errors") or row.get("apart"))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
