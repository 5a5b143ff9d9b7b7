"""The HTML page of `twinvit compare`: each layer's distance, and what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from shared_vit.files import atomic_write
from twinvit.compare.command import Comparison
from twinvit.lockstep.record import digest
from twinvit.pages import html
from twinvit.pages.svg import Chart, Mark, Series


def compare_page(
    path: Path,
    found: Comparison,
    functions: Sequence[str],
    arrays: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    images: np.ndarray,
    inputs: str,
) -> None:
    """Write the page.

    `functions` are sentences on the configurations, `arrays` the weights of both in canonical
    names, of which the page has the hashes, as of `images`, which `inputs` describes.
    """
    *notes, verdict = found.sentences()
    badge, sentence = verdict.split(": ", 1)
    what = f"{found.name_a} against {found.name_b}, {found.precision}, {inputs}."
    tone = {"different": "bad", "undecided": "warn", "same": "good"}[found.verdict]
    body = [html.header(badge, sentence[0].upper() + sentence[1:], [what], tone)]
    if functions or notes:
        body.append(html.section("To be known", html.bullets([*functions, *notes])))
    if found.distances:
        body.append(html.section("Distance by layer", _chart(found)))
        folded = html.folded(f"{len(found.distances)} layers by number", _table(found))
        body.append(html.section("Layers", folded))
    made = [
        (f"weights of a: {found.name_a}", digest(arrays[0])),
        (f"weights of b: {found.name_b}", digest(arrays[1])),
        (f"inputs: {inputs}", digest({"images": images})),
    ]
    rows = [(what, f"{sha[:32]} {sha[32:]}") for what, sha in made]
    rows.append(("versions and machine", ", ".join(html.versions())))
    rule = (
        "Both models run on the same images. A layer's distance is the relative L2 of its output "
        f"in a from that in b, in float64; {found.limit:g} is the limit in {found.precision}. The "
        "hashes are SHA-256 of the arrays: names, types, shapes and bytes."
    )
    body.append(html.section("How it was compared", html.bullets([rule])))
    body.append(html.section("Made by", html.table(["what", "value"], rows)))
    with atomic_write(path) as file:
        file.write(html.document(f"{badge}: {found.name_a}, {found.name_b}", body).encode())


def _chart(found: Comparison) -> str:
    names = list(found.distances)
    values = [found.distances[n] for n in names]
    x = list(range(len(names)))
    titles = [f"{n or 'logits'}: {d:.2e}" for n, d in found.distances.items()]
    series = [
        Series("limit", [x[0], x[-1]], [found.limit] * 2, "warn"),
        Series("distance of a layer's output", x, values, "mine", points=True, titles=titles),
    ]
    marks = []
    caption = "Relative L2 of each module's output, in the order of computation."
    if found.first is not None:
        at = names.index(found.first)
        where = found.first or "the logits"
        marks.append(Mark(x[at], values[at], "1", f"first divergence: {where}"))
        caption += f" 1: the first divergence, at {where}."
    chart = Chart(
        series,
        "relative L2",
        "layer",
        marks=marks,
        groups=_groups(names),
        description=f"{found.name_a} against {found.name_b}: distance by layer",
    )
    return html.figure(chart, caption)


def _groups(names: Sequence[str]) -> list[tuple[float, float, str]]:
    """The blocks, along the axis."""
    groups, at = [], 0
    for block, members in groupby(names, _block):
        count = len(list(members))
        groups.append((float(at), float(at + count - 1), block))
        at += count
    return groups


def _block(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 1:
        return f"block {parts[1]}"
    return "embedding" if parts[0] in ("patch_embed", "embed_drop") else "end"


def _table(found: Comparison) -> str:
    rows = []
    for name, distance in found.distances.items():
        mark = " (first divergence)" if name == found.first else ""
        rows.append((f"{name or 'logits'}{mark}", f"{distance:.2e}"))
    return html.table(["layer", "relative L2"], rows, numbers=(1,))
