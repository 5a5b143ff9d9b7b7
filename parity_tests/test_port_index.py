"""Looking the port's values up: which of them are told from each other, in which layouts."""

import numpy as np

from twinvit.port.index import Index, squeezed_distance

X = np.random.default_rng(0).standard_normal((3, 6, 13, 8))


def turned(x: np.ndarray) -> np.ndarray:
    """Neighbours as pairs, turned by an angle that grows from 0 along the third axis."""
    angle = np.arange(x.shape[2])[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    pairs = (a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle))
    return np.stack(pairs, -1).reshape(x.shape)


def test_a_rotated_array_is_told_from_what_it_was():
    """A rotation keeps each pair's norm, and the extremes where they stand at the first place."""
    x = X.copy()
    x[0, 0, 0, :2] = 9, -9
    y = turned(x)
    assert (x.max(), x.min()) == (y.max(), y.min())
    index = Index()
    ids = [index.add(value, "made", "", []) for value in (x, y, x.swapaxes(1, 2))]
    assert index.key(ids[0]) == index.key(ids[2])
    assert index.key(ids[0]) != index.key(ids[1])


def test_an_axis_that_the_port_splits_is_the_same_numbers_in_order():
    split = X.transpose(0, 2, 1, 3).reshape(3, 13, 6, 4, 2)
    assert squeezed_distance(X, split) == 0
    assert squeezed_distance(X, split[..., ::-1]) > 0.1


def test_numbers_whose_squares_overflow_are_looked_up_without_a_warning():
    held = np.geomspace(1e150, 1e300, 12)
    index = Index()
    entry = index.add(held, "mul", "", [])
    assert index.find(held[::-1].copy(), 1e-13) == entry
    assert index.find(held * (1 + 1e-9), 1e-13) is None
