"""A graph while it is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from twinvit.port.record.graph import Graph, Node
from twinvit.port.record.graph_values import Values
from twinvit.port.record.torch_types import Heard


@dataclass
class Draft:
    """What has been recorded so far; the attributes are those of the graph that comes of it."""

    numbers: Mapping[int, Heard] = field(default_factory=dict)
    values: list[torch.Tensor] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    producer: list[int | None] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    narrowings: list[tuple[str, str]] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    reads: list[tuple[int, str]] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    drawn: set[int] = field(default_factory=set)  # values that random numbers were written into
    rows: list[bool] = field(default_factory=list)
    heard_at: list[int] = field(default_factory=list)  # how many nodes there were before each

    live: Any = None  # LiveEdits that are made while it is recorded; None without any
    seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_key: dict[Any, int] = field(default_factory=dict)  # operations by the keys of live edits

    def add_value(self, value: torch.Tensor, source: str, producer: int | None = None) -> int:
        """Add a value; returns its id."""
        self.values.append(value)
        self.source.append(source)
        self.producer.append(producer)
        return len(self.values) - 1

    def key(self, scope: str, name: str, where: str) -> tuple[tuple[str, str, str], int]:
        """The key of the next operation, as of live edits."""
        kind = (scope, name, where)
        key = kind, self.seen[kind]
        self.seen[kind] += 1
        self.by_key[key] = len(self.nodes)
        return key

    def finished(self, outputs: Iterable[int]) -> Graph:
        """The graph of what was recorded, with these outputs."""
        return Graph(
            Values(self.values),
            tuple(self.source),
            tuple(self.producer),
            tuple(self.nodes),
            tuple(outputs),
            narrowings=tuple(self.narrowings),
            modules=self.modules,
            buffers=self.buffers,
            reads=tuple(self.reads),
            heard=tuple(self.heard),
            heard_at=tuple(self.heard_at),
            written=frozenset(self.drawn),
            rows=tuple(self.rows),
            numbers=self.numbers,
        )
