"""Looking the port's values up: which of them are told from each other, in which layouts."""

import numpy as np
import pytest

from twinvit.port import index as lookups
from twinvit.port.aside import set_aside
from twinvit.port.index import Index, countable, is_plain, squeezed_distance

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


def _odd(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Numbers of any size, some of which `countable` may leave out."""
    x = rng.standard_normal(int(rng.integers(1, 300))) * 10.0 ** rng.integers(-160, 160)
    some = rng.integers(0, x.size, 2)
    if kind < 4:
        x[some] = (np.nan, np.inf, -np.inf, -1.7e308)[kind]
    elif kind == 4:
        x[some] = np.abs(x).max() * 10.0 ** rng.integers(0, 9)
    elif kind == 5:
        x[rng.random(x.size) < 0.9] = 0
    elif kind == 6:
        x[rng.random(x.size) < 0.5] *= 1e-5
    elif kind == 7:
        x[:] = x[0]
    return x


@pytest.mark.filterwarnings("error")
def test_where_a_few_numbers_tell_that_all_count_all_do():
    rng, told = np.random.default_rng(0), 0
    for k in range(2000):
        x = _odd(rng, k % 9)
        if is_plain(x, lookups._squares(x)):
            told += 1
            flat, others = countable(x)
            assert others == 0 and flat.size == x.size
    assert told > 400


def test_a_value_that_proves_nothing_is_not_found_where_it_must_prove():
    few = np.repeat([1.0, 2.0, 3.0], 4)
    index = Index()
    entry = index.add(few + 1e-9 * np.arange(12), "add", "", [])
    assert index.find(few, 1e-6) == entry and index.find(few, 1e-6, proves=True) is None


def test_arrays_that_are_set_aside_are_the_same(monkeypatch):
    made = np.random.default_rng(0).standard_normal((40, 30))
    made[0, :4] = np.nan, -0.0, np.inf, 5e-324
    arrays = [made, made.T, made[1:3], made.reshape(-1), made.astype(np.float32), np.zeros((0, 3))]
    assert all(a is b for a, b in zip(set_aside(arrays), arrays))  # too few for a file
    monkeypatch.setattr("twinvit.port.aside.LEAST", 1)
    moved = set_aside(arrays)
    for x, y in zip(arrays, moved):
        assert (x.shape, x.dtype, x.strides) == (y.shape, y.dtype, y.strides)
        assert x.tobytes() == y.tobytes() and y.flags.writeable
    assert moved[0] is not made and moved[1] is arrays[1]
    assert np.shares_memory(moved[0], moved[3]) and not np.shares_memory(moved[0], made)


def test_without_a_file_nothing_is_set_aside(monkeypatch):
    def fails():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twinvit.port.aside.LEAST", 1)
    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    assert set_aside([X])[0] is X
