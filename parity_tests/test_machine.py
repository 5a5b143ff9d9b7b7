"""Claim: every command that judges writes its verdict as JSON that the schema in the package
describes whole, one line with --quiet, annotations with --github, and leaves with its status."""

import copy
import importlib.resources
import json
import shutil
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from helpers import TINY, random_arrays
from test_certificate import in_pixels
from test_limits import STEPS, by_the_noise_rule, recorded

from shared_vit import weights
from shared_vit.run.plan import make_plan
from twinvit import cli
from twinvit.convert import certificate
from twinvit.convert.synthetic_images import drawn_images
from twinvit.lockstep import trainer_run
from twinvit.pages.verdicts import SCHEMA_FILE, Verdict, envelope, optional_path, take_flags
from twinvit.parity import command as parity
from twinvit.parity import page as parity_page

SCHEMA = json.loads((importlib.resources.files("twinvit.pages") / SCHEMA_FILE.name).read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
TOOLS = SCHEMA["properties"]["tool"]["enum"]
OPTIONAL = {"until", "stopped", "weights", "name", "written_by"}  # absent where there is none
NET = """
import torch, jax.numpy as jnp
from twinvit import port
import numpy as np

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(6, 10), torch.nn.Linear(10, 5)

    def forward(self, x):
        return self.b(torch.nn.functional.gelu(self.a(x)))

def make():
    return Net()

def make_jax(model, extra=()):
    params = {n: p.detach().numpy() for n, p in model.state_dict().items()} | dict(extra)
    def call(p, x):
        return jnp.tanh(x @ p["a.weight"].T + p["a.bias"]) @ p["b.weight"].T + p["b.bias"]
    return port.Function(call, params)

def with_more(model):
    return make_jax(model, {"c": np.arange(12.0)})
"""


def run(*argv, status=None):
    """`twinvit ARGV` in this process; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["twinvit", *map(str, argv)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert status is None or left.value.code == status, argv
    return left.value.code


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A command line of each tool and the status it leaves with, in a folder of small things."""
    top = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        (top / "net.py").write_text(NET)
        made = random_arrays(TINY)
        weights.write(top / "a.safetensors", TINY, made)
        weights.write(top / "b.safetensors", TINY, made | {"head.bias": made["head.bias"] + 1})
        a, b = recorded(top / "a"), recorded(top / "b")
        noise = [recorded(top / f"n{i}", nudge=i) for i in (1, 2, 3)]
        shutil.copytree(Path(__file__).parent / "fixtures/v0.1/run_jax_fp32", top / "run")
        _without_processes(patch, a, noise)
        blind = ("port", "blind_spots", "net.py:make", "--shape", "4,6")
        mapped = ("port", "map", "net.py:make")
        steps = ("--steps=2", "--model=vit_nano2", "--batch_size=8", "--warmup_steps=1")
        yield {
            "blind_spots": ((*blind, "--atol", "5e-2"), 1),
            "map": ((*mapped, "net.py:make_jax", "-o", "m.toml"), 0),
            "compare": (("compare", "a.safetensors", "b.safetensors", "--twin_a=torch"), 1),
            "curves": (("curves", a, b, "--noise", *noise), 0),
            "parity": (("parity", "--preset=digits", "--steps=100", "--run_dir=five"), 0),
            "lockstep": (("parity", "--preset=digits", "--lockstep", "--run_dir=one", *steps), 0),
            "audit": (("audit", "run"), 0),
            "convert": (("convert", "a.safetensors", "c.safetensors", "--to=torch", "--verify"), 0),
        }


def _without_processes(patch, run, noise):
    """Parity's runs are copied, and the certificate's and the lockstep's processes are this one."""

    def copied(jobs):
        for name, command in jobs:
            folder = next(f for f in command if f.startswith("--run_dir=")).partition("=")[2]
            nudge = name.rpartition("-nudge-")[2]
            shutil.copytree(noise[int(nudge) - 1] if nudge.isdigit() else run, folder)

    def outputs(task):
        sound = np.random.default_rng(0).standard_normal((2, 10))
        names = ("", *(f"blocks.{i}" for i in range(TINY.depth)), "norm")
        who = {"torch": "torch twin", "jax": "jax twin"}[task["run"]]
        pixels = {certificate._PIXELS: in_pixels(0)}
        pixels[certificate._ON_IMAGES] = np.ones((len(drawn_images(TINY.image_size)), 10))
        found = {}
        for side in task["files"]:
            found |= {
                f"{who}, {side}, {p}": dict.fromkeys(names, sound) for p in task["precisions"]
            }
            if who == "torch twin":
                found[f"{who}, {side}, images"] = pixels
        return found

    def resolve(requested):
        own = dict(
            device="cpu", world_size=1, precision=requested.precision or "fp32", compile="off"
        )
        return make_plan(requested.replace(**own, workers=0), "lockstep")

    patch.setattr(parity, "_run_all", copied)
    patch.setattr(certificate, "_run", outputs)
    patch.setattr(trainer_run, "resolve", resolve)


@pytest.fixture(scope="module")
def documents(commands):
    """What each command writes with --json PATH."""
    found = {}
    for tool, (argv, status) in commands.items():
        run(*argv, "--json", f"{tool}.json", status=status)
        found[tool] = json.loads(Path(f"{tool}.json").read_text(), parse_constant=no_constant)
    return found


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_command_obeys_the_schema_and_says_its_status(tool, documents, commands):
    data = documents[tool]
    VALIDATOR.validate(data)
    assert data["tool"] == tool
    assert ("same", "different", "undecided").index(data["verdict"]) == commands[tool][1]
    assert bool(data["reasons"]) == (data["verdict"] != "same")
    assert data["command"].startswith("twinvit ") and data["seconds"] > 0
    assert data["versions"]["torch"] and data["versions"]["python"]


def objects(data):
    """Every object within a document."""
    if isinstance(data, dict):
        return [data, *(o for v in data.values() for o in objects(v))]
    return [o for v in data for o in objects(v)] if isinstance(data, list) else []


def free(part, path=()):
    """Paths of objects of the schema whose keys are names of the user's: "*" stands for any."""
    if "$ref" in part:
        part = SCHEMA["$defs"][part["$ref"].rpartition("/")[2]]
    found = []
    for option in part.get("anyOf", ()):
        found += free(option, path)
    if "items" in part:
        found += free(part["items"], (*path, "*"))
    if isinstance(part.get("additionalProperties"), dict):
        found.append(path)
    for name, value in part.get("properties", {}).items():
        found += free(value, (*path, name))
    return found


def closed(data, names, path=()):
    """(path to it, object) of each object in a document whose fields are named in the schema."""
    if isinstance(data, list):
        return [o for i, v in enumerate(data) for o in closed(v, names, (*path, i))]
    if not isinstance(data, dict):
        return []
    shape = tuple("*" if isinstance(p, int) else p for p in path)
    if shape in names:
        return []
    return [(path, data), *(o for k, v in data.items() for o in closed(v, names, (*path, k)))]


def at(data, path):
    for step in path:
        data = data[step]
    return data


@pytest.mark.parametrize("tool", TOOLS)
def test_no_field_can_be_left_out_and_none_added(tool, documents):
    data = documents[tool]
    for name in ("spots", "rules", "rows"):  # one of many shows it
        if name in data:
            data = data | {name: data[name][:1]}
    validator = jsonschema.Draft202012Validator(SCHEMA["$defs"][tool] | {"$defs": SCHEMA["$defs"]})
    parts = closed(data, free(SCHEMA["$defs"][tool]))
    assert len(parts) >= 2
    for path, part in parts:
        for key in part:
            changed = copy.deepcopy(data)
            del at(changed, path)[key]
            within = "checkpoints" in path
            assert key in OPTIONAL or within or not validator.is_valid(changed), (path, key)
        changed = copy.deepcopy(data)
        at(changed, path)["surprise"] = "a word"
        assert not validator.is_valid(changed), path


def test_the_schema_is_one_and_every_field_is_described():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(TOOLS) == {c["if"]["properties"]["tool"]["const"] for c in SCHEMA["allOf"][:-1]}
    for part in objects(SCHEMA):
        if part.get("type") == "object" and "properties" in part and part is not SCHEMA:
            assert part["additionalProperties"] is False
            assert set(part["properties"]) - set(part["required"]) <= OPTIONAL | set(
                SCHEMA["$defs"]["checkpoint"]["properties"]
            )
    for tool in TOOLS:
        assert all("description" in f for f in SCHEMA["$defs"][tool]["properties"].values())


def test_the_schema_refuses_what_a_verdict_cannot_say(documents):
    data = documents["map"]
    assert not VALIDATOR.is_valid(data | {"verdict": "different"})  # without a reason
    assert not VALIDATOR.is_valid(data | {"tool": "curves"})
    assert not VALIDATOR.is_valid(data | {"tool": "other"})
    assert not VALIDATOR.is_valid({n: v for n, v in data.items() if n != "tool"})
    assert not VALIDATOR.is_valid(data | {"schema": 1})


@pytest.mark.parametrize("flags", [["--json"], ["--json", "-"], ["--json", "--quiet", "--github"]])
def test_standard_output_is_the_json_s_alone(commands, flags, capsys):
    argv, status = commands["compare"]
    run(*argv, *flags, status=status)
    said = capsys.readouterr()
    assert json.loads(said.out)["first"] == "head" and "DIFFERENT" in said.err
    assert ("::error title=compare" in said.err) == ("--github" in flags)


def test_quiet_is_one_line_and_github_one_for_each_reason(commands, capsys):
    argv, status = commands["compare"]
    run(*argv, "--quiet", status=status)
    line = "DIFFERENT: the first divergence is at head (limit 1e-12)"
    assert capsys.readouterr().out == line + "\n"
    run(*argv, "--quiet", "--github", status=status)
    quiet, first, second, *_ = capsys.readouterr().out.splitlines()
    assert quiet == line
    assert first == f"::error title=compare%3A different::{line}"
    assert second.startswith("::error title=compare%3A different::head: ")


def test_a_map_with_unused_arrays_is_different(commands, capsys):
    argv = ("port", "map", "net.py:make", "net.py:with_more", "-o", "x.toml", "--json")
    run(*argv, status=1)
    data = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(data)
    assert data["verdict"] == "different" and "c" in data["reasons"][0]


def test_what_has_no_verdict_says_none(commands, capsys):
    a, b = commands["curves"][0][1:3]
    run("curves", a, b, "--json", status=3)
    assert "name three runs by --noise" in capsys.readouterr().err
    run("convert", "a.safetensors", "d.safetensors", "--to=torch", "--quiet", status=3)
    assert "add --verify" in capsys.readouterr().err
    run(*commands["compare"][0], "--json", "none/x.json", status=3)
    assert "its folder does not exist" in capsys.readouterr().err
    run("compare", "a.safetensors", "none.safetensors", "--json", status=3)
    assert not capsys.readouterr().out


def test_no_old_verdict_stays_and_no_other_file_is_replaced(commands, capsys):
    argv, status = commands["compare"]
    run(*argv, "--json", "said.json", status=status)
    run("compare", "a.safetensors", "none.safetensors", "--json", "said.json", status=3)
    assert not Path("said.json").exists()
    run(*argv, "--json", "said.json", status=status)
    wrong = ["net.py:make", "no:f", "--html=none/x.html"]  # refused before it starts
    run("port", "explain", *wrong, "--shape", "4,6", "--json", "said.json", status=3)
    assert not Path("said.json").exists()
    before = Path("b.safetensors").read_bytes()
    run("compare", "a.safetensors", "a.safetensors", "--json", "b.safetensors", status=3)
    assert "is no verdict that a command wrote" in capsys.readouterr().err
    run("port", "explain", "net.py:make", "no:f", "--shape", "4,6", "--json", "net.py", status=3)
    assert Path("b.safetensors").read_bytes() == before and Path("net.py").read_text() == NET


def test_pages_of_curves_and_layers_say_the_verdict_before_the_numbers(documents, monkeypatch):
    until_60 = by_the_noise_rule(0.0, np.where(STEPS > 60, 0.1, 0))
    monkeypatch.setattr(parity_page.curves, "judge", lambda *_: until_60)
    text = parity_page.parity_page(Path("five")).read_text()
    decided = text[text.index("<h2>Decided steps") : text.index("<h2>Loss")]
    assert "Decided: steps 1 to 60 of 100." in decided
    assert "Not decided: steps 61 to 100" in decided
    assert "decided: 1 to 60</text>" in text and "not decided: to 100</text>" in text
    a, b = "a.safetensors", "b.safetensors"
    run("compare", a, b, "--html=page.html", "--twin_a=torch", "--quiet", status=1)
    layers = Path("page.html").read_text().partition("<h2>Layers")[2]
    assert layers.index("<details>") < layers.index("<table") < layers.index("</details>")


def test_hyphens_and_underscores_are_alike(commands, capsys):
    blind = [a.replace("blind_spots", "blind-spots") for a in commands["blind_spots"][0]]
    run(*blind, "--quiet", status=1)
    assert "mistakes pass" in capsys.readouterr().out
    compared = [a.replace("--twin_a", "--twin-a") for a in commands["compare"][0]]
    run(*compared, "--batch-size=1", "--quiet", status=1)


def test_a_flag_without_a_value_is_standard_output():
    assert optional_path(["a", "--json"]) == ["a", "--json=-"]
    assert optional_path(["--json", "--quiet"]) == ["--json=-", "--quiet"]
    assert optional_path(["--json", "-", "--json", "x"]) == ["--json", "-", "--json", "x"]
    flags, rest = take_flags(["--lr=1", "--json=x", "--quiet", "--resume"])
    assert (flags.json, flags.quiet, flags.github, rest) == (
        "x", True, False, ["--lr=1", "--resume"]
    )  # fmt: skip


def test_numbers_that_json_lacks_are_words():
    found = Verdict("compare", "same", "", (), {"a": np.float64("nan"), "b": [np.float32("inf")]})
    assert envelope(found)["a"] == "nan" and envelope(found)["b"] == ["inf"]


def test_a_json_that_is_read_is_not_replaced(commands, capsys):
    """As a config.json that a former command did not write."""
    text = '{"hidden_size": 8}'
    Path("config.json").write_text(text)
    for name in ("a.safetensors", "none.safetensors"):
        run("compare", "a.safetensors", name, "--json", "config.json", status=3)
    assert Path("config.json").read_text() == text
