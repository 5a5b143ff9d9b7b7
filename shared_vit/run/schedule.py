"""The learning rate of an update, in float64 on the host, one function for both twins."""

import math

from shared_vit.spec.recipe import Schedule


def learning_rate(
    update: int,
    total: int,
    peak: float,
    warmup: int,
    schedule: Schedule = "cosine",
    cooldown: int = 0,
) -> float:
    """Linear warm-up, then a schedule.

    With t = `update` from 0, T = `total`, W = `warmup`: peak (t+1)/W for t < W, else peak times

        cosine      (1 + cos(pi (t-W)/(T-W))) / 2    (Loshchilov and Hutter 2017)
        linear      (T-t) / (T-W)
        constant    1
        rsqrt       sqrt(W / t)                      (Vaswani et al. 2017)

    The last C = `cooldown` updates are multiplied by (T-t)/C. W >= T is legal: the run ends within
    its warm-up.
    """
    rate = _before_cooldown(update, total, peak, warmup, schedule)
    left = total - update
    return rate if left >= cooldown else rate * left / cooldown


def _before_cooldown(
    update: int, total: int, peak: float, warmup: int, schedule: Schedule
) -> float:
    if update < warmup:
        return peak * (update + 1) / warmup
    if schedule == "cosine":
        return peak / 2 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))
    if schedule == "linear":
        return peak * (total - update) / (total - warmup)
    if schedule == "rsqrt":
        return peak * math.sqrt(warmup / update)
    return peak
