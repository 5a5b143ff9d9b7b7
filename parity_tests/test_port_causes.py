"""Single causes of the catalogue, each on the smallest model that it fits."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch

from twinvit import port

TOKENS = np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float32)


class Pooled(torch.nn.Module):
    """A reduction over tokens between two linear layers."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.embed = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.embed(x)))


def pooled(
    reference: Callable[[torch.Tensor], torch.Tensor], ported: Callable[[jax.Array], jax.Array]
) -> port.Report:
    torch.manual_seed(0)
    model = Pooled(reference)
    params = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p, x):
        y = ported(x @ p["embed.weight"].T + p["embed.bias"])
        return y @ p["head.weight"].T + p["head.bias"]

    return port.explain(model, port.Function(call, params), (TOKENS,))


@pytest.mark.parametrize(
    ("ported", "text"),
    [
        (lambda y: y[:, 0], "takes the first position; the reference the mean"),
        (lambda y: y[:, -1], "takes the last position; the reference the mean"),
        (lambda y: y[:, 1:].mean(1), "leaves the first position out of the mean"),
    ],
)
def test_tokens_taken_where_the_reference_takes_their_mean(ported, text):
    report = pooled(lambda y: y.mean(1), ported)
    assert [f.cause for f in report.findings] == ["pool_kind"], report
    assert text in report.findings[0].text and report.explained


@pytest.mark.parametrize(
    ("ported", "text"),
    [
        (lambda y: y[:, 0], "takes the first position; the reference the maximum"),
        (lambda y: y.mean(1), "takes the mean; the reference the maximum"),
        (lambda y: y[:, 1:].max(1), "leaves the first position out of the maximum"),
    ],
)
def test_tokens_taken_where_the_reference_takes_their_maximum(ported, text):
    report = pooled(lambda y: y.amax(1), ported)
    assert [f.cause for f in report.findings] == ["pool_kind"], report
    assert text in report.findings[0].text and report.explained


def test_blind_spots_asks_every_generator_of_a_shared_name():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    spots = port.blind_spots(model, (TOKENS,)).spots
    swapped = [s.text for s in spots if s.cause == "weights_swapped"]
    assert "the port has 2.weight in the place of 0.weight, and the other way" in swapped
    assert "the port has the weights of 2 here, and those of 0 there" in swapped


class Table(torch.nn.Module):
    """Rows of a table, looked up by `take`, before a linear layer."""

    def __init__(self, take: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.take = take
        self.table = torch.nn.Parameter(torch.randn(7, 8))
        self.head = torch.nn.Linear(8, 6)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.take(self.table, rows))


@pytest.mark.parametrize(
    "take",
    [
        lambda table, rows: table[rows],
        lambda table, rows: table.T[:, rows].T,
        lambda table, rows: table.index_select(0, rows),
        lambda table, rows: table.T.index_select(-1, rows).T,
        lambda table, rows: torch.nn.functional.embedding(rows, table),
    ],
    ids=["index", "index_columns", "index_select", "select_columns", "embedding"],
)
@pytest.mark.parametrize(
    ("moved", "text"),
    [
        (lambda rows: (rows - 1) % 7, "-1 rows off, around its end"),
        (lambda rows: (rows + 2).clip(0, 6), "+2 rows off"),
    ],
)
def test_a_table_that_is_looked_up_some_rows_off(take, moved, text):
    torch.manual_seed(0)
    model = Table(take)
    params = {k: v.numpy() for k, v in model.state_dict().items()}

    def call(p, rows):
        return p["table"][moved(rows)] @ p["head.weight"].T + p["head.bias"]

    report = port.explain(model, port.Function(call, params), (np.array([3, 0, 6, 2, 5, 1]),))
    assert [f.cause for f in report.findings] == ["position_offset"], report
    assert report.findings[0].text.endswith(text) and report.explained


def test_a_celu_of_another_alpha():
    report = pooled(lambda y: torch.nn.functional.celu(y, 1.5), lambda y: jax.nn.celu(y, alpha=0.5))
    assert [f.cause for f in report.findings] == ["activation"], report
    assert "CELU has alpha 0.5; the reference's 1.5" in report.findings[0].text
    assert report.explained
