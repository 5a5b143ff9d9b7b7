"""Claim: from recordings of both models a port is explained as from the models themselves, and
what is damaged, or of other models, is refused in one sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_net
import torch
import torch.nn.functional as F
from laws import pairs
from torch import nn

from twinvit import port
from twinvit.port import cli
from twinvit.port.record.jax_internals import primitives
from twinvit.port.recording.folder import ARRAYS, MANIFEST, PROGRAM
from twinvit.port.recording.jax_primitives import LEAVES
from twinvit.port.recording.torch_operations import allowed

HERE = Path(__file__).parent
X = pairs.draws(12, 5)


def told(report: port.Report) -> dict[str, Any]:
    """What a report says, without times and distances."""
    findings = [
        {k: v for k, v in vars(f).items() if k not in ("before", "after")} for f in report.findings
    ]
    return {
        "verdict": (report.verdict, report.explained),
        "findings": findings,
        "unseen": report.unseen,
        "reasons": report.reasons,
        "narrowings": [(n.side, n.where, n.dtype) for n in report.narrowings],
        "notes": report.notes[:-1],
        "drawn": [(d.kind, d.note) for d in report.verified],
    }


def recorded(folder: Path, reference: Any, theirs: Any, inputs: Any, **options: Any) -> port.Report:
    """The report of two models from recordings of both."""
    folder.mkdir(parents=True, exist_ok=True)
    what, own = options.pop("what", ("forward",)), options.pop("jax_inputs", None)
    mine, others = folder / "reference.rec", folder / "port.rec"
    port.record_model(mine, reference, inputs, framework="torch", what=what)
    port.record_model(others, theirs, inputs, framework="jax", what=what, jax_inputs=own)
    return port.explain_recordings(mine, others, what=what, **options)


def function(pair: pairs.Pair, wrong: Any) -> port.Function:
    def fn(p: Any, *inputs: jax.Array) -> Any:
        return pair.port(p, *inputs, wrong=wrong)

    return port.Function(fn, pairs.held(pair.torch))


def capped() -> pairs.Pair:
    """The wrong port caps its logits softly: an expression."""

    def theirs(p: dict[str, Any], x: jax.Array, wrong: bool) -> jax.Array:
        y = pairs.mlp_port(p, x)
        return 2 * jnp.tanh(y / 2) if wrong else y

    return pairs.Pair(pairs.net(pairs.mlp, **pairs.perceptron()), theirs, (X,))


def normed() -> pairs.Pair:
    """The wrong port has another eps, and multiplies a residual by 0.9: two solved constants."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = F.silu(m.fc1(x))
        return m.fc2(m.norm(h + F.gelu(m.fc3(h))))

    def theirs(p: dict[str, Any], x: jax.Array, wrong: bool) -> jax.Array:
        h = jax.nn.silu(pairs.dense(p, "fc1", x))
        h = h + (0.9 if wrong else 1.0) * pairs.gelu(pairs.dense(p, "fc3", h))
        return pairs.dense(p, "fc2", pairs.layer_norm(p, "norm", h, 1e-3 if wrong else 1e-5))

    parts = {"fc1": nn.Linear(5, 9), "fc3": nn.Linear(9, 9), "norm": nn.LayerNorm(9)}
    return pairs.Pair(pairs.net(body, **parts, fc2=nn.Linear(9, 6)), theirs, (X,))


def scanned() -> pairs.Pair:
    """A loop over a stack, in a scan on the other side; bfloat16 within the wrong one."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + torch.tanh(m.fc(x))
        return x

    def theirs(p: dict[str, Any], x: jax.Array, wrong: bool) -> jax.Array:
        def step(c: jax.Array, _: Any) -> tuple[jax.Array, None]:
            y = jnp.tanh(pairs.dense(p, "fc", c))
            return c + (y.astype(jnp.bfloat16).astype(c.dtype) if wrong else y), None

        return jax.lax.scan(step, x, None, length=3)[0]

    return pairs.Pair(pairs.net(body, fc=nn.Linear(5, 5)), theirs, (X,))


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("make", [capped, normed, scanned])
def test_recordings_are_explained_as_the_models_are(make, wrong, tmp_path):
    pair = make()
    what = ("forward", "grad", "train") if make is normed else ("forward",)
    mine = pair.told(wrong, what=what)
    theirs = recorded(tmp_path, pair.torch, function(pair, wrong), (X,), what=what)
    assert told(theirs) == told(mine)
    assert theirs.verify((1.3 * X,))[""] < 1e-12


def test_weights_are_put_into_a_recorded_port(tmp_path):
    pair = capped()
    held = {k: np.zeros_like(v) for k, v in pairs.held(pair.torch).items()}
    theirs = port.Function(lambda p, x: pair.port(p, x, wrong=True), held)
    options = {"weights": "transfer"}
    mine = port.explain(pair.torch, theirs, (X,), **options)
    assert told(recorded(tmp_path, pair.torch, theirs, (X,), **options)) == told(mine)
    assert mine.native.jax < 1e-5  # run again with the weights that were put into it


def test_three_environments(tmp_path):
    """The first has no JAX, the second no PyTorch, the third neither the models nor their
    libraries."""
    np.savez(tmp_path / "inputs.npz", recorded_net.inputs())
    file = str(HERE / "recorded_net.py")

    def run(blocked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, file, blocked, *arguments, "--quiet"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for blocked, name, framework in (
        ("jax,jaxlib,flax,ml_dtypes", "make_torch", "torch"),
        ("torch,torchvision", "make_jax", "jax"),
    ):
        target = ["--framework", framework, "--inputs", "inputs.npz", "-o", f"{framework}.rec"]
        done = run(blocked, "record", f"{file}:{name}", *target)
        assert done.returncode == 0, done.stdout + done.stderr
    third = "flax,equinox,recorded_net"
    done = run(third, "explain", "torch.rec", "jax.rec", "--json", "report.json")
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["explained"]
    assert [(f["cause"], f["torch"], _file(f["jax"])) for f in found["findings"]] == [
        ("norm_eps", "norm: native_layer_norm", "recorded_net.py"),
        ("gelu_tanh", "gelu", "recorded_net.py"),
    ]


def _file(line: str) -> str:
    return Path(line).name.partition(":")[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Both recordings of a small pair, without gradients."""
    folder = tmp_path_factory.mktemp("recordings")
    pair = capped()
    assert recorded(folder, pair.torch, function(pair, False), (X,)).same
    return folder


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _linked(file: Path) -> None:
    shutil.move(file, file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


@pytest.mark.parametrize("side", ["reference.rec", "port.rec"])
@pytest.mark.parametrize("file", [MANIFEST, PROGRAM, ARRAYS])
@pytest.mark.parametrize("damage", [_flipped, _cut, _linked, os.remove])
def test_a_damaged_recording_is_refused_in_one_sentence(side, file, damage, folders, tmp_path):
    both = shutil.copytree(folders, tmp_path / "both")
    damage(both / side / file)
    with pytest.raises(port.PortError) as caught:
        port.explain_recordings(both / "reference.rec", both / "port.rec")
    assert side in str(caught.value) and "\n" not in str(caught.value)


def sealed(folder: Path, change: Callable[[dict[str, Any]], None], file: str = PROGRAM) -> None:
    """Change a recording's JSON, and its checksums to match: what somebody wrote on purpose."""
    found = json.loads((folder / file).read_text())
    change(found)
    (folder / file).write_text(json.dumps(found))
    manifest = json.loads((folder / MANIFEST).read_text())
    data = (folder / PROGRAM).read_bytes()
    manifest["files"][PROGRAM] = [len(data), hashlib.sha256(data).hexdigest()]
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**rest, "sha256": digest}))


def _node(program: dict[str, Any]) -> list[Any]:
    return program["modes"]["eval"]["wide"]["nodes"][0]


def _value(program: dict[str, Any]) -> list[Any]:
    return program["modes"]["eval"]["wide"]["values"][0]


def _set(key: Any, value: Any) -> Callable[[Any], None]:
    return lambda held: held.__setitem__(key, value)


HOSTILE = {
    "a file's name": lambda p: _set(0, "from_file default")(_node(p)),
    "an operation that writes": lambda p: _set(0, "add_ Tensor")(_node(p)),
    "no operation of ATen": lambda p: _set(0, "own __import__")(_node(p)),
    "an attribute": lambda p: _set(0, "__class__ default")(_node(p)),
    "a value that comes later": lambda p: _set(1, [{"r": 10}])(_node(p)),
    "a value that is not there": lambda p: _set(1, [{"r": 10**9}])(_node(p)),
    "a value of too many numbers": lambda p: _set(1, [1 << 40])(
        p["modes"]["eval"]["wide"]["values"][0]
    ),
    "another type": lambda p: _set(0, "object")(p["arrays"][0]),
    "another shape": lambda p: _set(1, [2, 2])(p["arrays"][0]),
    "no modes": lambda p: p.pop("modes"),
    "a type of argument": lambda p: _set(1, [{"x": "os.system"}])(_node(p)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_program_that_was_forged_is_refused(name, folders, tmp_path):
    """Its checksums are right: names of operations and all numbers are still looked at."""
    both = shutil.copytree(folders, tmp_path / "both")
    sealed(both / "reference.rec", HOSTILE[name])
    with pytest.raises(port.PortError) as caught:
        port.explain_recordings(both / "reference.rec", both / "port.rec")
    assert "\n" not in str(caught.value)


def _equation(program: dict[str, Any]) -> list[Any]:
    return next(p for p in program["programs"] if p["eqns"])["eqns"][0]


HOSTILE_PORTS = {
    "a primitive that calls back": lambda p: _set(0, "pure_callback")(_equation(p)),
    "no primitive": lambda p: _set(0, "__class__")(_equation(p)),
    "a variable that comes later": lambda p: _set(1, [len(p["kinds"]) - 1])(_equation(p)),
    "a variable that is not there": lambda p: _set(1, [10**9])(_equation(p)),
    "a value of too many numbers": lambda p: _set(1, [1 << 40])(p["kinds"][0]),
    "a type of parameter": lambda p: _set(3, {"a": {"x": 1}})(_equation(p)),
    "no programs": lambda p: p.pop("programs"),
}


@pytest.mark.parametrize("name", HOSTILE_PORTS)
def test_a_port_that_was_forged_is_refused(name, folders, tmp_path):
    both = shutil.copytree(folders, tmp_path / "both")
    sealed(both / "port.rec", HOSTILE_PORTS[name])
    with pytest.raises(port.PortError) as caught:
        port.explain_recordings(both / "reference.rec", both / "port.rec")
    assert "\n" not in str(caught.value)


def test_another_version_is_refused(folders, tmp_path):
    both = shutil.copytree(folders, tmp_path / "both")
    sealed(both / "port.rec", _set("version", 2), MANIFEST)
    with pytest.raises(port.PortError, match="version 2"):
        port.explain_recordings(both / "reference.rec", both / "port.rec")


def test_what_does_not_belong_together_is_refused(folders, tmp_path):
    pair = capped()
    mine, theirs = folders / "reference.rec", folders / "port.rec"
    with pytest.raises(port.PortError, match="both recordings of a torch model"):
        port.explain_recordings(mine, mine)
    other = tmp_path / "other.rec"
    port.record_model(other, function(pair, False), (2 * X,), framework="jax")
    with pytest.raises(port.PortError, match="other numbers as input 0"):
        port.explain_recordings(mine, other)
    whole = np.arange(60).reshape(12, 5)
    folders = tmp_path / "float.rec", tmp_path / "int.rec"
    port.record_model(folders[0], pair.torch, (whole.astype(np.float32),), framework="torch")
    port.record_model(folders[1], function(pair, False), (whole,), framework="jax")
    with pytest.raises(port.PortError, match="input 0 of float32 and of int64"):
        port.explain_recordings(*folders)
    with pytest.raises(port.PortError, match="--grad"):
        port.explain_recordings(mine, theirs, what=("forward", "grad"))
    with pytest.raises(port.PortError, match="--train"):
        port.explain_recordings(mine, theirs, what=("train",))
    with pytest.raises(port.PortError, match="exists"):
        port.record_model(mine, pair.torch, (X,), framework="torch")


def test_the_command_takes_two_recordings_or_two_models(folders, capsys):
    mine, theirs = str(folders / "reference.rec"), str(folders / "port.rec")
    assert cli.main(["explain", mine, theirs, "--quiet"]) == 0
    assert cli.main(["explain", mine, "net:make", "--quiet"]) == 3
    assert "net:make is no recording" in capsys.readouterr().err
    assert cli.main(["explain", mine, theirs, "--shape", "2,5"]) == 3
    assert cli.main(["explain", theirs, mine, "--quiet"]) == 0  # the JAX model is right


@torch.library.custom_op("recorded_tests::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    """An operation that no other environment has."""
    return x * x


def test_an_operation_of_another_library_is_compared_and_not_edited(tmp_path):
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.fc2(square(F.gelu(m.fc1(x))))

    def theirs(p: dict[str, Any], x: jax.Array, wrong: str) -> jax.Array:
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong == "before") ** 2
        y = pairs.dense(p, "fc2", h)
        return jnp.tanh(y) if wrong == "after" else y

    pair = pairs.Pair(pairs.net(body, **pairs.perceptron()), theirs, (X,))
    for wrong in ("", "before", "after"):
        report = recorded(tmp_path / wrong / "r", pair.torch, function(pair, wrong), (X,))
        assert "recorded_tests::square" in " ".join(report.notes)
        assert report.verdict == ("different" if wrong else "undecided")
        assert report.explained == (wrong == "after")
        assert not any("square" in f.torch for f in report.findings if f.kind != "unknown")
        with pytest.raises(port.PortError, match="recorded by its value"):
            report.verify((2 * X,))


def test_a_primitive_that_is_not_of_the_list_is_compared_and_not_run_again(tmp_path):
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(m.fc1(x))
        return m.fc2(h + h.sum(1, keepdim=True))

    def theirs(p: dict[str, Any], x: jax.Array, wrong: bool) -> jax.Array:
        h = pairs.gelu(pairs.dense(p, "fc1", x), wrong)
        added = jax.lax.reduce(h, jnp.zeros((), h.dtype), lambda a, b: a + b + 0 * a * b, (1,))
        return pairs.dense(p, "fc2", h + added[:, None])

    pair = pairs.Pair(pairs.net(body, **pairs.perceptron()), theirs, (X,))
    report = recorded(tmp_path / "r", pair.torch, function(pair, False), (X,))
    assert report.verdict == "undecided" and report.distance < 1e-12
    report = recorded(tmp_path / "w", pair.torch, function(pair, True), (X,))
    assert report.explained and [f.cause for f in report.findings] == ["gelu_tanh"]
    assert "reduce" in " ".join(report.notes)


def test_the_lists_of_operations():
    aten = torch.ops.aten
    assert allowed(aten.add.Tensor) and allowed(aten.linalg_qr.default)
    assert not any(map(allowed, (aten.from_file.default, aten.add_.Tensor, aten.item.default)))
    assert LEAVES <= primitives().keys()
    assert not any("callback" in name or "ffi" in name for name in LEAVES)
