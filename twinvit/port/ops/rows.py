"""Rows of operations, and the sets and positions that are looked up in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Op:
    """One operation.

    Attributes:
        name: as a recording names it.
        names: this name, and others that the same operation is called by.
        kinds: what is known of it, each one of the kinds of its table.
        roles: positions of operands among its arguments, {"weight": 2, "bias": 0}.
    """

    def __init__(self, names: str, kinds: str = "", **roles: int) -> None:
        """`names` and `kinds` are separated by spaces."""
        self.names = tuple(names.split())
        self.name = self.names[0]
        self.kinds = frozenset(kinds.split())
        self.roles = roles


class Table:
    """All operations of a framework that something is known of, by name.

    Raises:
        ValueError: a name stands twice, a row says nothing, or a kind or role is not described.
    """

    def __init__(self, kinds: Mapping[str, str], roles: Mapping[str, str], rows: Sequence[Op]):
        """`kinds`, `roles`: what each means."""
        self.kinds, self.roles, self.rows = dict(kinds), dict(roles), tuple(rows)
        self.recorded_as: dict[str, str] = {}
        """The name of the row, by each of its names."""
        for row in rows:
            if not (row.kinds or row.roles):
                raise ValueError(f"the row of {row.name} says nothing")
            for word in (row.kinds - self.kinds.keys()) | (row.roles.keys() - self.roles.keys()):
                raise ValueError(f"the row of {row.name} has {word}, which is not described")
            for name in row.names:
                if name in self.recorded_as:
                    raise ValueError(f"{name} stands in two rows")
                self.recorded_as[name] = row.name

    def of(self, kind: str) -> frozenset[str]:
        """Names of the operations of a kind."""
        if kind not in self.kinds:
            raise KeyError(kind)
        return frozenset(row.name for row in self.rows if kind in row.kinds)

    def called(self, kind: str) -> frozenset[str]:
        """All names of the operations of a kind."""
        return frozenset(n for row in self.rows if row.name in self.of(kind) for n in row.names)

    def position(self, role: str) -> dict[str, int]:
        """The position of an operand by the names of the operations that have it."""
        if role not in self.roles:
            raise KeyError(role)
        return {row.name: row.roles[role] for row in self.rows if role in row.roles}
