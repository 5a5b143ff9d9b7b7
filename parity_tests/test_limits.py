"""Claim: every judge's limit is where the documents say: what is just inside passes, what is just
outside does not. Pieces of the judges on numbers made for them; no model is run."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from shared_vit.errors import UserError
from shared_vit.run.record import Record, differences, write_record
from shared_vit.spec.recipe import Recipe
from shared_vit.spec.runtime import RuntimeConfig
from twinvit import lockstep
from twinvit.compare import command as compare
from twinvit.lockstep import Measured, judge_by_noise, judge_by_reference
from twinvit.lockstep.record import Line, judge
from twinvit.lockstep.twins import due
from twinvit.parity import command as parity
from twinvit.parity import curves
from twinvit.parity.noise_rule import Curve, noise_rule

pytestmark = pytest.mark.quick

STEPS = np.arange(1, 101)
LOSS, NORM = np.exp(-STEPS / 50), 1 + STEPS / 100.0  # the loss is at most 1: gaps are absolute
EPS = float(np.finfo(np.float64).eps)


def nudged(noise):
    """Three runs whose loss differs by `noise`, one number or one a step."""
    return [Curve(STEPS, LOSS + share * np.asarray(noise), NORM) for share in (1, -1, 0.5)]


def by_the_noise_rule(gap, noise):
    """The rule on two runs whose loss differs by `gap`, with runs that differ by `noise`."""
    own = Curve(STEPS, LOSS, NORM)
    return noise_rule(Curve(STEPS, LOSS + gap, NORM), own, own, nudged(noise), EPS)


@pytest.mark.parametrize("share, matched", [(9.5, True), (10.5, False)])
def test_the_noise_rule_allows_ten_times_the_noise(share, matched):
    assert by_the_noise_rule(share * 1e-8, np.full(100, 1e-8)).matched == matched


@pytest.mark.parametrize("units, matched", [(14, True), (18, False)])
def test_the_noise_rule_allows_sixteen_units_where_there_is_no_noise(units, matched):
    assert by_the_noise_rule(np.where(STEPS == 1, units * EPS, 0), 0.0).matched == matched


@pytest.mark.parametrize("noise, until", [(9e-4, 100), (1.2e-3, 60)])
def test_the_noise_rule_decides_while_noise_is_below_a_thousandth(noise, until):
    assert by_the_noise_rule(0.0, np.where(STEPS > 60, noise, 0)).decided_until == until


@pytest.mark.parametrize("until, matched", [(49, False), (50, True)])
def test_the_noise_rule_wants_fifty_decided_steps(until, matched):
    verdict = by_the_noise_rule(0.0, np.where(STEPS > until, 0.1, 0))
    assert (verdict.decided_until, verdict.matched) == (until, matched)


def measured(gaps, noise=None, distances=None, step=1):
    return Measured(step, gaps, noise, distances)


def test_lockstep_measures_noise_and_the_other_twins_own_step_at_steps_that_are_documented():
    requested = {number: due(number) for number in range(1, 101)}
    assert [n for n, d in requested.items() if d.noise] == [1, 2, 4, 8, 16, 41, 81]
    assert [n for n, d in requested.items() if d.others_own] == [
        1, 2, 4, 8, 11, 16, 21, 31, 41, 51, 61, 71, 81, 91,
    ]  # fmt: skip


@pytest.mark.parametrize("share, status", [(9.5, 0), (10.5, 1)])
def test_lockstep_allows_ten_times_the_noise(share, status):
    names = ("loss", lockstep.WHOLE, "w")
    line = measured(dict.fromkeys(names, share * 1e-6), dict.fromkeys(names, 1e-6))
    assert judge_by_noise([line], EPS).exit_status == status


@pytest.mark.parametrize("noise, decided", [(9e-4, True), (1.2e-3, False)])
def test_lockstep_decides_while_noise_is_below_a_thousandth(noise, decided):
    line = measured({lockstep.WHOLE: 0.0, "w": 0.0}, {lockstep.WHOLE: 0.0, "w": noise})
    assert judge_by_noise([line], EPS).decided == [decided]


def in_bf16(loss=(0.001, 0.001), whole=(0.01, 0.01), array=(0.01, 0.01), steps=1):
    """Lines of twins in bf16: distances of both from a float64 step."""
    gaps = {"loss": max(loss), lockstep.WHOLE: 0.01, "w": 0.01}
    distances = {"loss": loss, lockstep.WHOLE: whole, "w": array}
    return [measured(gaps, None, distances, step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("scalar, status", [(0.0099, 0), (0.0101, 1)])
def test_a_scalar_in_bf16_is_ten_times_as_far_off_as_the_other_side_s(scalar, status):
    lines = in_bf16((scalar, 0.001), steps=16)
    assert judge_by_reference(lines, EPS).exit_status == status


@pytest.mark.parametrize("share, status", [(1.9, 0), (2.1, 1)])
def test_a_scalar_in_bf16_obeys_its_own_noise(share, status):
    names = ("loss", lockstep.WHOLE, "w")
    (line,) = in_bf16((share * 0.1, 0.001))
    line = dataclasses.replace(line, noise=dict.fromkeys(names, 0.1))
    assert judge_by_reference([line], EPS).exit_status == status


@pytest.mark.parametrize(
    "distances, steps, status",
    [
        (dict(whole=(0.012, 0.01)), 16, 0),
        (dict(whole=(0.013, 0.01)), 16, 1),
        (dict(array=(0.01, 0.019)), 16, 0),
        (dict(array=(0.01, 0.021)), 16, 1),
        (dict(whole=(0.024, 0.01)), 1, 0),
        (dict(whole=(0.026, 0.01)), 1, 1),
        (dict(array=(0.01, 0.039)), 1, 0),
        (dict(array=(0.01, 0.041)), 1, 1),
    ],
)
def test_the_sides_in_bf16_are_as_far_from_a_float64_step(distances, steps, status):
    assert judge_by_reference(in_bf16(**distances, steps=steps), EPS).exit_status == status


@pytest.mark.parametrize("spread, status", [(0.0, 1), (0.19, 1), (0.45, 0)])
def test_ratios_that_vary_more_have_wider_limits(spread, status):
    """Of the mean, which is 1.33 here: three standard errors of 16 steps whose logarithms deviate
    by `spread`. A steady distance of 1.33 times stays beyond the limit of 1.25."""
    sign = np.tile([1, -1], 8) * np.sqrt(15 / 16)
    lines = [
        in_bf16(whole=(0.01 * 1.33 * float(np.exp(spread * s)), 0.01))[0] for s in sign
    ]  # fmt: skip
    lines = [dataclasses.replace(line, step=i) for i, line in enumerate(lines, 1)]
    assert judge_by_reference(lines, EPS).exit_status == status


def test_erratic_ratios_do_not_pass_the_limits_of_one_step():
    """However much they vary: a mean of 2.6 times."""
    logs = np.log(2.6) + np.tile([-1.5, 1.5], 8)
    lines = [
        in_bf16(whole=(0.01 * min(1, float(np.exp(x))), 0.01 * min(1, float(np.exp(-x)))))[0]
        for x in logs
    ]
    lines = [dataclasses.replace(line, step=i) for i, line in enumerate(lines, 1)]
    assert judge_by_reference(lines, EPS).exit_status == 1


@pytest.mark.parametrize("one, status", [(0.039, 0), (0.041, 1)])
@pytest.mark.parametrize("side", [0, 1])
def test_an_array_of_rounding_alone_is_held_to_the_other_side_s(one, side, status):
    """Four times it, where it is larger than the array that it belongs to."""
    keys = (one, 0.01) if side == 0 else (0.01, one)
    (line,) = in_bf16(array=(1e-3, 1e-3))
    line = dataclasses.replace(
        line, gaps=line.gaps | {"k": 0.01}, distances=line.distances | {"k": keys}
    )
    assert judge_by_reference([line], EPS, {"k": "w"}).exit_status == status


@pytest.mark.parametrize("distance, decided", [(0.29, True), (0.31, False)])
def test_beyond_three_tenths_nothing_is_decided_in_bf16(distance, decided):
    verdict = judge_by_reference(in_bf16(array=(distance, distance)), EPS)
    assert verdict.decided == [decided]


@pytest.mark.parametrize("gap, status", [(9e-12, 0), (2e-11, 1)])
def test_the_optimizers_map_is_exact_to_1e_11(gap, status):
    equal = measured({lockstep.WHOLE: 0.0, "w": 0.0}, {lockstep.WHOLE: 0.0, "w": 0.0})
    line = Line(1, 1.0, 1.0, 1.0, equal, measured({lockstep.WHOLE: 0.0, "w": gap}))
    gradients, maps = judge([line], EPS)
    assert (gradients.exit_status, maps.exit_status) == (0, status)


def test_the_nudges_of_a_lockstep_are_three():
    """Of a step that changes nothing: the nudged states themselves."""
    noise = lockstep.nudges(lambda state, batch: state)
    moved = [a["w"].tobytes() for a in noise({"w": np.ones(64)}, None)]
    assert len(moved) == len(set(moved)) == 3


def test_the_noise_is_the_largest_of_the_nudges():
    ones = {"w": np.ones(4), "v": np.ones(4)}
    others = [{"w": np.full(4, 1 + w), "v": np.full(4, 1 + v)} for w, v in ((1, 2), (3, 1))]
    found = lockstep.measure(1, ones, ones, others).noise
    assert (found["w"], found["v"]) == (3, 2)


def test_the_nudged_runs_of_parity_are_three(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(parity, "_run_all", started.extend)
    monkeypatch.setattr(parity, "report", lambda *_: None)
    monkeypatch.setattr(parity, "read_record", lambda _: SimpleNamespace(recipe=Recipe(steps=10)))
    verdict = by_the_noise_rule(0.0, 1e-8)
    judged = []
    monkeypatch.setattr(parity, "judge", lambda *runs: judged.append(runs) or verdict)
    assert parity.parity(["--preset=digits", f"--run_dir={tmp_path / 'x'}"]) == 0
    flags = [f for _, command in started for f in command if f.startswith("--nudge")]
    assert sorted(flags) == ["--nudge=1", "--nudge=2", "--nudge=3"]
    folders = [f for _, command in started for f in command if f.startswith("--run_dir")]
    assert len(started) == len(set(folders)) == 5 and len(judged[0][2]) == 3


def recorded(folder, **changes):
    """A folder of a run with these settings and some curve."""
    folder.mkdir()
    recipe = dataclasses.replace(Recipe(data="digits"), **changes)
    data = {"name": "digits", "fingerprint": "0"}
    write_record(folder, Record(recipe, RuntimeConfig(), None, data, id="0"))
    rows = [{"step": int(s), "loss": v, "grad_norm": n} for s, v, n in zip(STEPS, LOSS, NORM)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_curves_judges_runs_of_the_same_settings(tmp_path):
    a, b = recorded(tmp_path / "a"), recorded(tmp_path / "b")
    noise = [recorded(tmp_path / f"n{i}", nudge=i) for i in (1, 2, 3)]
    assert curves.judge(a, b, noise).decided_until == 100
    other = recorded(tmp_path / "other", lr=0.5)
    with pytest.raises(UserError, match="not made with the same settings: --lr is"):
        curves.judge(other, b, noise)
    with pytest.raises(UserError, match="not made with the same settings: --lr is"):
        curves.judge(a, b, [*noise[:2], other])


# Another value of each setting of a recipe, where a number plus one is none.
OTHER = {
    "data": "folder", "optimizer": "sgd", "schedule": "linear", "loss": "sigmoid",
    "freeze": "trunk", "randaug": "2,5", "minival": "on", "precision": "fp64", "init_from": "x",
    "positions": "corners", "nudge": 1, "class_order": "number", "class_weights": (1.0, 2.0),
}  # fmt: skip


def test_a_resumed_run_may_change_its_length_alone():
    known = Record(Recipe(data="digits"), RuntimeConfig(), None, {"name": "", "fingerprint": ""})
    free = set()
    for field in dataclasses.fields(Recipe):
        value = getattr(known.recipe, field.name)
        if field.name == "model":
            changed = dataclasses.replace(value, dropout=0.25)
        elif isinstance(value, int | float) and field.name not in OTHER:
            changed = value + 1
        else:
            changed = OTHER[field.name]
        recipe = SimpleNamespace(**(vars(known.recipe) | {field.name: changed}))
        if not differences(known, SimpleNamespace(recipe=recipe, data=known.data)):
            free.add(field.name)
    assert free == {"steps", "init_from"}


def outputs(seed=0, **more):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((2, 4)) for name in ("blocks.0", "norm", "")} | more


def test_compare_is_different_where_one_side_alone_has_a_module():
    found = compare.compared(outputs(fc=np.ones(2)), outputs(), 1e-6, "a", "b", "fp32")
    assert found.exit_status == 1 and found.first is None
    assert found.sentences() == [
        "only one of them has: fc",
        "DIFFERENT: the models have other layers",
    ]


@pytest.mark.parametrize("share, status", [(0.5, 0), (2, 1)])
@pytest.mark.parametrize("precision, limit", [("fp64", 1e-12), ("fp32", 5e-6), ("bf16", 4e-2)])
def test_compare_allows_what_right_implementations_differ_by(precision, limit, share, status):
    a = outputs()
    b = a | {"norm": a["norm"] * (1 + share * limit)}
    found = compare.compared(a, b, compare.LIMITS[precision], "a", "b", precision)
    assert found.exit_status == status and found.first == (None if status == 0 else "norm")


def test_compare_says_that_logits_are_constant():
    a = outputs() | {"": np.ones((2, 4))}
    found = compare.compared(a, a, 1e-6, "a", "b", "fp32")
    assert found.constant and "every image gives the same logits" in found.sentences()[0]
    assert not compare.compared(outputs(), outputs(), 1e-6, "a", "b", "fp32").constant
