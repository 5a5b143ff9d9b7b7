"""`twinvit compare`: the same inputs through two models, with the first divergent layer named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError, some
from shared_vit.run.record import read_record
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.precision import Precision
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.sides import shown
from shared_vit.weights import open_weights
from shared_vit.weights.lazy import in_memory
from shared_vit.weights.read import Source
from twinvit.compare.trace import Twin, rounding, trace
from twinvit.convert.same_function import (
    LIMITS,
    VERDICTS,
    Judged,
    Outputs,
    judged,
    names_apart,
    nothing_in,
    settings_apart,
    weights_apart,
    zero_weights,
)
from twinvit.pages.verdicts import Verdict, announce
from twinvit.port.verdict import Evidence, decide
from twinvit.verdict_flags import checked

SAME_WEIGHTS = 1e-12  # of an array's largest number: a type widened and narrowed again


def compare(
    a: Path,
    b: Path,
    /,
    precision: Precision = "fp64",
    twin_a: Twin = "jax",
    twin_b: Twin = "torch",
    batch_size: int = 2,
    seed: int = 0,
    num_heads: int | None = None,
    html: Path | None = None,
    json: str | None = None,
    quiet: bool = False,
    github: bool = False,
) -> int:
    """Run the same random images through two weight files and name the first divergent layer.

    Exit status: 0 same, 1 different, 2 undecided, 3 no verdict (wrong arguments or files).

    Args:
        a: a weight file of any known format, a run or a checkpoint directory, or a name on the
            Hugging Face hub, hf:OWNER/NAME[@REVISION][/FILE].
        b: another, or the same to compare the twins on it.
        precision: of both; fp32 and narrower may hide a wrong formula.
        twin_a: which implementation computes a.
        twin_b: which implementation computes b.
        batch_size: how many images.
        seed: of the images.
        num_heads: for files that do not say.
        html: where to write the comparison as a page.
        json: where to write the verdict as JSON; without a path to standard output, where nothing
            else is written then.
        quiet: print the verdict's line only.
        github: print annotations of a GitHub workflow, too.
    """
    flags = checked(json, quiet, github)

    def work() -> Verdict:
        return _compared(a, b, precision, (twin_a, twin_b), batch_size, seed, num_heads, html)

    return announce(flags, work)


def _compared(
    a: Path,
    b: Path,
    precision: Precision,
    twins: tuple[Twin, Twin],
    batch_size: int,
    seed: int,
    num_heads: int | None,
    html: Path | None,
) -> Verdict:
    """Compare, print what was found, and write the page. Raises UserError."""
    if precision not in LIMITS:
        raise UserError(
            f"--precision={precision}: only the PyTorch twin has it; choose from "
            f"{', '.join(LIMITS)}"
        )
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size}: expected 1 or more")
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        raise UserError(f"--html={html}: name a file in a folder that exists")
    sides = [_opened(path, twin, num_heads) for path, twin in zip((a, b), twins)]
    size, other = (shown(side.cfg.image_shape) for side in sides)
    if size != other:
        raise UserError(
            f"{a} takes images of {size} and {b} of {other}: convert one with --image_size first"
        )
    functions = settings_in_words(*(s.cfg for s in sides))
    if functions:
        print(*functions, sep="\n")
    images = np.random.default_rng(seed).standard_normal((batch_size, *sides[0].cfg.image_shape, 3))
    images = images.astype(np.float32)
    found = decided(sides[0], sides[1], images, precision)
    report(found)
    if html is not None:
        from twinvit.compare.page import compare_page

        inputs = f"{batch_size} images of {size}, normal, from seed {seed}"
        compare_page(html, found, functions, (sides[0].arrays, sides[1].arrays), images, inputs)
        print(f"page: {html}")
    return verdict_of(found, sides[0], sides[1], functions, images.shape, seed)


def verdict_of(
    found: Comparison,
    a: Side,
    b: Side,
    functions: list[str],
    shape: tuple[int, ...],
    seed: int,
) -> Verdict:
    """A comparison as programs read it."""
    reasons = {
        "same": [],
        "different": [
            *found.wrong,
            *(f"{name or 'logits'}: {why}" for name, why in found.apart.items()),
            *(f"only one of them has {name}" for name in found.alone),
        ],
        "undecided": found.open or ["there is no output to compare"],
    }[found.verdict]
    own = {
        "models": [s.told() for s in (a, b)],
        "inputs": [{"name": "images", "shape": shape, "dtype": "float32"}],
        "seed": seed,
        "precision": found.precision,
        "limit": found.limit,
        "distances": {name or "logits": d for name, d in found.distances.items()},
        "first": None if found.first is None else found.first or "logits",
        "alone": found.alone,
        "constant": found.constant,
        "functions": functions,
        "notes": found.notes,
    }
    return Verdict("compare", found.verdict, found.sentences()[-1], reasons, own)


@dataclass(frozen=True)
class Side:
    """One of the two models: where its weights are from, and which twin computes it."""

    path: Path
    twin: Twin
    source: Source
    arrays: dict[str, np.ndarray]

    @property
    def cfg(self) -> ModelConfig:
        return self.source.cfg

    @property
    def name(self) -> str:
        return f"{self.twin} {self.path}"

    def told(self) -> dict[str, str]:
        """Its fields in the verdict's JSON."""
        return {"path": str(self.path), "twin": self.twin, "format": self.source.format}


def _opened(path: Path, twin: Twin, num_heads: int | None) -> Side:
    source = open_weights(path, num_heads=num_heads)
    return Side(path, twin, source, in_memory(source.arrays))


def decided(a: Side, b: Side, images: np.ndarray, precision: Precision) -> Comparison:
    """Run both, measure what rounding does, and compare outputs, settings, names and weights."""
    mine, theirs = (trace(s.twin, s.cfg, s.arrays, images, precision) for s in (a, b))
    first = mine if a.twin == "torch" else trace("torch", a.cfg, a.arrays, images, precision)
    moved = rounding(a.cfg, a.arrays, images, precision, first)
    found = compared(mine, theirs, LIMITS[precision], a.name, b.name, precision, moved)
    wrong = [
        f"the functions differ: {name}: {values}"
        for name, values, matters in settings_apart(a.cfg, b.cfg)
        if matters
    ]
    names = names_apart(a.source.class_names, b.source.class_names)
    wrong += [names] if names else []
    found = dataclasses.replace(found, wrong=wrong)
    if found.exit_status != 1:
        found = _behind_zeros(found, a, b, images, precision)
    if found.verdict != "same":
        found = dataclasses.replace(found, notes=found.notes + trainings(a.path, b.path))
    return found


def _behind_zeros(
    found: Comparison, a: Side, b: Side, images: np.ndarray, precision: Precision
) -> Comparison:
    """The same, where the outputs agree, with what they cannot show: weights and zeros."""
    open_, notes = list(found.open), list(found.notes)
    apart = weights_apart(a.arrays, b.arrays, SAME_WEIGHTS)
    if apart:
        open_.append(f"weights differ of which no output shows anything: {some(apart)}")
    if nothing_in(a.arrays) or nothing_in(b.arrays):
        open_.append("all weights are zero: there is nothing to compare")
    zeros = sorted({*zero_weights(a.arrays), *zero_weights(b.arrays)})
    if zeros and not open_:
        again = _with_drawn_weights(a, b, images, precision)
        if again.wrong:
            where = next(iter(again.wrong)) or "the logits"
            return dataclasses.replace(
                found,
                wrong=[
                    f"{some(zeros)}: zero, and with random weights instead the first "
                    f"divergence is at {where}"
                ],
            )
        notes.append(
            f"{some(zeros)}: zero, so that outputs show nothing of what is before. The weights are "
            "the same array by array, and with random weights the functions are, too"
        )
    return dataclasses.replace(found, open=open_, notes=notes)


def _with_drawn_weights(a: Side, b: Side, images: np.ndarray, precision: Precision) -> Judged:
    from twinvit.compare.drawn_weights import random_arrays

    drawn = random_arrays(a.cfg)
    mine, theirs = (trace(s.twin, s.cfg, drawn, images[:2], precision) for s in (a, b))
    return judged(mine, theirs, precision, LIMITS[precision])


@dataclass(frozen=True)
class Comparison:
    """Two models' outputs on the same inputs. distances: {module: relative L2}, in the order of
    `a`; "" is the logits. alone: modules that one of them has. constant: whether every input gives
    the same logits. apart: {module: why}, outputs that differ; wrong: what else does; open: what
    could not be decided; notes: what is reported in addition to the verdict."""

    name_a: str
    name_b: str
    precision: str
    limit: float
    distances: dict[str, float]
    alone: list[str]
    constant: bool
    apart: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> str | None:
        """The first module that differs."""
        return next(iter(self.apart), None)

    @property
    def verdict(self) -> str:
        """ "same", "different" or "undecided"."""
        wrong = [*self.apart.values(), *self.alone, *self.wrong]
        return decide(Evidence(wrong, self.open, len(self.distances)))

    @property
    def exit_status(self) -> int:
        """0: same; 1: different; 2: undecided."""
        return VERDICTS.index(self.verdict)

    def sentences(self) -> list[str]:
        """The verdict, last, and the notes next to it."""
        found = []
        if self.alone:
            found.append(f"only one of them has: {', '.join(self.alone)}")
        if self.constant:
            found.append(
                "every image gives the same logits (a zero head?): the last layers' agreement "
                "shows nothing"
            )
        found += [*self.wrong[1:], *self.notes]
        if self.verdict == "same":
            found.append(f"SAME: every output within {self.limit:g}")
        elif self.verdict == "undecided":
            found += self.open[1:]
            found.append(f"UNDECIDED: {(self.open or ['there is no output to compare'])[0]}")
        elif self.first is not None:
            found += self.wrong[:1]
            where = self.first or "the logits"
            why = "" if self.distances[self.first] > self.limit else f": {self.apart[self.first]}"
            found.append(
                f"DIFFERENT: the first divergence is at {where} (limit {self.limit:g}){why}"
            )
        else:
            why = self.wrong[0] if self.wrong else "the models have other layers"
            found.append(f"DIFFERENT: {why}")
        return found


def compared(
    a: Outputs,
    b: Outputs,
    limit: float,
    name_a: str,
    name_b: str,
    precision: str,
    moved: Outputs | None = None,
) -> Comparison:
    """The distance of each output that both have; `moved` is what rounding does to their
    numbers."""
    found = judged(a, b, precision, limit, moved)
    constant = len(a[""]) > 1 and not np.ptp(a[""], axis=0).any()
    open_ = [f"{name or 'the logits'}: {why}" for name, why in found.open.items()]
    return Comparison(
        name_a,
        name_b,
        precision,
        limit,
        found.distances,
        sorted(set(a) ^ set(b)),
        constant,
        found.wrong,
        open=open_,
    )


def trainings(a: Path, b: Path) -> list[str]:
    """What is to be known where both are runs, or checkpoints of runs."""
    runs = [next((f for f in (p, *p.parents[:3]) if _recipe(f) is not None), None) for p in (a, b)]
    if None in runs or a.resolve() == b.resolve():
        return []
    first, second = (_recipe(run) for run in runs if run is not None)
    assert first is not None and second is not None
    if str(runs[0]) == str(runs[1]):
        return [f"{a} and {b} are of one training: its weights change from step to step"]
    apart = [
        f.name
        for f in dataclasses.fields(first)
        if getattr(first, f.name) != getattr(second, f.name)
    ]
    same = f"of recipes that differ in {', '.join(apart)}" if apart else "of one recipe"
    why = "" if apart else ": rounding alone makes weights that are trained apart differ"
    return [
        f"{a} and {b} are two trainings, {same}{why}. `twinvit curves {runs[0]} {runs[1]}` judges "
        f"trainings, and `twinvit audit {runs[0]}` each step"
    ]


def _recipe(folder: Path) -> Recipe | None:
    try:
        return read_record(folder).recipe
    except (UserError, OSError):
        return None


def report(found: Comparison) -> int:
    """Print each output's distance and the verdict; the exit status."""
    names = f"{found.name_a}  against  {found.name_b}"
    print(f"{names}, {found.precision}; relative L2 of each output")
    for layer, distance in found.distances.items():
        mark = "  <-- first divergence" if layer == found.first else ""
        print(f"  {layer or 'logits':<28} {distance:9.2e}{mark}")
    print(*found.sentences(), sep="\n")
    return found.exit_status


def settings_in_words(a: ModelConfig, b: ModelConfig) -> list[str]:
    """A sentence for each setting in which two models differ: that it is another function, as the
    verdict has it, or that it is none."""
    said = {True: "the functions differ", False: "a setting differs, and not the function"}
    return [f"{said[matters]}: {name}: {pair}" for name, pair, matters in settings_apart(a, b)]
