"""StableHLO lowered for a GPU: products by type, and calls of fused attention."""

from __future__ import annotations

import re
from collections import Counter

import jax

ATTENTION = "__cudnn$fmha"


def count(lowered: jax.stages.Lowered) -> dict:
    """`{"products": {types: number}, "attention": number}`; a function counts at each call."""
    functions = _functions(lowered.as_text())
    total = _total("main", functions, {})
    products = {n.removeprefix("dot "): c for n, c in total.items() if n.startswith("dot ")}
    return {"products": dict(sorted(products.items())), "attention": total[ATTENTION]}


def _functions(text: str) -> dict[str, Counter]:
    """Of each function: its products, attention calls, and calls of other functions."""
    functions: dict[str, Counter] = {}
    current = Counter()
    for line in text.splitlines():
        if match := re.search(r"func\.func (?:public |private )?@([\w.$\-]+)\(", line):
            current = functions[match[1]] = Counter()
        elif "stablehlo.dot_general" in line:
            types = re.search(r": \(tensor<([^>]+)>, tensor<([^>]+)>\) -> tensor<([^>]+)>", line)
            a, b, out = (t.split("x")[-1] for t in types.groups())
            current[f"dot {a} x {b} -> {out}"] += 1
        elif "@" + ATTENTION in line:
            current[ATTENTION] += 1
        elif match := re.search(r"\bcall @([\w.$\-]+)\(", line):
            current[f"call {match[1]}"] += 1
    return functions


def _total(name: str, functions: dict[str, Counter], known: dict[str, Counter]) -> Counter:
    if name not in known:
        total: Counter = Counter()
        for what, times in functions[name].items():
            inner = Counter({what: 1})
            if what.startswith("call "):
                inner = _total(what.removeprefix("call "), functions, known)
            for key, n in inner.items():
                total[key] += n * times
        known[name] = total
    return known[name]
