"""All uses of JAX's private modules, which it may rename: source lines, and dtypes in force.

JAX has no public way to find an equation's location, nor to trace a program whose constants keep
their digits. A part that an installed JAX lacks is said with its version.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from twinvit.port.errors import PortError

_RANDOM = tuple(os.path.join("", "jax", "_src", name) for name in ("random", "prng"))


def _part(module: str, name: str) -> Any:
    """A name of a private module of JAX's. Raises PortError where this JAX has none."""
    try:
        return getattr(importlib.import_module(f"jax._src.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise PortError(
            f"jax {jax.__version__} has no jax._src.{module}.{name}, which recording a port needs; "
            "use a version that this package was tested with (0.10 or 0.11)"
        ) from error


def user_frames(source: Any) -> list[tuple[str, int, str]]:
    """File, line and function's name outside JAX of an equation's source, innermost first."""
    found = _part("source_info_util", "user_frames")(source.traceback)
    return [(f.file_name, f.start_line, f.function_name) for f in found]


def present() -> Any:
    """The source of what is traced now."""
    return _part("source_info_util", "current")()


def traced_within_jax(jaxpr: Any) -> bool:
    """True for a function of JAX itself, which is traced once and then reused."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return os.path.join("", "jax", "_src", "") in str(getattr(info, "func_src_info", ""))


def draws() -> bool:
    """True within `jax.random`, which makes floats of bits and must keep their width."""
    frame = sys._getframe(1)
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _RANDOM):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@functools.cache
def forget_types() -> None:
    """Have JAX convert each NumPy array by the setting in force, in this process from now on.

    JAX remembers what it has made of a NumPy array, float32 or float64, without the setting of
    64-bit types (seen in 0.10.2). A table of float64 that a port was run with is float32 in a
    recording in float64 then, and a port that was recorded can no longer be run: its table stays
    float64. It stays so, as the models are run after a comparison, too.
    """
    typed = _part("literals", "TypedNdArray")
    check = _part("dtypes", "check_valid_dtype")

    def convert(x: np.ndarray) -> Any:
        if isinstance(x, typed):  # its type was chosen already
            return x
        check(x.dtype)
        return typed(np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)))

    _part("dtypes", "register_canonicalize_value_handler")(np.ndarray, convert)


Conversion = Callable[..., Any]
"""`convert(operand, new_dtype, ...)`, as jax.lax.convert_element_type is implemented."""


@contextlib.contextmanager
def conversions(
    instead: Callable[[Conversion], Conversion],
    made: Callable[[Sequence[Any], Any], Any],
    key: object,
) -> Iterator[None]:
    """Trace with another conversion between types: `instead` of JAX's own.

    A number takes the type of the array that it meets while it is traced: 0.044715 is 0.0447 in
    bfloat16. No evaluation of the jaxpr brings its digits back, so they must not be lost first.

    `made(operands, dtype)` is the dtype that `arange` and conversions make instead.
    JAX's own caches of traces are set apart by `key`, which says what is done.
    """
    module = importlib.import_module("jax._src.lax.lax")
    original = _part("lax.lax", "_convert_element_type")
    makers = {_part("lax.lax", "iota_p"): "dtype"}
    makers[_part("lax.lax", "convert_element_type_p")] = "new_dtype"
    module._convert_element_type = instead(original)  # type: ignore[attr-defined]
    for primitive, name in makers.items():
        primitive.bind = _bound(primitive.bind, name, made)
    try:
        with _tracing()(key):
            yield
    finally:
        module._convert_element_type = original  # type: ignore[attr-defined]
        for primitive in makers:
            del primitive.bind


def _bound(bind: Callable[..., Any], name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A primitive's `bind` with another type."""

    def bound(*operands: Any, **params: Any) -> Any:
        return bind(*operands, **params | {name: made(operands, params.get(name))})

    return bound


@contextlib.contextmanager
def computed_at_once(chosen: Callable[[str, Sequence[Any], Any], bool]) -> Iterator[None]:
    """Trace with operations computed where they stand that are `chosen(name, operands, params)`.

    JAX's public `ensure_compile_time_eval` computes every known number so, floating-point ones
    among them, whose operations, places and rounding the comparison follows.
    """
    tracing = _part("interpreters.partial_eval", "DynamicJaxprTrace")
    original = tracing.process_primitive
    computing = False

    def process(self: Any, primitive: Any, values: Any, params: Any, /) -> Any:
        nonlocal computing
        if computing or not chosen(primitive.name, values, params):
            return original(self, primitive, values, params)
        computing = True  # JAX traces what it computes at once, too
        try:
            with jax.ensure_compile_time_eval():
                return primitive.bind(*values, **params)
        finally:
            computing = False

    tracing.process_primitive = process
    try:
        yield
    finally:
        tracing.process_primitive = original


@functools.cache
def _tracing() -> Any:
    return jax.make_user_context(None)


_PRIMITIVES = (
    "lax.lax", "lax.slicing", "lax.convolution", "lax.special", "lax.windowed_reductions",
    "lax.linalg", "lax.fft", "lax.ann", "lax.parallel", "lax.control_flow.loops",
    "lax.control_flow.conditionals", "random.prng", "random.threefry2x32", "random.core",
    "ad_util", "ad_checkpoint", "custom_derivatives", "pjit", "dispatch", "core", "shard_map",
    "state.discharge",
)  # fmt: skip


@functools.cache
def primitives() -> dict[str, Any]:
    """JAX's primitives by name; modules that this version lacks are left out."""
    kind = _part("core", "Primitive")
    found: dict[str, Any] = {}
    for module in _PRIMITIVES:
        with contextlib.suppress(ImportError):
            for value in vars(importlib.import_module(f"jax._src.{module}")).values():
                if isinstance(value, kind):
                    found.setdefault(value.name, value)
    return found


def random_implementation(x: Any) -> str | None:
    """The name of an implementation of random numbers, "threefry2x32"; None for anything else."""
    implementation = type(jax.random.key(0).dtype._impl)
    return str(x.name) if isinstance(x, implementation) else None


def key_type(name: str) -> Any:
    """The type of random keys of an implementation. Raises ValueError for none of that name."""
    return jax.random.key(0, impl=name).dtype


class Told(_part("source_info_util", "SourceInfo")):  # type: ignore[misc]
    """A source that gives its locations itself: the user's, and the innermost."""

    __slots__ = ("places",)

    def __init__(self, user: str, inner: str) -> None:
        empty = _part("source_info_util", "new_source_info")()
        super().__init__(None, empty.name_stack)
        self.places = (user, inner)


def debug_info(within_jax: bool) -> Any:
    """What a jaxpr says of where it was traced: within JAX itself, or not."""
    made = jax.make_jaxpr(lambda: 0)().jaxpr.debug_info
    place = os.path.join("", "jax", "_src", "") if within_jax else "a recording"
    return made._replace(
        func_src_info=place, traced_for="recording", arg_names=None, result_paths=None
    )
