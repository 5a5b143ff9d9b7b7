"""Claim: every command in a block of the documents works; what no test can run is said to be so.

Each command runs in miniature, in a folder that holds what the documents name: a run, weights,
images, a data set, all of them tiny.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import fork_server
import numpy as np
import pytest
from helpers import random_arrays
from whole_runs import ROOT, environment, train_here

from shared_vit import model_config
from shared_vit.run.command_line import parse
from shared_vit.weights import write_weights
from twinvit import cli
from twinvit.port.cli import parser

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = r"python|twinvit|pytest|make|pip|torchrun|srun|tensorboard|mkdocs"
NOT_RUN = {  # a command that begins so: why
    "make": "make's targets, which set up environments of their own",
    "pytest": "the tests themselves",
    "pip": "needs a package index",
    "tensorboard": "a server, of another package",
    "mkdocs": "the site, which has a job of its own",
    "torchrun": "several processes of PyTorch: test_launch.py",
    "srun": "needs SLURM: test_launch.py",
    "twinvit prepare imagenet": "needs ImageNet's tars: test_data_prepare.py",
    "twinvit parity": "five trainings: test_commands.py",
    "twinvit port record": "an environment of its own: test_port_recordings.py",
    "twinvit port explain reference.rec": "needs what those record: test_port_recordings.py",
}


def commands() -> list[tuple[str, str]]:
    """(document and line, command) of every indented or fenced line that is a command."""
    found = []
    for path in DOCUMENTS:
        lines = iter(enumerate(path.read_text().splitlines(), 1))
        fenced = False
        for number, line in lines:
            fenced ^= line.startswith("```")
            if not (fenced or line.startswith("    ")):
                continue
            match = re.match(rf"(?:\$ )?((?:{STARTS}) .*)", line.strip())
            if not match:
                continue
            text = match[1]
            while text.endswith("\\"):
                text = text[:-1] + next(lines)[1].strip()
            text = re.sub(r"\s{2,}#.*|\s#\s.*", "", text)
            found.append((f"{path.name}:{number}", text.replace(" ...", "")))
    return found


COMMANDS = commands()
PHOTOS = ("--data=folder", "--data_dir=DIR", "--model=vit_nano2", "--image_size=8", "--workers=0",
          "--device=cpu", "--batch_size=4", "--warmup_steps=1")  # fmt: skip
MINIATURE = {
    "steps": "2", "batch_size": "4", "warmup_steps": "1", "device": "cpu", "workers": "0",
    "eval_every": "0",
}  # fmt: skip
WEIGHTS = (
    "A.safetensors", "B.safetensors", "vit_b16.safetensors", "ViT-B_16.npz", "vit_b16.npz",
    "weights.npz", "folder_of_files/a.npz", "folder_of_files/b.safetensors",
)  # fmt: skip
RUN = ("--preset=digits", "--depth=2", "--device=cpu", "--batch_size=8", "--warmup_steps=1",
       "--workers=0")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the documents name, made once."""
    root = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / "DIR" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                image = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f"{i}.jpg"), image)
    shutil.copytree(root / "DIR/val/cat", root / "photos")
    shutil.copytree(root / "DIR", root / "pictures")
    shutil.copy(root / "photos/0.jpg", root / "cat.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        flags = ("--steps=4", "--checkpoint_every=2", "--eval_every=2", "--keep=all")
        train_here("torch", Path("RUN"), *RUN, *flags, "--keep_best=val_top1")
        shutil.copytree("RUN/checkpoints/step_4", "RUN/checkpoints/step_N")
        for name in ("RUN_A", "RUN_B", "runs/digits-jax", "runs/digits-torch"):
            train_here("torch", Path(name), *RUN, "--steps=2")
        for seed in (1, 2, 3):
            train_here("torch", Path(f"NOISE_{seed}"), *RUN, "--steps=2", f"--nudge={seed}")
        for name in ("runs/imagenet-jax", "runs/folder-torch", "runs/finetune-jax"):
            train_here("torch", Path(name), *PHOTOS, "--steps=2")
        # What `twinvit report RUN` finds there.
        fork_server.run([sys.executable, "-m", "twinvit", "audit", "RUN"], env=environment())
    cfg = model_config("vit_nano2", num_classes=2, image_size=8)
    for name in WEIGHTS:
        format = "google" if name.endswith(".npz") else "torch"
        (root / name).parent.mkdir(exist_ok=True)
        write_weights(root / name, cfg, random_arrays(cfg), format=format)
    (root / "run.toml").write_text('preset = "digits"\nlr = 3e-3\nrandaug = "2,10"\n')
    (root / "pkg").mkdir()
    (root / "pkg/__init__.py").touch()
    (root / "pkg/mod.py").write_text(PAIR)
    return root


PAIR = """
import jax
import torch
from flax import nnx


def make_torch():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.GELU())


class Port(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(192, 8, rngs=nnx.Rngs(0))
        weights = make_torch()[1]
        self.linear.kernel[...] = weights.weight.detach().numpy().T
        self.linear.bias[...] = weights.bias.detach().numpy()

    def __call__(self, x):
        return jax.nn.gelu(self.linear(x.reshape(len(x), -1)), approximate=False)


def make_jax():
    return Port()
"""


def fitted(words: list[str]) -> list[str]:
    """The command's words with what the small world has in place of what it has not."""
    named = {"/data/imagenet": "DIR", "2,3,224,224": "2,3,8,8", "RUN_OR_WEIGHTS": "RUN"}
    named |= {"net.py:make": "pkg.mod:make_torch", "port.py:make": "pkg.mod:make_jax"}
    named |= {"5,12": "2,3,8,8"}
    named |= {"IMAGE_OR_FOLDER...": "photos"}
    words = [f"{w}.safetensors" if w in ("A", "B") else w for w in words]
    if "--noise" in words:
        at = words.index("--noise") + 1
        words = [*words[:at], "NOISE_1", "NOISE_2", "NOISE_3"]
    for old, new in named.items():
        words = [w.replace(old, new) for w in words]
    return words


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world as the current folder."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.delitem(sys.modules, "pkg.mod", raising=False)
    monkeypatch.delitem(sys.modules, "pkg", raising=False)


def train(twin: str, flags: list[str]) -> None:
    """A training command in miniature, in this process."""
    flags = re.sub(r"(--\w+) (?!-)", r"\1=", " ".join(flags)).split()
    asked = {f.split("=")[0].lstrip("-") for f in flags}
    if "resume" not in asked and "eval" not in " ".join(flags):
        own = {n: v for n, v in MINIATURE.items() if n not in asked - {"image_size", "batch_size"}}
        flags = [f for f in flags if not f.startswith(("--image_size", "--run_dir"))]
        if "init_from" in asked or "data_dir" in asked:
            own |= {"data": "folder", "data_dir": "DIR"}
        if "init_from" in asked:
            own |= {"image_size": "8"}
        elif "--preset=digits" not in flags and "config" not in asked:
            own |= {"model": "vit_nano2", "image_size": "8"}
            if "data_dir" not in asked:
                own |= {"data": "folder", "data_dir": "DIR"}
        flags = [*flags, *(f"--{n}={v}" for n, v in own.items())]
    given = next((f for f in flags if f.startswith("--run_dir=")), "--run_dir=new")
    flags = [f for f in flags if f != given and not f.startswith("--world_size")]
    assert train_here(twin, Path(given.partition("=")[2]), *flags) == 0


@pytest.mark.parametrize("where, command", COMMANDS, ids=[f"{w} {c}" for w, c in COMMANDS])
def test_commands_work(where, command, here, monkeypatch, capfd):
    reason = next((NOT_RUN[start] for start in NOT_RUN if command.startswith(start)), None)
    if "hf:" in command:
        reason = "needs the hub: test_weights_hub.py"
    command = re.sub(r"\$\(python.*\)$", "checkpoints/step_4", command).split(" > ")[0]
    words = fitted(shlex.split(command))
    if reason:
        if words[:2] == ["twinvit", "parity"]:  # its flags are checked here all the same
            parse([w for w in words[2:] if not w.startswith(("--lockstep", "--framework"))], "x")
        if words[:2] == ["twinvit", "port"]:
            parser().parse_args(words[2:])
        return
    if words[0] == "python" and words[1].startswith("train_"):
        train(words[1].removeprefix("train_").removesuffix(".py"), words[2:])
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        text = (ROOT / words[1]).read_text()
        for flag in re.findall(r"--[a-z_]+", command):
            assert flag in text, f"{words[1]} has no {flag}"
    elif words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), "examples have tests of their own"
    else:
        if words[1:2] == ["evaluate"] and words[2].endswith("imagenet-jax"):
            words.append("--device=cpu")
        if words[1] == "convert" and not Path(words[3]).is_dir():  # what it writes is not there yet
            Path(words[3]).unlink(missing_ok=True)
        status, said = run_twinvit(words[1:], monkeypatch), capfd.readouterr()
        # 2 is also a verdict: that two steps decide nothing.
        undecided = status == 2 and re.search(
            r"cannot be judged|undecided:|decided (up to|no|0)", said.out
        )
        assert status in (0, 1) or undecided, said.out + said.err


def run_twinvit(words: list[str], monkeypatch) -> int:
    if words[0] == "audit" or "--framework=jax" in words:  # sets JAX up, which is set up here
        command = [sys.executable, "-m", "twinvit", *words]
        return fork_server.run(command, env=environment(), timeout=300).returncode
    monkeypatch.setattr(sys, "argv", ["twinvit", *words])
    try:
        cli.main()
    except SystemExit as left:
        return left.code or 0
    return 0


def test_other_tests_run_what_is_not_run_here():
    named = {n for reason in NOT_RUN.values() for n in re.findall(r"test_\w+\.py", reason)}
    assert named and all((ROOT / "parity_tests" / name).is_file() for name in named)


def test_there_is_something_to_run():
    documents = {where.split(":")[0] for where, _ in COMMANDS}
    assert {"README.md", "index.md", "training.md", "runs.md", "weights.md", "port.md"} <= documents
    assert len(COMMANDS) > 60
