"""`twinvit port`: what it prints and its exit status."""

from pathlib import Path

import pytest

from twinvit import port
from twinvit.port import cli

FACTORIES = """
from functools import partial
import port_models as models
from twinvit import port

def make_torch():
    return models.reference()

def good(model):
    return port.Function(models.port, models.params(model))

def bad(model):
    return port.Function(partial(models.port, tanh=True), models.params(model))
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "port_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "port_factories"


def test_explain_says_same_and_different(factories, tmp_path, capsys):
    common = ["explain", f"{factories}:make_torch"]
    assert cli.main([*common, f"{factories}:good", "--shape", "2,3,12,12"]) == 0
    assert "SAME" in capsys.readouterr().out
    out = tmp_path / "report.json"
    assert cli.main([*common, f"{factories}:bad", "--shape", "2,3,12,12", "--json", str(out)]) == 1
    printed = capsys.readouterr()
    assert "gelu_tanh" in printed.out and "recording" in printed.err
    assert port.Report.from_json(out).findings[0].cause == "gelu_tanh"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "port_factories:make_torch", "port_factories:good"], "no input"),
        (
            ["explain", "port_factories:nothing", "port_factories:good", "--shape", "2,3"],
            "has no nothing",
        ),
        (
            ["explain", "no_such_module:f", "port_factories:good", "--shape", "2,3"],
            "cannot be imported",
        ),
        (
            ["explain", "port_factories", "port_factories:good", "--shape", "2,3"],
            "names no factory",
        ),
        (
            ["explain", "port_factories:make_torch", "port_factories:good", "--shape", "2,x"],
            "no shape",
        ),
        (["blind_spots", "port_factories:bad", "--shape", "2,3,12,12"], "takes 1 arguments"),
    ],
)
def test_what_cannot_be_judged_has_status_2(factories, arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


MODELS = ["port_factories:nothing", "port_factories:good"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["map", *MODELS, "-o"],
        ["explain", *MODELS, "--shape", "2,3", "--html"],
        ["explain", *MODELS, "--shape", "2,3", "--json"],
    ],
)
def test_paths_are_checked_before_the_models_are_made(factories, arguments, tmp_path, capsys):
    assert cli.main([*arguments, str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "none" / "file")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_inputs_are_in_the_order_of_their_flags():
    flags = ["--int", "2,4:5", "--shape", "3", "--int", "6:2"]
    made = cli.inputs(cli.parser().parse_args(["blind_spots", "module:f", *flags]))
    assert [(x.shape, x.dtype.kind) for x in made] == [((2, 4), "i"), ((3,), "f"), ((6,), "i")]


def test_the_catalogue_is_printed(capsys):
    assert cli.main(["causes"]) == 0
    printed = capsys.readouterr().out
    promised = """gelu_tanh gelu_erf gelu_quick activation norm_eps norm_axes norm_offset
    weight_transposed weights_swapped
        qkv_order attention_scale bias_missing bias_doubled padding stride dilation pool_padding
        conv_transpose flatten_order
        token_order resize rope_layout rope_base rope_offset mask_value mask_offset softmax_axis
        gate_order bn_momentum
        bn_variance dropout_on tied_weights loss_reduction""".split()
    names = {line.split()[0] for line in printed.splitlines()}
    assert names >= set(promised) and len(names) >= 45


def test_a_map_is_written(factories, tmp_path, capsys):
    out = tmp_path / "map.toml"
    assert cli.main(["map", f"{factories}:make_torch", f"{factories}:good", "-o", str(out)]) == 0
    assert len(port.WeightMap.load(out).rules) == 40
