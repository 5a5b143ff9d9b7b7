"""Claim: `twinvit convert` goes from every format to every other.

It says what it found, and proves itself on request.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import warnings

import fork_server
import ml_dtypes
import numpy as np
import pytest
from helpers import SMALL, SUFFIX, random_arrays
from safetensors.numpy import load_file
from whole_runs import environment

import torch_vit
from shared_vit import model_config, weights
from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.run.state import first_state
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.settings import setting
from shared_vit.weights import formats
from shared_vit.weights.containers.safetensors import write_safetensors
from shared_vit.weights.formats import FOREIGN
from shared_vit.weights.formats.base import torch_table
from shared_vit.weights.formats.holds import check_held
from shared_vit.weights.formats.timm import Timm
from shared_vit.weights.lazy import LazyArray
from shared_vit.weights.locate import checksum
from shared_vit.weights.table import to_file
from twinvit.convert import certificate as certificates
from twinvit.convert.command import convert

FLAX = ("google", "big_vision")
OTHERS = {"timm": ".pth", "torchvision": ".safetensors", "huggingface": ".safetensors"}


def write(path, cfg, arrays, format):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights.write(path, cfg, arrays, format)


def some_arrays(cfg=SMALL, dtype=np.float32):
    """Random arrays that every format holds: big_vision's class token has no position."""
    arrays = random_arrays(cfg, dtype=dtype)
    arrays["pos_embed"][:, 0] = 0
    return arrays


def same(a, b) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for n in a
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float64, np.float16, ml_dtypes.bfloat16],
    ids=lambda d: np.dtype(d).name,
)
@pytest.mark.parametrize("format, suffix", [*SUFFIX.items(), *OTHERS.items(), ("timm", "")])
def test_there_and_back(format, suffix, dtype, tmp_path):
    """Bit for bit, and the function too: eps, mean and pre-logits as well as the arrays."""
    cfg = dataclasses.replace(SMALL, norm_eps=1e-5, mean=(0.1, 0.2, 0.3), gelu="tanh")
    arrays = some_arrays(cfg, dtype)
    path = tmp_path / f"x{suffix}"
    write(path, cfg, arrays, format)
    found, back = weights.read(path)
    assert found == cfg and same(back, arrays)
    assert weights.open_weights(path).format == (
        "torch, jax" if format in ("torch", "jax") else format
    )


@pytest.mark.parametrize("a, b", list(itertools.permutations(SUFFIX, 2)))
def test_every_format_to_every_other(a, b, tmp_path, capsys):
    """SRC of format a -> b -> a gives SRC's bytes again; what was found is said."""
    src, there, back = (
        tmp_path / f"a{SUFFIX[a]}",
        tmp_path / f"b{SUFFIX[b]}",
        tmp_path / f"c{SUFFIX[a]}",
    )
    write(src, SMALL, some_arrays(), a)
    assert convert(str(src), str(there), b) == 0
    said = capsys.readouterr().out
    assert f"found {'torch, jax' if a in ('torch', 'jax') else a} in" in said and "5 heads" in said
    assert convert(str(there), str(back), a) == 0
    if SUFFIX[a] == "":
        assert {f.name for f in back.iterdir()} == {
            "model.safetensors",
            "config.json",
            "preprocessor_config.json",
        }
        assert all((back / f.name).read_bytes() == f.read_bytes() for f in src.iterdir())
    elif SUFFIX[a] == ".pth":
        assert same(weights.read(back)[1], weights.read(src)[1])
    else:
        assert back.read_bytes() == src.read_bytes()


def test_fold_of_the_class_tokens_position_keeps_the_function(tmp_path):
    """big_vision: token and its position become one array, unrounded; a second trip is exact."""
    arrays = random_arrays(SMALL)
    write(tmp_path / "a.npz", SMALL, arrays, "big_vision")
    _, once = weights.read(tmp_path / "a.npz")
    assert once["cls_token"].dtype == np.float64 and not once["pos_embed"][:, 0].any()
    exact = arrays["cls_token"].astype(np.float64) + arrays["pos_embed"][:, :1].astype(np.float64)
    assert np.array_equal(once["cls_token"], exact)
    assert np.array_equal(once["pos_embed"][:, 1:], arrays["pos_embed"][:, 1:])
    assert all(
        np.array_equal(once[n], arrays[n]) for n in arrays if n not in ("cls_token", "pos_embed")
    )
    write(tmp_path / "b.npz", SMALL, once, "big_vision")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


TIMM_ALONE = "torch, jax, timm can"
BY_TOKEN = "torch, jax, torchvision, google, big_vision can; --num_classes"
REFUSED = {
    "torchvision, mean": ("torchvision", dict(pool="mean"), f"pool='mean': {TIMM_ALONE}$"),
    "huggingface, mean": ("huggingface", dict(pool="mean"), f"pool='mean': {TIMM_ALONE}$"),
    "huggingface, pre-logits": ("huggingface", dict(pre_logits=8), f"pre_logits=8: {BY_TOKEN}"),
    "timm, pre-logits": ("timm", dict(pre_logits=8), f"pre_logits=8: {BY_TOKEN}"),
    "google, mean": ("google", dict(pool="mean"), f"with pool='mean': {TIMM_ALONE}$"),
    "big_vision, fc_norm": (
        "big_vision",
        dict(pool="mean", class_token=False, norm_after_pool=True),
        f"big_vision cannot hold a model with norm_after_pool=True: {TIMM_ALONE}$",
    ),
    "timm, both": (
        "timm",
        dict(pool="mean", pool_class_token=True, pre_logits=8),
        "pre_logits=8: torch, jax can; --num_classes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_refused(case, tmp_path):
    format, changes, match = REFUSED[case]
    cfg = dataclasses.replace(SMALL, **changes)
    write(tmp_path / "a.safetensors", cfg, random_arrays(cfg), "torch")
    with pytest.raises(UserError, match=match):
        convert(str(tmp_path / "a.safetensors"), str(tmp_path / f"b{SUFFIX[format]}"), format)
    assert len(list(tmp_path.iterdir())) == 1


@dataclasses.dataclass(frozen=True)
class Grown(ModelConfig):
    """With a made-up field, of which no format knows."""

    made_up: int = setting(3, "Made up.", group="model", historical=0)


def test_a_field_that_no_format_names_is_refused_by_all():
    """But for its historical value, which every older model has."""
    values = dataclasses.asdict(SMALL)
    for fmt in FOREIGN.values():
        check_held(fmt, Grown(**values, made_up=0), FOREIGN)
        with pytest.raises(UserError, match=f"{fmt.name} .* made_up=3: torch, jax can$"):
            check_held(fmt, Grown(**values), FOREIGN)


class Unbiased(Timm):
    """A format whose head and first MLP products have no biases."""

    name, zero = "unbiased", ("head.bias", "blocks.*.mlp.fc1.bias")

    def table(self, cfg):
        return torch_table(cfg, str, zero=self.zero)

    def table_of(self, cfg, arrays):
        return self.table(cfg)


def test_a_tensor_without_a_place_must_be_zero(tmp_path, monkeypatch):
    """And is zeros when it is read."""
    monkeypatch.setitem(formats.KNOWN, "unbiased", Unbiased())
    monkeypatch.setattr(formats, "NAMES", (*formats.NAMES, "unbiased"))
    path, arrays = tmp_path / "a.safetensors", random_arrays(SMALL)
    arrays["head.bias"] *= 0
    with pytest.raises(UserError, match="no place for blocks.0.mlp.fc1.bias, and it is not zero"):
        write(path, SMALL, arrays, "unbiased")
    for i in range(SMALL.depth):
        arrays[f"blocks.{i}.mlp.fc1.bias"] *= 0
    write(path, SMALL, arrays, "unbiased")
    assert not {"head.bias", "blocks.0.mlp.fc1.bias"} & load_file(path).keys()
    cfg, found = weights.read(path, format="unbiased")
    assert cfg == SMALL
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])


TOLD = {
    "timm": ["act_layer='gelu_tanh'", "eps=1e-05"],
    "torchvision": ["m.approximate = 'tanh'", "eps=1e-05"],
    "google": ["epsilon=1e-05", "images in \\[-1, 1\\]"],
    "big_vision": ["epsilon=1e-05", "images in \\[-1, 1\\]"],
}


@pytest.mark.parametrize("format", TOLD)
def test_what_has_to_be_set_there_is_told(format, tmp_path):
    cfg = dataclasses.replace(SMALL, gelu="tanh", norm_eps=1e-5)
    with pytest.warns() as caught:
        weights.write(tmp_path / f"b{SUFFIX[format]}", cfg, random_arrays(cfg), format)
    for text in TOLD[format]:
        assert any(text.replace("\\", "") in str(warning.message) for warning in caught)
    card = json.loads((tmp_path / f"b{SUFFIX[format]}.json").read_text())
    assert card["set_there"] == [str(warning.message) for warning in caught]


@pytest.mark.filterwarnings("ignore:.*input pipeline")
@pytest.mark.parametrize("format", FLAX)
def test_erf_in_googles_formats_is_told(format, tmp_path):
    with pytest.warns(UserWarning, match=r"nn.gelu\(x, approximate=False\)"):
        weights.write(tmp_path / "b.npz", SMALL, random_arrays(SMALL), format)


def bare(cfg: ModelConfig, tmp_path, format="timm"):
    """A file that says nothing but its arrays; the values do not matter."""
    path = tmp_path / f"bare{SUFFIX[format]}"
    zeros = {
        n: LazyArray(s, np.dtype(np.float16), lambda s=s: np.zeros(s, np.float16))
        for n, s in canonical.shapes(cfg).items()
    }
    fmt = FOREIGN[format]
    write_safetensors(path, to_file(fmt.table(cfg), zeros), {"format": "pt"})
    return path


@pytest.mark.parametrize("name", ["vit_ti16", "vit_s16", "vit_b16", "vit_nano2"])
def test_heads_of_known_sizes(name, tmp_path, recwarn):
    cfg = model_config(name, image_size=2 * int(name.strip("vit_abnos")), num_classes=2)
    source = weights.open_weights(bare(cfg, tmp_path))
    assert source.cfg.num_heads == cfg.num_heads and not source.notices


def test_heads_of_h14(tmp_path):
    """1280 / 16 = 80: not width / 64."""
    cfg = dataclasses.replace(
        model_config("vit_h14", image_size=14, num_classes=2), depth=1, mlp_dim=8
    )
    source = weights.open_weights(bare(cfg, tmp_path))
    assert source.cfg.num_heads == 16


def test_heads_that_are_not_said(tmp_path):
    cfg = dataclasses.replace(SMALL, width=128, num_heads=4, depth=1)
    path = bare(cfg, tmp_path)
    with pytest.warns(UserWarning, match="taken as 2; --num_heads=N sets another"):
        assert weights.read(path)[0].num_heads == 2
    assert weights.read(path, num_heads=4)[0].num_heads == 4
    assert torch_vit.load(path, num_heads=4).cfg.num_heads == 4
    with pytest.raises(UserError, match="does not say how many heads"):
        weights.read(bare(SMALL, tmp_path))


def test_heads_that_contradict_the_file(tmp_path):
    write(tmp_path / "a.npz", SMALL, random_arrays(SMALL), "google")
    (tmp_path / "a.npz.json").unlink()
    with pytest.raises(UserError, match="says that it has 5 heads; --num_heads=4 contradicts it"):
        weights.read(tmp_path / "a.npz", num_heads=4)
    write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL), "torch")
    with pytest.raises(UserError, match="--num_heads=4 contradicts it"):
        weights.read(tmp_path / "a.safetensors", num_heads=4)


def test_sizes_head_and_dtype(tmp_path):
    write(tmp_path / "a.npz", SMALL, random_arrays(SMALL), "google")
    assert (
        convert(
            str(tmp_path / "a.npz"),
            str(tmp_path / "b"),
            "huggingface",
            image_size=48,
            num_classes=3,
            dtype="bf16",
        )
        == 0
    )
    cfg, arrays = weights.read(tmp_path / "b")
    assert (cfg.image_size, cfg.num_classes) == (48, 3)
    assert {array.dtype.name for array in arrays.values()} == {"bfloat16"}
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["image_size"] == 48


def test_many_files_at_once(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "one.npz", SMALL, some_arrays(), "google")
    write(tmp_path / "in" / "two.pth", SMALL, some_arrays(), "torchvision")
    assert convert(str(tmp_path / "in"), str(tmp_path / "out"), "torch") == 0
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "one.safetensors",
        "two.safetensors",
    ]
    assert all(same(weights.read(f)[1], some_arrays()) for f in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "there, match", [("no/out", "expected a folder"), ("in/one.npz", "expected a folder")]
)
def test_many_files_to_no_folder(there, match, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "one.npz", SMALL, some_arrays(), "google")
    with pytest.raises(UserError, match=match):
        convert(str(tmp_path / "in"), str(tmp_path / there), "torch")
    write(tmp_path / "in" / "one.pth", SMALL, some_arrays(), "timm")
    with pytest.raises(UserError, match="two files of .* would be written to"):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), "torch")
    assert not (tmp_path / "out").exists()


def test_one_bad_file_of_many_stops_before_any_is_written(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.npz", SMALL, some_arrays(), "google")
    (tmp_path / "in" / "b.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="b.safetensors is no weight file"):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), "torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "dst, to, match",
    [
        ("x.npz", "torch", "torch is written to .safetensors, not to x.npz"),
        ("x.safetensors", "google", "google is written to .npz"),
        ("no/x.npz", "google", "there is no folder"),
        ("full", "huggingface", "exists already"),
        ("full", "torch", "torch is written to .safetensors"),
    ],
)
def test_impossible_targets(dst, to, match, tmp_path):
    write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL), "torch")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UserError, match=match):
        convert(str(tmp_path / "a.safetensors"), str(tmp_path / dst), to)
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["a.safetensors", "file", "full"]


def run(*args, cwd, **env):
    command = [
        sys.executable,
        "-c",
        "from twinvit.cli import main; main()",
        "convert",
        *map(str, args),
    ]
    return fork_server.run(
        command, cwd=cwd, capture_output=True, text=True, env=environment() | env
    )


def _environment():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def test_command_line_and_certificate(tmp_path):
    """The command in a process of its own: both twins, the target's library, both precisions."""
    cfg = dataclasses.replace(SMALL, depth=1, eval_resize=0.0)
    write(
        tmp_path / "a.npz",
        cfg,
        random_arrays(cfg),
        "google",
    )
    done = run("a.npz", "hf", "--to", "huggingface", "--from", "google", "--verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "found google in a.npz" in done.stdout and "same: hf.parity.json" in done.stdout
    certificate = json.loads((tmp_path / "hf.parity.json").read_text())
    assert certificate["verdict"] == "same" and not certificate["logits_are_constant"]
    assert [(r["who"], r["precision"]) for r in certificate["rows"]] == [
        ("torch twin, source", "fp64"), ("torch twin, source", "fp32"),
        ("torch twin, target", "fp64"), ("torch twin, target", "fp32"),
        ("jax twin, source", "fp64"), ("jax twin, target", "fp64"),
        ("jax twin, source", "fp32"), ("jax twin, target", "fp32"),
        ("huggingface, target", "fp64"), ("huggingface, target", "fp32"),
    ]  # fmt: skip
    jax64 = certificate["rows"][5]
    assert 0 < jax64["logits"] <= 1e-12 and set(jax64["inside"]) == {"blocks.0", "norm"}
    assert certificate["not_run"] == ["google on the source: its library is not installed"]
    images = {row["who"]: row for row in certificate["preprocessing"]}
    assert images["torch twin, target"]["largest_in_levels"] < 1e-3  # rounding of float32
    theirs = images["huggingface, target"]
    assert theirs["verdict"] == "same" and theirs["largest_in_levels"] <= 1.01
    assert 0 < theirs["logits"] < 0.02
    assert "huggingface, target  preprocessing of 4 images same" in done.stdout
    assert certificate["target"]["sha256"]["model.safetensors"] == checksum(
        tmp_path / "hf/model.safetensors"
    )


def test_certificate_says_where_it_differs(tmp_path, monkeypatch):
    """A target whose function has changed (its config.json's eps) does not pass."""
    write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL), "torch")
    write(tmp_path / "hf", SMALL, random_arrays(SMALL), "huggingface")
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    source = weights.open_weights(tmp_path / "a.safetensors")
    tasks = certificates._tasks
    monkeypatch.setattr(
        certificates, "_tasks", lambda files: (tasks(files)[0][:1], [])
    )  # the PyTorch twin suffices
    nothing = dict(image_size=None, num_classes=None, dtype=None)
    made = certificates.certify(source, source.path, tmp_path / "hf", "huggingface", None, nothing)
    assert made.exit_status == 1
    assert json.loads((tmp_path / "hf.parity.json").read_text())["verdict"] == "different"


def test_certificate_says_where_the_preprocessing_differs(tmp_path, monkeypatch, capsys):
    """A folder with another resize than ours: the weights are the same, the function is not."""
    cfg = dataclasses.replace(SMALL, eval_resize=1.0)
    write(tmp_path / "a.safetensors", cfg, random_arrays(cfg), "torch")
    write(tmp_path / "hf", cfg, random_arrays(cfg), "huggingface")
    path = tmp_path / "hf" / "preprocessor_config.json"
    values = json.loads(path.read_text()) | {"size": {"shortest_edge": 30}}
    path.write_text(json.dumps(values))
    source = weights.open_weights(tmp_path / "a.safetensors")
    tasks = certificates._tasks
    monkeypatch.setattr(certificates, "_tasks", lambda files: (tasks(files)[0][:1], []))
    nothing = dict(image_size=None, num_classes=None, dtype=None)
    made = certificates.certify(source, source.path, tmp_path / "hf", "huggingface", None, nothing)
    assert made.exit_status == 1
    certificate = json.loads((tmp_path / "hf.parity.json").read_text())
    (row,) = certificate["preprocessing"]
    assert certificate["verdict"] == row["verdict"] == "different"
    assert row["largest_in_levels"] > 50 and row["logits"] > 0.05
    assert all(row["logits"] == 0 for row in certificate["rows"])
    assert "preprocessing of 4 images different: pixels differ by" in capsys.readouterr().out


def test_certificate_of_a_run_names_its_checkpoint(tmp_path, monkeypatch):
    """The newest intact one, with its step and the checksum of the file that was read."""
    cfg = dataclasses.replace(SMALL, depth=1)
    for step in (5, 7):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        state = first_state(cfg, random_arrays(cfg, seed=step), "fp32")
        checkpoint.write(folder, dataclasses.replace(state, step=step), {})
    (tmp_path / "run/checkpoints/step_7/state.json").unlink()
    tasks = certificates._tasks
    monkeypatch.setattr(certificates, "_tasks", lambda files: (tasks(files)[0][:1], []))
    assert convert(str(tmp_path / "run"), str(tmp_path / "b.pth"), "timm", verify=True) == 0
    source = json.loads((tmp_path / "b.pth.parity.json").read_text())["source"]
    name = "checkpoints/step_5/model.safetensors"
    assert source["step"] == 5
    assert source["sha256"] == {name: checksum(tmp_path / "run" / name)}


def test_errors_are_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nothing of the kind")
    new = {"FORK_SERVER": "0"}  # an interpreter of which any import may print something
    done = run("a.pth", "b.safetensors", "--to", "torch", cwd=tmp_path, **new)
    assert (
        done.returncode == 3
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("error: a.pth is no weight file")
    )
    done = run("a.pth", "b.safetensors", "--to", "tensorflow", cwd=tmp_path, **new)
    assert done.returncode == 3 and "tensorflow" in done.stderr + done.stdout


FULL = """
import resource, signal, sys
from shared_vit.errors import UserError
from twinvit.convert.command import convert

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for target in sys.argv[2:]:
    to, _, name = target.partition("=")
    try:
        convert(sys.argv[1], name, to)
    except UserError as error:
        print(f"{to}: {error}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's file size limit")
def test_a_full_disk_leaves_nothing(tmp_path):
    """Every format stops at 100 kB, as on a full disk: one message with a name, and no file."""
    write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL), "torch")
    (tmp_path / "out").mkdir()
    targets = {to: f"out/x{to}{suffix}" for to, suffix in SUFFIX.items()}
    command = [
        sys.executable,
        "-c",
        FULL,
        "a.safetensors",
        *(f"{to}={name}" for to, name in targets.items()),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    messages = [m for m in done.stdout.splitlines() if not m.startswith(("found", "input"))]
    assert [m.partition(": ")[0] for m in messages] == list(targets)
    assert all(
        f"cannot write {name}" in message for message, name in zip(messages, targets.values())
    )
    assert not list((tmp_path / "out").iterdir())


MEMORY = """
import sys
import torch, torch_vit.pth, safetensors
from twinvit.convert.command import convert

def kib(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

before = kib("VmRSS")
convert(sys.argv[1], sys.argv[2], sys.argv[3])
print((kib("VmHWM") - before) * 1024)
"""


def peak(src, dst, to) -> int:
    """Bytes of memory that a conversion takes above what its imports take."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, src, dst, to],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def converts_in_little_memory(cfg: ModelConfig, tmp_path, streamed: float, at_once: float):
    rng = np.random.default_rng(0)
    arrays = {
        n: LazyArray(s, np.dtype(np.float32), lambda s=s: rng.standard_normal(s, np.float32))
        for n, s in canonical.shapes(cfg).items()
    }
    weights.write(tmp_path / "a.safetensors", cfg, arrays)
    size = sum(array.nbytes for array in arrays.values())
    steps = [
        ("google", "b.npz", streamed),
        ("torch", "c.safetensors", streamed),
        ("timm", "d.pth", at_once),
    ]
    steps += [
        ("huggingface", "e.safetensors", at_once)
    ]  # from the .pth, which is mapped into memory
    here = "a.safetensors"
    for to, name, limit in steps:
        assert peak(tmp_path / here, tmp_path / name, to) <= limit * size, (here, name)
        (tmp_path / here).unlink()
        here = name


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(tmp_path):
    """Far below one copy of the weights, but for `.pth`, which PyTorch writes at once."""
    cfg = dataclasses.replace(model_config("vit_b16"), depth=4)
    converts_in_little_memory(cfg, tmp_path, streamed=0.5, at_once=1.6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_l16(tmp_path):
    converts_in_little_memory(model_config("vit_l16"), tmp_path, streamed=0.2, at_once=1.6)
