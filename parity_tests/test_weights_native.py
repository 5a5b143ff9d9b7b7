"""Claim: our own files are whole or absent, equal for equal weights, and refused when altered."""

import dataclasses
import gc
import json
import os
import random
import threading
import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import SMALL, random_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import torch_vit
from shared_vit import weights
from shared_vit.checksummed import write_checksummed
from shared_vit.errors import UserError
from shared_vit.run import checkpoint
from shared_vit.run.state import first_state
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.containers import safetensors
from shared_vit.weights.formats import twinvit
from shared_vit.weights.lazy import in_memory

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def same(a, b) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for n in a
    )


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_there_and_back(dtype, tmp_path):
    arrays = random_arrays(SMALL, dtype=dtype)
    weights.write(tmp_path / "a.safetensors", SMALL, arrays)
    cfg, back = weights.read(tmp_path / "a.safetensors")
    assert cfg == SMALL and same(back, arrays)
    assert all(array.flags.writeable for array in back.values())


def test_equal_weights_are_equal_files(tmp_path):
    arrays = random_arrays(SMALL)
    weights.write(tmp_path / "a.safetensors", SMALL, arrays, "torch")
    weights.write(tmp_path / "b.safetensors", SMALL, dict(reversed(arrays.items())), "jax")
    fortran = {name: np.asfortranarray(array) for name, array in arrays.items()}
    weights.write(tmp_path / "c.safetensors", SMALL, fortran)
    torch_vit.save(torch_vit.from_arrays(SMALL, arrays), tmp_path / "d.safetensors")
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "abcd"]
    assert len(set(files)) == 1
    arrays["head.bias"][0] += 1e-7
    weights.write(tmp_path / "b.safetensors", SMALL, arrays)
    assert (tmp_path / "b.safetensors").read_bytes() != files[0]


def test_other_tools_read_it(tmp_path):
    arrays = random_arrays(SMALL)
    weights.write(tmp_path / "a.safetensors", SMALL, arrays)
    theirs = load_file(tmp_path / "a.safetensors")
    assert same({name: theirs[name] for name in arrays}, arrays)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_config_comes_back(tmp_path_factory, data):
    pool = data.draw(st.sampled_from(["token", "mean"]))
    class_token = pool == "token" or data.draw(st.booleans())
    cfg = ModelConfig(
        image_size=8 * data.draw(st.integers(1, 3)),
        patch_size=8,
        width=8 * data.draw(st.integers(1, 2)),
        depth=data.draw(st.integers(1, 2)),
        num_heads=data.draw(st.sampled_from([1, 2, 4])),
        mlp_dim=data.draw(st.integers(1, 20)),
        num_classes=data.draw(st.integers(1, 5)),
        class_token=class_token,
        pool=pool,
        pool_class_token=class_token and pool == "mean" and data.draw(st.booleans()),
        norm_after_pool=pool == "mean" and data.draw(st.booleans()),
        pos_embed=data.draw(st.sampled_from(["learned", "sincos2d"])),
        gelu=data.draw(st.sampled_from(["erf", "tanh"])),
        norm_eps=data.draw(st.floats(1e-12, 1e-3)),
        pre_logits=data.draw(st.integers(0, 5)),
        dropout=data.draw(st.floats(0, 0.99)),
        mean=tuple(data.draw(st.floats(-1, 1)) for _ in range(3)),
    )
    path = tmp_path_factory.mktemp("x") / "a.safetensors"
    arrays = random_arrays(cfg)
    weights.write(path, cfg, arrays)
    found, back = weights.read(path)
    assert found == cfg and same(back, arrays)


def test_any_arrays_and_metadata(tmp_path):
    """What checkpoints use: free names, empty and zero-dimensional arrays."""
    arrays = {
        "exp_avg.head.bias": np.arange(3.0),
        "count": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float32),
    }
    safetensors.write_safetensors(
        tmp_path / "a.safetensors", arrays, {"step": "7", "text": 'quoted " and \u00e9'}
    )
    opened, metadata, _ = safetensors.open_own(tmp_path / "a.safetensors")
    back = in_memory(opened)
    assert metadata == {"step": "7", "text": 'quoted " and \u00e9'}
    assert same(dict(sorted(back.items())), dict(sorted(arrays.items())))


def test_wrong_shapes_are_refused_and_nothing_is_left(tmp_path):
    arrays = random_arrays(SMALL)
    arrays["blocks.1.mlp.fc1.weight"] = arrays["blocks.1.mlp.fc1.weight"].T
    del arrays["norm.bias"]
    with pytest.raises(
        UserError,
        match=r"blocks.1.mlp.fc1.weight has shape \(60, 100\), expected \(100, 60\).*norm.bias",
    ):
        weights.write(tmp_path / "a.safetensors", SMALL, arrays)
    assert not any(tmp_path.iterdir())


def test_failure_keeps_the_earlier_file(tmp_path):
    """An array that fails during writing: the old file stays, no part of the new one does."""
    path = tmp_path / "a.safetensors"
    arrays = random_arrays(SMALL)
    weights.write(path, SMALL, arrays)
    before = path.read_bytes()

    def fail():
        raise MemoryError("no more")

    broken = arrays | {"norm.bias": weights.lazy.LazyArray((60,), np.dtype(np.float32), fail)}
    with pytest.raises(MemoryError):
        weights.write(path, SMALL, broken)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_no_folder_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        weights.write(tmp_path / "no" / "a.safetensors", SMALL, random_arrays(SMALL))


def test_renamed_over_while_read(tmp_path):
    """The file that was checked is the one that is read, whatever takes its name meanwhile."""
    old, new = random_arrays(SMALL, seed=0), random_arrays(SMALL, seed=1)
    weights.write(tmp_path / "a.safetensors", SMALL, old)
    source = weights.open_weights(tmp_path / "a.safetensors")
    thread = threading.Thread(target=weights.write, args=(tmp_path / "a.safetensors", SMALL, new))
    thread.start()
    thread.join()
    assert same({name: np.asarray(array) for name, array in source.arrays.items()}, old)
    assert same(weights.read(tmp_path / "a.safetensors")[1], new)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four of: a flipped bit, a changed, cut or doubled stretch; often in the header."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.choice([rng.randrange(len(out)), rng.randrange(min(len(out), 600))])
        kind = rng.randrange(5)
        if kind < 2:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at : at + 8] = rng.randbytes(min(8, len(out) - at))
        elif kind == 3:
            del out[at : at + rng.randrange(1, 64)]
        else:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        if not out:
            break
    return bytes(out)


def mutations(tmp_path, count: int, seed: int) -> int:
    cfg = dataclasses.replace(SMALL, depth=1)
    arrays = random_arrays(cfg)
    weights.write(tmp_path / "a.safetensors", cfg, arrays)
    intact = (tmp_path / "a.safetensors").read_bytes()
    rng = random.Random(seed)
    refused = 0
    for _ in range(count):
        (tmp_path / "b.safetensors").write_bytes(mutate(intact, rng))
        try:
            found, back = weights.read(tmp_path / "b.safetensors", num_heads=None)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 1000
        else:
            assert found == cfg and same(back, arrays)
    return refused


def test_altered_files_are_refused(tmp_path):
    assert mutations(tmp_path, 300, seed=0) > 290


@pytest.mark.slow
def test_altered_files_are_refused_2000(tmp_path):
    assert mutations(tmp_path, 2000, seed=1) > 1950


@pytest.mark.parametrize("key", ["twinvit_checksum", "format", "model_config"])
def test_a_renamed_mark_does_not_make_it_foreign(key, tmp_path):
    """A file with any mark of ours is held to its checksum."""
    weights.write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL))
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data.count(f'"{key}"'.encode()) == 1
    (tmp_path / "a.safetensors").write_bytes(
        data.replace(f'"{key}"'.encode(), f'"{key[:-1]}_"'.encode())
    )
    with pytest.raises(UserError, match="altered"):
        weights.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("extra", [{}, {"format_version": "1"}])
def test_a_file_that_says_it_is_ours_and_has_no_mark_is_refused(extra, tmp_path):
    save_file(random_arrays(SMALL), tmp_path / "a.safetensors", {"format": "twinvit"} | extra)
    with pytest.raises(UserError, match="no checksum of this project"):
        weights.read(tmp_path / "a.safetensors")


def test_shards_are_not_a_file_of_ours(tmp_path):
    """Only the last one's metadata would be seen, and the first one's checksum would not."""
    arrays = random_arrays(SMALL)
    save_file({"head.bias": arrays.pop("head.bias")}, tmp_path / "a.safetensors")
    metadata = {"format": twinvit.FORMAT, "model_config": SMALL.to_json()}
    safetensors.write_safetensors(tmp_path / "b.safetensors", arrays, metadata)
    names = {"head.bias": "a.safetensors"} | dict.fromkeys(arrays, "b.safetensors")
    index = json.dumps({"weight_map": names})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="is in 2 files; this project writes one"):
        weights.read(tmp_path)


def test_a_file_of_ours_is_hashed_once(tmp_path, monkeypatch):
    weights.write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL))
    sound, seen = safetensors._verify, []
    monkeypatch.setattr(safetensors, "_verify", lambda *args: seen.append(args) or sound(*args))
    assert same(weights.read(tmp_path / "a.safetensors")[1], random_arrays(SMALL))
    assert len(seen) == 1


def test_without_the_checksum_mutations_would_load(tmp_path, monkeypatch):
    """The test above can fail: with the check taken out, altered values come through."""
    monkeypatch.setattr(safetensors, "_verify", lambda *args: None)
    with pytest.raises(AssertionError):
        mutations(tmp_path, 300, seed=0)


def test_config_of_another_version_is_named(tmp_path):
    arrays = random_arrays(SMALL)
    values = json.loads(SMALL.to_json()) | {"rotor": True}
    metadata = {"format": twinvit.FORMAT, "model_config": json.dumps(values)}
    safetensors.write_safetensors(tmp_path / "a.safetensors", arrays, metadata)
    with pytest.raises(UserError, match="unknown fields.*rotor"):
        weights.read(tmp_path / "a.safetensors")


def write_run(folder, *steps: int, run: str = ""):
    """Checkpoints of a run, each with weights of its own."""
    for step in steps:
        path = folder / "checkpoints" / f"step_{step}"
        path.mkdir(parents=True)
        state = first_state(SMALL, random_arrays(SMALL, seed=step), "fp32")
        checkpoint.write(path, dataclasses.replace(state, step=step), {"run": run} if run else {})


@pytest.mark.parametrize("where", ["run", "checkpoints", "checkpoint"])
def test_run_directories(where, tmp_path):
    """The newest checkpoint of a run, by number, not by name."""
    write_run(tmp_path / "run", 9, 10, 100)
    (tmp_path / "run" / "config.json").write_text('{"train": {}}')
    inner = {"run": "", "checkpoints": "checkpoints", "checkpoint": "checkpoints/step_9"}[where]
    source = weights.open_weights(tmp_path / "run" / inner)
    step = 9 if where == "checkpoint" else 100
    assert source.step == step and not source.notices
    assert source.files == [tmp_path / f"run/checkpoints/step_{step}/model.safetensors"]
    assert same(in_memory(source.arrays), random_arrays(SMALL, seed=step))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["altered", "missing"])
def test_a_damaged_newest_checkpoint_is_skipped_as_a_resume_skips_it(file, how, tmp_path):
    """One rule for `--resume`, `--init_from` and `convert`; what was skipped is said."""
    write_run(tmp_path / "run", 5, 7)
    path = tmp_path / "run/checkpoints/step_7" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if how == "missing" else path.write_bytes(data)
    assert checkpoint.newest(tmp_path / "run").step == 5
    source = weights.open_weights(tmp_path / "run")
    assert source.step == 5 and len(source.notices) == 1
    assert "skipped a checkpoint, step_7" in source.notices[0]
    with pytest.raises(UserError, match="step_7"):
        weights.open_weights(path.parent if path.parent.exists() and how == "altered" else path)


def test_a_checkpoint_of_another_run_is_skipped_as_a_resume_skips_it(tmp_path):
    """A copied checkpoint is intact and newer, and still not the run's."""
    for run in ("a", "b"):
        write_run(tmp_path / run, *((5, 7) if run == "a" else (5, 9)), run=run)
        write_checksummed(tmp_path / run / "config.json", {"id": run, "first_version": 2})
    (tmp_path / "b/checkpoints/step_9").rename(tmp_path / "a/checkpoints/step_9")
    for place in ("a", "a/checkpoints"):
        source = weights.open_weights(tmp_path / place)
        assert source.step == 7
        assert "step_9" in source.notices[0] and "another run" in source.notices[0]


def test_versions_of_our_file(tmp_path):
    """Version 1 may leave its version out; a newer one says that the program is too old."""
    metadata = {"format": twinvit.FORMAT, "model_config": SMALL.to_json()}
    arrays = random_arrays(SMALL)
    for stated in ({}, {"format_version": "1"}):
        safetensors.write_safetensors(tmp_path / "a.safetensors", arrays, metadata | stated)
        assert weights.read(tmp_path / "a.safetensors")[0] == SMALL
    for version in ("2", "0", "-1", "1.5", "x", "9" * 5000):
        stated = {"format_version": version}
        safetensors.write_safetensors(tmp_path / "a.safetensors", arrays, metadata | stated)
        with pytest.raises(
            UserError, match="version .* of its format.*update the program"
        ) as caught:
            weights.read(tmp_path / "a.safetensors")
        assert len(str(caught.value)) < 500


def test_files_of_before_the_evaluation_settings(tmp_path):
    """A ModelConfig without them means the values that were in force then."""
    values = json.loads(SMALL.to_json())
    del values["eval_resize"], values["interpolation"]
    metadata = {"format": twinvit.FORMAT, "model_config": json.dumps(values)}
    safetensors.write_safetensors(tmp_path / "a.safetensors", random_arrays(SMALL), metadata)
    cfg, _ = weights.read(tmp_path / "a.safetensors")
    assert (cfg.eval_resize, cfg.interpolation) == (256 / 224, "bilinear")


def test_files_are_closed_when_nothing_refers_to_them(tmp_path):
    weights.write(tmp_path / "a.safetensors", SMALL, random_arrays(SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights.write(tmp_path / "a.npz", SMALL, random_arrays(SMALL), "google")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    sources = [weights.open_weights(tmp_path / f"a.{kind}") for kind in ("safetensors", "npz")]
    assert len(os.listdir("/proc/self/fd")) >= before + 2
    del sources
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
