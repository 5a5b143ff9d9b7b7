"""Claim: an exported program computes what its twin does, and runs without this package."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import torch
from helpers import VARIANTS, random_arrays, relative_l2

import torch_vit
import twinvit
from jax_vit import gpu
from shared_vit import weights
from shared_vit.data.preprocess import normalize
from shared_vit.errors import UserError
from shared_vit.spec.config import model_config
from shared_vit.weights.locate import card_path
from twinvit.cli import main
from twinvit.programs import check, read, target, to_jax, to_torch, write

SUFFIX = {name: found.suffix for name, found in target.TARGETS.items()}
# All that a variant changes at once: no class token, sin-cos positions, tanh GELU, and its own
# colours, whose normalization is a part of the program.
CFG = dataclasses.replace(
    VARIANTS["gap, sincos, tanh"], depth=1, mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3)
)
TOKEN = dataclasses.replace(VARIANTS["mean with token, pre-logits"], depth=1)

needs_onnx = pytest.mark.skipif(
    any(not target.importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `export` is not installed",
)
EACH = ["torch", "jax", pytest.param("onnx", marks=needs_onnx)]


def weight_file(folder, cfg=CFG):
    path = folder / "weights.safetensors"
    weights.write(path, cfg, random_arrays(cfg))
    return path


def images(cfg, count, seed=3):
    shape = (count, cfg.image_size, cfg.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def probabilities(cfg, pictures):
    """Of the PyTorch twin in float64, from its weights."""
    model = torch_vit.from_arrays(cfg, random_arrays(cfg), "fp64")
    x = torch.from_numpy(normalize(pictures, cfg, np.float64).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return torch.softmax(model(x), -1).numpy()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """`programs(to)` and `programs(to, cfg)`: a program of any batch size, made once."""
    made = {}

    def program(to, cfg=CFG):
        if (to, cfg) not in made:
            folder = tmp_path_factory.mktemp(to)
            out = folder / f"program{SUFFIX[to]}"
            twinvit.export(weight_file(folder, cfg), out, to)
            made[to, cfg] = out
        return made[to, cfg]

    return program


@pytest.mark.parametrize("to", EACH)
@pytest.mark.parametrize("cfg", [CFG, TOKEN], ids=["gap", "token"])
def test_a_program_gives_the_twins_probabilities_at_any_batch(to, cfg, programs):
    run = twinvit.load_program(programs(to, cfg))
    for count in (1, 2, 5):
        found = run(images(cfg, count))
        assert found.dtype == np.float32 and found.shape == (count, cfg.num_classes)
        assert relative_l2(found, probabilities(cfg, images(cfg, count))) <= 1e-5


@pytest.mark.parametrize("to", EACH)
def test_the_check_sees_another_gelu(to, monkeypatch, tmp_path):
    """Test of the check: a program of tanh GELU for the twin's erf is not saved."""
    erf = dataclasses.replace(CFG, gelu="erf")
    path = weight_file(tmp_path, erf)
    code = target.TARGETS[to].code()
    other = code.twin(CFG, random_arrays(CFG), target.Options())
    monkeypatch.setattr(
        code.twin, "write", lambda self, file, real=code.twin.write: real(other, file)
    )
    with pytest.raises(check.NotKept, match=r"logits are .* away from the twin's .*not saved") as e:
        twinvit.export(path, tmp_path / f"x{SUFFIX[to]}", to)
    assert e.value.verdict == "different"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# What a user writes who has the file and the framework alone.
ALONE = {
    "torch": """
import torch
program = torch.export.load(path).module()
found = program(torch.from_numpy(images)).detach().numpy()
""",
    "jax": """
import jax.export
with open(path, "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
found = program.call(images)
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
found = session.run(["probabilities"], {"images": images})[0]
""",
}


@pytest.mark.parametrize("to", EACH)
def test_a_program_runs_where_this_package_is_not(to, programs, tmp_path):
    np.save(tmp_path / "images.npy", images(CFG, 3))
    code = f"""
import sys
import numpy as np
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("twinvit", "torch_vit", "jax_vit", "shared_vit", "flax"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
path, images = {str(programs(to))!r}, np.load("images.npy")
{ALONE[to]}
np.save("found.npy", np.asarray(found))
"""
    line = [sys.executable, "-c", code]
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npy")
    assert relative_l2(found, probabilities(CFG, images(CFG, 3))) <= 1e-5


@pytest.mark.parametrize("to", EACH)
def test_a_program_has_no_paths_of_the_machine(to, programs):
    """Nor sources: equal weights are to give programs that say nothing of who made them."""
    data = programs(to).read_bytes()
    assert not re.search(rb"(jax_vit|torch_vit|twinvit|programs|site-packages)/", data)


@pytest.mark.parametrize("to", EACH)
def test_the_card_says_what_goes_in_and_comes_out(to, programs):
    card = json.loads(card_path(programs(to)).read_text())
    assert card["input"]["shape"] == ["batch", 24, 24, 3] and card["input"]["dtype"] == "uint8"
    assert card["output"]["shape"] == ["batch", 7] and card["output"]["dtype"] == "float32"
    assert card["num_classes"] == 7 and card["model_config"] == json.loads(CFG.to_json())
    assert card["preprocessing"]["before_the_program"]["shorter_side"] == 27
    assert card["preprocessing"]["in_the_program"]["mean"] == [0.4, 0.45, 0.5]
    assert card["versions"]["twinvit"] == twinvit.__version__ and to in card["versions"]
    assert card["check"]["verdict"] == "same" and card["check"]["numbers_seen"] == 1
    assert card["check"]["relative_l2"] <= card["check"]["limit"] < 1e-4
    assert not card["check"]["constant"]


@pytest.mark.parametrize("to", EACH)
def test_an_altered_program_is_refused(to, programs, tmp_path):
    copy = tmp_path / programs(to).name
    data = bytearray(programs(to).read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(UserError, match="cannot read .*json"):
        twinvit.load_program(copy)
    card_path(copy).write_bytes(card_path(programs(to)).read_bytes())
    with pytest.raises(UserError, match="was altered after it was written"):
        twinvit.load_program(copy)


@pytest.mark.parametrize("to", ["torch", "jax"])
def test_a_fixed_batch_and_bf16(to, tmp_path):
    out = tmp_path / f"x{SUFFIX[to]}"
    card = twinvit.export(weight_file(tmp_path), out, to, precision="bf16", batch_size=3)
    assert card["input"]["shape"][0] == 3 and card["check"]["pictures"] == 4
    run = twinvit.load_program(out)
    distance = relative_l2(run(images(CFG, 3)), probabilities(CFG, images(CFG, 3)))
    assert 1e-5 < distance <= 4e-2
    with pytest.raises(Exception, match="(?i)3"):
        run(images(CFG, 2))


# JAX's programs are for any device, whatever the machine that makes them has.

GPU_WORDS = re.compile("(?i)layout_?constraint|custom_partitioning|cudnn|fmha")


@contextlib.contextmanager
def an_h100(monkeypatch):
    """`jax_vit.gpu` sees an H100, as it does on a machine with one."""
    client = types.SimpleNamespace(platform_version="cuda 13000")
    h100 = types.SimpleNamespace(platform="gpu", client=client, compute_capability="9.0")
    with monkeypatch.context() as patch:
        seen = dict(devices=lambda *_: [h100], config=jax.config, Device=jax.Device)
        patch.setattr(gpu, "jax", types.SimpleNamespace(**seen))
        yield


def jax_program(precision="fp32", platforms=("cpu", "cuda")):
    wide = dataclasses.replace(CFG, width=64, num_heads=4)  # heads that fused attention takes
    options = target.Options(precision=precision, platforms=platforms)
    return to_jax.twin(wide, random_arrays(wide), options).exported()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_for_a_gpu_alone_is_in_no_program(precision, monkeypatch):
    plain = jax_program(precision)
    with an_h100(monkeypatch):
        assert gpu.nvidia_gpu() is not None
        text = jax_program(precision).mlir_module()
    assert not GPU_WORDS.search(text)
    assert text == plain.mlir_module() and plain.platforms == ("cpu", "cuda")


def test_traced_for_a_gpu_it_would_be(monkeypatch):
    """Test of the test: the position embedding's layout is in a program that asks the device."""
    monkeypatch.setattr(to_jax, "_on_cpu", lambda: jax.enable_x64(False))
    with an_h100(monkeypatch):
        try:
            text = jax_program(platforms=("cuda",)).mlir_module()
        except Exception as error:  # jax.export takes no custom call that it does not know
            text = str(error)
    assert GPU_WORDS.search(text)


def test_a_program_is_the_same_where_the_process_has_64_bits(x64):
    with jax.enable_x64(False):
        plain = jax_program().mlir_module()
    assert jax.config.jax_enable_x64 and jax_program().mlir_module() == plain
    assert not re.search(r"x?f64>", plain)


def test_a_program_for_another_platform_is_not_run_here(tmp_path):
    path, out = weight_file(tmp_path), tmp_path / "x.jax"
    with pytest.raises(
        UserError, match="for cuda alone .*add cpu to --platforms, or say --no_verify"
    ):
        twinvit.export(path, out, "jax", platforms=["cuda"])
    assert not out.exists()
    card = twinvit.export(path, out, "jax", platforms=["cuda"], verify=False)
    assert card["platforms"] == ["cuda"] and card["check"] is None


def test_the_example_has_the_size_of_no_batch():
    """torch fixes a dimension that its example has at 1, and says so where it must stay free."""
    twin = to_torch.twin(CFG, random_arrays(CFG), target.Options())
    (placeholder,) = [n for n in twin.exported().graph.nodes if n.name == "images"]
    assert isinstance(placeholder.meta["val"].shape[0], torch.SymInt)


# Refusals come before any work.


def refused(match, tmp_path, to="torch", out=None, **flags):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=match):
        twinvit.export(tmp_path / "no_weights", out or tmp_path / f"x{SUFFIX[to]}", to, **flags)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_exists_is_kept(tmp_path):
    out = tmp_path / "x.pt2"
    for taken in (out, card_path(out)):
        taken.write_text("mine")
        refused(f"{re.escape(str(taken))} exists already: .*--overwrite", tmp_path)
        assert taken.read_text() == "mine"
        taken.unlink()
    out.mkdir()
    refused("there is a folder of that name", tmp_path, overwrite=True)


def test_overwrite_replaces_program_and_card(tmp_path):
    out = tmp_path / "x.jax"
    out.write_text("old"), card_path(out).write_text("old")
    twinvit.export(weight_file(tmp_path), out, "jax", overwrite=True, verify=False)
    assert twinvit.load_program(out)(images(CFG, 1)).shape == (1, 7)


def test_a_failed_export_keeps_the_program_that_it_was_to_replace(tmp_path, monkeypatch):
    out = tmp_path / "x.jax"
    out.write_text("old"), card_path(out).write_text("old")
    monkeypatch.setattr(
        to_jax, "load", lambda file, folder=None: lambda images: np.full((len(images), 7), 1 / 7)
    )
    with pytest.raises(UserError, match="not saved"):
        twinvit.export(weight_file(tmp_path), out, "jax", overwrite=True)
    assert (out.read_text(), card_path(out).read_text()) == ("old", "old")
    assert len(list(tmp_path.iterdir())) == 3


def test_other_refusals(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown target 'onx'; did you mean 'onnx'"):
        twinvit.export(tmp_path, tmp_path / "x.onnx", "onx")
    refused(r"for torch is named \*.pt2, not x.onnx", tmp_path, out=tmp_path / "x.onnx")
    refused("there is no folder", tmp_path, out=tmp_path / "a" / "x.pt2")
    refused("--platforms is of programs for jax", tmp_path, platforms=["cpu"])
    refused("unknown platform 'gpu'", tmp_path, to="jax", platforms=["gpu"])
    refused("for torch are fp32 or bf16", tmp_path, precision="fp64")
    refused("for onnx are fp32", tmp_path, to="onnx", precision="bf16")
    refused("--batch_size=0: expected 1 or more", tmp_path, batch_size=0)
    refused("no_weights is not there", tmp_path)
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    missing = r"needs torch, onnx, onnxscript, onnxruntime, .*pip install 'twinvit\[export\]'"
    refused(missing, tmp_path, to="onnx")


def test_weights_that_a_file_cannot_hold_are_refused():
    with pytest.raises(UserError, match="for jax holds at most 2,130,706,432: --to=torch"):
        target.TARGETS["jax"].check_size(1 << 31)
    for name in ("torch", "onnx"):
        target.TARGETS[name].check_size(1 << 31)


@needs_onnx
def test_weights_that_onnx_cannot_hold_lie_beside_it(tmp_path, programs):
    """With a limit of a kilobyte in place of two gigabytes."""
    out, data = tmp_path / "large.onnx", tmp_path / "large.onnx.data"
    card = twinvit.export(weight_file(tmp_path), out, "onnx", most_inside=1000)
    size = sum(a.nbytes for a in random_arrays(CFG).values())
    assert data.stat().st_size > 0.9 * size and out.stat().st_size < 0.9 * size
    assert card["data"]["name"] == data.name and card["check"]["verdict"] == "same"
    assert {p.name for p in tmp_path.iterdir()} == {
        "weights.safetensors", "large.onnx", "large.onnx.data", "large.onnx.json"
    }  # fmt: skip
    pictures = images(CFG, 3)
    assert relative_l2(twinvit.load_program(out)(pictures), probabilities(CFG, pictures)) <= 1e-5
    np.save(tmp_path / "images.npy", pictures)
    alone = (
        f"import numpy as np\nimages, path = np.load('images.npy'), 'large.onnx'\n{ALONE['onnx']}"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{alone}\nnp.save('found.npy', found)"], cwd=tmp_path
    )
    assert done.returncode == 0
    inside = twinvit.load_program(programs("onnx"))(pictures)
    assert np.array_equal(np.load(tmp_path / "found.npy"), inside)  # the same program
    with pytest.raises(UserError, match="large.onnx.data exists already|large.onnx exists already"):
        twinvit.export(weight_file(tmp_path), out, "onnx")
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="has the weights of large.onnx, is not there or was alt"):
        twinvit.load_program(out)
    twinvit.export(weight_file(tmp_path), out, "onnx", overwrite=True)
    assert not data.exists() and "data" not in json.loads(card_path(out).read_text())


@needs_onnx
def test_a_program_that_is_not_kept_leaves_no_data(tmp_path, monkeypatch):
    path = weight_file(tmp_path)

    def differs(*args):
        raise check.NotKept("different", "other numbers")

    monkeypatch.setattr(write, "check_program", differs)
    with pytest.raises(check.NotKept):
        twinvit.export(path, tmp_path / "large.onnx", "onnx", most_inside=1000)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_altered_weight_file_gives_no_program(tmp_path):
    path = weight_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="altered"):
        twinvit.export(path, tmp_path / "x.pt2", "torch")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_no_card_and_a_newer_card_are_refused(tmp_path):
    path = tmp_path / "x.pt2"
    with pytest.raises(UserError, match="is not there"):
        twinvit.load_program(path)
    path.write_bytes(b"")
    card_path(path).write_text("{}")
    with pytest.raises(UserError, match="is no card of a program"):
        twinvit.load_program(path)
    document = {"format": write.FORMAT, "format_version": 2, "target": "torch"}
    card_path(path).write_text(json.dumps(document))
    with pytest.raises(UserError, match="version 2, .*reads 1"):
        read.load_program(path)


def test_the_command_says_what_it_found(tmp_path, monkeypatch, capsys):
    path, out = weight_file(tmp_path), tmp_path / "x.jax"
    zero = tmp_path / "zero.safetensors"
    arrays = random_arrays(CFG)
    arrays["head.weight"][:] = 0
    weights.write(zero, CFG, arrays)

    def run(source, *flags):
        line = ["twinvit", "export", str(source), str(out), "--to=jax", "--platforms", "cpu"]
        monkeypatch.setattr(sys, "argv", [*line, *flags])
        with pytest.raises(SystemExit) as leave:
            main()
        return leave.value.code or 0, capsys.readouterr()

    wrote = rf"wrote {re.escape(str(out))} "
    status, streams = run(path)
    found = r"\(jax, fp32, any batch; same: logits \S+ from the twin's on 4 images, limit \S+\)\n"
    assert status == 0 and re.fullmatch(wrote + found, streams.out) and streams.err == ""
    status, streams = run(zero, "--overwrite")
    assert status == 2 and streams.out == "" and "not saved: --no_verify" in streams.err
    assert streams.err.startswith("undecided: every image has the same probabilities")
    status, streams = run(zero, "--overwrite", "--no_verify", "--batch_size=2")
    assert status == 0
    assert re.fullmatch(wrote + r"\(jax, fp32, batch 2; not checked\)\n", streams.out)
    assert run(path)[0] == 3 and run(tmp_path / "none", "--overwrite")[0] == 3


@needs_onnx
def test_onnx_is_quiet_and_well_formed(programs, tmp_path, capfd):
    import onnx

    twinvit.export(weight_file(tmp_path), tmp_path / "x.onnx", "onnx")
    streams = capfd.readouterr()
    assert (streams.out, streams.err) == ("", "")
    onnx.checker.check_model(onnx.load_from_string((tmp_path / "x.onnx").read_bytes()))


@pytest.mark.parametrize(
    ("model", "to", "suffix"),
    [
        ("eva02_b14", "torch", ".pt2"),
        ("siglip_b16", "jax", ".jax"),
        ("dinov2r_s14", "onnx", ".onnx"),
    ],
)
def test_features_of_weights_without_a_head(model, to, suffix, tmp_path, capsys):
    """The card says what a program gives; a head is left out, and changes nothing of them."""
    side = 32 if model.endswith("16") else 28
    cfg = model_config(model, 5, side, width=64, depth=1, num_heads=2, mlp_dim=96)
    arrays = random_arrays(cfg)
    headless = {n: a for n, a in arrays.items() if not n.startswith("head.")}
    weights.write(tmp_path / "head.safetensors", cfg, arrays)
    cfg = dataclasses.replace(cfg, num_classes=0)
    weights.write(tmp_path / "none.safetensors", cfg, headless)
    out, given = tmp_path / f"a{suffix}", "head" if to == "torch" else "none"
    card = twinvit.export(tmp_path / f"{given}.safetensors", out, to, output="features")
    assert card["output"] == {"name": "features", "dtype": "float32", "shape": ["batch", 64]}
    assert card["check"]["verdict"] == "same" and card["check"]["of"] == "features"
    found = twinvit.load_program(out)(images(cfg, 3))
    x = torch.from_numpy(normalize(images(cfg, 3), cfg).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = torch_vit.from_arrays(cfg, headless).features(x).pooled.numpy()
    assert relative_l2(found, expected) <= 1e-5
    with pytest.raises(UserError, match="none.safetensors has no head.*--output=features"):
        twinvit.export(tmp_path / "none.safetensors", tmp_path / f"b{suffix}", to)


def test_features_that_are_not_the_twins_are_told():
    """One number in a thousand of them, by ten times what rounding makes of it."""
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((5, 1000))
    nudged = [wanted * (1 + 1e-7 * rng.standard_normal(wanted.shape)) for _ in range(3)]
    found = wanted.astype(np.float32)
    assert check.compared(found, wanted, nudged, 4, "fp32", of_head=False).verdict == "same"
    found[1, 7] += 1e-4
    assert check.compared(found, wanted, nudged, 4, "fp32", of_head=False).verdict == "different"
    alike = [np.repeat(each[:1], 5, axis=0) for each in nudged]
    result = check.compared(alike[0], alike[0], alike, 4, "fp32", of_head=False)
    assert result.verdict == "undecided" and "the same features" in result.why
