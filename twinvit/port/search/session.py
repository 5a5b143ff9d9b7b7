"""What is known of each value of the reference: whether the port has its equal, also with edits."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from twinvit.port import verdict
from twinvit.port.index import Index, distance, evidence
from twinvit.port.ops import LAYOUT, MOVES, PARTS, SHAPE_ONLY
from twinvit.port.record.graph import Edit, Graph, Node
from twinvit.port.record.graph_values import held_in_float64, writes
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.record.unused import unused_operands
from twinvit.port.report import Operation
from twinvit.port.search.cancelled import cancelled
from twinvit.port.search.hidden import BLIND, always_lost, behind_steps, hiding, sensitivities
from twinvit.port.search.noise import Noise, output_noise
from twinvit.port.search.order import chosen_by_order, find_by_order
from twinvit.port.search.proof import Tally, hides, spoils
from twinvit.port.search.repeated import Repeated, draws
from twinvit.port.search.trial import AppliedEdit, TrialResult

CELLS = ("LSTM", "GRU", "RNN")
WINDOW = 60  # operations after the first divergence that a candidate is judged by
EXPERTS = 400  # the same where each expert computes of its own tokens what a port does of all


class Snapshot(NamedTuple):
    """The reference as it was edited, and what was found of it."""

    graph: Graph
    match: dict[int, int | None]


Pinned = tuple[dict[int, Node], dict[int, Node], dict[int, torch.Tensor]]
"""The operations that values were substituted for, what stands there now, and the values of no
operation that others were substituted for."""


_LookedUp = tuple[weakref.ref[torch.Tensor], int, int | None, int]
"""A value of a trial and how often something was written to it, the port's entry that it is, and
how many lookups that took."""

_NEARLY = 1e-10
"""Outputs this near, of which some numbers differ, may differ by an edit's own rounding."""


class Session:
    """A reference graph, the port's index, and what is known of each value."""

    def __init__(
        self,
        graph: Graph,
        index: Index,
        noise: Noise,
        port_outputs: Sequence[np.ndarray],
    ) -> None:
        """`port_outputs`: the port's equals of the graph's outputs, in the reference's layout."""
        self.graph = self._recorded = graph
        self.index = index
        self.noise = noise
        self._measured: tuple[Graph, Noise] | None = None  # of an edited graph
        self._repeated: Repeated | None = None  # while edits are tried
        self._known: dict[int, _LookedUp] = {}
        self.port_outputs = list(port_outputs)
        self.hidden: set[int] = set()  # what nothing found depends on, though it leads there
        self.stepped: set[int] = set()  # of these what something depends on through a step alone
        self.unjudged: dict[int, float] = {}  # what rounding alone changes too far, and how far
        self.errors: dict[str, None] = {}  # causes that raised, where and what
        self.accepted: list[AppliedEdit] = []
        self.trials = 0
        self.what: tuple[str, ...] = ("forward",)
        self.watched: set[int] = set()
        self.state: set[tuple[int, str, str]] | None = None  # keys of what the port keeps
        self.drawn: frozenset[int] = frozenset()  # random numbers, which the port draws otherwise
        self.random: Mapping[int, Node] = {}  # operations where they meet other values
        self.tainted: set[int] = set()
        self.follows_values = graph.follows_values()
        self.stopped = False  # the search ended where the reference is to be recorded again
        self._used_refs: dict[Node, Collection[int]] = {}
        self.live = self._live()
        self.root: dict[int, int] = {}
        self._roots()
        self.match: dict[
            int, int | None
        ] = {}  # by root id: entry, or None if it has evidence and no equal
        self._refresh(None)
        self.find_hidden()

    def _live(self) -> set[int]:
        """Operations that an output depends on."""
        live: set[int] = set()
        wanted = {*self.graph.outputs, *self.watched}
        for node in reversed(self.graph.nodes):
            if any(o in wanted for o in node.outs):
                live.add(node.index)
                if node.name not in SHAPE_ONLY:  # which takes the shape alone
                    wanted.update(self._used(node))
        return live

    def _used(self, node: Node) -> Collection[int]:
        """The operands that an operation depends on: an edit may leave a branch out."""
        if node is self._recorded.nodes[node.index] or len(node.refs) < 2:
            return node.refs
        if node not in self._used_refs:
            unused = unused_operands(node, {r: self.graph.values[r] for r in node.refs})
            self._used_refs[node] = [r for r in node.refs if r not in unused]
        return self._used_refs[node]

    def _roots(self) -> None:
        for i, producer in enumerate(self.graph.producer):
            self.root[i] = i
            if producer is None:
                continue
            node = self.graph.nodes[producer]
            if node.name in LAYOUT and node.refs:
                source = node.refs[0]
                if self.graph.values.shaped(source).numel() == self.graph.values.shaped(i).numel():
                    self.root[i] = self.root[source]

    def tolerance(self, value_id: int) -> float:
        return verdict.tolerance(self.noise.get(value_id))

    def lookup(self, value_id: int, value: torch.Tensor) -> int | None | bool:
        """The port's entry equal to this value; None if there is none; False if the value proves
        nothing."""
        if not self._comparable(value_id, value):
            return False
        array = to_numpy(value)
        return self._found(value_id, array, False) if evidence(array) else False

    def _comparable(self, value_id: int, value: torch.Tensor) -> bool:
        """True for a value with enough numbers that rounding alone does not change too far."""
        if value.dtype != torch.float64 or value.numel() < 8:
            return False
        noise = self.noise.get(value_id)
        if noise > verdict.UNJUDGED:
            self.unjudged[value_id] = noise
            return False
        return True

    def _found(self, value_id: int, array: np.ndarray, proves: bool) -> int | None:
        """The port's entry equal to this value's numbers. `proves`: None also where they prove
        nothing."""
        hit = self.index.find(array, self.tolerance(value_id), proves=proves)
        if hit is not None and value_id in self.watched and self.state is not None:
            return hit if self.index.key(hit) in self.state else None
        return hit

    def judge_output(self, k: int, value: torch.Tensor | None = None) -> verdict.Distance:
        """The k-th output, or another value in its place, against the port's, element by
        element."""
        out = self.graph.outputs[k]
        mine = to_numpy(self.graph.values[out] if value is None else value)
        found = verdict.judge(mine, self.port_outputs[k], self.noise.elements.get(out))
        if found.verdict == verdict.DIFFERENT and found.relative <= _NEARLY:
            if self.graph is not self._recorded:  # what an edit computes rounds at other places
                rounding = self._noise_now().elements.get(out)
                return verdict.judge(mine, self.port_outputs[k], rounding)
        return found

    def _noise_now(self) -> Noise:
        """The rounding of the graph as it is, with the edits made."""
        if self._measured is None or self._measured[0] is not self.graph:
            self._measured = self.graph, output_noise(self.graph)
        return self._measured[1]

    def judge_outputs(self) -> list[verdict.Distance]:
        """Every output, as it is now, against the port's."""
        return [self.judge_output(k) for k in range(len(self.port_outputs))]

    def stale(self) -> int | None:
        """The first operation, by its position, behind which the reference may run others than the
        recorded ones: edits changed numbers that its control flow follows. None without one."""
        now, then = self.graph, self._recorded
        if now is then or not self.follows_values:
            return None
        changed = now.changed_from(then)
        read = {i for i, _ in then.reads}
        producers = (
            now.producer[i] or 0
            for i in changed
            if now.values[i].shape != then.values[i].shape
            or (i in read and not torch.equal(now.values[i], then.values[i]))
        )
        return min(producers, default=None)

    def agrees(self, k: int, value: torch.Tensor | None = None) -> bool:
        """True unless the k-th output, or another value in its place, differs from the port's."""
        out = self.graph.outputs[k]
        mine = to_numpy(self.graph.values[out] if value is None else value)
        if mine.dtype == np.float64 and self.noise.get(out) < verdict.MOST:
            if verdict.relative(mine, self.port_outputs[k]) > 1e-6:
                return False
        return self.judge_output(k, value).verdict != verdict.DIFFERENT

    def _refresh(self, changed: Collection[int] | None) -> None:
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
        for root, node in list(chosen_by_order(self)):
            self.match[root] = find_by_order(self, node)
        self._outputs_agree()
        self._passed()

    def _outputs_agree(self) -> None:
        """An output that equals the port's is found even if it is small."""
        for k, out in enumerate(self.graph.outputs):
            if self.agrees(k):
                if self.match.get(self.root[out]) is None:
                    self.match[self.root[out]] = -1
            else:  # the port may hold it and go on computing
                self.match[self.root[out]] = None

    def _passed(self) -> None:
        """Which values lead to a found one."""
        self.covered: set[int] = set()
        tainted = self.tainted = set()  # a part that is found proves nothing of those that are not
        agreed = all(self.match.get(self.root[o]) is not None for o in self.graph.outputs)
        for node in reversed(self.graph.nodes):
            if node.index not in self.live:
                continue
            good = wrong = False
            for out in node.outs:
                if out is None:
                    continue
                if (
                    out in self.covered
                    and out not in tainted
                    and out not in self.hidden
                    or (self.root[out] == out and self.match.get(out) is not None)
                ):
                    good = True
                elif self.root[out] in self.match and self.consumed(out):
                    wrong = True
            if wrong and not agreed and self._step_of(node):
                tainted.update(node.refs)
            elif good:
                self.covered.update(node.refs)

    def find_hidden(self) -> bool:
        """Look for values that lead to found ones and that nothing found depends on, with these
        weights and inputs: nothing proves them. True if there are others than before."""
        before, self.hidden, self.stepped = self.hidden, set(), set()
        self._passed()
        found = [i for i, hit in self.match.items() if hit is not None]
        candidates = [
            i
            for i in range(len(self.graph.values))
            if self.root[i] == i
            and self.graph.producer[i] is not None
            and self.graph.producer[i] in self.live
            and self.match.get(i) is None
            and i in self.covered
            and self.graph.values.shaped(i).dtype == torch.float64
        ]
        if candidates:
            try:
                moved = sensitivities(self.graph, found, candidates)
            except Exception as error:  # an operation without a derivative
                self.errors[f"hidden values: {type(error).__name__}: {error}"] = None
                moved = {}
            hidden = {i for i, s in moved.items() if s < BLIND}
            hidden = {i for i in hidden if not always_lost(self.graph, i)}
            try:
                self.hidden = hidden - cancelled(self.graph, found, hidden)
            except Exception:  # the operations do not run with other weights
                self.hidden = hidden
            self.stepped = self.hidden & behind_steps(self.graph, found)
        if self.hidden:
            self._passed()
        return self.hidden != before

    def hidden_texts(self) -> list[str]:
        """What hides values that the port has no equal of, one text each."""
        lost = [i for i in sorted(self.hidden - self.stepped) if self.status(i) == "lost"]
        texts = [f"hidden from the outputs: {hiding(self.graph, i)}" for i in lost]
        return list(dict.fromkeys(texts))[:3]

    def seen_by_steps(self) -> set[str]:
        """Places of values that something found depends on through a step alone."""
        producers = [self.graph.producer[i] for i in self.stepped]
        return {self.graph.nodes[p].place for p in producers if p is not None}

    def unvouched(self) -> list[str]:
        """Hidden values with too few elements to be looked up, one text each."""
        texts = []
        for i in sorted(self.hidden - self.stepped):
            producer = self.graph.producer[i]
            if i in self.match or producer is None or not self.graph.values[i].isfinite().any():
                continue
            if i not in self.graph.input_dependent():
                continue
            node = self.graph.nodes[producer]
            if node.name.endswith("_like") or node.name.startswith("new_"):
                continue  # made of a shape alone
            texts.append(
                f"{node.place} ({node.where}) is hidden from the outputs "
                f"({hiding(self.graph, i)}) and holds too few numbers to be looked up"
            )
        return texts[:4]

    def _step_of(self, node: Node) -> bool:
        """True for an operation that takes one of many parts, a step of a sequence."""
        if node.name not in PARTS or not node.refs:
            return False
        size = self.graph.values.shaped(node.refs[0]).numel()
        return all(o is None or 4 * self.graph.values.shaped(o).numel() < size for o in node.outs)

    def recurrent(self, node: Node) -> bool:
        """True for an operation of a recurrent layer."""
        return self.graph.modules.get(node.scope, "").removesuffix("Cell") in CELLS

    def status(self, value_id: int) -> str:
        """found, passed, lost, or "" (proves nothing)."""
        root = self.root[value_id]
        if self.match.get(root) is not None:
            return "found"
        if root in self.hidden:
            return "lost" if root in self.match else ""
        if (value_id in self.covered or root in self.covered) and root not in self.tainted:
            return "passed"
        return "lost" if root in self.match else ""

    def claimed(self) -> set[int]:
        return {e for e in self.match.values() if e is not None and e >= 0}

    def _ok(self) -> set[int]:
        """Values that are right, as far as can be told: found, passed, or neutral and computed from
        such."""
        ok: set[int] = set()
        for i, producer in enumerate(self.graph.producer):
            if producer is None or i in self.drawn:
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
                if o is not None and self.consumed(o) and self.status(o) == "lost"
                if o not in self.drawn
            ]
            if node.name in MOVES and not any(o in self.graph.outputs for o in node.outs):
                continue
            if lost and all(r in ok for r in node.refs):
                result.append(node)
        return result

    def consumed(self, value_id: int) -> bool:
        return (
            value_id in self.graph.outputs
            or value_id in self.watched
            or any(c in self.live for c in self.graph.consumers.get(value_id, ()))
        )

    def output_distance(self) -> float:
        """The largest relative L2 distance of an output; of integers the share that
        differs."""
        return max(
            (
                verdict.relative(mine, theirs)
                if mine.dtype.kind in "fc" and mine.size == theirs.size
                else self.judge_output(k).relative
                for k, theirs in enumerate(self.port_outputs)
                for mine in [to_numpy(self.graph.values[self.graph.outputs[k]])]
            ),
            default=0.0,
        )

    def output_tolerance(self) -> float:
        return max([1e-12, *(self.tolerance(o) for o in self.graph.outputs)])

    def outputs_agree(self) -> bool:
        """True if no output differs from the port's."""
        return all(self.agrees(k) for k in range(len(self.port_outputs)))

    def operations(self) -> list[Operation]:
        """The picture: each operation's distance and status."""
        result = []
        sorts = 0
        for node in self.graph.nodes:
            if node.index not in self.live or node.name in LAYOUT:
                continue
            out = next((o for o in node.outs if o is not None and self.consumed(o)), None)
            if out is None:
                continue
            status = self.status(out)
            value = to_numpy(self.graph.values[out])
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

    def judge(
        self,
        edits: Mapping[int, Edit],
        front: Node,
        values: Mapping[int, torch.Tensor] | None = None,
        window: int = WINDOW,
        patience: int = 5,
        enough: int = 6,
        near: int = 0,
    ) -> TrialResult | None:
        """What an edit regains; None if the reference cannot run with it, or makes NaN of
        numbers. `near`: operations after the divergence at which a further place of the edit can
        be what the values before it wait for; 0: at any distance."""
        self.trials += 1
        if not self.graph.by_value.isdisjoint(edits):
            return None
        placed = dict(values or {})
        first = min([*edits, *(self.graph.first_use(v) for v in placed)])
        tally = Tally(self, edits, placed)
        changed: dict[int, torch.Tensor] = dict(placed)
        last_front = max(front.index, max(edits, default=0))
        waits = [i for i in edits if not near or i <= front.index + near]
        late = max([front.index, *waits])
        if self.follows_values and window == WINDOW:
            window = EXPERTS
        step = self.graph.step
        if self._repeated is not None:
            self._repeated.begin()
            step = partial(self._repeated.step, self.graph)
        for index in range(first, min(len(self.graph.nodes), last_front + window)):
            if index not in self.live:
                continue
            node = self.graph.nodes[index]
            try:
                made = step(index, edits, changed)
            except Exception:
                return None
            tally.follow(node)
            for out, value in made:
                if index in edits and self._spoilt(node, out, value):
                    return None
                changed[out] = value
                tally.see(node, out, value, index >= late)
            gained = len(tally.regained)
            if (
                tally.broken > gained + tally.own + 3
                or (tally.misses >= patience and not gained and not tally.own)
                or (enough and gained >= enough and not tally.open())
            ):
                break
        return tally.judged()

    def _spoilt(self, node: Node, out: int, value: torch.Tensor) -> bool:
        """True for an edit's result that is no candidate: it has NaN, or infinities that the port
        has not (its masks may hide what the reference shows)."""
        before = self.graph.values[out]
        if spoils(self.graph, node, before, value):
            return True
        return hides(self.graph, node, before, value) and self.found_as(out, value) is None

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """While many edits are tried, parameters are not widened each time that they are read, and
        what two trials in a row have in common is computed once: so much of it as is held
        elsewhere in a comparison."""
        values = self.graph.values
        count = sum(values.shaped(i).numel() for i in self.graph.params().values())
        self._repeated = None if draws(self.graph) else Repeated(max(count, 1 << 22))
        try:
            with held_in_float64(2 * count):
                yield
        finally:
            self._repeated = None
            self._known.clear()

    def missed(
        self, nodes: Mapping[int, Node], values: Mapping[int, torch.Tensor], limit: int = 4
    ) -> list[int]:
        """Found values that are lost where these operations and values replace the
        present ones, the first `limit`; results of the operations themselves do not count, the
        model's outputs do."""
        graph = self.graph.with_nodes(nodes)
        edits = {i: Edit(node.op) for i, node in nodes.items()}
        first = min([*nodes, *(self.graph.first_use(v) for v in values)])
        changed: dict[int, torch.Tensor] = dict(values)
        lost: list[int] = []
        try:
            for node in graph.nodes[first:]:
                changed = graph.run(edits, changed, first=node.index, until=node.index)
                lost += [
                    o
                    for o in node.outs
                    if o is not None
                    and o in changed
                    and self._loses(o, changed[o], node.index in nodes)
                ]
                if len(lost) >= limit:
                    break
        except Exception:  # what comes after fits the present operations only
            present = [self.graph.nodes[i] for i in nodes]
            return lost or [o for node in present for o in node.outs if o is not None][:1]
        return lost

    def _loses(self, out: int, value: torch.Tensor, own: bool) -> bool:
        last = out in self.graph.outputs or out in self.watched
        if not (last or (self.root[out] == out and not own)):
            return False
        if self.match.get(self.root[out]) is None or self.found_as(out, value) is not None:
            return False
        if self.consumed(out):
            return True
        # What a value put in place hides from the outputs was looked up before that.
        used = bool(self.graph.consumers.get(out))
        return used and self.found_as(out, self.graph.values[out]) is not None

    def restore(self, nodes: Mapping[int, Node], values: Mapping[int, torch.Tensor]) -> None:
        """Put operations and values back that edits took the places of."""
        self._become(self.graph.put(nodes, values))

    def lost(self) -> set[int]:
        """Values that are lost, seen through layouts."""
        return {
            o
            for n in self.graph.nodes
            if n.index in self.live
            for o in n.outs
            if o is not None and self.root[o] == o and self.consumed(o)
            if self.status(o) == "lost"
        }

    def found_as(self, out: int, value: torch.Tensor) -> int | None:
        if out in self.graph.outputs:
            return -1 if self.agrees(self.graph.outputs.index(out), value) else None
        known = self._known.get(out)
        if known is not None and known[0]() is value and known[1] == writes(value):
            self.index.lookups += known[3]  # the same object, looked up before
            return known[2]
        before, hit = self.index.lookups, None
        if self._comparable(out, value):
            hit = self._found(out, to_numpy(value), True)
        if self._repeated is not None:
            lookups = self.index.lookups - before
            self._known[out] = weakref.ref(value), writes(value), hit, lookups
        return hit

    def apply(self, edits: Mapping[int, Edit]) -> None:
        """Make an edit: values that follow from it are computed again, statuses looked up. If it
        raises, nothing is changed."""
        self._become(self.graph.edited(edits))

    def _become(self, graph: Graph) -> None:
        """Go on with another state of the graph. An edit may take other values than the operation
        did: what an output depends on changes with it."""
        changed = graph.changed_from(self.graph)
        self.graph = graph
        self.live = self._live()
        self._refresh(changed)

    def undo(self, snapshot: Snapshot) -> None:
        """Go back to a state of the graph, and to what was found then."""
        self.graph, self.match = snapshot.graph, dict(snapshot.match)
        self.live = self._live()
        self._passed()

    def snapshot(self) -> Snapshot:
        """The present state of the graph and what is found, to go back to."""
        return Snapshot(self.graph, dict(self.match))

    def watch(self, values: set[int], state: Collection[int] | None) -> None:
        """Values that must be found though nothing consumes them (running statistics).

        Args:
            state: the port's entries that it keeps; None where it keeps none, or returns them
                beside its outputs.
        """
        self.watched = values
        self.state = None if state is None else {self.index.key(e) for e in state}
        for value in values:
            producer = self.graph.producer[value]
            if producer is not None:
                self.live.add(producer)
        self._refresh(None)

    def pin(self, values: Mapping[int, torch.Tensor]) -> Pinned:
        """Substitute values for what the reference computes; returns what they took the places
        of."""
        producers = [p for i in values if (p := self.graph.producer[i]) is not None]
        before = {p: self.graph.nodes[p] for p in producers}
        loose = {i: self.graph.values[i] for i in values if self.graph.producer[i] is None}
        self._become(self.graph.pinned(values))
        return before, {p: self.graph.nodes[p] for p in before}, loose
