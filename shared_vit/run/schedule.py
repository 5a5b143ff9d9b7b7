"""The learning rate of an update, in float64 on the host, one function for both twins."""

import math


def learning_rate(update: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine to zero (Loshchilov and Hutter 2017).

    peak (t+1)/W for t < W, else peak/2 (1 + cos(pi (t-W)/(T-W))), with t = `update` from 0,
    T = `total`, W = `warmup`. W >= T is legal: the run ends within its warm-up.
    """
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak / 2 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))
