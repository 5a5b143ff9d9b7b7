"""The primitives of JAX that a recording may name, and the values of their parameters."""

from __future__ import annotations

import enum
import functools
from typing import Any

import jax
import numpy as np

from twinvit.port.errors import PortError
from twinvit.port.ops.primitives import CALLS
from twinvit.port.record.jax_internals import key_type, primitives, random_implementation
from twinvit.port.recording.arrays import Read, Written

LEAVES = frozenset(
    "abs acos acosh add add_any after_all all_gather all_gather_invariant all_to_all and "
    "approx_top_k argmax argmin asin asinh atan atan2 atanh axis_index bessel_i0e bessel_i1e "
    "bitcast_convert_type broadcast_in_dim cbrt ceil cholesky clamp clz complex concatenate conj "
    "conv_general_dilated convert_element_type copy cos cosh cumlogsumexp cummax cummin cumprod "
    "cumsum device_put digamma div dot_general dynamic_slice dynamic_update_slice eig eigh eq erf "
    "erf_inv erfc exp exp2 expm1 fft floor gather ge gt hessenberg householder_product igamma "
    "igamma_grad_a igammac imag integer_pow iota is_finite layout_constraint le lgamma log log1p "
    "logistic lt lu lu_pivots_to_permutation max min mul mulhi name ne neg nextafter not "
    "optimization_barrier or pad pbroadcast pmax pmin polygamma population_count pow ppermute "
    "preduced psum psum_invariant pvary qr ragged_dot_general random_bits random_clone "
    "random_fold_in random_gamma random_seed random_split random_unwrap random_wrap real "
    "reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_prod reduce_scatter "
    "reduce_sum reduce_window_max reduce_window_min reduce_window_sum reduce_xor "
    "regularized_incomplete_beta rem reshape rev rng_bit_generator rng_uniform round rsqrt "
    "scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub schur "
    "select_and_gather_add select_and_scatter_add select_n sharding_constraint shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh slice sort split sqrt square "
    "squeeze stop_gradient sub svd tan tanh threefry2x32 tile top_k transpose triangular_solve "
    "tridiagonal tridiagonal_solve unreduced_psum xor zeta".split()
)
"""Primitives that compute numbers of numbers."""
FLOW = frozenset(("scan", "while", "cond", "shard_map", *CALLS))
"""Primitives that run other programs, which are parameters."""
_UNSAID = frozenset(
    "sharding out_sharding in_shardings out_shardings ctx_mesh in_layouts out_layouts layout "
    "compiler_options_kvs name debug_info inline donated_invars keep_unused devices srcs "
    "copy_semantics check_vma check_rep in_specs out_specs manual_axes auto".split()
)
"""Parameters that say where numbers are, and nothing of what they are."""
_ENUMS = {
    "Precision": jax.lax.Precision,
    "GatherScatterMode": jax.lax.GatherScatterMode,
    "RoundingMethod": jax.lax.RoundingMethod,
    "FftType": jax.lax.FftType,
    "RandomAlgorithm": jax.lax.RandomAlgorithm,
    "DotAlgorithmPreset": jax.lax.DotAlgorithmPreset,
    "AccuracyMode": getattr(jax.lax, "AccuracyMode", None),
}
_RECORDS = {
    "ConvDimensionNumbers": jax.lax.ConvDimensionNumbers,
    "GatherDimensionNumbers": jax.lax.GatherDimensionNumbers,
    "ScatterDimensionNumbers": jax.lax.ScatterDimensionNumbers,
    "RaggedDotDimensionNumbers": getattr(jax.lax, "RaggedDotDimensionNumbers", None),
    "DotAlgorithm": getattr(jax.lax, "DotAlgorithm", None),
}


class Unwritable(Exception):
    """What has no name and no codec; the message says what."""


@functools.cache
def primitive(name: str) -> Any:
    """The primitive of a name. Raises PortError for one that is not of the list."""
    found = primitives().get(name) if name in LEAVES | FLOW else None
    if found is None:
        raise PortError(f"{name!r} is no primitive of this JAX ({jax.__version__})")
    return found


def unsaid(key: str) -> bool:
    """True for a parameter that is left out where it has no codec."""
    return key in _UNSAID


def encoded(x: Any, arrays: Written, program: Any) -> Any:
    """A parameter as JSON; `program(jaxpr)` gives the number of a jaxpr. Raises Unwritable."""
    if x is None or isinstance(x, bool | str) or type(x) is int:
        return x
    if isinstance(x, enum.Enum):
        return {"e": [_known(x, _ENUMS), x.name]}
    if isinstance(x, np.bool_ | np.integer):
        return x.item()
    if isinstance(x, float | np.floating):
        return {"f": float(x).hex()}
    if isinstance(x, complex):
        return {"c": [x.real.hex(), x.imag.hex()]}
    if hasattr(x, "eqns") or hasattr(x, "consts"):
        return {"j": program(x)}
    if type(x).__name__ in _RECORDS:
        return {"n": [_known(x, _RECORDS), {k: encoded(v, arrays, program) for k, v in _fields(x)}]}
    if type(x) in (tuple, list):
        parts = [encoded(v, arrays, program) for v in x]
        return {"t": parts} if type(x) is tuple else parts
    if isinstance(x, np.dtype) or isinstance(x, type) and issubclass(x, np.generic):
        return {"d": np.dtype(x).name}
    return _special(x, arrays)


def _special(x: Any, arrays: Written) -> Any:
    implementation = random_implementation(x)
    if implementation is not None:
        return {"k": implementation}
    dtype = getattr(x, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        raise Unwritable("an array of keys")
    if isinstance(x, np.ndarray | jax.Array):
        return {"a": arrays.add(np.asarray(x))}
    raise Unwritable(f"a parameter of type {type(x).__name__}")


def _known(x: Any, table: dict[str, Any]) -> str:
    name = type(x).__name__
    if table.get(name) is not type(x):
        raise Unwritable(f"a parameter of type {name}")
    return name


def _fields(x: Any) -> list[tuple[str, Any]]:
    names = getattr(x, "_fields", None) or list(x.__dataclass_fields__)
    return [(n, getattr(x, n)) for n in names]


def decoded(x: Any, arrays: Read, programs: Any) -> Any:
    """A parameter of its JSON. Raises ValueError for what is none."""
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, list):
        return [decoded(v, arrays, programs) for v in x]
    if not isinstance(x, dict) or len(x) != 1:
        raise ValueError(x)
    ((tag, value),) = x.items()
    if tag == "t":
        return tuple(decoded(v, arrays, programs) for v in value)
    if tag == "e":
        return _ENUMS[value[0]][value[1]]
    if tag == "n":
        fields = {str(k): decoded(v, arrays, programs) for k, v in value[1].items()}
        return _RECORDS[value[0]](**fields)
    if tag == "f":
        return float.fromhex(value)
    if tag == "c":
        return complex(*map(float.fromhex, value))
    if tag == "j":
        return programs(value)
    if tag == "d":
        return dtype_of(value)
    if tag == "k":
        return key_type(value)._impl
    if tag == "a":
        return arrays[value]
    raise ValueError(x)


def dtype_of(name: Any) -> Any:
    """A type of its name: of NumPy's and ml_dtypes', or "key NAME" of random keys. Raises
    ValueError."""
    if not isinstance(name, str):
        raise ValueError(name)
    if name.startswith("key "):
        return key_type(name.removeprefix("key "))
    try:
        found = jax.numpy.dtype(name)
    except TypeError as error:
        raise ValueError(name) from error
    if found.kind in "OSUMm":
        raise ValueError(name)
    return found


def dtype_name(dtype: Any) -> str:
    """The name that `dtype_of` takes."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return f"key {dtype._impl.name}"
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        raise Unwritable(f"values of type {dtype}")
    return str(np.dtype(dtype).name)
