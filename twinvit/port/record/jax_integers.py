"""Integers that a port makes without its inputs, known while it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from twinvit.port.record.jax_internals import computed_at_once


def known_integers() -> contextlib.AbstractContextManager[None]:
    """Trace with operations on known integers and booleans computed at once; floating-point ones
    are traced as ever, so that their types and places are recorded."""
    return computed_at_once(_whole)


def _whole(name: str, values: Sequence[Any], params: Mapping[str, Any]) -> bool:
    """True for an operation on known integers that returns integers."""
    if name.startswith("random_") or any(isinstance(x, jax.core.Tracer) for x in values):
        return False
    types = [getattr(x, "dtype", None) or np.asarray(x).dtype for x in values]
    types += [params[k] for k in ("dtype", "new_dtype") if params.get(k) is not None]
    types += [v.dtype for v in getattr(params.get("jaxpr"), "out_avals", ())]
    return all(getattr(np.dtype(t), "kind", "") in "iub" for t in types if _plain(t)) and all(
        map(_plain, types)
    )


def _plain(dtype: Any) -> bool:
    return not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
