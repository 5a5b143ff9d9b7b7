"""What rounding alone does to each value of the reference."""

from __future__ import annotations

import numpy as np
import torch

from twinvit.port.index import distance
from twinvit.port.record_torch import Graph, numbers


def measure_noise(graph: Graph, seed: int = 0, runs: int = 3) -> dict[int, float]:
    """The largest relative L2 distance of each value over runs with parameters and inputs nudged by
    one eps."""
    noise: dict[int, float] = {}
    generator = torch.Generator().manual_seed(seed)
    sources = [
        i
        for i, s in enumerate(graph.source)
        if s != "node" and graph.values[i].dtype == torch.float64
    ]

    def on_value(i: int, value: torch.Tensor) -> None:
        if value.dtype == torch.float64 and value.numel() >= 2:
            d = distance(numbers(graph.values[i]), numbers(value))
            noise[i] = max(noise.get(i, 0.0), d if np.isfinite(d) else 0.0)

    for _ in range(runs):
        nudged = {}
        for i in sources:
            sign = (
                torch.randint(0, 2, graph.values[i].shape, generator=generator, dtype=torch.float64)
                * 2
                - 1
            )
            nudged[i] = graph.values[i] * (1 + sign * torch.finfo(torch.float64).eps)
        with torch.no_grad():
            graph.run({}, nudged, everything=True, on_value=on_value, keep=lambda i: False)
    return noise
