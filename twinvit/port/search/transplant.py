"""Where no cause explains a difference: a part of the port's program in the reference's place.

Candidates come from both sides. A place is a result or an operand of the first operation that is
lost, or of those around it; the port's value that belongs there is one whose operands the reference
holds. Which belongs where is found with the port's numbers; what is made and proven is the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from twinvit.port.index import distance
from twinvit.port.ops import LAYOUT
from twinvit.port.record.graph import Edit, Node
from twinvit.port.record.jax_tape import Tape
from twinvit.port.record.torch_values import to_numpy
from twinvit.port.search.aliases import alias_of
from twinvit.port.search.constants import narrow_everywhere
from twinvit.port.search.folding import Expression, count
from twinvit.port.search.formula import (
    alike,
    port_formula,
    printed,
    reference_formula,
    same_kind,
    value_name,
)
from twinvit.port.search.program import operand_edit, piece_of, result_edit
from twinvit.port.search.proof import felt
from twinvit.port.search.region import (
    Held,
    Order,
    Refused,
    Region,
    escaping,
    orders,
    region_behind,
    replaced,
    small,
    with_silent,
)
from twinvit.port.search.session import Session
from twinvit.port.search.trial import NARROW, AppliedEdit

ENTRIES = 12  # values of the port that are tried at one place
ORDERS = 3  # orders of axes that are tried of one of them
TRIED = 8  # of those that regain something, how many are tried as programs
ENOUGH = 4  # regained values more than which do not tell candidates apart
CLEAR = 4  # operations of one that needs no other place than the first
BACK = 6  # operations before a place whose operands the port may use instead of it
WINDOW = 24  # operations around a place whose operands are meant, of equal ones
LONGEST = 2000  # steps of the port that are walked to describe a part that is too large


_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Site:
    """What a transplant takes the place of: a value as an operation makes it, or as one reads it.

    Attributes:
        node: the operation that is edited.
        value: the value's id.
        operand: True for one of the operation's operands.
    """

    node: Node
    value: int
    operand: bool

    @property
    def position(self) -> int:
        return (self.node.refs if self.operand else self.node.outs).index(self.value)


@dataclass
class Made:
    """A transplant, not made yet."""

    site: Site
    region: Region
    order: Order
    edit: Edit
    theirs: Expression
    mine: Expression
    operations: tuple[int, int]

    @property
    def texts(self) -> tuple[str, str]:
        return printed(self.mine, None), printed(self.theirs, None)


@dataclass
class Template:
    """What places of one kind have in common."""

    made: Made
    front: Node
    used: set[int] = field(default_factory=set)
    """The port's entries that were put in place."""


def transplant(session: Session, front: Node) -> AppliedEdit | None:
    """Put a part of the port's program in the reference's place, here and wherever the same is
    needed; None where none is proven."""
    tape = session.index.tape
    if tape is None:
        return None
    held = held_by(session, tape, front)
    tried = sorted(_regaining(session, tape, held, front), key=lambda c: c[:3])
    tried = _parts_first(tape, tried)
    for *_, site, region, order in tried[:TRIED]:
        try:
            made = build(session, tape, site, region, order)
        except Refused:
            continue
        done = accept_made(session, tape, made, front)
        if done is not None:
            return done
    return None


def safely(session: Session, front: Node, attempt: Callable[[], _Result]) -> _Result | None:
    """What an attempt returns; None if it raises: no part of a port's program may end the search.
    The session is as it was then."""
    start = session.snapshot()
    try:
        return attempt()
    except Exception as error:
        session.undo(start)
        text = f"a part of the port's program at {front.place}"
        session.errors[f"{text}: {type(error).__name__}: {error}"] = None
        return None


def at_value(session: Session, front: Node, value: int, entry: int) -> AppliedEdit | None:
    """A transplant that computes an entry of the port instead of one value."""
    tape = session.index.tape
    producer = session.graph.producer[value]
    if tape is None or producer is None or entry not in tape.origin:
        return None
    held = held_by(session, tape, front)
    site = Site(session.graph.nodes[producer], value, False)
    try:
        before = _before(site)
        region = region_behind(tape, held, tape.origin[entry], before)
        region = with_silent(tape, held, region, before)
        theirs = tape.value(region.out)
        if theirs is None:
            return None
        for order in _likely(session, site, theirs):
            done = accept_made(session, tape, build(session, tape, site, region, order), front)
            if done is not None:
                return done
    except Refused:
        pass
    return None


def held_by(session: Session, tape: Tape, front: Node) -> Held:
    """Which of the reference's values the port holds, as both stand now."""
    graph = session.graph
    found: dict[object, list[int]] = {}
    for i, entry in session.match.items():
        if entry is not None and entry >= 0:
            found.setdefault(session.index.key(entry), []).append(i)
    for out in graph.outputs:  # it may differ as an output, and be held within
        root = session.root[out]
        if (session.match.get(root) or -1) < 0:
            hit = session.lookup(root, graph.values[root])
            if hit is not None and hit is not False:
                found.setdefault(session.index.key(int(hit)), []).append(root)
    near: dict[int, int] = {}
    for node in graph.nodes[max(0, front.index - WINDOW) : front.index + WINDOW]:
        far = abs(node.index - front.index)
        for i in (*node.refs, *(session.root[r] for r in node.refs)):
            near[i] = min(near.get(i, far), far)
    return Held(graph, tape, found, session.tolerance, near)


def _before(site: Site) -> int:
    """The operation before which all inputs must be computed. The result itself may be one."""
    return site.node.index + (not site.operand)


_Candidate = tuple[int, int, int, Site, Region, Order]
"""How well its reach fits (0 best), how much it regains (negative), how large it is, and what it
is."""


def _reach(tape: Tape, site: Site, region: Region, front: Node) -> int:
    """How well the reach of a change at a place fits the port: a value that several operations read
    changes for all of them where the port reads the former one nowhere else."""
    if site.operand or site.node.index >= front.index:
        return 1
    own = [slot for slot, (value, _) in region.inputs.items() if value == site.value]
    entry = tape.slots[own[0]].entry if own else -1
    return 0 if entry >= 0 and tape.reading(entry) <= set(region.steps) else 2


def _regaining(session: Session, tape: Tape, held: Held, front: Node) -> Iterator[_Candidate]:
    """Candidates with whose numbers something is found again."""
    seen: set[tuple[int, int, int, bool]] = set()
    clear = False
    leading = escaping(tape, held.found)
    for site in sites_of(session, front):
        if clear and site.node.index > front.index:
            return
        present = to_numpy(session.graph.values[site.value])
        if present.dtype != np.float64 or present.size < 2:
            continue
        for region in _regions(session, tape, held, site, leading):
            theirs = tape.value(region.out)
            if theirs is None:
                continue
            key = (site.node.index, site.value, region.out, site.operand)
            if key in seen:
                continue
            seen.add(key)
            for order in _likely(session, site, theirs):
                value = torch.from_numpy(np.array(order.apply(theirs), order="C"))
                gain = _gain(session, site, front, value)
                if gain > 0:
                    size = len(region.operations(tape)) + (len(region.inputs) > 4)
                    clear = clear or (gain >= ENOUGH and size <= CLEAR)
                    reach = _reach(tape, site, region, front)
                    yield reach, -min(gain, ENOUGH), size, site, region, order
                    break


def _parts_first(tape: Tape, tried: Sequence[_Candidate]) -> list[_Candidate]:
    """The candidates in their order, but for those that are a part of an earlier one: they go
    before it. What it computes besides may have a cause."""
    ordered: list[_Candidate] = []
    for candidate in tried:
        region = candidate[4]
        inside = {o for k in region.steps for o in tape.steps[k].outs} - {region.out}
        parts = [c for c in tried if c[4].out in inside and c[0] == candidate[0]]
        ordered += [c for c in (*parts, candidate) if c not in ordered]
    return ordered


def _gain(session: Session, site: Site, front: Node, value: torch.Tensor) -> int:
    """How many values are found again with this one in place, less those that are lost."""
    edit = (operand_edit if site.operand else result_edit)(site.node, site.value, (), lambda: value)
    judged = session.judge({site.node.index: edit}, front, patience=4, enough=ENOUGH + 2)
    return 0 if judged is None or not judged.regained else judged.regained - judged.broken


def _likely(session: Session, site: Site, theirs: np.ndarray) -> list[Order]:
    """Orders of axes that fit, those first that bring the port's numbers nearest."""
    present = to_numpy(session.graph.values[site.value])
    fits = orders(theirs.shape, present.shape)[:24]
    far = [distance(present, order.apply(theirs)) for order in fits]
    return [fits[k] for k in np.argsort(far, kind="stable")[:ORDERS]]


def sites_of(session: Session, front: Node) -> Iterator[Site]:
    """Places for a transplant around the first lost operation, nearest first."""
    graph = session.graph
    for out in front.outs:
        if out is not None and session.status(out) == "lost":
            yield Site(front, out, False)
    for ref in front.refs:
        if graph.values.shaped(ref).is_floating_point():
            yield Site(front, ref, True)
    for ref in front.refs:
        root = session.root[ref]
        producer = graph.producer[root]
        if producer is not None and len(graph.consumers.get(root, ())) > 1:
            yield Site(graph.nodes[producer], root, False)
    layer = [front]
    for _ in range(6):
        following: list[Node] = []
        for node in layer:
            for o in node.outs:
                for user in graph.consumers.get(o, ()) if o is not None else ():
                    behind = graph.nodes[user]
                    if user in session.live and behind not in following:
                        following.append(behind)
        layer = following[:3]
        for node in layer:
            if node.name not in LAYOUT and node.outs and node.outs[0] is not None:
                yield Site(node, node.outs[0], False)


def _regions(
    session: Session, tape: Tape, held: Held, site: Site, leading: set[int]
) -> list[Region]:
    """Parts of the port's program that may belong at a place, the smallest first. `leading`: the
    port's values that lead to what the reference does not hold."""
    before = _before(site)
    claims = session.claimed()
    size = session.graph.values.shaped(site.value).numel()
    found = []
    for entry in session.index.ids(size):
        if entry in claims or entry not in tape.origin:
            continue
        slot = tape.origin[entry]
        if tape.step_of(slot) is None or slot not in leading or held.all_of(slot):
            continue
        try:
            found.append(with_silent(tape, held, region_behind(tape, held, slot, before), before))
        except Refused:
            continue
    found.sort(key=lambda r: (len(r.operations(tape)), r.out))
    return [*_left_out(session, tape, held, site), *found[:ENTRIES]]


def _left_out(session: Session, tape: Tape, held: Held, site: Site) -> list[Region]:
    """Values of the reference's before a place, that the port uses instead of it."""
    graph = session.graph
    size = graph.values.shaped(site.value).numel()
    layer, regions, seen = [session.root[site.value]], [], {session.root[site.value]}
    for _ in range(BACK):
        following = []
        for i in layer:
            producer = graph.producer[i]
            for ref in graph.nodes[producer].refs if producer is not None else ():
                root = session.root[ref]
                if root not in seen:
                    seen.add(root)
                    following.append(root)
        layer = following[:6]
        for i in layer:
            entry = session.match.get(i)
            if (
                graph.values.shaped(i).numel() == size
                and entry is not None
                and entry in tape.origin
            ):
                slot = tape.origin[entry]
                order = dict(held.all_of(slot)).get(i)
                step = tape.step_of(slot)  # of a loop's steps the first may lack what is zero there
                if order is not None and not (step is not None and step.frame):
                    regions.append(Region(slot, [], {slot: (i, order)}, []))
    return regions


def build(session: Session, tape: Tape, site: Site, region: Region, order: Order) -> Made:
    """A region as an edit, with both sides' formulas.

    Raises:
        Refused: it is too large, or it would be numbers.
    """
    graph = session.graph
    refs = [value for value, _ in region.inputs.values()]
    _depends(session, site, refs)
    piece = piece_of(tape, region, order)
    make = operand_edit if site.operand else result_edit
    edit = make(site.node, site.value, refs, piece)
    assert edit.refs is not None
    gone = [] if site.operand or site.value in refs else [site.node.index]
    dead = replaced(
        graph,
        session.live,
        {*graph.outputs, *session.watched},
        {site.node.index: edit.refs},
        gone,
    )
    if not graph.by_value.isdisjoint({site.node.index, *dead}):
        raise Refused("the reference's operation there was recorded by its value")
    theirs = port_formula(tape, region, graph)
    inside = set(dead)
    mine = reference_formula(graph, site.value, inside)
    varied = graph.input_dependent() | graph.trained()
    table = not any(r in varied for r in refs)
    run = count(theirs)
    if not small(run, len(dead), len(session.live), table):
        raise Refused(f"it is {run} operations in place of {len(dead)}")
    return Made(site, region, order, edit, theirs, mine, (len(dead), run))


def _depends(session: Session, site: Site, refs: Iterable[int]) -> None:
    """Refuse numbers instead of what depends on inputs, or on parameters."""
    graph = session.graph
    for dependent, what in ((graph.input_dependent(), "input"), (graph.trained(), "parameter")):
        if site.value in dependent and not any(r in dependent for r in refs):
            raise Refused(f"it depends on no {what}")


def accept_made(session: Session, tape: Tape, made: Made, front: Node) -> AppliedEdit | None:
    """Make a transplant here and wherever the same is needed; None if nothing after it is found
    again, or nothing that depends on it."""
    graph, site = session.graph, made.site
    present = to_numpy(graph.values[site.value]).copy()
    start = session.snapshot()
    theirs = tape.value(made.region.out)
    before = float("inf") if theirs is None else distance(present, made.order.apply(theirs))
    varied = graph.input_dependent() | graph.trained()
    if theirs is not None and before < NARROW and site.value not in varied:
        if narrow_everywhere(present, made.order.apply(theirs)):
            return None  # a constant that one side rounds
    if not _stands(session, made):
        session.undo(start)
        return None
    done = _accepted(session, tape, made, front, before)
    done.replaced = {site.node.index: start.graph.nodes[site.node.index]}
    done.made = {site.node.index: session.graph.nodes[site.node.index]}
    template = Template(made, front, {tape.slots[made.region.out].entry})
    _everywhere(session, tape, done, template)
    if not _silent(session, tape, done, template):
        session.undo(start)
        return None
    done.again = partial(_again, session, tape, done, template)
    return done


def _stands(session: Session, made: Made) -> bool:
    """Make a transplant; True if more is found again than lost, and that depends on it."""
    site = made.site
    lost_before = session.lost()
    try:
        session.apply({site.node.index: made.edit})
    except Exception:  # a program that does not fit these values
        return False
    lost = session.lost()
    graph = session.graph
    last = {session.root[o] for o in (*graph.outputs, *session.watched)}
    own = {o for o in site.node.outs if o is not None}
    gained = {
        o
        for o in lost_before - lost
        if session.consumed(o) and (site.operand or o not in own or session.root[o] in last)
    }
    return len(gained) > len(lost - lost_before) and felt(session, [site.node.index], gained)


def _accepted(session: Session, tape: Tape, made: Made, front: Node, before: float) -> AppliedEdit:
    lines = made.region.lines(tape)
    where = lines[0] if lines else _line_of(session, made)
    site = made.site
    now = session.graph.values[site.value] if not site.operand else None
    theirs = tape.value(made.region.out)
    after = 0.0
    if now is not None and theirs is not None:
        after = distance(to_numpy(now), made.order.apply(theirs))
    text = f"the reference: {printed(made.mine)}\nthe port:      {printed(made.theirs)}"
    done = AppliedEdit(
        "expression", "", text, site.node, {site.node.index: made.edit}, {}, where, before, after,
        [site.node.place],
    )  # fmt: skip
    done.cause = alias_of(made.mine, made.theirs)
    done.groups = [[site.node.index]]
    done.operations = made.operations
    done.formulas = {"torch": made.texts[0], "jax": made.texts[1]}
    done.lines = lines or [where]
    return done


def _line_of(session: Session, made: Made) -> str:
    entry = session.index.tape.slots[made.region.out].entry if session.index.tape else -1
    return session.index.entries[entry].where if entry >= 0 else ""


def _everywhere(session: Session, tape: Tape, done: AppliedEdit, template: Template) -> None:
    """Make a transplant at each next divergence that is one of the same kind."""
    skip: set[int] = set()
    for _ in range(len(session.graph.nodes)):
        fronts = (f for f in session.frontier(skip) if same_kind(f, template.front))
        front = next(fronts, None)
        if front is None:
            return
        if not _again(session, tape, done, template, front):
            skip.add(front.index)


def _again(
    session: Session, tape: Tape, done: AppliedEdit, template: Template, front: Node
) -> bool:
    """Make a transplant at another place of the same kind, if it is the port's program there."""
    first = template.made.site
    if not same_kind(front, template.front):
        return False
    index = front.index + first.node.index - template.front.index
    nodes = session.graph.nodes
    if not 0 <= index < len(nodes) or not same_kind(nodes[index], first.node):
        return False
    site = _site_at(nodes[index], first)
    if site is None:
        return False
    held = held_by(session, tape, front)
    for entry in _same_entries(tape, template):
        made = _alike_made(session, tape, held, site, entry, template)
        if made is None:
            continue
        start = session.snapshot()
        if _stands(session, made):
            done.extend(site.node, {site.node.index: made.edit}, start.graph, session.graph)
            template.used.add(entry)
            return True
        session.undo(start)
    return False


def _site_at(node: Node, first: Site) -> Site | None:
    """The place of the same kind at another operation."""
    ids = node.refs if first.operand else node.outs
    if first.position >= len(ids):
        return None
    value = ids[first.position]
    return None if value is None else Site(node, value, first.operand)


def _same_entries(tape: Tape, template: Template) -> list[int]:
    """The port's values that the same line computes in the same way, and that are not put in
    place yet."""
    entries = tape.index.entries
    first = entries[tape.slots[template.made.region.out].entry]
    return [
        e.id
        for e in entries
        if (e.name, e.where, e.shape) == (first.name, first.where, first.shape)
        and e.id not in template.used
        and e.id in tape.origin
    ]


def _alike_made(
    session: Session, tape: Tape, held: Held, site: Site, entry: int, template: Template
) -> Made | None:
    """The port's program behind an entry at another place, if it is the same one."""
    try:
        before = _before(site)
        region = region_behind(tape, held, tape.origin[entry], before)
        if len(region.steps) < len(template.made.region.steps):
            region = with_silent(tape, held, region, before)
        made = build(session, tape, site, region, template.made.order)
    except Refused:
        return None
    shape = session.graph.values.shaped(site.value).shape
    if tuple(shape) != template.made.order.shape or len(region.steps) != len(
        template.made.region.steps
    ):
        return None
    return made if alike(made.texts[1]) == alike(template.made.texts[1]) else None


def _silent(session: Session, tape: Tape, done: AppliedEdit, template: Template) -> bool:
    """Note places of the same kind where the transplant changes nothing on these inputs. In a loop
    it is made at all of them; False if it cannot be made in every step."""
    first = template.made.region
    looped = any(tape.steps[k].frame for k in first.steps)
    held = held_by(session, tape, template.front)
    for entry in _same_entries(tape, template):
        slot = tape.origin[entry]
        site = next(iter(_silent_sites(session, held, slot, template)), None)
        made = None if site is None else _alike_made(session, tape, held, site, entry, template)
        if made is not None and site is not None and site.node.index not in done.made:
            edits = {site.node.index: made.edit}
            if not looped:
                done.left_out.append(edits)
                continue
            before = session.graph
            session.apply(edits)
            done.extend(site.node, edits, before, session.graph)
        elif looped and _same_loop(tape, slot, first) and _counts(tape, entry):
            return False
    done.whole = looped
    return True


def _counts(tape: Tape, entry: int) -> bool:
    """True for a value that is no constant and that something reads: not a last step's state."""
    return tape.index.entries[entry].slot >= 0 and bool(tape.reading(entry))


def _same_loop(tape: Tape, slot: int, first: Region) -> bool:
    one, other = tape.step_of(slot), tape.step_of(first.out)
    if one is None or other is None:
        return False
    return [loop for loop, _ in one.frame] == [loop for loop, _ in other.frame]


def _silent_sites(session: Session, held: Held, slot: int, template: Template) -> Iterator[Site]:
    """Places of a template's kind whose value is the port's already."""
    graph, first = session.graph, template.made.site
    roots = {i for i, _ in held.all_of(slot)}
    for node in graph.nodes:
        if node.index not in session.live or not same_kind(node, first.node):
            continue
        site = _site_at(node, first)
        if site is not None and session.root[site.value] in roots:
            yield site


def described(session: Session, front: Node, entry: int) -> str:
    """What computes an entry of the port, and why that is not put in place; "" where nothing can be
    said."""
    tape = session.index.tape
    if tape is None or entry not in tape.origin:
        return ""
    held = held_by(session, tape, front)
    before = len(session.graph.nodes)
    slot = tape.origin[entry]
    try:
        region = region_behind(tape, held, slot, before, LONGEST)
    except Refused as reason:
        where = session.index.entries[entry].where
        return f"{where} computes this, which is not put in place: {reason}" if where else ""
    named = [value_name(session.graph, i) for i, _ in region.inputs.values()]
    names = list(dict.fromkeys(named))
    lines = region.lines(tape)
    total = len(region.operations(tape))
    operations = "1 operation" if total == 1 else f"{total} operations"
    of = f" from {_listed(names)}" if names else ""
    return f"{_spanned(lines)}, {operations}, computes this{of}"


def first_lacking(session: Session, front: Node) -> str:
    """What computes the port's first value that the reference lacks, in words; "" if there is
    none."""
    tape = session.index.tape
    if tape is None:
        return ""
    held = held_by(session, tape, front)
    leading = escaping(tape, held.found)
    for entry in session.index.entries:
        slot = tape.origin.get(entry.id, -1)
        if entry.slot < 0 or slot not in leading or not entry.where:
            continue
        if tape.step_of(slot) is not None and not held.all_of(slot):
            said = described(session, front, entry.id)
            return f"the port's first value that the reference lacks: {said}" if said else ""
    return ""


def _listed(names: list[str], most: int = 4) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _spanned(lines: list[str]) -> str:
    """Lines of one file as a span, "rope.py:40 to 77"."""
    if len(lines) < 2:
        return lines[0] if lines else "the port"
    files = {line.rpartition(":")[0] for line in lines}
    found = [line.rpartition(":")[2] for line in lines]
    if len(files) > 1 or not all(n.isdigit() for n in found):
        return f"{lines[0]} to {lines[-1]}"
    low, high = min(map(int, found)), max(map(int, found))
    return f"{files.pop()}:{low} to {high}"
