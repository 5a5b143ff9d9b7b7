"""How well `port.explain` names planted mistakes: every mistake x model x style of `port_zoo`.

    python benchmarks/port_matrix.py [--stages exact,single,two,three] [--only TEXT] [--minutes N]

Each case is explained once; rows are kept in the results file, so that a stopped run goes on where
it was. Next to each row: whether allclose at 1e-5, 1e-3 and 5e-2, or a cosine under 0.99, of the
float32 outputs would have noticed. `--table` prints the table of what is there; `--redo` explains
again.
"""

import argparse
import json
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import port_zoo  # noqa: E402
from about import origin  # noqa: E402
from port_zoo import Case, Mutation  # noqa: E402

from twinvit.port.report import Report  # noqa: E402

RESULTS = ROOT / "benchmarks/results/port_matrix.json"
TOLERANCES = (1e-5, 1e-3, 5e-2)
STAGES = ("exact", "single", "two", "three")
SECONDS = 300  # for one case
# Exact ports of references that compute otherwise.
VARIANTS = [
    ("vit", {"activation": "gelu_tanh"}),
    ("vit", {"activation": "gelu_quick"}),
    ("conv", {"train": True}),
    ("decoder", {"loss": "mean"}),
    ("sequence", {"activation": "gelu"}),
]


def cases(stage: str) -> Iterator[tuple[str, str, int, list[str], dict]]:
    """(model, style, seed, mutations, changes of both sides)."""
    ports = [(m, s) for m, styles in port_zoo.STYLES.items() for s in styles]
    if stage == "exact":
        for seed in (0, 1):
            for model, style in ports:
                yield model, style, seed, [], {}
        for model, change in VARIANTS:
            for style in port_zoo.STYLES[model]:
                if not (change.get("train") and style == "equinox"):
                    yield model, style, 0, [], change
    elif stage == "single":
        # One style of every mistake first, so that a stopped run has met each.
        for turn in range(4):
            for i, m in enumerate(port_zoo.MUTATIONS):
                styles = [s for s in port_zoo.STYLES[m.model] if m.plantable(s)]
                if turn < len(styles):
                    yield m.model, styles[(turn + i) % len(styles)], 0, [m.name], {}
    else:
        count = {"two": 2, "three": 3}[stage]
        for draw in range(3):
            for model, style in ports:
                rng = np.random.default_rng([draw, count, ports.index((model, style))])
                drawn = port_zoo.draw_mutations(model, style, count, rng)
                yield model, style, 0, [m.name for m in drawn], {}


def key(model: str, style: str, seed: int, names: list[str], change: dict) -> str:
    changed = ",".join(f"{k}={v}" for k, v in change.items())
    return f"{model}/{style}/{seed}/{'+'.join(names) or 'exact'}" + (
        f"/{changed}" if changed else ""
    )


def run(stage: str, model: str, style: str, seed: int, names: list[str], change: dict) -> dict:
    """One row."""
    from twinvit import port

    case = port_zoo.build(model, style, seed, names, **change)
    train = getattr(case.cfg, "train", False)
    row: dict = {"stage": stage, "baselines": {} if train else baselines(case)}
    start = time.perf_counter()
    report = port.explain(
        case.torch_model,
        case.explainable(),
        case.inputs,
        jax_inputs=case.jax_inputs,
        what=("train",) if train else ("forward",),
    )
    row |= {
        "seconds": round(time.perf_counter() - start, 1),
        "same": report.same,
        "explained": report.explained,
        "distance": report.distance,
        "remaining": report.remaining,
        "findings": [
            {"kind": f.kind, "cause": f.cause, "torch": f.torch, "jax": f.jax, "text": f.text}
            | ({"operations": f.operations} if f.operations else {})
            for f in report.findings
        ],
    }
    row["mutations"] = {n: judge(port_zoo.find(model, n), report) for n in names}
    return row


def judge(mutation: Mutation, report: Report) -> dict[str, bool]:
    """Was this mistake placed and named?"""
    allowed = mutation.cause.split("|")

    def in_place(finding) -> bool:
        return any(re.search(mutation.torch, p) for p in [finding.torch, *finding.places])

    def is_named(finding) -> bool:
        if not mutation.shows:
            return finding.cause in allowed
        return bool(re.search(mutation.shows, finding.formulas.get("jax", "")))

    named = [f for f in report.findings if is_named(f)]
    return {
        "cause": bool(named),
        "place": any(in_place(f) for f in named or report.findings),
    }


def baselines(case: Case) -> dict[str, bool]:
    """Does a usual test of the float32 outputs notice?"""
    a, b = case.run_torch().ravel(), case.run_jax().ravel()
    noticed = {f"allclose {t:g}": not np.allclose(a, b, atol=t, rtol=0) for t in TOLERANCES}
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return noticed | {"cosine 0.99": not cosine >= 0.99}


def table(rows: dict[str, dict]) -> str:
    """Markdown."""
    done = {k: r for k, r in rows.items() if "error" not in r}
    lines = [
        "| | cases | said | place | cause | explained to rounding | errors |",
        "|---|---|---|---|---|---|---|",
    ]
    exact = [r for r in done.values() if r["stage"] == "exact"]
    failed = [r for r in rows.values() if "error" in r]
    quiet = sum(r["same"] for r in exact)
    errors = sum(r["stage"] == "exact" for r in failed)
    lines.append(f"| exact ports | {len(exact)} | same: {quiet} | | | | {errors} |")

    def add(title: str, chosen: list[dict], failures: int) -> None:
        judged = [m for r in chosen for m in r["mutations"].values()]
        said = sum(not r["same"] for r in chosen)
        cells = [f"different: {said}"]
        cells += [f"{sum(m[what] for m in judged)} of {len(judged)}" for what in ("place", "cause")]
        cells.append(str(sum(r["explained"] for r in chosen)))
        lines.append(f"| {title} | {len(chosen)} | {' | '.join(cells)} | {failures} |")

    def is_outside(name: str) -> bool:
        model, _, _, mutation = name.split("/")[:4]
        return "+" not in mutation and bool(port_zoo.find(model, mutation).shows)

    single = {k: r for k, r in rows.items() if r["stage"] == "single"}
    for title, outside in (("one mistake of the catalogue", False), ("one outside it", True)):
        these = {k: r for k, r in single.items() if is_outside(k) == outside}
        good = [r for r in these.values() if "error" not in r]
        add(title, good, len(these) - len(good))
    for stage, title in (("two", "two at once"), ("three", "three at once")):
        these = [r for r in rows.values() if r["stage"] == stage]
        good = [r for r in these if "error" not in r]
        add(title, good, len(these) - len(good))
    planted = [r for r in done.values() if r["stage"] != "exact" and r["baselines"]]
    lines += ["", "| on the same planted mistakes | noticed |", "|---|---|"]
    lines.append(f"| `port.explain` | {sum(not r['same'] for r in planted)} of {len(planted)} |")
    for name in planted[0]["baselines"] if planted else ():
        seen = sum(r["baselines"][name] for r in planted)
        lines.append(f"| {name} of the float32 outputs | {seen} of {len(planted)} |")
    return "\n".join(lines)


def misses(rows: dict[str, dict]) -> Iterator[str]:
    """What went wrong, a line each."""
    for name, row in rows.items():
        if "error" in row:
            yield f"{name}: ERROR {row['error']}"
            continue
        found = "; ".join(
            f"{f['kind']} {f['cause']} at {f['torch']} {f['jax']}" for f in row["findings"]
        )
        if row["stage"] == "exact":
            if not row["same"]:
                yield f"{name}: FALSE ALARM {row['distance']:.1e}: {found}"
            continue
        model = name.split("/")[0]
        wrong = []
        for n, m in row["mutations"].items():
            expected = port_zoo.find(model, n)
            if not (m["cause"] and m["place"]):
                bad = [k for k in ("cause", "place") if not m[k]]
                wrong.append(f"{n} ({expected.cause} at {expected.torch}): wrong {', '.join(bad)}")
        if row["mutations"] and not row["explained"]:
            wrong.append(f"not explained, remaining {row['remaining']:.1e}")
        if row["same"]:
            wrong.append(f"SAID SAME at {row['distance']:.1e}")
        if wrong:
            yield f"{name}: {'; '.join(wrong)} | found: {found} ({row['seconds']} s)"


def save(path: Path, rows: dict[str, dict]) -> None:
    # Of the call that wrote last; rows may be of several.
    about = origin(("torch", "jax", "flax", "equinox"))
    text = json.dumps(about | {"rows": rows}, indent=1, default=str)
    path.write_text(text + "\n")
    path.with_suffix(".md").write_text(table(rows) + "\n")


def _late(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument(
        "--only", default="", help="cases with this text in model/style/seed/mistakes"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="start no case after this long")
    parser.add_argument("--redo", action="store_true", help="explain again what is there")
    parser.add_argument("--again", action="store_true", help="of what is there, the misses alone")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--misses", action="store_true", help="print what went wrong; run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.results.read_text())["rows"] if args.results.exists() else {}
    if args.table or args.misses:
        print(table(rows) if args.table else "\n".join(misses(rows)))
        return
    signal.signal(signal.SIGALRM, _late)
    end = time.monotonic() + 60 * args.minutes
    for stage in args.stages.split(","):
        for case in cases(stage):
            name = key(*case)
            again = args.redo or (args.again and name in rows and any(misses({name: rows[name]})))
            if args.only not in name or (name in rows and not again):
                continue
            if time.monotonic() > end:
                return
            signal.alarm(SECONDS)
            try:
                rows[name] = run(stage, *case)
            except Exception as error:  # a case that fails is a result
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = (
                    f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                )
                rows[name] = {"stage": stage, "error": text[:500]}
            finally:
                signal.alarm(0)
            save(args.results, rows)
            said = list(misses({name: rows[name]}))
            print(said[0] if said else f"{name}: right ({rows[name]['seconds']} s)", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
