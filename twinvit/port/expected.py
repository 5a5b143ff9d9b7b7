"""What an explanation will take, said before it starts: parameters, memory, time."""

from __future__ import annotations

import torch

from twinvit.port.pair import Pair

# Measured by `benchmarks/port_size.py`: a language model of 64 tokens, a mistake with a name.
MEMORY = 0.3e9  # bytes, at any size
BYTES = 13  # a parameter of one model, beyond the two models
SECONDS, SECONDS_A_MILLION = 1.0, 0.36  # of one processor core


def expected(pair: Pair) -> str:
    """Both models' numbers of parameters, and about how much memory and time they take."""
    model = pair.torch_model
    mine = 0
    if isinstance(model, torch.nn.Module):
        mine = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    theirs = pair.leaves.numbers()
    return of_sizes(mine, theirs)


def of_sizes(mine: int, theirs: int) -> str:
    """The same for so many parameters of the reference and of the port."""
    most = max(mine, theirs)
    memory, seconds = MEMORY + BYTES * most, SECONDS + SECONDS_A_MILLION * most / 1e6
    return (
        f"the reference has {mine:,} parameters, the port {theirs:,}; expect about "
        f"{memory / 1e9:.1f} GB of memory beyond the two models, and {seconds:.0f} s or more "
        "(64 tokens; more with larger inputs, and where a difference has no known cause)"
    )
