"""`port.explain` names what was planted, where, and nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import port_models as models
import pytest
import torch

from twinvit import port


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference() -> models.ViT:
    return models.reference()


def explained(reference: models.ViT, stacked: bool = False, **mistakes: Any) -> port.Report:
    fn = partial(models.port, **mistakes)
    return port.explain(
        reference, port.Function(fn, models.params(reference, stacked)), (models.images(),)
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_an_exact_port_is_the_same_without_a_map(reference, stacked):
    report = explained(reference, stacked)
    assert report.same and report.explained and not report.findings
    assert report.distance < 1e-13
    assert "NHWC" in " ".join(report.notes)


PLANTED = {
    "gelu_tanh": ({"tanh": True}, "gelu", 2),
    "norm_eps": ({"eps": 1e-5}, "native_layer_norm", 5),
    "attention_scale": ({"scale": models.WIDTH**-0.5}, "mul", 2),
    "qkv_order": ({"order": "kqv"}, "", 2),
    "bias_missing": ({"bias": False}, "proj: addmm", 2),
    "token_order": ({"columns": True}, "", 1),
    "weight_transposed": ({"transposed": True}, "proj: addmm", 2),
    "softmax_axis": ({"axis": -2}, "softmax", 2),
}


@pytest.mark.parametrize("cause", PLANTED)
def test_a_planted_mistake_is_named_at_its_place_with_the_proof(reference, cause):
    mistakes, place, places = PLANTED[cause]
    report = explained(reference, **mistakes)
    assert not report.same and report.explained
    assert [f.cause for f in report.findings] == [cause]
    finding = report.findings[0]
    assert finding.kind == "cause" and place in finding.torch and len(finding.places) == places
    assert "port_models.py:" in finding.jax
    assert finding.before > 1e-7 and finding.after < 1e-12
    assert report.distance > 1e-7 and report.remaining < 1e-12


def test_two_mistakes_are_both_named(reference):
    report = explained(reference, tanh=True, eps=1e-5)
    assert report.explained and {f.cause for f in report.findings} == {"norm_eps", "gelu_tanh"}
    assert report.remaining < 1e-12


def test_a_mistake_outside_the_catalogue_is_an_expression_at_its_place(reference):
    report = explained(reference, cap=1.5, order="kqv")
    assert report.explained and report.remaining < 1e-12
    assert {f.cause for f in report.findings if f.kind == "cause"} == {"qkv_order"}
    found = [f for f in report.findings if f.kind == "expression"]
    assert len(found) == 1 and len(found[0].places) == 2, report
    assert "fc2" in found[0].torch and "1.5 * atan(gelu / 1.5)" in found[0].text


def test_a_narrower_type_is_a_narrowing_and_no_difference(reference):
    report = explained(reference, narrow=True)
    assert report.same
    assert [(n.side, n.dtype) for n in report.narrowings] == [("jax", "float32")]
    assert "port_models.py" in report.narrowings[0].where


def test_neither_model_is_changed(reference):
    before = {k: v.clone() for k, v in reference.state_dict().items()}
    reference.train()
    explained(reference, tanh=True)
    assert reference.training and not jax.config.jax_enable_x64
    assert all(torch.equal(v, before[k]) for k, v in reference.state_dict().items())
    reference.eval()


def test_gradients_follow_the_forward_edits(reference):
    fn = partial(models.port, tanh=True)
    report = port.explain(
        reference,
        port.Function(fn, models.params(reference)),
        (models.images(),),
        what=("forward", "grad"),
    )
    assert [f.cause for f in report.findings] == ["gelu_tanh"] and report.explained


def test_a_detached_weight_is_found(reference):
    def fn(p: dict[str, Any], x: jax.Array) -> jax.Array:
        layers = [dict(layer) for layer in p["layers"]]
        layers[1]["up"] = jax.lax.stop_gradient(layers[1]["up"])
        return models.port({**p, "layers": layers}, x)

    report = port.explain(
        reference,
        port.Function(fn, models.params(reference)),
        (models.images(),),
        what=("forward", "grad"),
    )
    assert [f.cause for f in report.findings] == ["grad_detached"]
    assert "blocks.1.fc1" in report.findings[0].torch and report.explained and not report.same


def test_assert_same_fails_with_the_report(reference):
    good = port.Function(models.port, models.params(reference))
    assert port.assert_same(reference, good, (models.images(),)).same
    with pytest.raises(AssertionError, match="gelu_tanh"):
        bad = port.Function(partial(models.port, tanh=True), models.params(reference))
        port.assert_same(reference, bad, (models.images(),))


def test_a_report_survives_json(reference, tmp_path: Path):
    report = explained(reference, tanh=True)
    report.to_json(tmp_path / "report.json")
    read = port.Report.from_json(tmp_path / "report.json")
    assert (
        read.findings == report.findings
        and read.remaining == report.remaining
        and read.operations == report.operations
    )


def test_users_add_causes(reference):
    from twinvit.port import causes

    before = len(causes.catalogue())

    @port.cause("arctan_cap", on="aten.gelu")
    def capped(call):
        """The port caps GELU by an arctangent."""
        yield causes.Variant(
            "the port caps GELU",
            lambda x, **_: 1.5 * torch.arctan(torch.nn.functional.gelu(x) / 1.5),
        )

    try:
        report = explained(reference, cap=1.5)
        assert [f.cause for f in report.findings] == ["arctan_cap"] and report.explained
    finally:
        causes._REGISTRY[:] = causes._REGISTRY[:before]


def test_blind_spots_of_a_loose_tolerance(reference):
    loose = port.blind_spots(reference, (models.images(),), atol=5e-2, limit=500)
    assert "gelu_tanh" in {s.cause for s in loose.missed}
    tight = port.blind_spots(reference, (models.images(),), atol=loose.needed, limit=500)
    assert tight.spots and not tight.missed


def test_other_weights_cannot_be_judged(reference):
    other = port.Function(models.port, models.params(models.reference(seed=1)))
    with pytest.raises(port.PortError, match="other weights"):
        port.explain(reference, other, (models.images(),))


def test_a_port_that_refuses_its_inputs_says_what_it_was_given(reference):
    with pytest.raises(port.PortError, match=r"\(2, 3, 12, 12\).*NHWC"):
        port.explain(
            reference,
            port.Function(models.port, models.params(reference)),
            (models.images(),),
            jax_inputs=(models.images(),),
        )


def test_a_random_reference_cannot_be_judged():
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(9, 11)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.fc(x), 0.5, training=True)

    model = Noisy()
    p = {"w": model.fc.weight.detach().numpy(), "b": model.fc.bias.detach().numpy()}
    x = np.random.default_rng(0).standard_normal((4, 9))
    with pytest.raises(port.PortError, match="differs from itself"):
        port.explain(model, port.Function(lambda p, x: x @ p["w"].T + p["b"], p), (x,))


def test_output_must_be_an_array():
    class Words(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "a word"

    with pytest.raises(port.PortError, match="output="):
        port.explain(Words(), port.Function(lambda p, x: x, {}), (np.ones((2, 9)),))


FIXED = {
    "gelu_tanh": ({"tanh": True}, "approximate=False", 'approximate="tanh"'),
    "norm_eps": ({"eps": 1e-5}, "epsilon=1e-06", "eps=1e-05"),
    "attention_scale": ({"scale": 0.25}, "scale the scores by 8 ** -0.5", "scale="),
    "qkv_order": ({"order": "kqv"}, "", ""),
}


@pytest.mark.parametrize("cause", FIXED)
def test_a_fix_is_for_the_side_that_is_to_be_changed(reference, cause):
    mistakes, in_jax, in_torch = FIXED[cause]
    wrong = port.Function(partial(models.port, **mistakes), models.params(reference))
    for side, fix in (("torch", in_jax), ("jax", in_torch)):
        report = port.explain(reference, wrong, (models.images(),), reference=side)
        assert [f.cause for f in report.findings] == [cause] and report.explained
        assert (fix in report.findings[0].fix) if fix else not report.findings[0].fix, report
        assert side == "torch" or "the port" not in str(report).split("Notes:")[0]
        assert side == "torch" or "pass approximate=False" not in str(report)
