"""What is known of operations by their names: each row says something, of an operation that is
there."""

import sys

import jax
import jax.extend
import pytest
import torch

from twinvit.port import ops
from twinvit.port.ops import aten, primitives
from twinvit.port.ops.rows import Op, Table
from twinvit.port.record import torch_program
from twinvit.port.search.noise import measure_noise

pytestmark = pytest.mark.quick


def known_primitives() -> set[str]:
    """The names of JAX's own, wherever it holds them (a frozen heap does not list its objects)."""
    modules = [
        m for name, m in list(sys.modules.items()) if name.split(".")[0] in ("jax", "jaxlib")
    ]
    held = [x for m in modules for x in list(vars(m).values())]
    return {x.name for x in held if issubclass(type(x), jax.extend.core.Primitive)}


def test_each_operation_is_one_of_pytorchs():
    own = aten.TABLE.of("own")
    missing = [
        name
        for row in aten.TABLE.rows
        if row.name not in own
        for name in row.names
        if not hasattr(torch.ops.aten, name)
    ]
    assert not missing
    assert not [name for name in own if hasattr(torch.ops.aten, name)]


def test_what_is_written_in_place_is_so_in_pytorch():
    for name in ops.DRAWN_IN_PLACE | ops.MOVED_IN_PLACE:
        assert hasattr(torch.ops.aten, name), name


def test_each_operand_is_an_argument_of_its_operation():
    roles = {
        "weight": ("weight", "other", "mat2"),
        "bias": ("bias", "self"),
        "eps": ("eps", "epsilon"),
        "axis": ("dim",),
        "lower": ("min", "min_val"),
        "upper": ("max", "max_val"),
    }
    for row in aten.TABLE.rows:
        for role, position in row.roles.items():
            packet = getattr(torch.ops.aten, row.name)
            schemas = [getattr(packet, o)._schema.arguments for o in packet.overloads()]
            names = [s[position].name for s in schemas if position < len(s)]
            assert any(name in roles[role] for name in names), (row.name, role, names)


def test_each_primitive_is_one_of_jax_or_of_another_version():
    known = known_primitives()
    others = primitives.TABLE.of("other_version")
    named = {row.name for row in primitives.TABLE.rows}
    assert named - others <= known


def test_every_kind_and_role_is_some_operations():
    for table in (aten.TABLE, primitives.TABLE):
        assert all(table.of(kind) for kind in table.kinds)
        assert all(table.position(role) for role in table.roles)


def test_kinds_that_follow_from_others():
    assert ops.SPLITS - {"unsafe_split_with_sizes"} <= ops.PARTS <= ops.EXACT
    assert ops.LAYOUT | ops.REORDER == ops.MOVES <= ops.EXACT
    assert ops.ROW_NORMS | ops.BATCH_NORMS < ops.NORMS == ops.EPS_AT.keys()
    assert ops.ZEROING < ops.PRODUCTS > ops.LINEAR
    assert ops.TAILED < ops.ACTIVATIONS < ops.ACTIVATIONS_BEGIN
    assert ops.FRESH_DRAWS < ops.DRAWS
    assert not ops.STEPS & ops.EXACT
    assert not ops.STEPS & ops.CHOICES
    assert not ops.STEPS & ops.DRAWS


def test_an_operation_is_recorded_under_the_name_of_its_row():
    assert ops.recorded_as("_softmax") == "softmax"
    assert ops.recorded_as("_unsafe_view") == "view"
    assert ops.recorded_as("of_no_row") == "of_no_row"
    assert {"_softmax", "gelu"} < ops.DECOMPOSED


@pytest.mark.parametrize(
    "rows, message",
    [
        ((Op("a b", "k"), Op("b", "k")), "b stands in two rows"),
        ((Op("a"),), "the row of a says nothing"),
        ((Op("a", "k other"),), "the row of a has other, which is not described"),
        ((Op("a", "k", weight=1),), "the row of a has weight, which is not described"),
    ],
)
def test_a_wrong_row_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        Table({"k": "a kind"}, {}, rows)


def test_a_kind_that_no_table_describes_is_refused():
    with pytest.raises(KeyError, match="layuot"):
        aten.TABLE.of("layuot")


@pytest.mark.parametrize("axis", [None, 0])
def test_different_numbers_stay_those_of_the_first_run(axis):
    """Rounding makes equal numbers differ, and more rows of them."""

    class Different(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found, place = torch.unique(x * 0.5, return_inverse=True, dim=axis)
            return torch.nn.functional.gelu(found)[place]

    x = torch.randint(0, 9, (20, 1)).double() / 7
    graph = torch_program.record(Different(), (x,), lambda out: [out])
    noise = measure_noise(graph)
    assert "unique_dim" in {node.name for node in graph.nodes}
    assert noise.get(graph.outputs[0]) < 1e-15
