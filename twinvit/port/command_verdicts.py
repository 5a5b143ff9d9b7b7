"""What `twinvit port map` and `blind_spots` found, as programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinvit.pages.verdicts import Verdict

if TYPE_CHECKING:
    from twinvit.port.audit import BlindSpots
    from twinvit.port.weight_map import WeightMap


def of_map(found: WeightMap, torch_model: Any, jax_model: Any, path: Path) -> Verdict:
    """A map of weights: different where an array has no counterpart, undecided where a choice is
    left open."""
    from twinvit.port.envelope import model_name

    verdict = "different" if found.unused else "undecided" if found.ambiguous else "same"
    reasons = [*(f"unused: {text}" for text in found.unused)]
    reasons += [f"ambiguous: {text}" for text in found.ambiguous]
    line = f"{verdict.upper()}: {len(found.rules)} arrays mapped"
    if reasons:
        line += f", {len(found.unused)} unused, {len(found.ambiguous)} ambiguous; {reasons[0]}"
    own = {
        "models": {"torch": model_name(torch_model), "jax": model_name(jax_model)},
        "rules": found.rules,
        "ambiguous": found.ambiguous,
        "unused": found.unused,
        "file": str(path),
    }
    return Verdict("map", verdict, line, reasons, own)


def of_blind_spots(found: BlindSpots, model: Any, inputs: Any, seed: int) -> Verdict:
    """Blind spots: different where a mistake passes the test."""
    from twinvit.port.envelope import described, model_name

    passing = f"{len(found.missed)} of {len(found.spots)} mistakes pass {found.rule}"
    reasons = [] if found.verdict == "same" else list(found.reasons)
    if found.verdict == "different":
        reasons.insert(0, passing)
    first = reasons[0] if reasons else passing
    own = {
        "models": {"torch": model_name(model)},
        "inputs": described(inputs),
        "seed": seed,
        "rule": found.rule,
        "needed": found.needed,
        "spots": found.spots,
        "same": found.same,
        "hidden": found.hidden,
        "not_finite": found.not_finite,
        "untried": found.untried,
        "open": found.open,
    }
    return Verdict("blind_spots", found.verdict, f"{found.verdict.upper()}: {first}", reasons, own)
