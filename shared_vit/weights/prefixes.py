"""Names as wrappers leave them: a prefix that is not the format's, and arrays besides a model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from shared_vit.errors import UserError, some
from shared_vit.weights.choice import Said, Which
from shared_vit.weights.lazy import Arrays

_DEEPEST = 6  # parts of a prefix
_FEWEST = 8  # arrays below one: a ViT of one block has more
_MOST_TRIED = 200
_AVERAGED = (
    "ema", "model_ema", "ema_model", "teacher", "averaged_model", "momentum_encoder",
    "momentum_backbone",
)  # fmt: skip
_BY_ITSELF = "teacher"


def without_prefix(
    arrays: Arrays,
    is_known: Callable[[Arrays], bool],
    which: Which | None,
    where: str,
    said: Said,
) -> tuple[Arrays, Arrays]:
    """`(arrays, others)`: those below the prefix whose rest `is_known`, and what is left.

    Of several prefixes the one with the most arrays is taken, and the averaged or the raw weights
    as `which` says. Adds to `said` what was found. Where no prefix helps, all arrays come back.
    """
    which = None if said.taken else which
    if which is None and is_known(arrays):
        return arrays, {}
    fitting = [p for p in _prefixes(arrays) if is_known(_below(arrays, p))]
    averaged = [p for p in fitting if _is_averaged(p)]
    raw = [p for p in fitting if not _is_averaged(p)]
    if which == "raw" and not raw and is_known(arrays):
        return arrays, {}
    if which == "ema" and not averaged:
        raise UserError(f"{where} holds no averaged weights: leave #ema out")
    if not fitting:
        return arrays, {}
    teacher = which is None and any(_BY_ITSELF in p.split(".") for p in averaged)
    prefix = (averaged if which == "ema" or teacher or not raw else raw)[0]
    found = _below(arrays, prefix)
    others = {name: array for name, array in arrays.items() if not name.startswith(prefix)}
    said.notices.append(f"names are read without the prefix {prefix!r}")
    if averaged and raw:
        kind, other = ("averaged", "raw") if prefix in averaged else ("raw", "averaged")
        flag = "raw" if prefix in averaged else "ema"
        said.notices.append(
            f"the {kind} weights of {where} are taken; its {other} ones are {where}#{flag}"
        )
    return found, others


def say_left_out(others: Arrays, said: Said) -> None:
    """Add to `said` what was not read, the model being read."""
    if others:
        names = some(sorted(others), 3, ", ")
        said.notices.append(f"left out: {len(others)} arrays that are not the model's ({names})")


def _prefixes(arrays: Arrays) -> list[str]:
    """Prefixes of many names, those of the most arrays first, longer ones after shorter."""
    counts: Counter[str] = Counter()
    for name in arrays:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[: i + 1]) + "." for i in range(min(_DEEPEST, len(parts))))
    usual = [(-n, len(p), p) for p, n in counts.items() if n >= _FEWEST]
    return [prefix for _, _, prefix in sorted(usual)[:_MOST_TRIED]]


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _is_averaged(prefix: str) -> bool:
    return any(part in _AVERAGED for part in prefix.split("."))
