"""Claim: both twins count an example as right by the same rule, also where logits tie or are NaN:
of equal logits the first class wins, and a NaN is never right."""

import dataclasses

import numpy as np
import pytest
from helpers import DIGITS, TINY, first_batches, jax_trainer, random_state, torch_trainer

pytestmark = pytest.mark.quick

NAN = float("nan")
LOGITS = {
    "distinct": [3.0, 9.0, 1.0, 8.0, 0.0, 7.0, 2.0, 6.0, 4.0, 5.0],
    "two tie for the first place": [1.0, 9.0, 2.0, 9.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "ties at the fifth place": [5.0, 6.0, 7.0, 8.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
    "all equal": [0.0] * 10,
    "one NaN": [1.0, NAN, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0],
    "all NaN": [NAN] * 10,
}


def counted(logits: list[float], labels: np.ndarray, k: int) -> int:
    """How many labels are among the first `k` classes, written out for one example at a time."""
    right = 0
    for label in labels:
        own, ahead = logits[label], 0
        for number, other in enumerate(logits):
            ahead += not other <= own or (other == own and number < label)
        right += ahead < k and own == own
    return right


@pytest.fixture(scope="module")
def trainers():
    """Both twins on a model whose logits are its head's bias, whatever the image."""
    state = random_state(TINY, "fp32")
    head = dict(state.params) | {"head.weight": np.zeros_like(state.params["head.weight"])}
    state = dataclasses.replace(state, params=head)
    train = dataclasses.replace(DIGITS, precision="fp32")
    (batch,) = first_batches(train, 1)
    batch = dataclasses.replace(batch, labels=np.arange(32, dtype=np.int32) % 10)
    return state, (jax_trainer(state, train), torch_trainer(state, train)), batch


@pytest.mark.parametrize("case", LOGITS)
def test_both_twins_count_as_an_independent_count(trainers, case):
    state, twins, batch = trainers
    bias = np.array(LOGITS[case], np.float32)
    expected = [counted(LOGITS[case], batch.labels, k) for k in (1, 5)]
    for trainer in twins:
        trainer.load_params(dict(state.params) | {"head.bias": bias})
        counts = trainer.eval_step(trainer.to_device(batch)).get()
        assert [counts.correct1, counts.correct5] == expected
        assert counts.examples == len(batch.labels)
    assert expected[1] == {"all NaN": 0, "one NaN": 12}.get(case, expected[1])
    assert "NaN" in case or 0 < expected[0] < expected[1] < 32
