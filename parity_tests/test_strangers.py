"""Claim: a checkpoint of another program gives its own model's numbers in both twins, or a sentence
says why not. The list is in `strangers/`."""

import functools

import certificates
import numpy as np
import pytest
import torch
from helpers import random_images, relative_l2, to_torch
from strangers import of_facebook
from strangers.row import drawn
from strangers.rows import STRANGERS

import jax_vit
import torch_vit
from shared_vit.errors import UserError
from shared_vit.weights import open_weights
from twinvit.convert.command import convert

# What the loads say is read from `Source.told` here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
READ = [row for row in STRANGERS if not row.refused]
REFUSED = [row for row in STRANGERS if row.refused]
SAME = 1e-12  # relative L2 in float64


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(row)`: its path and its own model, made once."""
    made = {}

    def write(row):
        if row.name not in made:
            made[row.name] = row.write(tmp_path_factory.mktemp("theirs"))
        return made[row.name]

    return write


def names(rows):
    return [row.name for row in rows]


@pytest.mark.parametrize("row", READ, ids=names(READ))
def test_its_numbers_are_its_own_model_s(row, written, request):
    path, theirs = written(row)
    request.getfixturevalue("x64")
    source = open_weights(path, **row.hints)
    told = " | ".join(source.told(source.cfg))
    assert all(part in told for part in row.said), told
    images = random_images(source.cfg, dtype=np.float64)
    expected = theirs(images)
    assert np.ptp(expected) > 0.1 and expected.dtype == np.float64
    in_torch = torch_vit.load(path, precision="fp64", **row.hints)(to_torch(images))
    in_jax = jax_vit.load(path, precision="fp64", **row.hints)(images)
    for ours in (in_torch.detach().numpy(), np.asarray(in_jax)):
        assert ours.shape == expected.shape and relative_l2(ours, expected) <= SAME


@pytest.mark.parametrize("row", READ, ids=names(READ))
def test_it_is_converted_and_the_same(row, written, tmp_path, monkeypatch):
    path, _ = written(row)
    certificates.in_this_process(monkeypatch, tmp_path)
    out = tmp_path / "ours.safetensors"
    assert convert(str(path), str(out), "torch", verify=True, **row.hints) == 0


@pytest.mark.parametrize("row", REFUSED, ids=names(REFUSED))
def test_it_is_refused_in_a_sentence(row, written):
    path, _ = written(row)
    with pytest.raises(UserError) as caught:
        torch_vit.load(path, **row.hints)
    assert row.refused in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, write",
    [
        ("vit_small_patch14_dinov2", functools.partial(of_facebook.of_dinov2, group=3)),
        ("deit_tiny_distilled_patch16_224", of_facebook.of_deit),
    ],
)
def test_published_sizes_are_known_by_their_tensors(name, write, tmp_path):
    import timm

    path, theirs = write(tmp_path, drawn(timm.create_model(name)))
    model = torch_vit.load(path, precision="fp64")
    images = random_images(model.cfg, 1, dtype=np.float64)
    with torch.no_grad():
        assert relative_l2(model(to_torch(images)).numpy(), theirs(images)) <= SAME


def test_the_list_is_long_and_half_of_it_written_by_libraries():
    assert len(STRANGERS) > 60 and sum(row.by_library for row in STRANGERS) >= 30
    assert len(set(names(STRANGERS))) == len(STRANGERS)
