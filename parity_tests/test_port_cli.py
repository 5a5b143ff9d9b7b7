"""`twinvit port`: what it prints and its exit status."""

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import port_models as models
import pytest

from twinvit import port
from twinvit.port import cli
from twinvit.port.annotations import workflow_commands
from twinvit.port.report import Finding, Report

FACTORIES = """
from functools import partial
import port_models as models
from twinvit import port

def make_torch():
    return models.reference()

def good(model):
    return port.Function(models.port, models.params(model))

def leaves():
    raise SystemExit(0)

def fails(model):
    return {}["w"]

def late(model):
    return port.Function(lambda p, x: 1 // 0, models.params(model))

def chatty(model):
    print("the model says a word")
    return bad(model)

def bad(model):
    return port.Function(partial(models.port, tanh=True), models.params(model))
"""


SHAPE = ["--shape", "2,3,12,12"]
PAIR = ["port_factories:make_torch", "port_factories:good"]


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
        (["explain", "port_factories:leaves", "port_factories:good", *SHAPE], "SystemExit: 0"),
        (["explain", "port_factories:make_torch", "port_factories:fails", *SHAPE], "KeyError: 'w'"),
        (
            ["explain", "port_factories:make_torch", "port_factories:late", *SHAPE],
            "the port refuses its inputs ((2, 3, 12, 12) float64): ZeroDivisionError",
        ),
        (["explain", *PAIR, "--shape", "2,3,12,12", "--jax-shape", "2,12,3"], "is no order"),
        (["explain", *PAIR, "--shape", "4,4,4", "--jax-shape", "4,4,4", "--weights", "x"], "'x'"),
        (["explain", *PAIR, *SHAPE, "--jax-shape", "3", "--jax-shape", "3"], "given 2 times for 1"),
    ],
)
def test_no_verdict_has_status_3(factories, arguments, message, capsys):
    assert cli.main(arguments) == 3
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
    assert cli.main([*arguments, str(tmp_path)]) == 3
    assert "is a folder" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "none" / "file")]) == 3
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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explian"],
        ["explain", *PAIR, *SHAPE, "--nothing"],
        ["explain", *PAIR, *SHAPE, "--seed", "-1"],
        ["explain", *PAIR, *SHAPE, "--reference", "numpy"],
        ["blind_spots", "port_factories:make_torch", "--metric", "none"],
    ],
)
def test_wrong_arguments_have_status_3(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 3 and "error: " in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_unless_its_place_is_asked_for(factories, monkeypatch, capsys):
    from twinvit.port import explainer

    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(explainer, "explain", broken)
    assert cli.main(["explain", *PAIR, *SHAPE]) == 3
    printed = capsys.readouterr().err
    assert printed == (
        "error: no verdict, an unexpected RuntimeError: two lines; --traceback shows where\n"
    )
    assert cli.main(["explain", *PAIR, *SHAPE, "--traceback"]) == 3
    assert "in broken" in capsys.readouterr().err


def test_undecided_has_status_2(factories, monkeypatch, capsys):
    from twinvit.port import explainer

    report = Report("undecided", False, 0.0, 0.0, reasons=["logits are NaN"])
    monkeypatch.setattr(explainer, "explain", lambda *_, **__: report)
    assert cli.main(["explain", *PAIR, *SHAPE, "--quiet", "--github"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "UNDECIDED: logits are NaN",
        "::warning title=port%3A undecided::UNDECIDED: logits are NaN",
    ]


@pytest.mark.parametrize("flag", [["--json"], ["--json", "-"], ["--json", "--quiet", "--github"]])
def test_standard_output_holds_the_json_alone(factories, flag, capsys):
    pair = [f"{factories}:make_torch", f"{factories}:chatty"]
    assert cli.main(["explain", *pair, *SHAPE, "--seed", "3", *flag]) == 1
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert data["schema"] == 2 and data["findings"][0]["cause"] == "gelu_tanh"
    assert data["seed"] == 3 and data["command"].startswith("twinvit port explain port_factories:")
    assert "the model says a word" in printed.err and "DIFFERENT" in printed.err


def test_quiet_prints_the_verdict_and_github_every_place(factories, capsys):
    pair = [f"{factories}:make_torch", f"{factories}:bad"]
    assert cli.main(["explain", *pair, *SHAPE, "--quiet", "--github"]) == 1
    printed = capsys.readouterr()
    verdict, first, second = printed.out.splitlines()
    assert verdict == "DIFFERENT, explained: the port = the reference + this edit"
    assert first.startswith("::error title=port%3A different::DIFFERENT")
    assert re.match(
        r"::error file=[^:,]*port_models\.py,line=\d+,title=gelu_tanh::the port computes", second
    )
    assert "recording" not in printed.err


def test_with_jax_as_the_reference_annotations_are_at_the_pytorch_line(factories, capsys):
    pair = [f"{factories}:make_torch", f"{factories}:bad"]
    assert cli.main(["explain", *pair, *SHAPE, "--github", "--reference", "jax"]) == 1
    lines, start = inspect.getsourcelines(models.Block.forward)
    at = start + next(i for i, text in enumerate(lines) if "F.gelu" in text)
    assert f"port_models.py,line={at},title=gelu_tanh::the JAX model computes" in (
        capsys.readouterr().out
    )


def test_annotations_escape_what_their_syntax_uses():
    finding = Finding("unknown", "", "100 %: a\nb", "a: gelu", "x.py:3, y.py:4", 1.0, 1.0)
    report = Report("different", False, 1.0, 1.0, [finding], models={"jax": "a,b:c"})
    verdict, *found = workflow_commands(report)
    assert verdict.startswith("::error title=a%2Cb%3Ac%3A different::DIFFERENT, not")
    assert found == [
        "::error file=x.py,line=3,title=unknown::100 %25: a%0Ab",
        "::error file=y.py,line=4,title=unknown::100 %25: a%0Ab",
    ]
    finding.jax = ""
    assert list(workflow_commands(report))[1:] == [
        "::error title=unknown::100 %25: a%0Ab%0Aat a: gelu"
    ]


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ("2,4,4,3", (0, 2, 3, 1)),
        ("2,3,4,4", (0, 1, 2, 3)),
        ("4,4,3,2", None),
        ("2,3,16", None),
    ],
)
def test_the_ports_inputs_have_their_axes_in_the_order_of_their_flag(shape, order):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    if order is None:
        with pytest.raises(port.PortError, match="of the axes of an input of shape"):
            cli.jax_inputs([shape], [x])
    else:
        (made,) = cli.jax_inputs([shape], [x])
        assert np.array_equal(made, x.transpose(order))
    assert cli.jax_inputs([], [x]) is None


def test_a_file_is_as_good_as_a_package(tmp_path, capsys, monkeypatch):
    """Under a name that a package has, with a module beside it, called from another folder."""
    code = FACTORIES.replace("import port_models as models", "from beside_it import models")
    (tmp_path / "json.py").write_text(code)
    (tmp_path / "beside_it.py").write_text("import port_models as models\n")
    monkeypatch.setattr("sys.path", list(sys.path))
    file = tmp_path / "json.py"
    common = ["explain", f"{file}:make_torch"]
    assert cli.main([*common, f"{file}:good", *SHAPE]) == 0
    assert cli.main([*common, f"{file}:bad", *SHAPE]) == 1
    assert "gelu_tanh" in capsys.readouterr().out
    assert sys.modules["json"] is json
    assert cli.main([*common, f"{tmp_path / 'none.py'}:good", *SHAPE]) == 3
    assert "there is no file" in capsys.readouterr().err
    assert cli.main(["explain", str(file), f"{file}:good", *SHAPE]) == 3
    assert "write pkg.mod:function or file.py:function" in capsys.readouterr().err


def test_help_has_the_look_of_the_other_commands(capsys):
    for name in ("explain", "map", "blind-spots", "causes"):
        with pytest.raises(SystemExit) as left:
            cli.main([name, "--help"])
        text = capsys.readouterr().out
        assert left.value.code == 0 and text.startswith(f"usage: twinvit port {name[:5]}")
        assert max(map(len, text.splitlines())) <= 100 and "positional arguments" not in text
        assert "--traceback" in text
        if name != "causes":
            assert all(f"  --{flag} " in text for flag in ("json", "quiet", "github"))


def test_map_and_blind_spots_take_a_file_and_a_function_name(tmp_path, capsys, monkeypatch):
    (tmp_path / "net.py").write_text(FACTORIES)
    monkeypatch.setattr("sys.path", list(sys.path))
    model = f"{tmp_path / 'net.py'}:make_torch"
    out = tmp_path / "map.toml"
    assert cli.main(["map", model, f"{tmp_path / 'net.py'}:good", "-o", str(out)]) == 0
    assert "SAME" not in capsys.readouterr().out and out.is_file()
    assert cli.main(["blind_spots", f"{tmp_path / 'none.py'}:f", *SHAPE]) == 3
    assert cli.main(["map", f"{tmp_path / 'net.py'}:nothing", model, "-o", str(out)]) == 3
    assert "has no nothing" in capsys.readouterr().err
