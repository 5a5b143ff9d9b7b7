"""Record one model, in an environment that has its framework and its packages alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinvit.port.errors import PortError
from twinvit.port.recording import folder

FRAMEWORKS = folder.FRAMEWORKS
WHAT = ("forward", "grad", "train")


def record_model(
    path: str | os.PathLike[str],
    model: Any,
    inputs: Any,
    *,
    framework: str,
    what: str | Sequence[str] = ("forward",),
    jax_inputs: Any = None,
    output: Callable[[Any], Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write a model's program, its weights and these inputs into a folder, for
    `explain_recordings`.

    The model is not changed, and the other framework need not be installed.

    Args:
        path: the folder to make.
        model: as `explain` takes it.
        inputs: NumPy arrays as the PyTorch model takes them, for either side: a tuple, or a mapping
            that gives them by name.
        framework: "torch" or "jax".
        what: of "forward", "grad", "train": what can be compared later.
        jax_inputs: arrays as the JAX model takes them, where it takes others; for that side alone.
        output: a function that chooses of what the model returns.
        progress: called with what is being done.

    Raises:
        PortError: the model does not run, cannot be recorded, or the folder exists.
    """
    kinds = (what,) if isinstance(what, str) else tuple(what)
    if framework not in FRAMEWORKS:
        raise PortError(f'framework={framework!r} is neither "torch" nor "jax"')
    if not kinds or any(k not in WHAT for k in kinds):
        raise PortError(f'what={what!r} is none of "forward", "grad", "train", nor several of them')
    if jax_inputs is not None and framework == "torch":
        raise PortError("jax_inputs= is for the JAX model; record the PyTorch model without it")
    target, say = Path(path), progress or (lambda text: None)
    folder.check_new(target)
    given = _arrays("inputs", inputs)
    if framework == "torch":
        from twinvit.port.recording.torch_record import torch_program_of

        program, arrays = torch_program_of(model, given, output, "train" in kinds, say)
    else:
        from twinvit.port.recording.jax_record import jax_program_of

        own = None if jax_inputs is None else _arrays("jax_inputs", jax_inputs)
        program, arrays = jax_program_of(model, given, output, kinds, say, own)
    folder.write(target, framework, program, arrays)


def _arrays(argument: str, inputs: Any) -> Any:
    """Inputs as a mapping or a tuple of NumPy arrays. Raises PortError."""
    if isinstance(inputs, Mapping):
        return {str(k): _array(f"{argument}[{k!r}]", x) for k, x in inputs.items()}
    given = [inputs] if hasattr(inputs, "shape") else list(inputs)
    if not given:
        raise PortError(f"{argument}= is empty; give a tuple of arrays")
    return tuple(_array(f"{argument}[{i}]", x) for i, x in enumerate(given))


def _array(name: str, x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype.kind in "OUSMm":
        raise PortError(f"{name} holds {array.dtype} values; give an array of numbers")
    return array
