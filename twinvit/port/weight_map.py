"""A map of weights between a PyTorch model and its port: proposed, readable, and thereby a
converter both ways."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twinvit.port.errors import PortError

SYNONYMS = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "gamma": "weight",
    "w": "weight",
    "g": "weight",
    "beta": "bias",
    "b": "bias",
    "offset": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "query": "q",
    "key": "k",
    "value": "v",
    "attention": "attn",
    "self": "attn",
    "mha": "attn",
    "layernorm": "norm",
    "ln": "norm",
    "batchnorm": "norm",
    "bn": "norm",
    "groupnorm": "norm",
    "rmsnorm": "norm",
    "dense": "fc",
    "linear": "fc",
    "lin": "fc",
    "proj": "out",
    "output": "out",
    "o": "out",
    "layers": "block",
    "blocks": "block",
    "layer": "block",
    "h": "block",
    "encoderblock": "block",
    "convolution": "conv",
    "embeddings": "embed",
    "position": "pos",
    "posembed": "pos",
    "classifier": "head",
    "up": "fc1",
    "down": "fc2",
}
IGNORED = ("params", "batch_stats", "module", "model", "raw_value")


@dataclass
class Rule:
    """How one array of the port is made.

    Attributes:
        jax: the port's array, "layers.0.attn.q.kernel".
        torch: the reference's arrays; several are stacked along a new first axis.
        shape: the port's shape.
        torch_shape: shape of (the part of) each of the reference's arrays.
        permute: order of its axes before it is reshaped.
        part: (i, n): the i-th of n equal parts along the first axis; empty for all of it.
        scale, offset: the port's array is scale * x + offset.
    """

    jax: str
    torch: list[str]
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]
    permute: tuple[int, ...]
    part: tuple[int, ...] = ()
    scale: float = 1.0
    offset: float = 0.0

    def make(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """The port's array."""
        made = []
        for name in self.torch:
            x = np.asarray(state[name])
            if self.part:
                x = np.split(x, self.part[1])[self.part[0]]
            if x.shape != tuple(self.torch_shape):
                raise ValueError(f"{name} has shape {x.shape} and not {tuple(self.torch_shape)}")
            made.append(x.transpose(self.permute) if x.ndim else x)
        x = np.stack(made) if len(made) > 1 else made[0]
        x = x.reshape(self.shape)
        return x if (self.scale, self.offset) == (1.0, 0.0) else self.scale * x + self.offset

    def undo(self, leaf: np.ndarray) -> list[np.ndarray]:
        """The reference's arrays (or the parts of them) in the order of `torch`."""
        x = np.asarray(leaf)
        if x.shape != tuple(self.shape):
            raise ValueError(f"its shape is {x.shape} and not {tuple(self.shape)}")
        if (self.scale, self.offset) != (1.0, 0.0):
            x = (x - self.offset) / self.scale
        moved = tuple(self.torch_shape[i] for i in self.permute)
        parts = (
            x.reshape((len(self.torch), *moved)) if len(self.torch) > 1 else x.reshape((1, *moved))
        )
        back = tuple(np.argsort(self.permute))
        return [p.transpose(back) if p.ndim else p for p in parts]


@dataclass
class WeightMap:
    """Rules for the port's arrays.

    Attributes:
        rules: one for each array of the port that has a counterpart.
        ambiguous: choices that nothing decided, in words.
        unused: arrays of either side without a counterpart.
        open: names of the port's arrays that names alone have placed; not saved.
    """

    rules: list[Rule] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set, compare=False, repr=False)

    def apply(self, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The port's arrays by name, from the reference's state dict.

        Raises:
            PortError: an array is missing or has another shape than the map was made for.
        """
        state = {k: _array(v) for k, v in state_dict.items()}
        made = {}
        for rule in self.rules:
            missing = [n for n in rule.torch if n not in state]
            if missing:
                raise PortError(f"the state dict lacks {missing[0]}, which {rule.jax} is made of")
            try:
                made[rule.jax] = rule.make(state)
            except ValueError as error:
                raise PortError(
                    f"{rule.jax} cannot be made of {', '.join(rule.torch)}: {error}"
                ) from error
        return made

    def invert(self, tree: Any) -> dict[str, np.ndarray]:
        """The reference's arrays by name, from the port's: a flat mapping by name, or a pytree of
        arrays.

        Raises:
            PortError: an array is missing or has another shape than the map was made for, or no
                rule makes a part of one of the reference's.
        """
        leaves = _named_leaves(tree)
        parts: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
        result: dict[str, np.ndarray] = {}
        for rule in self.rules:
            if rule.jax not in leaves:
                raise PortError(f"the port's arrays lack {rule.jax}")
            try:
                values = rule.undo(leaves[rule.jax])
            except ValueError as error:
                raise PortError(
                    f"{', '.join(rule.torch)} cannot be made of {rule.jax}: {error}"
                ) from error
            for name, value in zip(rule.torch, values):
                if rule.part:
                    parts.setdefault(name, {})[rule.part] = value
                else:
                    result[name] = value
        for name, pieces in parts.items():
            n = max(part[1] for part in pieces)
            if sorted(pieces) != [(i, n) for i in range(n)]:
                raise PortError(f"the map makes {len(pieces)} of {n} parts of {name}")
            result[name] = np.concatenate([pieces[i, n] for i in range(n)])
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as TOML."""
        lines = [
            "# the port's array = the reference's array (part, then permute, then reshape)",
            "format = 1",
        ]
        for title, texts in (("ambiguous", self.ambiguous), ("unused", self.unused)):
            lines.append(f"{title} = [{', '.join(_quoted(t) for t in texts)}]")
        if not self.rules:
            lines.append("map = []")
        for rule in self.rules:
            lines += [
                "",
                "[[map]]",
                f"jax = {_quoted(rule.jax)}",
                f"torch = [{', '.join(_quoted(t) for t in rule.torch)}]",
            ]
            lines.append(f"shape = {list(rule.shape)}")
            lines.append(f"torch_shape = {list(rule.torch_shape)}")
            lines.append(f"permute = {list(rule.permute)}")
            if rule.part:
                lines.append(
                    f"part = {list(rule.part)}  # the {rule.part[0]}-th of {rule.part[1]}, from 0"
                )
            if (rule.scale, rule.offset) != (1.0, 0.0):
                lines += [f"scale = {rule.scale!r}", f"offset = {rule.offset!r}"]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightMap:
        """Read what `save` wrote. Raises PortError on a file that is no map."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != 1:
                raise ValueError(f"its format is {data['format']!r} and not 1")
            rules = [
                Rule(
                    r["jax"],
                    list(r["torch"]),
                    tuple(r["shape"]),
                    tuple(r["torch_shape"]),
                    tuple(r["permute"]),
                    tuple(r.get("part", ())),
                    float(r.get("scale", 1.0)),
                    float(r.get("offset", 0.0)),
                )
                for r in data["map"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PortError(
                f"{path} is no map of weights: {type(error).__name__}: {error}"
            ) from error
        return cls(rules, list(data.get("ambiguous", [])), list(data.get("unused", [])))


def map_weights(
    torch_model: Any, jax_model: Any, inputs: Any = None, jax_inputs: Any = None
) -> WeightMap:
    """Propose which of the reference's arrays each of the port's arrays is.

    Equal values decide where both hold them already. Otherwise shapes, names and order propose,
    and, with `inputs`, running the port decides what they leave open: the choice that makes more
    of the reference's values appear.

    Args:
        torch_model: nn.Module.
        jax_model: the port, as `explain` takes it.
        inputs: arrays as the reference takes them.
        jax_inputs: arrays as the port takes them, if they are others.
    """
    from twinvit.port import models
    from twinvit.port.record import jax_types
    from twinvit.port.weight_search import equal_arrays

    state = {
        k: _array(v)
        for k, v in torch_model.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    pure = models.pure(jax_model)
    leaves = {
        n: np.asarray(jax_types.widen(x))
        for n, x in zip(pure.names, pure.leaves)
        if hasattr(x, "dtype") and str(x.dtype).startswith(("float", "bfloat"))
    }
    result = WeightMap()
    used: set[tuple[str, tuple[int, ...]]] = set()
    left: list[str] = []
    for name, leaf in leaves.items():
        rule = _by_value(name, leaf, state, used)
        if rule is None:
            left.append(name)
        else:
            result.rules.append(rule)
            used.update((t, rule.part) for t in rule.torch)
    choices = _by_name(left, leaves, state, used, pure.kind, result)
    if choices and inputs is not None:
        _decide(torch_model, jax_model, inputs, jax_inputs, pure, result, choices, state)
    result.open = {a.jax for a, alternatives in choices if alternatives}
    result.ambiguous += [
        f"{a.jax}: {', '.join(a.torch)} by name alone" for a, _ in choices if a.jax in result.open
    ]
    mapped_names = {t for r in result.rules for t in r.torch}
    result.ambiguous += equal_arrays({n: x for n, x in state.items() if n in mapped_names})
    taken = {t for r in result.rules for t in r.torch}
    result.unused += [f"torch: {n}" for n in state if n not in taken]
    mapped = {r.jax for r in result.rules}
    result.unused += [f"jax: {n}" for n in leaves if n not in mapped]
    order = {n: i for i, n in enumerate(leaves)}
    result.rules.sort(key=lambda r: order[r.jax])
    return result


def _parts(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Arrays and their equal parts along the first axis."""
    for name, x in state.items():
        yield name, (), x
        for n in (2, 3, 4):
            if (
                x.ndim
                and x.shape[0] % n == 0
                and x.shape[0] > n
                and re.search(r"qkv|in_proj|_ih|_hh|kv|gate_up|weight|bias", name)
            ):
                for i, part in enumerate(np.split(x, n)):
                    yield name, (i, n), part


def _by_value(
    name: str,
    leaf: np.ndarray,
    state: Mapping[str, np.ndarray],
    used: set[tuple[str, tuple[int, ...]]],
) -> Rule | None:
    """The rule that makes exactly this array; None if no values agree or if they prove nothing."""
    if leaf.size < 2 or float(leaf.max()) == float(leaf.min()):
        return None
    for torch_name, part, x in _parts(state):
        if x.size == leaf.size and (torch_name, part) not in used:
            for permute in _orders(x.ndim):
                if np.allclose(x.transpose(permute).reshape(leaf.shape), leaf, rtol=1e-6, atol=0):
                    return Rule(name, [torch_name], leaf.shape, x.shape, permute, part)
    if leaf.ndim >= 2 and 2 <= leaf.shape[0] <= 200:
        rules = [_by_value(name, np.ascontiguousarray(s), state, used) for s in leaf]
        found = [r for r in rules if r is not None]
        if (
            len(found) == len(rules)
            and len({(r.permute, r.part, r.torch_shape) for r in found}) == 1
        ):
            first = found[0]
            return Rule(
                name,
                [r.torch[0] for r in found],
                leaf.shape,
                first.torch_shape,
                first.permute,
                first.part,
            )
    return None


def _orders(ndim: int) -> list[tuple[int, ...]]:
    usual = {
        0: [()],
        1: [(0,)],
        2: [(1, 0), (0, 1)],
        3: [(2, 1, 0)],
        4: [(2, 3, 1, 0), (2, 3, 0, 1)],
    }.get(ndim, [])
    every = list(itertools.permutations(range(ndim))) if ndim <= 5 else []
    return list(dict.fromkeys([*usual, *every]))  # type: ignore[misc]


def _words(name: str) -> tuple[list[str], list[int]]:
    """A name's words, synonyms made one, and its numbers."""
    words, found = [], []
    name = re.sub(r"\.(raw_)?value$", "", name)  # the end of a path in nnx
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    for part in re.split(r"[._/\[\]]+", name):
        for piece in re.findall(r"[A-Za-z]+|\d+", part):
            if piece.isdigit():
                found.append(int(piece))
            elif piece.lower() not in IGNORED:
                words.append(SYNONYMS.get(piece.lower(), piece.lower()))
    return words, found


def _score(jax_name: str, torch_name: str, part: tuple[int, ...]) -> float:
    (a, m), (b, n) = _words(jax_name), _words(torch_name)
    kinds = ("weight", "bias", "running_mean", "running_var")
    kind_a, kind_b = (next((w for w in reversed(ws) if w in kinds), "") for ws in (a, b))
    torch_last = torch_name.rsplit(".", 1)[-1]
    kind_b = torch_last if torch_last in kinds else kind_b
    score = 0.0 if not kind_a or not kind_b else (2.0 if kind_a == kind_b else -6.0)
    common = len(set(a) & set(b))
    score += 2.0 * common / max(1, len(set(a) | set(b)))
    score += 1.5 if m == n else 1.0 if m and n and m[0] == n[0] else 0.0
    if part:
        letters = "qkv" if part[1] == 3 else "kv" if part[1] == 2 else "ifgo"
        score += 2.0 if letters[part[0]] in a else -2.0
    return score


def _default(kind: str, name: str, x: np.ndarray, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders of axes that fit, the usual first: Flax's kernels are transposed, Equinox's weights
    are not."""
    same = tuple(range(x.ndim))
    if x.ndim == 1 or x.ndim == 0:
        return [same]
    flax = any(w in name.lower().split(".")[-1] for w in ("kernel", "w")) or kind not in ("pytree",)
    if "embed" in name.lower() or name.endswith("weight") and kind == "pytree":
        flax = False
    usual = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}.get(x.ndim, same)
    order = [usual, same] if flax else [same, usual]
    order += _orders(x.ndim)
    fits = [p for p in dict.fromkeys(order) if _fits(tuple(x.shape[i] for i in p), shape)]
    return fits or [p for p in dict.fromkeys(order)]


def orders_of(kind: str, rule: Rule) -> list[tuple[int, ...]]:
    """Orders of axes to try for a rule's array, the usual first."""
    shape = rule.shape if len(rule.torch) == 1 else rule.shape[1:]
    return _default(kind, rule.jax, np.empty(rule.torch_shape), shape)[:4]


def _fits(moved: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """True if one shape is the other with neighbouring axes merged or split."""

    def edges(s: Sequence[int]) -> set[int]:
        found, total = set(), 1
        for n in s:
            total *= n
            found.add(total)
        return found

    a, b = edges(moved), edges(shape)
    return a <= b or b <= a


_Unit = tuple[str, tuple[int, ...], np.ndarray]
"""A tensor of the reference or a part of one: its name, which part, and its values."""
_Choices = list[tuple[Rule, list[Rule]]]
"""Rules, each with its alternatives."""


def _by_name(
    left: list[str],
    leaves: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    used: set[tuple[str, tuple[int, ...]]],
    kind: str,
    result: WeightMap,
) -> _Choices:
    """Rules by shape, name and order, each with its alternatives; `result` gets the rules."""
    taken = {t for t, _ in used}
    units = [(n, p, x) for n, p, x in _parts(state) if (n, p) not in used and (p or n not in taken)]
    choices = _stacks(left, leaves, units, kind)
    stacked = {rule.jax for rule, _ in choices}
    gone = {t for rule, _ in choices for t in rule.torch}
    units = [u for u in units if u[0] not in gone]
    whole_sizes = {x.size for n, p, x in units if not p}
    by_size: dict[int, list[str]] = {}
    for name in left:
        if name not in stacked:
            by_size.setdefault(leaves[name].size, []).append(name)
    for size, names in by_size.items():
        options = [
            u
            for u in units
            if u[2].size == size and (not u[1] or size not in whole_sizes or _packed(u[0]))
        ]
        if options:
            choices += _of_one_size(names, leaves, options, kind)
    result.rules.extend(rule for rule, _ in choices)
    return choices


def _stacks(
    left: list[str], leaves: Mapping[str, np.ndarray], units: list[_Unit], kind: str
) -> _Choices:
    """Rules of the port's arrays that hold a layer's array of every layer."""
    sizes = {x.size for n, p, x in units if not p}
    choices: _Choices = []
    for name in left:
        leaf = leaves[name]
        if leaf.ndim >= 2 and leaf.size not in sizes and leaf.shape[0] > 1:
            rule = _stacked(name, leaf, units, kind)
            if rule is not None:
                turned = [r for r in _turned(rule, kind) if r.permute != rule.permute]
                choices.append((rule, turned))
    return choices


def _of_one_size(
    names: list[str], leaves: Mapping[str, np.ndarray], options: list[_Unit], kind: str
) -> _Choices:
    """Rules of the port's arrays of one size: the assignment with the best sum of scores."""
    from scipy.optimize import linear_sum_assignment

    scores = np.array(
        [
            [
                _score(n, u[0], u[1])
                + _straight(kind, n, u[2], leaves[n].shape)
                - 0.3 * abs(i / len(names) - j / len(options))
                for j, u in enumerate(options)
            ]
            for i, n in enumerate(names)
        ]
    )
    choices: _Choices = []
    for i, j in zip(*linear_sum_assignment(-scores)):
        name, shape = names[i], leaves[names[i]].shape
        torch_name, part, x = options[j]
        orders = _default(kind, name, x, shape)
        rule = Rule(name, [torch_name], shape, x.shape, orders[0], part)
        alternatives = [Rule(name, [torch_name], shape, x.shape, o, part) for o in orders[1:4]]
        close = [k for k in range(len(options)) if k != j and scores[i][k] > scores[i][j] - 1.5]
        for other, other_part, y in (options[k] for k in close[:6]):
            order = _default(kind, name, y, shape)[0]
            alternatives.append(Rule(name, [other], shape, y.shape, order, other_part))
        choices.append((rule, alternatives))
    return choices


def _straight(kind: str, name: str, x: np.ndarray, shape: tuple[int, ...]) -> float:
    """1 if the array has the leaf's shape in the usual order of its axes, or with some merged."""
    first = _default(kind, name, x, shape)[0]
    return 1.0 if _fits(tuple(x.shape[i] for i in first), shape) else 0.0


def _packed(name: str) -> bool:
    return re.search(r"qkv|in_proj|kv_proj|gate_up|_ih|_hh", name) is not None


def _turned(rule: Rule, kind: str) -> list[Rule]:
    x = np.empty(rule.torch_shape)
    return [
        Rule(rule.jax, rule.torch, rule.shape, rule.torch_shape, o, rule.part)
        for o in _default(kind, rule.jax, x, rule.shape[1:])[:3]
    ]


def _stacked(
    name: str, leaf: np.ndarray, units: list[tuple[str, tuple[int, ...], np.ndarray]], kind: str
) -> Rule | None:
    """A leaf that holds all layers of a numbered family of arrays."""
    n = leaf.shape[0]
    families: dict[tuple[str, tuple[int, ...]], list[tuple[int, str, np.ndarray]]] = {}
    for torch_name, part, x in units:
        for found in re.finditer(r"(?<=\.)\d+(?=\.)", torch_name):
            pattern = torch_name[: found.start()] + "#" + torch_name[found.end() :]
            families.setdefault((pattern, part), []).append((int(found.group()), torch_name, x))
    fitting = [
        (
            _score(name, pattern.replace("#.", ""), part),
            pattern,
            part,
            sorted(members, key=lambda m: m[0]),
        )
        for (pattern, part), members in families.items()
        if len(members) == n and members[0][2].size * n == leaf.size
    ]
    if not fitting:
        return None
    _, _, part, members = max(fitting, key=lambda f: f[0])
    x = members[0][2]
    permute = _default(kind, name, x, leaf.shape[1:])[0]
    return Rule(name, [m[1] for m in members], leaf.shape, x.shape, permute, part)


def _decide(
    torch_model: Any,
    jax_model: Any,
    inputs: Any,
    jax_inputs: Any,
    pure: Any,
    result: WeightMap,
    choices: list[tuple[Rule, list[Rule]]],
    state: Mapping[str, np.ndarray],
) -> None:
    """Take the alternatives that make more of the reference's values appear in the port's."""
    from twinvit.port.outputs import pick_torch
    from twinvit.port.pair import Pair
    from twinvit.port.record import torch_program
    from twinvit.port.weight_search import WeightSearch

    pair = Pair(torch_model, jax_model, inputs, jax_inputs, None, lambda text: None)
    graph = torch_program.record(
        torch_model, inputs, lambda out: [t for _, t in pick_torch(out, None)]
    )
    wide = {k: np.asarray(v, np.float64) for k, v in state.items()}

    open_ = {proposed.jax for proposed, _ in choices}
    search = WeightSearch(
        pair, graph, result.rules, open_, lambda rule: orders_of(pure.kind, rule), wide
    )
    undecided = search.decide()
    alternatives = {r.jax: a for r, a in choices}
    choices[:] = [(r, alternatives[r.jax]) for r in result.rules if r.jax in undecided]


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return x.double().numpy() if x.dtype.is_floating_point else x.numpy()
    return np.asarray(x)


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
    from twinvit.port import models

    if isinstance(tree, Mapping) and all(hasattr(v, "shape") for v in tree.values()):
        return {k: np.asarray(v) for k, v in tree.items()}
    pure = models.pure(
        tree if not isinstance(tree, Mapping) else models.Function(lambda p: p, tree)
    )
    return {n: np.asarray(x) for n, x in zip(pure.names, pure.leaves)}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
