"""Claim: the examples run, and show what their text says."""

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import fork_server
import nbformat
import pytest
from helpers import random_arrays
from nbclient import NotebookClient
from safetensors.torch import load_file, save_file
from whole_runs import environment, metrics, train_here

from examples import agent_rounds
from shared_vit import model_config, weights
from twinvit import cli

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = ("--device=cpu", "--workers=0", "--batch_size=16", "--warmup_steps=2")


def example(name: str, *arguments: object, status: int = 0) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = fork_server.run(
        command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment()
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    assert "57 images" in example("draw_pictures.py", folder, "--train=16", "--val=3")
    return folder


def test_explain_a_port(tmp_path):
    page = tmp_path / "page.html"
    shown = example("explain_a_port.py", "--html", page, status=1)
    assert "the port = the reference + these 3 edits" in shown
    found = [line.split()[1] for line in shown.splitlines() if line[:2] in ("1.", "2.", "3.")]
    assert found == ["soft_cap", "gelu_tanh", "norm_eps"]
    assert "softly: 30 * tanh(x / 30)" in shown  # the cap is solved for
    for document in ("README.md", "docs/index.md", "docs/port.md"):  # the answer as it is printed
        block = (ROOT / document).read_text().partition("    DIFFERENT, ")[2].partition("...")[0]
        answer = [line.strip() for line in block.splitlines() if "distance" not in line]
        assert len(answer) > 5 and all(line in shown for line in answer), document
    text = page.read_text()
    assert all(cause in text for cause in found) and "http" not in text.replace(
        "http://www.w3.org", ""
    )


def test_explain_a_port_without_its_own_cause():
    """So the example shows what a cause adds: it is told as the port's expression."""
    shown = example("explain_a_port.py", "--catalogue_only", status=1)
    assert "the port = the reference + these 3 edits" in shown and "soft_cap" not in shown
    first = "1. softcap_added "
    block = (ROOT / "docs/port.md").read_text().partition(f"    {first}")[2].partition("...")
    answer = [line.strip() for line in f"{first}{block[0]}".splitlines() if line.strip()]
    assert len(answer) > 4 and all(line in shown for line in answer), answer


def test_finetune_hugging_face(pictures, tmp_path):
    """A ViT of transformers' own, with random weights and preprocessing that is not the default."""
    import peers  # noqa: F401  (lets torchvision be imported beside any build of torch)
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=16, patch_size=4, num_labels=5,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    size = {"height": 16, "width": 16}
    ViTImageProcessor(size=size, image_mean=[0.4] * 3).save_pretrained(tmp_path / "vit")
    flags = (*SMALL, "--steps=60", "--lr=0.1", "--min_area=0.5", "--eval_every=60")
    out = tmp_path / "out"
    shown = example("finetune_hugging_face.py", tmp_path / "vit", pictures, out, *flags)
    assert "the same class for 9 of 9 images" in shown
    named = re.findall(r"val/(\w+)/\d.png: (\w+) \(transformers\)  (\w+) \(twinvit\)", shown)
    assert len(named) == 9 and len({ours for _, _, ours in named}) > 1  # not always one class
    assert sum(truth == ours for truth, _, ours in named) == round(
        9 * metrics(out / "run")[-1]["val_top1"]
    )
    assert frameworks(out / "run") == ["jax"]


def test_finetune_dinov2(pictures, tmp_path, monkeypatch, capsys):
    """With its commands in this process."""
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "finetune_dinov2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, flags = tmp_path / "out", (*SMALL, "--steps=20", "--lr=0.05", "--min_area=0.5")

    def command(name, *words):
        words = [str(word) for word in words]
        if name == "train":  # sets JAX up, which is set up here
            assert words.pop(0) == "--framework=jax"
            train_here("jax", out / "run", *words)
            return
        monkeypatch.setattr(sys, "argv", ["twinvit", name, *words])
        with contextlib.suppress(SystemExit):
            cli.main()

    monkeypatch.setattr(module, "command", command)
    mine = ["finetune_dinov2.py", str(pictures), str(out), *flags]
    monkeypatch.setattr(sys, "argv", mine)
    assert module.main() == 0
    shown = capsys.readouterr().out
    gap = re.search(r"features of 9 images: (\S+) from timm's", shown)
    assert float(gap[1]) < 1e-12
    assert "format dinov2" in shown and "the weights have none" in shown
    assert re.search(r"on folder, validation split.*on 9 examples", shown)
    assert (out / "program.pt2").stat().st_size > 10_000
    # Weights of another training are told apart.
    state = load_file(out / "timm/model.safetensors")
    state["blocks.1.ls1.gamma"] *= 1.01
    save_file(state, out / "timm/model.safetensors")
    monkeypatch.setattr(module, "command", lambda *words: None)
    monkeypatch.setattr(sys, "argv", mine)
    assert module.main() == 1


def test_phone_pictures(tmp_path):
    """What is turned, left out and replaced is said, and the lamps are found in what is left."""
    shown = example("phone_pictures.py", tmp_path / "out")
    heic = importlib.util.find_spec("pillow_heif") is not None
    assert heic or "by ending: .heic 1 (floor 1); HEIC is read where pillow-heif is" in shown
    assert re.search(
        r"(59|60) of the 1(79|80) images have an EXIF orientation .*, which is obeyed", shown
    )
    assert "ceiling/IMG_0007.jpg: OSError: image file is truncated" in shown
    run = tmp_path / "out/run"
    assert frameworks(run) == ["jax"] and metrics(run)[-1]["val_top1"] > 0.75
    evaluated = re.search(r"turned upright by EXIF: top-1 (\S+) %", shown)
    assert float(evaluated[1]) == pytest.approx(100 * metrics(run)[-1]["val_top1"], abs=0.01)
    assert len(re.findall(r"\d %  (ceiling|floor|wall) \(", shown)) == 3
    assert "same: logits" in shown and (tmp_path / "out/lamps.pt2").stat().st_size > 10_000


def frameworks(run: Path) -> list[str]:
    """Of each start of a run."""
    lines = map(json.loads, (run / "timing.jsonl").read_text().splitlines())
    return [line["framework"] for line in lines if "framework" in line]


def test_switch_framework(tmp_path):
    flags = (*SMALL, "--preset=digits", "--depth=1", "--steps=8", "--stop_at=4")
    shown = example("switch_framework.py", tmp_path, *flags)
    gaps = re.findall(r"(loss|grad_norm): largest gap (\S+) over 8 steps", shown)
    assert [name for name, _ in gaps] == ["loss", "grad_norm"]
    assert all(0 < float(gap) < 1e-4 for _, gap in gaps)
    assert frameworks(tmp_path / "switched") == ["torch", "jax"]
    assert frameworks(tmp_path / "torch") == ["torch", "torch"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_prove_your_trainer():
    right, mistaken, first, *_ = example("prove_your_trainer.py").splitlines()
    assert right == "right: lockstep: decided 15 of 15 steps, same"
    assert re.fullmatch(r"mistaken: .* different \(first at step 15, \w+\)", mistaken)
    assert "at step 15, bound" in first


def test_their_pipelines(pictures, tmp_path):
    cfg = model_config("vit_nano2", num_classes=3, image_size=16, depth=2)
    files = {format: tmp_path / format for format in ("huggingface", "timm")}
    files["torch"] = tmp_path / "w.safetensors"
    for format, path in files.items():
        names = ["circle", "square", "triangle"]
        weights.write(path, cfg, random_arrays(cfg), format=format, class_names=names)
    ours, for_timm = files["torch"], files["timm"]
    shown = example("their_pipelines.py", ours, files["huggingface"], for_timm, pictures / "val")
    assert shown.endswith("the same class for 9 of 9 images\n")
    line = r"\d.png: (\w+) \(twinvit\)  \1 \(transformers\)  \1 \(timm\)"
    assert len(set(re.findall(line, shown))) > 1  # not always one class
    weights.write(tmp_path / "other", cfg, random_arrays(cfg, 1), "timm", class_names=names)
    wrong = (ours, files["huggingface"], tmp_path / "other", pictures / "val")
    assert "the same class for 9" not in example("their_pipelines.py", *wrong, status=1)


@pytest.mark.slow
def test_newcomers_hour(tmp_path, monkeypatch):
    for name, flags in (("python", ""), ("twinvit", "-m twinvit")):  # of this environment
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {flags} "$@"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = [EXAMPLES / "newcomers_hour.sh", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same class for 30 of 30 images" in done.stdout
    assert (tmp_path / "out/digits.png").exists() and (tmp_path / "out/port.html").exists()


def test_newcomers_hour_stops_at_a_failure(tmp_path, monkeypatch):
    (tmp_path / "twinvit").write_text("#!/bin/sh\necho ran\nexit 3\n")
    (tmp_path / "twinvit").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = [EXAMPLES / "newcomers_hour.sh", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout.count("\nran\n") == 1
    assert "$ twinvit train --framework=torch --preset=digits" in done.stdout
    assert "error: exit status 3, expected 0; stopped" in done.stderr


def test_the_tour(monkeypatch):
    """It runs, shows what the committed one shows but for the digits, and names no machine."""
    path = EXAMPLES / "tour.ipynb"
    committed = nbformat.read(path, as_version=4)
    nbformat.validate(committed)
    again = nbformat.from_dict(committed)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Two threads of torch on a busy machine can be several times slower than one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    NotebookClient(again, timeout=300, kernel_name="python3", coalesce_streams=True).execute()
    assert texts(committed) == texts(again) != []
    shown = "".join(texts(again, digits=True))
    distances = [float(x) for x in re.findall(r"(?:distance|step:) (\S+e-\d+)", shown)]
    assert len(distances) == 6 and all(0 < x < 1e-4 for x in distances)
    torch, jax = (re.findall(rf"{name} +(\d[ \d]+)\n", shown) for name in ("torch", "jax"))
    assert torch == jax and len(torch) == 1
    assert not re.search(r"/home|/root|/tmp|seconds", path.read_text())
    code = "\n".join(c.source for c in committed.cells if c.cell_type == "code")
    for line in ("twinvit.trainer(", "next(trainer.batches())", "trainer.step(batch)"):
        assert code.count(line) == 1  # a step in three lines


def texts(notebook: nbformat.NotebookNode, digits: bool = False) -> list[str]:
    """The text of each output."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    found = [o["text"] if o.output_type == "stream" else o.data["text/plain"] for o in outputs]
    return found if digits else [re.sub(r"\d+", "#", text) for text in found]


def test_agent_rounds(tmp_path):
    """The loop ends in "same" after three edits, as docs/agents.md shows it."""
    found = agent_rounds.rounds(tmp_path)
    assert [r["verdict"] for r in found] == ["different"] * 3 + ["same"]
    assert [len(r["findings"]) for r in found] == [3, 2, 1, 0]
    page = (ROOT / "docs/agents.md").read_text()
    (shown,) = re.findall(r"```json\n(.*?)```", page, flags=re.S)
    assert json.loads(shown) == found
