"""The search: which operations of the reference have an equal in the port, where the two part, and
why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from twinvit.port.call import FITS, LAYOUT, Call, flat_tensors, results
from twinvit.port.causes import Cause, Variant, causes_on
from twinvit.port.index import EQUAL, Index, distance, evidence, layouts
from twinvit.port.record_torch import Edit, Graph, Node, Ref
from twinvit.port.report import Operation

NARROW = 1e-6  # no constant in float32 is further off, few formulas are nearer
PRODUCTS = frozenset("mm addmm bmm baddbmm convolution native_layer_norm embedding".split())
"""Operations that no wrong input gives a value of the port by chance."""
PARTS = frozenset("select slice split unsafe_split split_with_sizes unbind chunk narrow".split())
"""Operations that take a part of their input, a step of a sequence."""
FALSE_IN_CELLS = frozenset(("residual_source", "bias_missing", "flatten_order"))
"""Causes that a step's few numbers seem to prove behind a mistake in a recurrent cell."""
CELLS = ("LSTM", "GRU", "RNN")
SEARCH = 800  # candidates that are tried for one operation
TRIES = 800  # values of the port that are put in place for one unknown
LATER = 8  # operations after an unknown at which the search can begin again
WINDOW = 60  # operations after the first divergence that a candidate is judged by
REORDER = frozenset(
    "view reshape permute transpose t unbind split split_with_sizes "
    "chunk select slice cat stack expand unsafe_split "
    "flip roll index index_select gather repeat unfold im2col "
    "pixel_shuffle pixel_unshuffle repeat_interleave clone "
    "unsafe_split_with_sizes unsqueeze squeeze embedding".split()
)
"""Operations that a wrong order, split or offset can hide in even where their values are found."""


MOVES = LAYOUT | REORDER


def numbers(t: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(t.detach().numpy())


_Put = tuple[int, float, int, np.ndarray, int]
"""What is regained, the distance, the port's entry and its value, and the place it is put at."""


@dataclass
class Accepted:
    """An edit that was proven, with what it was proven by."""

    kind: str
    cause: str
    text: str
    node: Node
    edits: dict[int, Edit]
    values: dict[int, torch.Tensor]
    jax: str
    before: float
    after: float
    places: list[str] = field(default_factory=list)
    trial: Trial | None = None
    ties: list[str] = field(default_factory=list)


@dataclass
class Judged:
    """What an edit regains.

    Attributes:
        regained: lost values that are found with the edit.
        broken: found values that are lost with it.
        proof: the first regained value: its id, the port's entry (-1: an output), and the value.
    """

    regained: int
    broken: int
    proof: tuple[int, int, torch.Tensor] | None


@dataclass
class Trial:
    """A candidate edit and what it regains."""

    cause: Cause | None
    variant: Variant
    site: Node
    edits: dict[int, Edit]
    judged: Judged
    rank: int

    @property
    def gain(self) -> int:
        return self.judged.regained - self.judged.broken


class Session:
    """A reference graph, the port's index, and what is known of each value."""

    def __init__(
        self,
        graph: Graph,
        index: Index,
        noise: Mapping[int, float],
        port_outputs: Sequence[np.ndarray],
    ) -> None:
        self.graph = graph
        self.index = index
        self.noise = noise
        self.port_outputs = list(port_outputs)
        self.errors: dict[str, None] = {}  # causes that raised, where and what
        self._confirmed: list[tuple[Node, dict[int, Edit]]] = []
        self.accepted: list[Accepted] = []
        self.trials = 0
        self.what: tuple[str, ...] = ("forward",)
        self.watched: set[int] = set()
        self.spoiled: set[int] = set()
        self.live = self._live()
        self.root: dict[int, int] = {}
        self._roots()
        self.match: dict[
            int, int | None
        ] = {}  # by root id: entry, or None if it has evidence and no equal
        self._refresh(None)

    def _live(self) -> set[int]:
        """Operations that an output depends on."""
        live: set[int] = set()
        wanted = {*self.graph.outputs, *self.watched}
        for node in reversed(self.graph.nodes):
            if any(o in wanted for o in node.outs):
                live.add(node.index)
                wanted.update(node.refs)
        return live

    def _roots(self) -> None:
        for i, producer in enumerate(self.graph.producer):
            self.root[i] = i
            if producer is None:
                continue
            node = self.graph.nodes[producer]
            if node.name in LAYOUT and node.refs:
                source = node.refs[0]
                if self.graph.values[source].numel() == self.graph.values[i].numel():
                    self.root[i] = self.root[source]

    def tolerance(self, value_id: int) -> float:
        return max(EQUAL, 100 * self.noise.get(value_id, 0.0))

    def lookup(self, value_id: int, value: torch.Tensor) -> int | None | bool:
        """The port's entry equal to this value; None if there is none; False if the value proves
        nothing."""
        if value.dtype != torch.float64 or value.numel() < 8:
            return False
        array = numbers(value)
        if not evidence(array):
            return False
        return self.index.find(array, self.tolerance(value_id))

    def _refresh(self, changed: Mapping[int, torch.Tensor] | None) -> None:
        """Look values up again, all or those that changed."""
        for i in range(len(self.graph.values)):
            if self.root[i] != i or (changed is not None and i not in changed):
                continue
            producer = self.graph.producer[i]
            if producer is not None and producer not in self.live:
                continue
            hit = self.lookup(i, self.graph.values[i])
            if hit is False:
                self.match.pop(i, None)
            else:
                self.match[i] = hit
        self._outputs_agree()
        self._passed()

    def _outputs_agree(self) -> None:
        """An output that equals the port's is found even if it is small."""
        for out, theirs in zip(self.graph.outputs, self.port_outputs):
            if align_distance(numbers(self.graph.values[out]), theirs) <= self.tolerance(out):
                if self.match.get(self.root[out]) is None:
                    self.match[self.root[out]] = -1
            else:  # the port may hold it and go on computing
                self.match[self.root[out]] = None

    def _passed(self) -> None:
        """Which values lead to a found one."""
        self.leads: set[int] = set()
        spoiled = self.spoiled = set()  # a part that is found does not vouch for those that are not
        for node in reversed(self.graph.nodes):
            if node.index not in self.live:
                continue
            good = wrong = False
            for out in node.outs:
                if out is None:
                    continue
                if (
                    out in self.leads
                    and out not in spoiled
                    or (self.root[out] == out and self.match.get(out) is not None)
                ):
                    good = True
                elif self.root[out] in self.match and self._consumed(out):
                    wrong = True
            if wrong and self._step_of(node):
                spoiled.update(node.refs)
            elif good:
                self.leads.update(node.refs)

    def _step_of(self, node: Node) -> bool:
        """True for an operation that takes one of many parts, a step of a sequence."""
        if node.name not in PARTS or not node.refs:
            return False
        size = self.graph.values[node.refs[0]].numel()
        return all(o is None or 4 * self.graph.values[o].numel() < size for o in node.outs)

    def recurrent(self, node: Node) -> bool:
        """True for an operation of a recurrent layer."""
        return self.graph.modules.get(node.scope, "").removesuffix("Cell") in CELLS

    def status(self, value_id: int) -> str:
        """found, passed, lost, or "" (proves nothing)."""
        root = self.root[value_id]
        if self.match.get(root) is not None:
            return "found"
        if (value_id in self.leads or root in self.leads) and root not in self.spoiled:
            return "passed"
        return "lost" if root in self.match else ""

    def claimed(self) -> set[int]:
        return {e for e in self.match.values() if e is not None and e >= 0}

    def _ok(self) -> set[int]:
        """Values that are right, as far as can be told: found, passed, or neutral and computed from
        such."""
        ok: set[int] = set()
        for i, producer in enumerate(self.graph.producer):
            if producer is None:
                ok.add(i)
                continue
            status = self.status(i)
            if status in ("found", "passed"):
                ok.add(i)
            elif (status == "" or self.graph.nodes[producer].name in MOVES) and all(
                r in ok for r in self.graph.nodes[producer].refs
            ):
                # Moving right numbers makes none wrong; a wrong order is seen by its consumer.
                ok.add(i)
        return ok

    def frontier(self, skip: set[int]) -> list[Node]:
        """Lost operations all of whose inputs are right, in order."""
        ok = self._ok()
        result = []
        for node in self.graph.nodes:
            if node.index not in self.live or node.index in skip:
                continue
            lost = [
                o
                for o in node.outs
                if o is not None and self._consumed(o) and self.status(o) == "lost"
            ]
            if node.name in MOVES and not any(o in self.graph.outputs for o in node.outs):
                continue
            if lost and all(r in ok for r in node.refs):
                result.append(node)
        return result

    def _consumed(self, value_id: int) -> bool:
        return (
            value_id in self.graph.outputs
            or value_id in self.watched
            or any(c in self.live for c in self.graph.consumers.get(value_id, []))
        )

    def output_distance(self) -> float:
        """Relative L2 distance of all outputs together."""
        top = bottom = 0.0
        for out, theirs in zip(self.graph.outputs, self.port_outputs):
            mine = numbers(self.graph.values[out])
            norm = (
                float(np.linalg.norm(mine[np.isfinite(mine)])) if mine.dtype == np.float64 else 1.0
            )
            d = align_distance(mine, theirs)
            top += (d * norm) ** 2
            bottom += norm**2
        return float(np.sqrt(top / bottom)) if bottom else float(np.sqrt(top))

    def output_tolerance(self) -> float:
        return max([1e-12, *(self.tolerance(o) for o in self.graph.outputs)])

    def operations(self) -> list[Operation]:
        """The picture: each operation's distance and status."""
        result = []
        sorts = 0
        for node in self.graph.nodes:
            if node.index not in self.live or node.name in LAYOUT:
                continue
            out = next((o for o in node.outs if o is not None and self._consumed(o)), None)
            if out is None:
                continue
            status = self.status(out)
            value = numbers(self.graph.values[out])
            far = 0.0
            if status == "":
                far = 0.0
            elif status == "found":
                entry = self.match.get(self.root[out])
                theirs = (
                    self.index.sorted(entry)
                    if entry is not None and entry >= 0 and value.size <= 1 << 16
                    else None
                )
                far = (
                    distance(np.sort(value.reshape(-1)), theirs)
                    if theirs is not None and theirs.size == value.size
                    else 0.0
                )
            elif value.dtype == np.float64:
                sorts += 1
                near = self.index.nearest(value) if sorts <= 40 or value.size < 1 << 14 else []
                far = near[0][0] if near else self.index.bound(value)
            result.append(
                Operation(node.index, node.scope, node.name, far, self.noise.get(out, 0.0), status)
            )
        return result

    def sites(self, front: Node) -> list[Node]:
        """Operations at which the divergence seen at `front` can have been made, the likeliest
        first.

        These are the operation itself, those before it that have no equal or only reorder, those
        found ones that a
        symmetric product can hide an order behind, and the next ones after it (the port may hold
        the next value only).
        """
        near: dict[int, int] = {front.index: 0}
        layer = [(front, 0)]
        for depth in range(1, 16):
            following: list[tuple[Node, int]] = []
            for node, crossed in layer:
                for ref in node.refs:
                    producer = self.graph.producer[ref]
                    if producer is None or producer in near:
                        continue
                    before = self.graph.nodes[producer]
                    found = self.status(ref) == "found" and self.root[ref] == ref
                    plain = found and before.name not in REORDER
                    cost = crossed + plain
                    if cost > 2:
                        continue
                    near[producer] = depth + 8 * cost
                    following.append((before, cost))
            layer = following
            if not layer or len(near) > 48:
                break
        layer_after = [front]
        for depth in range(1, 13):
            after: list[Node] = []
            for node in layer_after:
                for out in node.outs:
                    for user in self.graph.consumers.get(out, []) if out is not None else ():
                        if user in near or user not in self.live:
                            continue
                        behind = self.graph.nodes[user]
                        if any(self.status(o) == "lost" for o in behind.outs if o is not None):
                            near[user] = depth + 3
                            after.append(behind)
            layer_after = after[:4]
        order = sorted(near, key=lambda i: (near[i], -i))
        return [self.graph.nodes[i] for i in order[:48]]

    def variants(
        self, site: Node, family: str = "", fits: float = FITS
    ) -> Iterator[tuple[Cause, Variant]]:
        """Wrong versions of an operation, of one family of causes or of all."""
        claimed = self.claimed()
        for cause in causes_on(site.name, self.what):
            if family and cause.family != family:
                continue
            call = Call(self.graph, site, self.index, claimed)
            call.fits = fits
            for out, theirs in zip(self.graph.outputs, self.port_outputs):
                if out in site.outs:
                    call.target = theirs
            try:
                for variant in cause.generate(call) or ():
                    yield cause, variant
            except Exception as error:  # a cause that does not apply here must not end the search
                self.errors[f"{cause.name} at {site.name}: {type(error).__name__}: {error}"] = None

    def judge(
        self,
        edits: Mapping[int, Edit],
        front: Node,
        values: Mapping[int, torch.Tensor] | None = None,
        window: int = WINDOW,
        patience: int = 5,
        enough: int = 6,
    ) -> Judged | None:
        """What an edit regains; None if the reference cannot run with it."""
        self.trials += 1
        first = min([*edits, *(self.graph.first_use(v) for v in values or {})])
        claims = {self.index.key(e) for e in self.claimed()}
        regained = broken = 0
        proof: tuple[int, int, torch.Tensor] | None = None
        changed: dict[int, torch.Tensor] = dict(values or {})
        fixed = dict(changed)
        last_front = max(front.index, max(edits, default=0))
        misses = 0
        for index in range(first, min(len(self.graph.nodes), last_front + window)):
            if index not in self.live:
                continue
            node = self.graph.nodes[index]
            try:
                new = self.graph.run(edits, changed, first=index, until=index)
            except Exception:
                return None
            for out in node.outs:
                if (
                    out is None
                    or out in fixed
                    or out not in new
                    or self.root[out] != out
                    and index not in edits
                ):
                    if out is not None and out in new:
                        changed[out] = new[out]
                    continue
                changed[out] = new[out]
                root = self.root[out]
                if root not in self.match or not self._consumed(out):
                    continue
                was = self.status(out)
                found = self._find_changed(out, new[out])
                if found is not None:
                    if was == "lost" and (found < 0 or self.index.key(found) not in claims):
                        regained += 1
                        misses = 0
                        if proof is None:
                            proof = (out, found, new[out])
                elif was == "found":
                    broken += 1
                elif was == "lost" and index >= last_front:
                    misses += 1
            if (
                broken > regained + 3
                or (misses >= patience and regained == 0)
                or (enough and regained >= enough)
            ):
                break
        return Judged(regained, broken, proof)

    def _find_changed(self, out: int, value: torch.Tensor) -> int | None:
        if out in self.graph.outputs:
            k = self.graph.outputs.index(out)
            return (
                -1
                if align_distance(numbers(value), self.port_outputs[k]) <= self.tolerance(out)
                else None
            )
        hit = self.lookup(out, value)
        return None if hit is False else hit

    def search(self, front: Node) -> list[Trial]:
        """Candidates that regain something at `front` or after it, the best first."""
        found: list[Trial] = []
        ended: Trial | None = None
        barred = any(self.recurrent(a.node) for a in self.accepted)
        tries = 0
        for rank, site in enumerate(self.sites(front)):
            for cause, variant in self.variants(site):
                if barred and cause.name in FALSE_IN_CELLS:
                    continue
                tries += 1
                if tries > SEARCH:
                    break
                try:
                    edits = edits_of(self.graph, site, variant)
                    judged = self.judge(edits, front)
                except Exception as error:
                    self.errors[f"{cause.name} at {site.name}: {type(error).__name__}: {error}"] = (
                        None
                    )
                    continue
                if judged is None or not judged.regained or judged.broken > judged.regained:
                    continue
                trial = Trial(cause, variant, site, edits, judged, rank)
                found.append(trial)
                if ended is None and judged.regained >= 6 and not judged.broken:
                    if self.aligned(trial):
                        ended = trial  # nothing else can regain more; the site's others may tie
            if ended is not None:
                return [ended, *(t for t in found if t is not ended and t.site is ended.site)]
            if (
                found
                and rank >= 2
                and max(t.gain for t in found) >= 2
                and not self._order_only(found)
            ):
                break
        found.sort(
            key=lambda t: (-t.gain, not self.aligned(t), t.rank, t.cause.order if t.cause else 0)
        )
        return found

    def equals(self, trial: Trial, trials: Sequence[Trial], front: Node) -> list[str]:
        """What other causes of `trials` explain the same operation equally well."""
        name = trial.cause.name if trial.cause else ""
        others: list[Trial] = []
        for other in trials:
            theirs = other.cause.name if other.cause else ""
            if theirs == name or other.gain != trial.gain or other.site is not trial.site:
                continue
            if self.aligned(other) == self.aligned(trial):
                others.append(other)
        if not others:
            return []
        mine = self.judge(trial.edits, front, enough=0)
        found = []
        for other in others[:3]:
            judged = self.judge(other.edits, front, enough=0)
            if (
                mine is not None
                and judged is not None
                and (judged.regained, judged.broken) == (mine.regained, mine.broken)
            ):
                found.append(f"{other.cause.name if other.cause else ''} ({other.variant.text})")
        return found

    def _order_only(self, trials: Sequence[Trial]) -> bool:
        """True if the best candidates hold their values in another order than the port: look
        further."""
        best = max(t.gain for t in trials)
        return not any(self.aligned(t) for t in trials if t.gain == best)

    def aligned(self, trial: Trial) -> bool:
        """True if the first regained value equals the port's number by number, axes permuted at
        most."""
        proof = trial.judged.proof
        if proof is None or proof[1] < 0:
            return True
        theirs = self.index.entries[proof[1]].value
        if theirs is None:
            return True
        return squeezed_distance(numbers(proof[2]), theirs) <= self.tolerance(proof[0])

    def apply(
        self, edits: Mapping[int, Edit], values: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        """Make an edit: the graph's operations are replaced, its values computed again, statuses
        looked up."""
        first = min([*edits, *(self.graph.first_use(v) for v in values or {})])
        for index, edit in edits.items():
            node = self.graph.nodes[index]
            self.graph.nodes[index] = _edited(node, edit)
        self._rewire()
        changed = self.graph.run({}, dict(values or {}), first=first) if values else {}
        if edits:
            more = self.graph.run(
                {i: Edit(self.graph.nodes[i].op) for i in edits}, changed, first=first
            )
            changed.update(more)
        for i, value in changed.items():
            self.graph.values[i] = value.detach()
        self._refresh(changed)

    def undo(self, snapshot: tuple[list[Node], list[torch.Tensor], dict[int, int | None]]) -> None:
        self.graph.nodes[:], self.graph.values[:] = snapshot[0], snapshot[1]
        self.match = dict(snapshot[2])
        self._rewire()
        self._passed()

    def _rewire(self) -> None:
        """An edit may take other values than the operation did: who consumes what changes with
        it."""
        self.graph.finish()
        self.live = self._live()

    def snapshot(self) -> tuple[list[Node], list[torch.Tensor], dict[int, int | None]]:
        return list(self.graph.nodes), list(self.graph.values), dict(self.match)

    def similar(self, trial: Trial) -> list[tuple[Node, dict[int, Edit]]]:
        """The same edit at every later place with the same operation, arguments and weight shape,
        if lost there."""
        assert trial.cause is not None
        site = trial.site
        signature = self._signature(site)
        places = []
        for node in self.graph.nodes:
            if node.index <= site.index or node.index not in self.live or node.name != site.name:
                continue
            if (
                self._signature(node) != signature
                or any(
                    self.status(o) == "found" and self.root[o] == o
                    for o in node.outs
                    if o is not None
                )
                and node.name not in REORDER
            ):
                continue
            if trial.variant.refs is None and not trial.variant.also and trial.variant.node is None:
                places.append(
                    (
                        node,
                        {
                            node.index: Edit(
                                _checked(self.graph, node, trial.variant.fn, trial.variant.reshapes)
                            )
                        },
                    )
                )
                continue
            key = trial.variant.key or trial.variant.text
            call = Call(self.graph, node, None)
            try:
                for variant in trial.cause.generate(call) or ():
                    if (variant.key or variant.text) == key:
                        places.append((node, edits_of(self.graph, node, variant)))
                        break
            except Exception:
                continue
        return places

    def steps(
        self, site: Node, places: Sequence[tuple[Node, dict[int, Edit]]]
    ) -> list[tuple[Node, dict[int, Edit]]]:
        """Of similar places those that are the same operation of the next steps of a recurrent
        layer."""
        names = [(n.name, n.scope) for n in self.graph.nodes]
        i, width = site.index, 6
        period = next(
            (
                n.index - i
                for n, _ in places
                if n.scope == site.scope
                and names[i : i + width] == names[n.index : n.index + width]
                and names[i - width : i] == names[n.index - width : n.index]
            ),
            0,
        )
        if not period:
            return []
        return [(n, e) for n, e in places if n.scope == site.scope and (n.index - i) % period == 0]

    def _signature(self, node: Node) -> tuple[object, ...]:
        plain = tuple(repr(a) for a in node.args if not _has_ref(a))
        shapes = tuple(
            tuple(self.graph.values[r].shape)
            for r in node.refs
            if r not in self.graph.input_dependent()
        )
        return (
            node.name,
            plain,
            repr(sorted(node.kwargs.items(), key=str)) if not _has_ref(node.kwargs) else "",
            shapes,
        )

    def accept(self, trial: Trial) -> Accepted | None:
        """Make the edit here and at every similar place where it is confirmed; None if the outputs
        move away."""
        before = self._distance(trial)
        start = self.output_distance()
        snapshot = self.snapshot()
        lost_before = self.count("lost")
        chosen: dict[int, Edit] = dict(trial.edits)
        places = [trial.site]
        own = self.similar(trial)
        earlier = [
            (a, node, edits)
            for a in self.accepted
            if a.trial is not None
            for node, edits in self.similar(a.trial)
            if node.index not in trial.edits
        ]
        extended: list[tuple[Accepted, Node]] = []
        if earlier and self._all_confirmed(chosen, [*own, *((n, e) for _, n, e in earlier)]):
            # With the causes known so far, made everywhere, all of these places agree.
            places += [n for n, _ in own]
            extended = [(a, n) for a, n, _ in earlier]
            for _, more in [*own, *((n, e) for _, n, e in earlier)]:
                chosen.update(more)
        else:
            if earlier:
                self.undo(snapshot)
            if own and not self._all_confirmed(chosen, own):
                self.undo(snapshot)
                own = self.steps(trial.site, own) or own
            if own and self._all_confirmed(chosen, own):
                places += [n for n, _ in own]
                for _, more in own:
                    chosen.update(more)
            else:
                confirmed = self._confirmed if own else []
                if own:
                    self.undo(snapshot)
                for node, more in confirmed:
                    chosen.update(more)
                    places.append(node)
                self.apply(chosen)
        proof = trial.judged.proof
        if proof is not None and not self._distance(trial) <= 10 * self.tolerance(proof[0]):
            self.undo(
                snapshot
            )  # made at the other places too, it undoes itself here: make it here alone
            chosen, places, extended = dict(trial.edits), [trial.site], []
            self.apply(chosen)
        gained = lost_before - self.count("lost")
        end = self.output_distance()
        if gained <= 0 or (end > 2 * start and end > self.output_tolerance() and gained < 3):
            self.undo(snapshot)
            return None
        for a, node in extended:
            a.places.append(node.place)
        after = self._distance(trial)
        entry = trial.judged.proof[1] if trial.judged.proof is not None else -1
        name = trial.cause.name if trial.cause else ""
        kind, text = ("weights" if name == "weights" else "cause"), trial.variant.text
        if trial.variant.solved is not None:
            theirs, mine = trial.variant.solved
            if abs(theirs - mine) < NARROW * abs(mine):
                kind = "precision"
                text = (
                    "a constant that one side rounds to a narrower type: "
                    f"the port's {theirs!r}, the reference's {mine!r}"
                )
        return Accepted(
            kind,
            name if kind == "cause" else "",
            text,
            trial.site,
            chosen,
            {},
            self.index.entries[entry].where if entry >= 0 else "",
            before,
            after,
            [p.place for p in places],
            trial,
        )

    def _all_confirmed(
        self, chosen: Mapping[int, Edit], others: Sequence[tuple[Node, dict[int, Edit]]]
    ) -> bool:
        """Make the edits at all places; True if each is confirmed. `_confirmed` holds those up to
        the first that is not."""
        edits = dict(chosen)
        for _, more in others:
            edits.update(more)
        self._confirmed = []
        try:
            self.apply(edits)
        except Exception:
            return False
        for node, more in sorted(others, key=lambda item: item[0].index):
            outs = [
                o
                for i in more
                for o in self.graph.nodes[i].outs
                if o is not None and self._consumed(o)
            ]
            if not all(self.status(o) in ("found", "passed", "") for o in outs):
                return False
            self._confirmed.append((node, more))
        return True

    def _distance(self, trial: Trial) -> float:
        """The distance of the first regained value, as it is now, to the port's that it is with the
        edit."""
        proof = trial.judged.proof
        if proof is None:
            return float("nan")
        mine = numbers(self.graph.values[proof[0]])
        if proof[1] < 0:
            k = self.graph.outputs.index(proof[0]) if proof[0] in self.graph.outputs else 0
            return align_distance(mine, self.port_outputs[k])
        theirs = self.index.sorted(proof[1])
        if theirs is None or theirs.size != mine.size:
            return self.index.bound(mine)
        return (
            distance(theirs, np.sort(mine.reshape(-1)))
            if np.isfinite(mine).all()
            else self.index.bound(mine)
        )

    def without_unknown(
        self,
        start: tuple[list[Node], list[torch.Tensor], dict[int, int | None]],
        accepted: Sequence[Accepted],
    ) -> float:
        """The outputs' distance with the causes' edits alone; the session is left as it was."""
        present = self.snapshot()
        self.undo(start)
        try:
            for a in accepted:
                if a.kind == "unknown":
                    continue
                if a.values:
                    self.pin(a.values)
                elif a.edits:
                    self.apply(a.edits)
            return self.output_distance()
        except Exception:
            return float("inf")
        finally:
            self.undo(present)

    def watch(self, values: set[int]) -> None:
        """Values that must be found though nothing consumes them (running statistics)."""
        self.watched = values
        for value in values:
            producer = self.graph.producer[value]
            if producer is not None:
                self.live.add(producer)
        self._refresh(None)

    def count(self, status: str) -> int:
        return sum(
            1
            for n in self.graph.nodes
            if n.index in self.live
            for o in n.outs
            if o is not None
            and self.root[o] == o
            and self._consumed(o)
            and self.status(o) == status
        )

    def substitute(self, front: Node) -> Accepted:
        """Put the port's value in the reference's place, where one can be told, and describe the
        difference."""
        out = next((o for o in front.outs if o is not None and self.status(o) == "lost"), None)
        value = numbers(self.graph.values[out]) if out is not None else np.zeros(0)
        best: _Put | None = None
        if out is not None and value.dtype == np.float64:
            best = self._put(front, self._places(front, out))
            if best is None or best[0] <= 1:
                best = self._put(front, self._later(front), best, 96)
        if best is None or out is None:
            near_ = self.index.nearest(value) if value.dtype == np.float64 else []
            d = near_[0][0] if near_ else float("inf")
            where = self.index.entries[near_[0][1]].where if near_ else ""
            text = (
                "no catalogued cause explains this operation, "
                "and the port holds no array of its size"
                if d == float("inf")
                else ("no catalogued cause explains this operation")
            )
            return Accepted("unknown", "", text, front, {}, {}, where, d, d, [front.place])
        gain, far, entry, moved, place = best
        told = gain > 1 or (gain == 1 and place == out and not self.graph.consumers.get(place))
        shape = (
            residual(numbers(self.graph.values[place]), moved)
            if told or (far < 0.5 and place == out)
            else ""
        )
        near_now = self.index.nearest(value)
        before = near_now[0][0] if near_now else float("inf")
        kind, text = "unknown", "no catalogued cause explains this operation"
        if shape:
            if place != out:
                text += f"; seen at {self.graph.nodes[self.graph.producer[place] or 0].place}"
            text += f"; the port's value minus the reference's {shape}"
        values: dict[int, torch.Tensor] = {}
        after = before
        if told:
            values = {place: torch.from_numpy(moved)}
            self.pin(values)
            after = 0.0
            if 1e-12 < far < 1e-6 and place not in self.graph.input_dependent():
                kind, text = (
                    "precision",
                    f"a constant that one side makes in a narrower type, {far:.1e} apart",
                )
        return Accepted(
            kind,
            "",
            text,
            front,
            {},
            values,
            self.index.entries[entry].where,
            before,
            after,
            [front.place],
        )

    def _put(
        self, front: Node, places: Sequence[int], best: _Put | None = None, breadth: int = 10
    ) -> _Put | None:
        """The place and the port's value that regain the most there."""
        claims = self.claimed()
        latest = max(
            [
                self.match[self.root[r]] or 0
                for r in front.refs
                if self.match.get(self.root[r]) is not None
            ]
            or [0]
        )
        tries = 0
        for place in places:
            present = numbers(self.graph.values[place])
            if present.dtype != np.float64 or present.size < 8:
                continue
            near = [e for _, e in self.index.nearest(present, 4, 4, claims)]
            near += [
                e
                for e in self.index.ids(present.size)
                if latest < e and e not in claims and e not in near
            ][:breadth]
            for entry in near:
                theirs = self.index.entries[entry].value
                if theirs is None:
                    continue
                moved = layouts(theirs, present.shape, clean=True)[:24]
                ranked = sorted((distance(present, m), k) for k, m in enumerate(moved))
                for far, k in ranked[:4]:
                    tries += 1
                    if tries > TRIES:
                        return best
                    value = torch.from_numpy(np.array(moved[k]))
                    judged = self.judge({}, front, {place: value}, patience=3, enough=0)
                    if judged is None:
                        continue
                    gain = judged.regained - judged.broken
                    if gain == 1 and judged.proof is not None:
                        proof = self.graph.producer[judged.proof[0]]
                        gain += proof is not None and self.graph.nodes[proof].name in PRODUCTS
                    nearer = best is not None and best[4] == place and -far > -best[1]
                    if best is None or gain > best[0] or (gain == best[0] and nearer):
                        best = (gain, far, entry, np.array(moved[k]), place)
        return best

    def _later(self, front: Node) -> list[int]:
        """Lost values further on, where the search can begin again."""
        near = {front.index}
        places = []
        for node in self.graph.nodes[front.index + 1 :]:
            if node.index not in self.live or not any(
                self.graph.producer[r] in near for r in node.refs
            ):
                continue
            near.add(node.index)
            out = node.outs[0] if node.outs else None
            if out is not None and node.name not in MOVES and self.status(out) == "lost":
                places.append(out)
        return places[:LATER]

    def _places(self, front: Node, out: int) -> list[int]:
        """Values that the port's can be put in place of: the operation's, those it takes, those
        that follow."""
        places = [out]
        layer = [front]
        for _ in range(6):
            following = []
            for node in layer:
                for o in node.outs:
                    for user in self.graph.consumers.get(o, []) if o is not None else ():
                        behind = self.graph.nodes[user]
                        if user in self.live and behind not in following:
                            following.append(behind)
            layer = following[:3]
            places += [
                n.outs[0]
                for n in layer
                if n.name not in LAYOUT and n.outs and n.outs[0] is not None
            ]
            if len(places) >= 4:
                break
        for ref in front.refs:
            root = self.root[ref]
            if ref in self.graph.input_dependent() and self.graph.producer[root] is not None:
                places.append(root)
        return list(dict.fromkeys(places))[:6]

    def pin(self, values: Mapping[int, torch.Tensor]) -> None:
        """Put values in place of what the reference computes."""
        changed = self.graph.run(
            {}, dict(values), first=min(self.graph.first_use(v) for v in values)
        )
        for i, value in changed.items():
            self.graph.values[i] = value.detach()
        for i in values:  # from here on the value is given
            producer = self.graph.producer[i]
            if producer is not None:
                node = self.graph.nodes[producer]
                position = node.outs.index(i)
                self.graph.nodes[producer] = _edited(node, Edit(_pinned(node, position, values[i])))
        self._refresh(changed)


def _pinned(node: Node, position: int, value: torch.Tensor) -> Callable[..., object]:
    op = node.op

    def fn(*args: object, **kwargs: object) -> object:
        out = op(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            return value
        made = list(flat_tensors(out))
        made[position] = value
        return tuple(made)

    return fn


def residual(mine: np.ndarray, theirs: np.ndarray) -> str:
    """What the difference of two arrays looks like, in words."""
    diff = theirs - mine
    size = float(np.linalg.norm(diff))
    if not np.isfinite(size) or not size:
        return ""
    if np.allclose(np.sort(mine.reshape(-1)), np.sort(theirs.reshape(-1)), rtol=1e-9, atol=0):
        return "is nothing but another order of the same values"
    scale = float(np.vdot(mine, theirs) / max(float(np.vdot(mine, mine)), 1e-300))
    if np.linalg.norm(theirs - scale * mine) < 1e-6 * size:
        return f"is a scale: the port's is {scale:.6g} times the reference's"
    for axis in range(mine.ndim):
        if (
            mine.shape[axis] > 1
            and np.linalg.norm(diff - diff.mean(axis, keepdims=True)) < 1e-6 * size
        ):
            return f"is constant over axis {axis}"
    part = np.abs(diff) > 1e-9 * np.abs(diff).max()
    share = float(part.mean())
    if share < 0.5:
        for axis in range(mine.ndim):
            rows = np.flatnonzero(part.any(axis=tuple(a for a in range(mine.ndim) if a != axis)))
            n = mine.shape[axis]
            if 0 < rows.size < n:
                if rows.size <= 2 and set(rows) <= {0, n - 1}:
                    return f"is at the border of axis {axis} only"
                return f"is at positions {_ranges(rows)} of axis {axis} only"
        return f"is in {share:.0%} of the numbers only"
    for axis in range(mine.ndim):
        n = mine.shape[axis]
        if n >= 6:
            along = np.sqrt((diff**2).mean(axis=tuple(a for a in range(mine.ndim) if a != axis)))
            if (np.diff(along) > 0).mean() > 0.9:
                return f"grows with the position along axis {axis}"
    if mine.ndim >= 2:
        flat = diff.reshape(-1, diff.shape[-1])
        if min(flat.shape) > 4 and flat.size < 1 << 20:
            s = np.linalg.svd(flat[:512], compute_uv=False)
            rank = int((s > 1e-9 * s[0]).sum())
            if rank * 3 <= min(flat[:512].shape):
                return f"has rank {rank}"
    return f"is spread over the array, {size / max(float(np.linalg.norm(mine)), 1e-300):.1e} of it"


def _ranges(rows: np.ndarray) -> str:
    if rows.size > 1 and rows[-1] - rows[0] == rows.size - 1:
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:6])) + (", ..." if rows.size > 6 else "")


def squeezed_distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest distance over the orders of axes that fit."""
    if mine.size != theirs.size:
        return float("inf")
    return min([distance(mine, m) for m in layouts(theirs, mine.shape)[:24]] or [float("inf")])


def _has_ref(tree: object) -> bool:
    if isinstance(tree, Ref):
        return True
    if isinstance(tree, tuple | list):
        return any(_has_ref(t) for t in tree)
    if isinstance(tree, dict):
        return any(_has_ref(t) for t in tree.values())
    return False


def edits_of(graph: Graph, site: Node, variant: Variant) -> dict[int, Edit]:
    """What a variant replaces, asked about at `site`, by the operations' positions."""
    edits: dict[int, Edit] = {}
    for index, fn in (
        (variant.node if variant.node is not None else site.index, variant.fn),
        *variant.also,
    ):
        edits[index] = Edit(
            _checked(graph, graph.nodes[index], fn, variant.reshapes),
            variant.refs if fn is variant.fn else None,
        )
    return edits


def _checked(
    graph: Graph, node: Node, fn: Callable[..., object], reshapes: bool = False
) -> Callable[..., object]:
    """The variant as a replacement: results that it leaves out are the operation's own, shapes are
    checked."""

    def call(*args: object, **kwargs: object) -> object:
        out = fn(*args, **kwargs)
        given = flat_tensors(out)
        if len(given) != len(node.outs):
            out = results(out, node, [None if o is None else graph.values[o] for o in node.outs])
            given = flat_tensors(out)
        for tensor, out_id in zip(given, node.outs):
            if (
                out_id is not None
                and not reshapes
                and (tensor is None or tensor.shape != graph.values[out_id].shape)
            ):
                raise ValueError(f"{node.name}: the variant's result has another shape")
        return out

    return call


def _edited(node: Node, edit: Edit) -> Node:
    if edit.refs is None:
        return replace(node, op=edit.fn)
    args = tuple(Ref(r) for r in edit.refs)
    return replace(node, op=edit.fn, args=args, kwargs={}, refs=list(edit.refs))


def align_distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Relative L2 distance of a reference's and a port's output; axes may be permuted if the shapes
    say so."""
    if mine.size != theirs.size:
        return float("inf")
    theirs = np.asarray(theirs)
    if mine.shape == theirs.shape:
        return distance(mine, theirs)
    best = float("inf")
    small = mine.reshape([s for s in mine.shape if s != 1])
    other = theirs.reshape([s for s in theirs.shape if s != 1])
    if small.shape == other.shape:
        return distance(small, other)
    if small.ndim == other.ndim and small.ndim <= 5:
        for order in itertools.permutations(range(other.ndim)):
            if tuple(other.shape[i] for i in order) == small.shape:
                best = min(best, distance(small, other.transpose(order)))
    elif mine.size:
        best = distance(mine, theirs)
    return best


def measure_noise(graph: Graph, seed: int = 0, runs: int = 3) -> dict[int, float]:
    """The largest relative L2 distance of each value over runs with parameters and inputs nudged by
    one eps."""
    noise: dict[int, float] = {}
    generator = torch.Generator().manual_seed(seed)
    sources = [
        i
        for i, s in enumerate(graph.source)
        if s != "node" and graph.values[i].dtype == torch.float64
    ]

    def on_value(i: int, value: torch.Tensor) -> None:
        if value.dtype == torch.float64 and value.numel() >= 2:
            d = distance(numbers(graph.values[i]), numbers(value))
            noise[i] = max(noise.get(i, 0.0), d if np.isfinite(d) else 0.0)

    for _ in range(runs):
        nudged = {}
        for i in sources:
            sign = (
                torch.randint(0, 2, graph.values[i].shape, generator=generator, dtype=torch.float64)
                * 2
                - 1
            )
            nudged[i] = graph.values[i] * (1 + sign * torch.finfo(torch.float64).eps)
        with torch.no_grad():
            graph.run({}, nudged, everything=True, on_value=on_value, keep=lambda i: False)
    return noise
