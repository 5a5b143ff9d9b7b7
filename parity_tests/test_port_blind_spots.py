"""Claim: `blind_spots` calls a mistake caught only where a test of every output would see it."""

import numpy as np
import pytest
import torch
from torch import nn

from twinvit.port.audit import blind_spots

TOKENS = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)


class Norms(nn.Module):
    """Three layers of one kind, of which the later ones see larger numbers, and a head."""

    def __init__(self, last=lambda logits: logits):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head, self.last = nn.Linear(8, 5), last
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, x):
        for norm, linear in zip(self.norms, self.linears):
            x = x + 10 * torch.nn.functional.gelu(linear(norm(x)))
        return self.last(self.head(x.mean(1)))


def found(model, **kwargs):
    return blind_spots(model, (TOKENS,), **kwargs)


@pytest.fixture(scope="module")
def sound():
    return found(Norms())


def test_mistakes_are_made_at_every_layer(sound):
    """The same eps is 100 times smaller in a later layer, whose numbers are larger."""
    eps = {s.place.split(":")[0]: s.largest for s in sound.spots if "eps 1e-12" in s.text}
    if not eps:
        eps = {s.place.split(":")[0]: s.largest for s in sound.spots if s.cause == "norm_eps"}
    assert set(eps) == {"norms.0", "norms.1", "norms.2"}
    assert min(eps.values()) < 0.1 * eps["norms.0"]
    assert sound.needed <= min(eps.values())


def test_a_sound_reference_hides_nothing(sound):
    """What is no mistake of this model (its own formula) is not counted as one that hides."""
    assert (sound.same, sound.not_finite, sound.untried) == (0, 0, [])
    assert sound.verdict == "different" and sound.missed and sound.exit_status == 1
    tight = found(Norms(), atol=sound.needed)
    assert tight.verdict == "same" and not tight.missed and tight.exit_status == 0, tight
    assert "catch all" in str(tight) and "that were tried" not in str(tight)


def test_what_a_zero_head_hides_is_not_caught(sound):
    model = Norms()
    model.head.weight.data.zero_()
    spots = found(model, atol=1e-9)
    assert spots.same > 20 and spots.verdict == "undecided" and spots.exit_status == 2
    assert f"{spots.same} more change no output" in str(spots) and "norms.0" in str(spots)


def test_a_masked_class_does_not_hide_the_others(sound):
    mask = torch.tensor([0.0, 0, -np.inf, 0, 0])
    spots = found(Norms(lambda logits: logits + mask))
    assert len(spots.spots) >= len(sound.spots) and spots.missed
    assert all(np.isfinite(s.largest) and np.isfinite(s.distance) for s in spots.missed)
    for metric in ("kl", "top1", "cosine"):
        again = found(Norms(lambda logits: logits + mask), metric=metric, limit=60)
        assert any(s.caught for s in again.spots), metric


def test_outputs_that_are_no_numbers_are_not_caught():
    """The root of what may be negative: many mistakes make it NaN, and a reference may hold one."""
    spots = found(Norms(lambda logits: torch.sqrt(logits - logits.min().detach() + 1e-3)))
    assert spots.not_finite == 0 or f"{spots.not_finite} more make outputs" in str(spots)
    low = Norms().eval()(torch.from_numpy(TOKENS)).min().item()
    spots = found(Norms(lambda logits: torch.sqrt(logits - low + 1e-3)), atol=0.0)
    assert spots.not_finite > 0 and spots.verdict == "undecided"
    assert f"{spots.not_finite} more make outputs that are not finite" in str(spots)
    nan = found(Norms(lambda logits: logits / 0 * 0), atol=1e-9)
    assert nan.verdict == "undecided" and "not finite in the reference" in str(nan)


def test_every_output_is_looked_at(sound):
    """The first is constant, the second is what the model computes."""
    spots = found(Norms(lambda logits: (torch.ones(3), logits)))
    assert len(spots.spots) == len(sound.spots) and spots.needed == sound.needed


def test_places_beyond_the_limit_are_said(sound):
    few = found(Norms(), atol=1e-12, limit=10)
    assert few.untried and few.verdict == "undecided" and "left out at the limit" in str(few)
    kinds = {s.place.split(": ")[1] for s in few.spots}
    assert kinds and all(not s.place.startswith("norms.2") for s in few.spots)


def test_nothing_to_try_is_not_nothing_missed():
    spots = blind_spots(lambda x: x.clone(), (TOKENS,))
    assert spots.verdict == "undecided" and "nothing was tried" in str(spots)
