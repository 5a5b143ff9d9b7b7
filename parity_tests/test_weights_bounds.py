"""Claim: no file makes a reader hang, take memory that it does not justify, or end in a traceback.

Every test of this file is stopped after some seconds.
"""

import dataclasses
import io
import json
import os
import pickle
import signal
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from helpers import SMALL, random_arrays

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.weights.containers.safetensors import write_safetensors
from shared_vit.weights.formats import twinvit
from shared_vit.weights.locate import card_path

TINY = dataclasses.replace(SMALL, depth=1)
SECONDS = 40  # a hundred times what any of these takes


@pytest.fixture(autouse=True)
def no_hang():
    def stop(*_):
        raise TimeoutError(f"not read or refused within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        weights.read(path, num_heads=5)
    assert len(str(caught.value)) < 1000


class Grown:
    """Pickled, it is a call of bytearray with a number."""

    def __init__(self, size: int):
        self.size = size

    def __reduce__(self):
        return bytearray, (self.size,)


def legacy(contents: object) -> bytes:
    """What `torch.save` wrote before version 1.6: pickles one after another."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, contents, [])
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


def zipped(contents: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("form", [legacy, zipped])
def test_a_pickle_may_not_ask_for_memory(form, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(form({"weight": Grown(1 << 28)}))
    tracemalloc.start()
    refused(path, r"more than tensors \((builtins|__builtin__)\.bytearray\)")
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()


def test_a_pickle_behind_padding_is_seen(tmp_path):
    """The names in a pickle are looked for from its start to its end, or it is not read."""
    path = tmp_path / "x.bin"
    path.write_bytes(legacy({"a": "x" * (1 << 23), "weight": Grown(1 << 28)}))
    refused(path, "not an intact PyTorch file")


def test_a_legacy_file_that_is_also_an_archive_is_read_as_torch_reads_it(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, protocol=2))
    path = tmp_path / "x.bin"
    path.write_bytes(legacy({"weight": Grown(1 << 28)}) + buffer.getvalue())
    refused(path, "bytearray")


@pytest.mark.parametrize("form", ["torch.save", "legacy"])
def test_what_training_scripts_save_is_still_read(form, tmp_path):
    from argparse import Namespace
    from collections import OrderedDict

    state = OrderedDict((n, torch.from_numpy(a)) for n, a in random_arrays(TINY).items())
    state["head.bias"] = torch.nn.Parameter(state["head.bias"])
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = {
        "model": state,
        "optimizer": optimizer,
        "args": Namespace(lr=0.1, sizes=torch.Size([1, 2]), device=torch.device("cpu")),
        "seen": {1, 2},
        "epoch": 3,
    }
    path = tmp_path / "x.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=form == "torch.save")
    cfg, arrays = weights.read(path, num_heads=5)
    assert cfg.depth == 1
    for name, array in random_arrays(TINY).items():
        assert np.array_equal(arrays[name], array)


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(depth=10**9), "depth must be at most 1000"),
        (dict(depth=10**400), "depth must be at most 1000"),
        (dict(width=5 * 2**40), "width must be at most"),
        (dict(image_size=8 * 10**9), "image_size must be at most"),
        (dict(num_classes=10**12), "num_classes must be at most"),
        (dict(mean=[float("nan"), 0.5, 0.5]), r"mean\[0\]: it is not a number"),
        (dict(std=[float("inf"), 0.5, 0.5]), "std must be three numbers"),
        (dict(norm_eps=float("inf")), "norm_eps must be between 0 and 1"),
        (dict(eval_resize=float("nan")), "eval_resize"),
    ],
)
def test_an_absurd_model_config_is_refused(changes, match, tmp_path):
    values = json.loads(TINY.to_json()) | changes
    metadata = {"format": twinvit.FORMAT, "model_config": json.dumps(values)}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, random_arrays(TINY), metadata)
    refused(path, match)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("damaged", [False, True])
def test_methods_of_compression_that_numpy_does_not_write(method, damaged, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("embedding/kernel.npy", npy(np.arange(5000.0)))
    if damaged:
        data = bytearray(path.read_bytes())
        data[100:140] = bytes(40)
        path.write_bytes(data)
    refused(path, "compressed in a way that neither NumPy nor PyTorch writes")


def test_a_fifo_is_refused_wherever_a_file_is_expected(tmp_path):
    """Opening one waits for a writer, for ever."""
    os.mkfifo(tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "x.safetensors: it is not a regular file")
    weights.write(tmp_path / "hf", TINY, random_arrays(TINY), "huggingface")
    for name in ("model.safetensors.json", "config.json", "preprocessor_config.json"):
        path = tmp_path / "hf" / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        if name == "config.json":  # not a file, so that the folder has none
            weights.read(tmp_path / "hf", num_heads=5)
        else:
            refused(tmp_path / "hf", f"{name}: it is not a regular file")
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    (tmp_path / "hf/model.safetensors").unlink()
    os.mkfifo(tmp_path / "hf/model.safetensors.index.json")
    refused(tmp_path / "hf", "index.json: it is not a regular file")
    step = tmp_path / "run/checkpoints/step_3"
    step.mkdir(parents=True)
    os.mkfifo(step / "state.json")
    refused(tmp_path / "run", "state.json: it is not a regular file")
    refused(step, "state.json: it is not a regular file")


def test_a_device_is_refused_wherever_a_file_is_expected(tmp_path):
    """/dev/zero says that it has 0 bytes, and never ends."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, random_arrays(TINY), {})
    card_path(path).symlink_to("/dev/zero")
    refused(path, "x.safetensors.json: it is not a regular file")
    refused("/dev/zero", "it is not a regular file")


MANY = 70_000  # a million took 144 s to be refused; these already 10 s


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth"])
def test_too_many_tensors_are_refused_by_their_number(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    if kind == "safetensors":
        entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        text = ("{" + ",".join(entry % i for i in range(MANY)) + "}").encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text)
    elif kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            content = npy(np.zeros(0, np.float32))
            for i in range(MANY):
                archive.writestr(f"t{i}.npy", content)
    else:
        zero = torch.zeros(1)
        torch.save({f"t{i}": zero for i in range(MANY)}, path)
    refused(path, "70,00[0-9] arrays|takes .* bytes, too many")


def test_a_long_header_is_refused_before_it_is_parsed(tmp_path):
    text = b'{"a":"' + b"x" * (1 << 24) + b'"}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path, "its header claims 16,777,224 bytes")


def test_an_index_of_many_shards_is_refused(tmp_path):
    """Each would be a file that stays open."""
    index = {"weight_map": {f"t{i}": f"shard-{i}.safetensors" for i in range(2000)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, "names 2000 files: expected 1 to 500")
