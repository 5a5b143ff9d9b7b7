"""Claim: the commands that the README shows do what it says, each once in a process of its own."""

import json
import subprocess
import sys

import fork_server
import pytest
from whole_runs import ROOT, environment, metrics, train, train_here

from shared_vit.errors import UserError
from shared_vit.version import __version__
from twinvit.cli import COMMANDS, main
from twinvit.compare.command import compare
from twinvit.parity.curves import curves
from twinvit.parity.noise_rule import read_curve

FLAGS = ("--preset=digits", "--depth=2", "--device=cpu", "--batch_size=32", "--warmup_steps=5")


def command(*args, cwd, status=0, script=None) -> str:
    """Run `twinvit ARGS` (or a script of the repository); all it printed."""
    program = [str(ROOT / script)] if script else ["-c", "from twinvit.cli import main; main()"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = [sys.executable, *program, *map(str, args)]
    done = fork_server.run(line, cwd=cwd, env=environment(), timeout=400, **pipes)
    assert done.returncode == status, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def parity_run(tmp_path_factory):
    """`twinvit parity` in float64, 60 steps, and what it said."""
    folder = tmp_path_factory.mktemp("parity")
    out = folder / "out"
    flags = ("--precision=fp64", "--steps=60", "--eval_every=30", "--run_dir", out)
    said = command("parity", *FLAGS, *flags, cwd=folder)
    return out, said


def test_parity_matches(parity_run):
    out, said = parity_run
    assert "same for steps 1 to 60 of 60" in said
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for twin in ("jax", "torch"):
        lines = metrics(out / twin)
        assert [row["step"] for row in lines if "loss" in row] == list(range(1, 61))
        assert [row["step"] for row in lines if "val_loss" in row] == [30, 60]
        assert {row["val_count"] for row in lines if "val_count" in row} == {360}
        assert list(lines[0]) == ["step", "epoch", "loss", "grad_norm", "lr"]
        text = (out / twin / "timing.jsonl").read_text()
        timing = [json.loads(line) for line in text.splitlines()]
        assert timing[0]["framework"] == twin and timing[-1]["images_per_second"] > 0
    rates = [[row["lr"] for row in metrics(out / twin) if "lr" in row] for twin in ("jax", "torch")]
    assert rates[0] == rates[1]


def test_curves_judges_runs_on_disk(parity_run, tmp_path, capsys):
    out, _ = parity_run
    noise = [out / f"torch-nudge-{i}" for i in (1, 2, 3)]
    judged = ("--noise", *noise, "-o", tmp_path / "a.png")
    said = command("curves", out / "jax", out / "torch", *judged, cwd=tmp_path)
    assert "same for steps 1 to 60" in said and (tmp_path / "a.png").exists()
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "config.json").write_text((out / "jax" / "config.json").read_text())
    rows = [json.loads(line) for line in (out / "jax" / "metrics.jsonl").read_text().splitlines()]
    rows[20]["loss"] += 1e-6
    (wrong / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curves((wrong, out / "torch"), noise=tuple(noise), output=tmp_path / "b.png") == 1
    said = capsys.readouterr().out
    assert "different: the loss differs by" in said and "at step 21" in said


def test_convert_and_evaluate_in_the_other(parity_run, tmp_path):
    out, _ = parity_run
    command("convert", out / "jax", tmp_path / "weights.safetensors", "--to=torch", cwd=tmp_path)
    told = [row for row in metrics(out / "jax") if "val_loss" in row][-1]
    for twin in ("torch", "jax"):
        flags = [
            "--mode=eval",
            "--preset=digits",
            "--init_from=weights.safetensors",
            "--precision=fp64",
            "--device=cpu",
        ]
        said = command(*flags, cwd=tmp_path, script=f"train_{twin}.py")
        assert f"top-1 {100 * told['val_top1']:.2f} %, top-5 {100 * told['val_top5']:.2f} %" in said
        assert f"loss {told['val_loss']:.4f} on 360 examples" in said


def test_compare_names_the_first_divergence(parity_run, tmp_path, capsys):
    out, _ = parity_run
    said = command("compare", out / "jax", out / "jax", "--precision=fp64", cwd=tmp_path)
    assert "SAME: every output within 1e-12" in said
    step_30 = out / "jax/checkpoints/step_30"
    assert compare(out / "jax", step_30) == 1
    assert "the first divergence is at patch_embed" in capsys.readouterr().out


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_no_flags_at_all(twin, tmp_path):
    """`python train_x.py` trains the digits where there is no ImageNet, in a folder it prints."""
    own = "--wandb=offline" if twin == "torch" else "--seed=1"
    flags = ("--steps=3", "--device=cpu", own)
    said = train(twin, tmp_path / "run", *flags, popen=subprocess.Popen)  # a new interpreter
    assert "no ImageNet found" in said and str(tmp_path / "run") in said and "top-1" in said
    assert len(read_curve(tmp_path / "run")) == 3
    if twin == "torch":
        assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_torch_world_size_8(tmp_path):
    said = train("torch", tmp_path / "run", "--world_size=8", "--steps=3", "--device=cpu")
    assert "on 8 cpu device(s)" in said
    assert [row["val_count"] for row in metrics(tmp_path / "run") if "val_count" in row] == [360]


def test_stop_at_keeps_the_schedule(tmp_path):
    assert train_here("torch", tmp_path / "run", *FLAGS, "--steps=20", "--stop_at=4") == 0
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert train_here("torch", tmp_path / "run", "--resume", "--stop_at=6") == 0
    rates = [row["lr"] for row in metrics(tmp_path / "run")]
    assert len(rates) == 6 and rates[4] == 3e-3 and rates[5] == 3e-3  # warm-up of 5, of 20 steps


def test_init_from_another_model(tmp_path):
    train_here("torch", tmp_path / "run", *FLAGS, "--steps=2")
    other = ("--model=vit_ti4", f"--init_from={tmp_path / 'run'}")
    said = train("torch", tmp_path / "other", *FLAGS, *other, status=2)
    assert "holds another model" in said and "width: 64, not 192" in said
    assert "expected (1, 1, 192)" in said
    assert not (tmp_path / "other").exists()


def test_loss_not_finite(tmp_path):
    diverging = ("--steps=40", "--lr=1e30", "--clip=inf", "--checkpoint_every=1")
    with pytest.raises(UserError) as caught:
        train_here("torch", tmp_path / "run", *FLAGS, *diverging)
    said = str(caught.value)
    assert "not finite" in said and "last good: loss" in said and "newest checkpoint" in said


def test_help_lists_commands(monkeypatch, capsys):
    """Each command has a help of its own, all of one look, in 100 columns."""

    def said(*args: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["twinvit", *args])
        with pytest.raises(SystemExit) as left:
            main()
        assert (left.value.code or 0) == status
        return "".join(capsys.readouterr())

    for name in COMMANDS:
        assert f"\n  {name}" in said("--help")
        text = said(name, "--help")
        assert f"usage: twinvit {name}" in text
        # One look: a flag a line, in two columns, and no boxes.
        assert max(map(len, text.splitlines())) <= 100 and "\u256d" not in text
        assert "positional arguments" not in text and "(default:" not in text
    assert "did you mean 'parity'" in said("partiy", status=2)
    assert "Commands: train, evaluate" in said("xyz", status=2)
    assert said("--version") == f"twinvit {__version__}\n"


def test_the_script_is_the_command(tmp_path):
    assert "did you mean 'parity'" in command("partiy", cwd=tmp_path, status=2)
    line = [sys.executable, "-m", "twinvit", "--version"]
    said = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert said.stdout == f"twinvit {__version__}\n"
