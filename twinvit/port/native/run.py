"""Both programs run once as they are: in their own dtypes, the port compiled.

The comparison evaluates both in float64, where nothing overflows. A softmax without its maximum, a
mask of two times finfo.min or an exponential in float16 is right there and NaN where it is used.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from twinvit.port import models
from twinvit.port.native.jax_place import jax_place
from twinvit.port.native.jax_side import jax_outputs, overflow
from twinvit.port.native.judge import count_own, judge, paired
from twinvit.port.native.result import NAMES, Named, NativeRun, first_line
from twinvit.port.native.torch_side import torch_outputs, torch_place
from twinvit.port.pair import Pair


def run_native(
    pair: Pair,
    pure: models.Pure,
    arrays: Sequence[np.ndarray],
    reference: Named,
    port: Named,
    *,
    train: bool = False,
) -> NativeRun:
    """Run both programs in their own types on the CPU, and compare each with itself in float64.

    Neither model is changed, and no random generator's state changes. What cannot be run is said in
    a note and never raised.

    Args:
        pair: the two models and their inputs.
        pure, arrays: the port and the inputs that it took, in float64, as `pair.trace` gave them.
        reference, port: names and float64 values (B, ...) of the compared outputs.
        train: run in train mode, where values that are drawn are others: distances are left out.
    """
    native = NativeRun()
    runs = {}
    with _random_state():
        for side, run, wide in (
            ("torch", lambda: torch_outputs(pair, train), reference),
            ("jax", lambda: jax_outputs(pair, pure, arrays, native), port),
        ):
            try:
                runs[side] = paired(run(), wide)
            except Exception as error:
                native.notes.append(
                    f"{NAMES[side]} could not be run in its own types: {first_line(error)}"
                )
        for side, found in runs.items():
            judge(native, side, found, train)
        count_own(native, runs)
        if not train and native.strays("jax"):
            native.overflow = overflow(pair, pure, arrays, runs["jax"])
        for side in {b.side for b in native.broken}:
            place = torch_place(pair, train) if side == "torch" else jax_place(pair, pure, arrays)
            for broken in native.broken:
                if broken.side == side:
                    broken.where = place.get(broken.output, "")
    return native


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    """Whatever a model draws, the generators are as before afterwards."""
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
