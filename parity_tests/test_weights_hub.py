"""Claim: `hf:OWNER/NAME[@REVISION][/FILE]` is the repository's files, of one commit, checked.

The hub is a server in this process, and the cache a temporary folder.
"""

import hashlib
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hub_server import Hub, Repo, files_of, serving

import jax_vit
import torch_vit
from parity_tests.helpers import random_arrays
from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.run.command_line import parse
from shared_vit.run.plan import GivenWeights, first_or_given_state, make_plan
from shared_vit.run.presets import PRESETS
from shared_vit.run.record import read_record, write_record
from shared_vit.run.requested import RequestedConfig
from shared_vit.run.start_from import describe_start
from shared_vit.spec.config import ModelConfig
from torch_vit.train import train
from twinvit.convert import certificate as certificates
from twinvit.convert.command import convert

hub_package = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

CFG = ModelConfig(
    image_size=8, patch_size=4, width=24, depth=2, num_heads=3, mlp_dim=96, num_classes=10,
    gelu="tanh", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5), eval_resize=0,
)  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server; huggingface_hub read its environment when it was imported, perhaps long ago."""
    home = tmp_path / "home"
    with serving() as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DOWNLOAD_TIMEOUT": 0.3,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        at_once = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.file_download.time", at_once)
        monkeypatch.setattr("huggingface_hub.utils._http.time", at_once)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        hub_package.utils.disable_progress_bars()
        yield hub


def folder(tmp_path: Path, format: str, cfg: ModelConfig = CFG, seed: int = 0) -> Path:
    path = tmp_path / f"{format}-{seed}"
    if not path.exists():
        weights.write_weights(path, cfg, random_arrays(cfg, seed), format)
        plain = safetensors.numpy.load_file(path / "model.safetensors")
        # without our own metadata, so that the JSON files say the function
        safetensors.numpy.save_file(plain, path / "model.safetensors", {"format": "pt"})
    return path


def publish(hub: Hub, files: dict[str, bytes], name: str = "me/vit", ref: str = "main") -> str:
    return hub.repos.setdefault(name, Repo()).commit(files, ref)


def assert_reads(name: str, expected, **hints) -> None:
    cfg, arrays = weights.read(name, **hints)
    assert cfg == expected[0]
    assert list(arrays) == list(expected[1])
    assert all(np.array_equal(a, expected[1][n]) for n, a in arrays.items())


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_a_repository_is_read_as_its_folder(hub, tmp_path, format):
    local = folder(tmp_path, format)
    commit = publish(hub, files_of(local) | {"README.md": b"", "onnx/model.onnx": b""})
    expected = weights.read(local)
    assert_reads("hf:me/vit", expected)
    assert sorted(hub.fetched) == sorted(files_of(local))
    source = weights.open_weights(Path("hf:me/vit"))
    assert (str(source.path), source.format) == ("hf:me/vit", format)
    assert (source.origin.commit, source.origin.pinned) == (commit, f"hf:me/vit@{commit}")
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    in_jax = np.asarray(jax_vit.load("hf:me/vit")(images))
    with torch.no_grad():
        in_torch = torch_vit.load("hf:me/vit")(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    assert np.array_equal(in_jax, np.asarray(jax_vit.load(local)(images)))
    np.testing.assert_allclose(in_jax, in_torch.numpy(), rtol=2e-5, atol=2e-5)
    assert sorted(hub.fetched) == sorted(files_of(local))  # the rest was in the cache


def test_shards_and_the_older_container(hub, tmp_path):
    files = files_of(folder(tmp_path, "huggingface"))
    expected = weights.read(tmp_path / "huggingface-0")
    arrays = safetensors.numpy.load(files.pop("model.safetensors"))
    names = sorted(arrays)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    shards = {
        file: safetensors.numpy.save({n: arrays[n] for n in part}) for file, part in parts.items()
    }
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    publish(hub, files | shards | {"model.safetensors.index.json": json.dumps(index).encode()})
    assert_reads("hf:me/vit", expected)
    origin = weights.open_weights("hf:me/vit").origin
    assert list(origin.sha256) == sorted(shards) and "of model-2.safetensors" in origin.describe()
    torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, tmp_path / "x.bin")
    publish(hub, files | {"pytorch_model.bin": (tmp_path / "x.bin").read_bytes()}, "me/old")
    assert_reads("hf:me/old", expected)


def test_a_file_that_is_named(hub, tmp_path):
    """With the card that we write beside it, and the config in its own folder."""
    arrays = random_arrays(CFG)
    weights.write_weights(tmp_path / "b.npz", CFG, arrays, "big_vision")
    published = {f"old/{n}": (tmp_path / n).read_bytes() for n in ("b.npz", "b.npz.json")}
    inner = {f"timm/{n}": data for n, data in files_of(folder(tmp_path, "timm")).items()}
    weights.write(tmp_path / "own.safetensors", CFG, arrays)
    own = {"own.safetensors": (tmp_path / "own.safetensors").read_bytes()}
    publish(hub, published | inner | own)
    assert_reads("hf:me/vit/old/b.npz", weights.read(tmp_path / "b.npz"))
    assert hub.fetched == list(published)
    assert_reads("hf:me/vit/timm/model.safetensors", weights.read(tmp_path / "timm-0"))
    assert_reads("hf:me/vit@main/own.safetensors", (CFG, arrays))
    with pytest.raises(UserError, match="me/vit has no file own.npz at revision main: http"):
        weights.read("hf:me/vit/own.npz")
    with pytest.raises(UserError, match=r"has no model.safetensors, .*hf:me/vit/FILE"):
        weights.read("hf:me/vit")


def test_revisions(hub, tmp_path):
    first, second = (folder(tmp_path, "timm", seed=seed) for seed in (1, 2))
    old = publish(hub, files_of(first))
    hub.repos["me/vit"].refs["v1"] = old
    publish(hub, files_of(second))
    publish(hub, files_of(folder(tmp_path, "timm", seed=3)), ref="refs/pr/1")
    publish(hub, files_of(folder(tmp_path, "timm", seed=4)), ref="a/branch")
    for revision, seed in (("main", 2), ("v1", 1), (old, 1), ("refs/pr/1", 3), ("a%2Fbranch", 4)):
        expected = weights.read(tmp_path / f"timm-{seed}")
        assert_reads(f"hf:me/vit@{revision}", expected)
        assert_reads(f"hf:me/vit@{revision}/model.safetensors", expected)
    with pytest.raises(UserError, match="me/vit has no revision v2: name a branch"):
        weights.read("hf:me/vit@v2")


@pytest.mark.parametrize("name", ["", "vit", "a/b@", "//a/b", "a/b/../c", "a/b@x/..", "a b/c"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=r"write hf:OWNER/NAME\[@REVISION\]\[/FILE\]"):
        weights.read(f"hf:{name}")


def test_no_repository_and_gated(hub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no repository me/vti on http.*or it is private.*HF_TOKEN"):
        weights.read("hf:me/vti")
    publish(hub, files_of(folder(tmp_path, "timm")))
    hub.repos["me/vit"].gated = True
    with pytest.raises(UserError, match="me/vit is gated: request access on http.*HF_TOKEN"):
        weights.read("hf:me/vit")
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert_reads("hf:me/vit", weights.read(tmp_path / "timm-0"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_without_access(hub, tmp_path, monkeypatch, status):
    """Wrong, or not of those that may read gated repositories: one sentence with what to set and
    where to ask; before any weights are asked for."""
    publish(hub, files_of(folder(tmp_path, "timm")))
    hub.repos["me/vit"].refuses = status
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    for load in (weights.read, torch_vit.load, jax_vit.load):
        with pytest.raises(UserError) as error:
            load("hf:me/vit")
        assert str(error.value) == (
            f"{hub.url} refuses config.json of me/vit to this token (status {status}): set "
            "HF_TOKEN, or log in (hf auth login), with a token that may read gated repositories, "
            f"of an account that has access on {hub.url}/me/vit"
        )
    assert not hub.fetched
    hub.repos["me/vit"].refuses = 0
    assert_reads("hf:me/vit", weights.read(tmp_path / "timm-0"))
    hub.repos["me/vit"].refuses = status
    assert_reads("hf:me/vit", weights.read(tmp_path / "timm-0"))  # of the cache


@pytest.mark.parametrize(
    "config, said",
    [
        ({"model_type": "swin"}, "config.json of hf:me/vit says model_type = 'swin', expected"),
        ({"architecture": "resnet50"}, "says architecture = 'resnet50', expected a ViT"),
    ],
)
def test_another_model_is_refused_before_its_weights_are_here(hub, config, said):
    publish(hub, {"config.json": json.dumps(config).encode(), "model.safetensors": b"x" * 99})
    with pytest.raises(UserError, match=said):
        weights.read("hf:me/vit")
    assert hub.fetched == ["config.json"]


@pytest.mark.parametrize(
    "architecture", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "aimv2_large_patch14_224"]
)
def test_every_family_of_timm_is_let_through(hub, architecture):
    """Up to its weights, which are none here: docs/models.md gives such names."""
    config = {"architecture": architecture, "num_classes": 0}
    publish(hub, {"config.json": json.dumps(config).encode(), "model.safetensors": b"x" * 99})
    with pytest.raises(UserError, match="is no weight file"):
        weights.read("hf:me/vit")
    assert "model.safetensors" in hub.fetched


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_download_that_breaks_off(hub, tmp_path, fault):
    publish(hub, files_of(folder(tmp_path, "timm")))
    hub.faults["model.safetensors"] = fault
    said = "model.safetensors of me/vit at revision .* could not be downloaded .*start again"
    with pytest.raises(UserError, match=said):
        weights.read("hf:me/vit")
    hub.faults.clear()
    assert_reads("hf:me/vit", weights.read(tmp_path / "timm-0"))


def test_a_slow_server(hub, tmp_path):
    publish(hub, files_of(folder(tmp_path, "timm")))
    hub.faults["model.safetensors"] = "stall once"
    assert_reads("hf:me/vit", weights.read(tmp_path / "timm-0"))
    assert not hub.faults


@pytest.mark.parametrize("file, kind", [("model.safetensors", "sha256"), ("config.json", "sha1")])
def test_other_bytes_are_refused(hub, tmp_path, file, kind):
    """Of the right length, from the network or in the cache."""
    publish(hub, files_of(folder(tmp_path, "timm")))
    hub.faults[file] = "swap"
    with pytest.raises(UserError, match=f"{file} of me/vit is not the file .*{kind}.*remove") as e:
        weights.read("hf:me/vit")
    hub.faults.clear()
    blob = Path(str(e.value).partition("remove ")[2].partition(" and start")[0])
    blob.unlink()
    assert_reads("hf:me/vit", weights.read(tmp_path / "timm-0"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=f"{file} of me/vit is not the file"):
        weights.read("hf:me/vit")


@pytest.mark.parametrize("how", ["offline", "server down", "no server"])
def test_without_a_network_the_cache_is_read(hub, tmp_path, monkeypatch, how):
    """Also where the repository lacks optional files."""
    weights.write(tmp_path / "model.safetensors", CFG, random_arrays(CFG))
    publish(hub, {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    publish(hub, {}, "me/other")
    weights.read("hf:me/vit")
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "server down":
        hub.down = True
    else:
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.requested.clear()
    assert_reads("hf:me/vit", (CFG, random_arrays(CFG)))
    said = "config.json of me/other at revision main is not in the cache.*"
    said += "HF_HUB_OFFLINE is set" if how == "offline" else "check the network, HF_ENDPOINT"
    with pytest.raises(UserError, match=said):
        weights.read("hf:me/other")
    assert not hub.requested


def test_a_cache_that_cannot_be_written(hub, tmp_path):
    publish(hub, files_of(folder(tmp_path, "timm")))
    (tmp_path / "home").write_text("a file")
    with pytest.raises(UserError, match="cannot store config.json of me/vit .*set HF_HOME"):
        weights.read("hf:me/vit")


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf:me/vit is on .*pip install 'twinvit\[hub\]'"):
        weights.read("hf:me/vit")


def test_the_package_is_imported_only_for_a_name(tmp_path):
    weights.write(tmp_path / "a.safetensors", CFG, random_arrays(CFG))
    code = (
        "import sys; from shared_vit import weights\n"
        f"weights.read({str(tmp_path / 'a.safetensors')!r})\n"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_the_environment_says_which_hub(hub, tmp_path):
    commit = publish(hub, files_of(folder(tmp_path, "timm")))
    code = "from shared_vit import weights; print(weights.open_weights('hf:me/vit').origin.commit)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == commit, done.stderr
    assert (tmp_path / "home/hub/models--me--vit/snapshots" / commit / "config.json").exists()


def test_convert_and_its_certificate_name_the_commit(hub, tmp_path, monkeypatch, capsys):
    commit = publish(hub, files_of(folder(tmp_path, "timm")))
    tasks, seen = certificates._tasks, []

    def first_task(files):
        seen.extend(tasks(files)[0])
        return seen[:1], []  # the PyTorch twin suffices

    monkeypatch.setattr(certificates, "_tasks", first_task)
    out = tmp_path / "out.safetensors"
    assert convert("hf:me/vit", str(out), to="torch", verify=True) == 0
    digest = hashlib.sha256((tmp_path / "timm-0/model.safetensors").read_bytes()).hexdigest()
    said = f"found timm in hf:me/vit, revision {commit}, sha256 {digest}: width 24"
    assert said in capsys.readouterr().out
    certificate = json.loads((tmp_path / "out.safetensors.parity.json").read_text())
    assert certificate["source"] == dict(
        name="hf:me/vit", revision=commit, format="timm", step=None,
        sha256={"model.safetensors": digest},
    )  # fmt: skip
    (here,) = {task["files"]["source"]["path"] for task in seen if task["run"] == "timm"}
    assert files_of(Path(here)) == files_of(tmp_path / "timm-0")  # what timm itself would run


def plan_of(name: str, run_dir: Path):
    settings = dict(precision="fp32", world_size=1, device="cpu", init_from=name)
    return make_plan(
        RequestedConfig(settings | {"run_dir": str(run_dir)}, PRESETS["digits"]), "torch"
    )


def test_a_run_records_and_keeps_its_commit(hub, tmp_path, monkeypatch):
    local = folder(tmp_path, "timm", seed=1)
    commit = publish(hub, files_of(local))
    run_dir = tmp_path / "run"
    plan = plan_of("hf:me/vit", run_dir)
    digest = plan.weights.source.origin.sha256["model.safetensors"]
    first = describe_start(plan.weights.source, plan.model)[0]
    assert first.startswith(
        f"starts from: hf:me/vit (format timm, revision {commit}, sha256 {digest}), ViT of"
    )
    run_dir.mkdir()
    write_record(run_dir, plan.record())
    record = read_record(run_dir)
    assert record.recipe.init_from == "hf:me/vit"
    assert record.origin == {"revision": commit, "sha256": {"model.safetensors": digest}}

    publish(hub, files_of(folder(tmp_path, "timm", seed=2)))  # the branch moves
    again = GivenWeights.__new__(GivenWeights)
    again.__dict__.update(plan.weights.__getstate__())  # as in another process
    assert again.source.origin.commit == commit
    resumed = make_plan(parse(["--resume", f"--run_dir={run_dir}"], "x"), "torch")
    assert (resumed.recipe, resumed.record().origin) == (record.recipe, record.origin)
    begun, anew = first_or_given_state(plan), first_or_given_state(resumed)
    assert all(np.array_equal(a, anew.params[n]) for n, a in begun.params.items())
    moved = plan_of("hf:me/vit", tmp_path / "other")
    assert moved.origin["revision"] != commit


def test_a_resumed_run_with_a_checkpoint_needs_no_hub(hub, tmp_path):
    publish(hub, files_of(folder(tmp_path, "timm")))
    flags = ["--preset=digits", "--steps=2", "--batch_size=8", "--device=cpu", "--world_size=1"]
    flags += ["--precision=fp32", "--workers=0", "--compile=off", "--eval_every=0"]
    run = f"--run_dir={tmp_path / 'run'}"
    start = [*flags, run, "--init_from=hf:me/vit", "--checkpoint_every=1", "--stop_at=1"]
    assert train(parse(start, "x")) == 0
    hub.down = True
    hub.requested.clear()
    (tmp_path / "home").rename(tmp_path / "gone")
    assert train(parse(["--resume", run], "x")) == 0
    assert not hub.requested
