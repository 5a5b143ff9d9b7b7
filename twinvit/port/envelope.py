"""What a report states in addition to the comparison: models, inputs, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from twinvit.pages.verdicts import versions
from twinvit.port.report import Input


def about(torch_model: Any, jax_model: Any, inputs: Any) -> dict[str, Any]:
    """The fields `models`, `inputs` and `versions` of a report."""
    return {
        "models": {"torch": model_name(torch_model), "jax": model_name(jax_model)},
        "inputs": described(inputs),
        "versions": versions(),
    }


def model_name(model: Any) -> str:
    """A model's class, a function's own name; of a pair (module, variables) the module's."""
    if isinstance(model, tuple) and model:
        return model_name(model[0])
    fn = getattr(model, "fn", None)
    if callable(fn) and hasattr(model, "params"):  # port.Function
        return model_name(fn)
    wrapped = getattr(model, "func", None)
    if callable(wrapped) and hasattr(model, "keywords"):  # functools.partial
        return model_name(wrapped)
    return str(getattr(model, "__qualname__", None) or type(model).__qualname__)


def described(inputs: Any) -> list[Input]:
    """Name, shape and type of each input."""
    if isinstance(inputs, Mapping):
        named = list(inputs.items())
    else:
        given = [inputs] if hasattr(inputs, "shape") else list(inputs)
        named = [("", x) for x in given]
    found = []
    for name, x in named:
        x = x if hasattr(x, "shape") and hasattr(x, "dtype") else np.asarray(x)
        dtype = str(x.dtype).removeprefix("torch.")
        found.append(Input(str(name), tuple(int(n) for n in x.shape), dtype))
    return found
