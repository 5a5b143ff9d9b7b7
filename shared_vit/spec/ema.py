"""The moving average of the weights: e <- e + (1 - d) (p - e) after each update that was made."""


def ema_decay(decay: float, updates: int) -> float:
    """d of an update, float64: min(`decay`, (1 + n) / (10 + n)), TensorFlow's warm-up.

    updates: n, those made up to this one, itself included (Adam's step count), from 1. While n is
    small the average forgets the first weights quickly.
    """
    return min(decay, (1 + updates) / (10 + updates))
