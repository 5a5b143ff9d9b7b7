"""What is known of operations by their names: sets of names, and positions of operands.

The rows stand in `aten` (PyTorch) and `primitives` (JAX), where each kind and role is described.
"""

from __future__ import annotations

from twinvit.port.ops.aten import TABLE

LAYOUT = TABLE.of("layout")
REORDER = TABLE.of("reorder")
MOVES = LAYOUT | REORDER
"""Operations that move numbers and change none."""
PARTS = TABLE.of("part")
SPLITS = TABLE.of("split")
VIEWS = TABLE.of("view")
ELEMENTWISE = TABLE.of("elementwise")
EXACT = TABLE.of("exact")
WHOLE = TABLE.of("whole")

PRODUCTS = TABLE.of("product")
LINEAR = TABLE.of("linear")
ZEROING = TABLE.of("zeroing")
MIXING = TABLE.of("mixing")

NORMS = TABLE.of("norm")
ROW_NORMS = TABLE.of("row_norm")
BATCH_NORMS = TABLE.of("batch_norm")

ACTIVATIONS = TABLE.of("activation")
ACTIVATIONS_BEGIN = ACTIVATIONS | TABLE.of("activation_part")
"""Activations that are one operation, and operations that a written out one can begin with."""
GATES = TABLE.of("gate")
TAILED = TABLE.of("tailed")

MASKING = TABLE.of("masking")
POOLS = TABLE.of("pool")
RESIZES = TABLE.of("resize")
DECOMPOSED = TABLE.called("decomposed")

STEPS = TABLE.of("step")
CHOICES = TABLE.of("choice")
STRAIGHT_THROUGH = TABLE.of("straight_through")
INDICES = TABLE.of("indices")
WITH_INDICES = TABLE.of("with_indices")

DRAWS = TABLE.of("draw")
RANDOM = TABLE.of("random")
FRESH_DRAWS = TABLE.of("fresh_draw")
DRAWN_IN_PLACE = frozenset(f"{name}_" for name in TABLE.of("drawn_in_place"))
MOVED_IN_PLACE = frozenset(f"{name}_" for name in TABLE.of("moved_in_place"))

SHAPE_ONLY = TABLE.of("shape_only")
UNFILLED = TABLE.of("unfilled")
UNTRACKED = TABLE.of("untracked")
UNCOUNTED = TABLE.of("uncounted")
UNSHARED = TABLE.of("unshared")
READS = TABLE.of("read")
ASKED = TABLE.of("asked")

WEIGHT_AT = TABLE.position("weight")
BIAS_AT = TABLE.position("bias")
EPS_AT = TABLE.position("eps")
AXIS_AT = TABLE.position("axis")
LOWER_AT = TABLE.position("lower")
UPPER_AT = TABLE.position("upper")
"""Positions of operands among an operation's arguments, by its name."""


def recorded_as(name: str) -> str:
    """The name that a recording gives an ATen operation, "softmax" for "_softmax"."""
    return TABLE.recorded_as.get(name, name)
