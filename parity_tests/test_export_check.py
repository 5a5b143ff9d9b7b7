"""Claim: `twinvit export` keeps a program only where its logits are the twin's within rounding.

Each case puts another program in the place of the one that is checked: the twin itself, wrong.
"""

import dataclasses

import numpy as np
import pytest
from helpers import VARIANTS, random_arrays

from shared_vit.data.preprocess import normalize
from twinvit.programs import check, target

CFG = dataclasses.replace(VARIANTS["token"], depth=2)


def biased(arrays, by=30.0):
    arrays["head.bias"][0] += by


def negated(arrays):
    arrays["head.weight"][3] *= -1


def scrambled(arrays):
    q, k, v = np.split(arrays["blocks.0.attn.qkv.weight"], 3)
    arrays["blocks.0.attn.qkv.weight"] = np.concatenate([v, q, k])


@pytest.fixture(scope="module")
def checked():
    """`checked(wrong, change=..., precision=..., start=...)`: the verdict on a program of weights
    that `wrong` changed and of another function, where the twin's are as `start` made them."""
    twins = {}

    def twin(cfg, arrays, precision, key):
        if key not in twins:
            options = target.Options(precision=precision)
            twins[key] = target.TARGETS["torch"].code().twin(cfg, arrays, options)
        return twins[key]

    def run(wrong=None, change=None, precision="fp32", start=None, alter=lambda p: p):
        arrays = random_arrays(CFG)
        if start is not None:
            start(arrays)
        mine = twin(CFG, arrays, precision, (start, precision))
        theirs = {n: a.copy() for n, a in arrays.items()}
        if wrong is not None:
            wrong(theirs)
        other = dataclasses.replace(CFG, **(change or {}))
        program = twin(other, theirs, precision, (start, precision, wrong, str(change)))

        def probabilities(images):
            logits = program.logits(normalize(images, CFG)).astype(np.float64)
            with np.errstate(under="ignore"):
                return alter(np.exp(check.log_softmax(logits)).astype(np.float32))

        try:
            made = check.check(probabilities, mine, CFG, target.Options(precision=precision))
            return made["verdict"], ""
        except check.NotKept as error:
            return error.verdict, str(error)

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("start", [None, biased])
def test_a_sound_program_is_kept(checked, precision, start):
    assert checked(precision=precision, start=start) == ("same", "")


@pytest.mark.parametrize("start", [None, biased], ids=["plain", "one class saturated"])
@pytest.mark.parametrize(
    "wrong, change",
    [
        (None, dict(gelu="tanh")),
        (None, dict(norm_eps=1e-5)),
        (None, dict(num_heads=6)),
        (negated, None),
        (scrambled, None),
    ],
    ids=["tanh", "eps", "heads", "a negated row", "qkv"],
)
def test_a_wrong_program_is_different_however_saturated_the_softmax(checked, start, wrong, change):
    verdict, said = checked(wrong, change, start=start)
    assert verdict == "different" and "away from the twin's" in said


@pytest.mark.parametrize("change", [dict(gelu="tanh"), dict(norm_eps=1e-3)], ids=str)
@pytest.mark.parametrize("start", [None, biased])
def test_bf16_keeps_no_wrong_formula(checked, start, change):
    """Its rounding is as large as what they change, so that it cannot be called different."""
    verdict, said = checked(None, change, "bf16", start)
    assert verdict == "undecided" and "bf16 cannot distinguish" in said
    assert checked(scrambled, None, "bf16", start)[0] == "different"


def test_what_shows_nothing_is_not_kept(checked):
    def zero(arrays):
        arrays["head.weight"][:] = 0

    verdict, said = checked(start=zero)
    assert verdict == "undecided" and "every image has the same probabilities" in said

    def certain(arrays):
        biased(arrays, 1e6)

    assert checked(start=certain)[0] == "undecided"


def test_numbers_that_are_none_are_different(checked):
    def nan(p):
        p = p.copy()
        p[-1, 2] = np.nan
        return p

    assert checked(alter=nan)[0] == "different"
    assert checked(alter=lambda p: p[:, 1:])[0] == "different"


def test_a_program_that_fixes_one_class_is_different(checked):
    """The same number for each image, where the twin's are not."""

    def fixed(p):
        p = p.copy()
        p[:, 4] = p[0, 4]
        return p

    assert checked(alter=fixed)[0] == "different"
