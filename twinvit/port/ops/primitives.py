"""One row a primitive of JAX: what is known of it, and where a call keeps its function."""

from __future__ import annotations

from twinvit.port.ops.rows import Op, Table

KINDS = {
    "layout": "returns the same numbers, at most in another order",
    "conversion": "returns the same numbers in another type",
    "collective": "brings the parts of several devices together",
    "arithmetic": "computes integers of integers, and may leave their type",
    "comparison": "says which of two numbers is larger",
    "choosing": "chooses by order",
    "call": "calls a function, whose jaxpr is its parameter `jaxpr`",
    "call_jaxpr": "calls a function, whose jaxpr is its parameter `call_jaxpr`",
    "fun_jaxpr": "calls a function, whose jaxpr is its parameter `fun_jaxpr`",
    "other_version": "a primitive of other versions of JAX than the one that is tested with",
}
TABLE = Table(
    KINDS,
    {},
    (
        Op("abs", "arithmetic"),
        Op("add", "arithmetic"),
        Op("add_any", "arithmetic"),
        Op("all_gather", "collective"),
        Op("all_gather_invariant", "collective"),
        Op("all_gather_reduced", "collective"),
        Op("all_to_all", "collective"),
        Op("approx_top_k", "choosing"),
        Op("argmax", "choosing"),
        Op("argmin", "choosing"),
        Op("axis_index", "collective"),
        Op("checkpoint", "call other_version"),
        Op("closed_call", "call_jaxpr"),
        Op("conv_general_dilated", "arithmetic"),
        Op("convert_element_type", "conversion arithmetic"),
        Op("copy", "layout conversion"),
        Op("copy_p", "layout other_version"),
        Op("core_call", "call_jaxpr other_version"),
        Op("cumprod", "arithmetic"),
        Op("cumsum", "arithmetic"),
        Op("custom_jvp_call", "call_jaxpr"),
        Op("custom_vjp_call", "call_jaxpr"),
        Op("custom_vjp_call_jaxpr", "fun_jaxpr other_version"),
        Op("device_put", "layout"),
        Op("dot_general", "arithmetic"),
        Op("expand_dims", "layout other_version"),
        Op("ge", "comparison"),
        Op("gt", "comparison"),
        Op("integer_pow", "arithmetic"),
        Op("jit", "call"),
        Op("layout_constraint", "layout"),
        Op("le", "comparison"),
        Op("lt", "comparison"),
        Op("mul", "arithmetic"),
        Op("name", "layout"),
        Op("neg", "arithmetic"),
        Op("optimization_barrier", "layout"),
        Op("pbroadcast", "collective"),
        Op("pcast", "collective other_version"),
        Op("pjit", "call other_version"),
        Op("pmax", "collective"),
        Op("pmin", "collective"),
        Op("pow", "arithmetic"),
        Op("ppermute", "collective"),
        Op("preduced", "collective"),
        Op("psum", "collective"),
        Op("psum2", "collective other_version"),
        Op("psum_invariant", "collective"),
        Op("pvary", "layout collective"),
        Op("reduce_precision", "layout conversion"),
        Op("reduce_prod", "arithmetic"),
        Op("reduce_scatter", "collective"),
        Op("reduce_sum", "arithmetic"),
        Op("remat", "call other_version"),
        Op("remat2", "call"),
        Op("reshape", "layout"),
        Op("rev", "layout"),
        Op("run_state", "call"),
        Op("sharding_constraint", "layout"),
        Op("shift_left", "arithmetic"),
        Op("sort", "choosing"),
        Op("square", "arithmetic"),
        Op("squeeze", "layout"),
        Op("stop_gradient", "layout"),
        Op("sub", "arithmetic"),
        Op("top_k", "choosing"),
        Op("transpose", "layout"),
        Op("unreduced_psum", "collective"),
        Op("unreduced_reduce_scatter", "collective"),
        Op("xla_call", "call_jaxpr other_version"),
    ),
)
LAYOUT = TABLE.of("layout")
CONVERSIONS = TABLE.of("conversion")
COLLECTIVES = TABLE.of("collective")
ARITHMETIC = TABLE.of("arithmetic")
COMPARISONS = TABLE.of("comparison")
CHOOSING = TABLE.of("choosing")
CALLS = {
    name: parameter
    for kind, parameter in (
        ("call", "jaxpr"), ("call_jaxpr", "call_jaxpr"), ("fun_jaxpr", "fun_jaxpr")
    )
    for name in TABLE.of(kind)
}  # fmt: skip
"""Primitives that call a function, and the parameter that holds its jaxpr."""
BY_VALUE = "recorded by its value: "
"""What the name of a primitive begins with that a recording holds by its value."""
