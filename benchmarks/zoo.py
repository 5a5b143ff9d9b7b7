"""Every plain ViT of timm's with published weights, made small, against both twins in float64.

    python benchmarks/zoo.py --json benchmarks/results/zoo.json

An architecture has two blocks, 5 x 3 patches and drawn weights. It counts, with all its tags, where
logits and tokens of both twins are within 1e-12 of timm's and what is written back is timm's file,
tensor by tensor, loaded with strict=True. What is not held is listed with the reason. The exit
status is 1 where an architecture that is read differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import torch
from about import origin

LIMIT = 1e-12
# The first that is part of a name is its family.
FAMILIES = (
    "siglip", "dinov3", "lingbot", "sapiens2", "dinov2", "tipsv2", "radio", "_pe_", "naflexvit",
    "aimv2", "beit3", "beit", "eva02", "eva", "deit3", "distilled", "deit", "rope", "clip",
    "flexivit", "intern", "so150m", "betwixt", "mediumd", "little", "medium", "wee",
)  # fmt: skip
MODULES = ("vision_transformer", "deit", "eva", "beit", "naflexvit")


def family_of(name: str) -> str:
    """A part of the name, or `vit` for the first ones."""
    return next((each.strip("_") for each in FAMILIES if each in name), "vit")


def measure(name: str, work: Path | None) -> dict[str, float]:
    """The distances of one architecture; those that are in `work` are read."""
    import timm_zoo

    known = None if work is None else work / f"{name}.json"
    if known is not None and known.exists():
        return json.loads(known.read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = timm_zoo.distances(timm_zoo.drawn(name, Path(folder) / "model"))
    if known is not None:
        known.write_text(json.dumps(found))
    return found


def published(timm: Any) -> dict[str, list[str]]:
    """`{architecture: its tags}` of the modules that hold plain ViTs."""
    found: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        for tagged in timm.list_models(module=module, pretrained=True, include_tags=True):
            name, _, tag = tagged.partition(".")
            found[name].append(tag)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="architectures; all by default")
    parser.add_argument("--work", type=Path, help="folder of rows, by which it goes on")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    import timm_zoo

    from shared_vit.weights.formats.timm_architectures import architectures

    names = published(timm_zoo.timm)
    rows: dict[str, dict[str, Any]] = {}
    not_held = {}
    for name in args.only or sorted(names):
        if name not in architectures():
            not_held[name] = names[name]
            continue
        worst = measure(name, args.work)
        same = all(gap <= LIMIT for gap in worst.values())
        rows[name] = {"family": family_of(name), "tags": len(names[name]), "same": same, **worst}
        print(name, f"{max(worst.values()):.1e}", "" if same else "DIFFERS", flush=True)
    result = origin(("torch", "jax", "timm"), [args.json.parent]) | summary(rows, not_held)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(row["same"] for row in rows.values()))


def summary(rows: dict[str, dict[str, Any]], not_held: dict[str, list[str]]) -> dict[str, Any]:
    """Tags by family, and the rows."""
    families: dict[str, dict[str, Any]] = {}
    for row in rows.values():
        about = families.setdefault(row["family"], {"tags": 0, "worst": 0.0})
        about["tags"] += row["tags"] * row["same"]
        gaps = [gap for key, gap in row.items() if key.startswith(("torch", "jax"))]
        about["worst"] = max(about["worst"], *gaps)
    same = sum(row["tags"] for row in rows.values() if row["same"])
    left = sum(map(len, not_held.values()))
    total = sum(row["tags"] for row in rows.values()) + left
    return {
        "tags": {"in_both_twins": same, "of": total},
        "families": families,
        "not_held": {name: len(tags) for name, tags in not_held.items()},
        "architectures": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
