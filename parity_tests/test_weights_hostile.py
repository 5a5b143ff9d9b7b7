"""Claim: a wrong, cut, foreign or hostile file gives one message that says what and where.

It runs no code and leaves nothing behind.
"""

import dataclasses
import io
import json
import os
import pickle
import random
import re
import struct
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from helpers import SMALL, random_arrays
from safetensors.numpy import save_file
from test_weights_flax import GAP, LINEN, flax_arrays
from test_weights_native import mutate

from shared_vit import weights
from shared_vit.errors import UserError
from shared_vit.weights.formats import FOREIGN
from shared_vit.weights.table import to_file
from twinvit.convert.command import convert

TINY = dataclasses.replace(SMALL, depth=1)


def foreign(cfg=TINY, format: str = "timm", dtype=np.float32) -> dict[str, np.ndarray]:
    """A format's arrays, under its names."""
    fmt = FOREIGN[format]
    return {
        n: np.asarray(a)
        for n, a in to_file(fmt.table(cfg), random_arrays(cfg, dtype=dtype)).items()
    }


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".pth":
        torch.save(
            {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path
        )
    else:
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)


def refusal(path, match: str | None = None, **options) -> str:
    """The one message of `twinvit convert`, which has left no file behind."""
    before = sorted(os.listdir(path.parent))
    with pytest.raises(UserError, match=match) as caught:
        convert(
            str(path), str(path.parent / "out.safetensors"), "torch", **{"num_heads": 5, **options}
        )
    assert sorted(os.listdir(path.parent)) == before
    assert len(str(caught.value)) < 2000
    return str(caught.value)


CONTAINERS = {
    "timm": ".safetensors",
    "torchvision": ".pth",
    "huggingface": ".safetensors",
    "google": ".npz",
}
# In each format: a weight that is not square, and one of any shape.
NAMES = {
    "timm": ("blocks.0.mlp.fc1.weight", "norm.bias"),
    "torchvision": ("encoder.layers.encoder_layer_0.mlp.0.weight", "encoder.ln.bias"),
    "huggingface": ("vit.encoder.layer.0.intermediate.dense.weight", "vit.layernorm.bias"),
    "google": (
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel",
        "Transformer/encoder_norm/bias",
    ),
}


@pytest.fixture(params=CONTAINERS)
def theirs(request, tmp_path):
    """(format, path, arrays) of a sound foreign file, to be spoiled."""
    return request.param, tmp_path / f"x{CONTAINERS[request.param]}", foreign(format=request.param)


def test_the_sound_file_is_read(theirs):
    format, path, arrays = theirs
    save(path, arrays)
    assert convert(str(path), str(path.parent / "out.safetensors"), "torch", num_heads=5) == 0


def test_missing_and_extra_tensors_are_named(theirs):
    format, path, arrays = theirs
    weight, bias = NAMES[format]
    save(
        path,
        {name: array for name, array in arrays.items() if name != weight}
        | {"adapter.down": np.ones((2, 2))},
    )
    message = refusal(path, "missing")
    assert (
        weight in message
        and str(arrays[weight].shape) in message
        and "unknown: adapter.down" in message
    )
    save(path, {name: array for name, array in arrays.items() if name != bias})
    assert bias in refusal(path, "missing")


def test_a_transposed_tensor_is_named(theirs):
    format, path, arrays = theirs
    name = NAMES[format][0]
    shape = arrays[name].shape
    save(path, arrays | {name: arrays[name].T})
    message = refusal(path, "has shape")
    assert f"{name} has shape {shape[::-1]}, expected {shape}" in message


@pytest.mark.parametrize("shape", [(), (60,), (10, 60), (1, 1, 10, 60)])
@pytest.mark.parametrize("format", FOREIGN)
def test_positions_of_other_axes_are_named(format, shape, tmp_path):
    name = next(piece.name for piece in FOREIGN[format].table(TINY)["pos_embed"])
    path = tmp_path / ("x.npz" if format in ("google", "big_vision") else "x.safetensors")
    arrays = foreign(format=format)
    save(path, arrays | {name: np.ones(shape, np.float32)})
    found = re.escape(str(shape))
    refusal(path, rf"{name} has shape {found}, expected \[1, tokens, width\]")
    if format != "big_vision":  # there they are sincos2d where they are not stored
        save(path, {n: a for n, a in arrays.items() if n != name})
        refusal(path, f"missing: {name}", from_=format)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(theirs, value):
    format, path, arrays = theirs
    name = NAMES[format][0]
    arrays[name] = arrays[name].copy()
    arrays[name].flat[7] = value
    save(path, arrays)
    assert f"tensor {name} has 1 values that are not finite" in refusal(path, "not finite")


def test_wrong_types_are_named(theirs):
    format, path, arrays = theirs
    name = NAMES[format][1]
    save(path, arrays | {name: arrays[name].astype(np.int64)})
    assert f"{name} is int64, expected floats" in refusal(path, "expected floats")


def test_cut_files_are_refused(theirs):
    format, path, arrays = theirs
    save(path, arrays)
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1000, len(data) - 1):
        path.write_bytes(data[:size])
        refusal(path)


def test_another_format_is_refused_by_what_is_missing(theirs):
    format, path, arrays = theirs
    save(path, arrays)
    other = "timm" if format != "timm" else "torchvision"
    refusal(path, f"is not a ViT of {other}: missing", from_=other)
    refusal(path, "is no file of this project", from_="jax")


class RunsCode:
    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "how", ["torch zip", "torch legacy", "plain pickle", "npy in npz", "beside a state_dict"]
)
def test_no_code_is_run(how, tmp_path):
    marker = tmp_path.parent / f"{tmp_path.name}-was-run"
    bomb = RunsCode()
    bomb.marker = marker
    path = tmp_path / "x.pth"
    if how == "torch zip":
        torch.save({"weight": bomb}, path)
    elif how == "torch legacy":
        torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False)
    elif how == "plain pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif how == "beside a state_dict":
        state = {name: torch.from_numpy(array) for name, array in foreign().items()}
        torch.save({"model": state, "args": bomb}, path)
    else:
        path = tmp_path / "x.npz"
        boxed = np.empty(1, object)
        boxed[0] = bomb
        np.savez(path, **foreign(format="google"), boxed=boxed)
    refusal(path, "could run code|is of object|not an intact PyTorch file")
    assert not marker.exists()
    pickle.loads(pickle.dumps(bomb))  # the bomb is a live one
    assert marker.exists()
    marker.unlink()


def mark(path) -> str:
    """A function of a module that no list of dangerous ones names."""
    Path(path).touch()
    return "ran"


class RunsItsOwn:
    def __reduce__(self):
        return (mark, (str(self.marker),))


def test_functions_of_other_programs_are_not_called(tmp_path):
    """Objects beside the weights are made of nothing, and the weights are read."""
    mark.__module__, marker, own = "theirs.train", tmp_path / "was-run", RunsItsOwn()
    own.marker = marker
    state = {name: torch.from_numpy(array) for name, array in foreign().items()}
    theirs, module = types.ModuleType("theirs"), types.ModuleType("theirs.train")
    module.mark = mark
    with pytest.MonkeyPatch.context() as patch:
        for each in (theirs, module):
            patch.setitem(sys.modules, each.__name__, each)
        torch.save({"model": state, "args": own}, tmp_path / "x.pth")
        torch.save({"model": {**state, "cls_token": own}}, tmp_path / "y.pth")
        with pytest.warns(UserWarning, match=r"no tensors \(theirs.train.mark\)"):
            weights.read(tmp_path / "x.pth", num_heads=5)
        assert not marker.exists()
        torch.load(tmp_path / "x.pth", weights_only=False)  # the file is a live one
        assert marker.exists()
    refusal(tmp_path / "y.pth", "cls_token of its state_dict is a mark, not a tensor")


def npy_header(shape, descr="<f4") -> bytes:
    text = (
        repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_zip_bomb(tmp_path):
    """200 MB of zeros in 200 kB: refused by its sizes, before anything is unpacked."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding/kernel.npy", npy_header((50_000_000,)) + bytes(200_000_000))
    assert path.stat().st_size < 300_000
    refusal(path, "would unpack to 200,000,128 bytes")


def test_zip_bomb_in_pytorchs_format(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(5_000_000)}, tmp_path / "y.pth")
    with (
        zipfile.ZipFile(tmp_path / "y.pth") as sound,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in sound.namelist():
            packed.writestr(name, sound.read(name))
    refusal(path, "would unpack to")


def test_a_header_that_claims_more_than_there_is(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding/kernel.npy", npy_header((1 << 40, 1 << 20)) + bytes(100))
    refusal(path, "embedding/kernel .* takes .* bytes, and there are 100")
    header = {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(100))
    refusal(path, "not an intact safetensors file")
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{" + bytes(100))
    refusal(path, "not an intact safetensors file")
    path = tmp_path / "x.pth"
    torch.save({name: torch.zeros(1).expand(10**6, 10**6) for name in foreign()}, path)
    refusal(path, "claim .* bytes, more than the file has")


def test_a_damaged_array_is_named(tmp_path):
    """A zip member has a CRC: a flipped bit is seen when it is read; no output is written."""
    arrays = foreign(format="google")
    path = tmp_path / "x.npz"
    save(path, arrays)
    data = bytearray(path.read_bytes())
    name = NAMES["google"][0]
    at = data.index(arrays[name].tobytes()[:64])
    data[at + 2] ^= 1
    path.write_bytes(data)
    refusal(path, f"the array {name} cannot be read: Bad CRC")


@pytest.mark.parametrize(
    "name, thing",
    [
        ("reg_token", "put timm's config.json next to it"),
        ("blocks.0.attn.q_norm.weight", "put timm's config.json next to it"),
        ("blocks.0.attn.lambda_q1", "differential attention"),
        ("embeds.pos_embed_y", "positions in two factors"),
        ("rel_pos_bias.relative_position_bias_table", "relative positions shared by all blocks"),
        ("patch_embed.backbone.stem.weight", "a convolutional stem"),
    ],
)
def test_other_architectures_are_refused_by_name(name, thing, tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, foreign() | {name: np.ones((1, 4, 60), np.float32)})
    assert name in refusal(path, thing)


CONFIGS = {
    "heads that do not divide": (dict(num_attention_heads=7), "7 heads do not divide the width 60"),
    "another width": (
        dict(num_attention_heads="many"),
        "num_attention_heads = 'many', expected a number",
    ),
    "relu": (dict(hidden_act="relu"), "hidden_act = 'relu'"),
    "another model": (dict(model_type="swin"), "model_type = 'swin', expected one of vit, vit_msn"),
    "another image": (
        dict(image_size=48),
        r"position_embeddings has shape \(1, 10, 60\), expected \(1, 37, 60\)",
    ),
    "no biases": (dict(qkv_bias=False), "unknown: vit.*query.bias"),
    "negative eps": (dict(layer_norm_eps=-1.0), "norm_eps must be between 0 and 1"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_json_is_checked(case, tmp_path):
    changes, match = CONFIGS[case]
    weights.write(tmp_path / "hf", TINY, random_arrays(TINY), "huggingface")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | changes))
    refusal(tmp_path / "hf", match, num_heads=None)


BAD = [None, "x", [], {}, [1, 2], -1, 0, 1.5, True, 10**400, "1e999", "NaN", {"a": {}}]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "format, file",
    [
        ("huggingface", "config.json"),
        ("huggingface", "preprocessor_config.json"),
        ("timm", "config.json"),
    ],
)
def test_any_json_is_read_or_refused(format, file, tmp_path):
    """Each entry, at every depth, replaced by a wrong value: a UserError or a model."""
    weights.write(tmp_path / "x", TINY, random_arrays(TINY), format)
    if format == "timm":  # without our own metadata, so that the JSON decides
        save(tmp_path / "x" / "model.safetensors", foreign())
    path = tmp_path / "x" / file
    content = json.loads(path.read_text())
    outcomes = set()
    for place in [(key,) for key in content] + [
        (k, i) for k, v in content.items() if isinstance(v, dict) for i in v
    ]:
        for bad in BAD:
            tainted = json.loads(json.dumps(content))
            inner = tainted if len(place) == 1 else tainted[place[0]]
            inner[place[-1]] = bad
            path.write_text(json.dumps(tainted).replace('"1e999"', "1e999").replace('"NaN"', "NaN"))
            try:
                weights.read(tmp_path / "x", num_heads=5 if format == "timm" else None)
                outcomes.add("read")
            except UserError as error:
                outcomes.add("refused")
                assert len(str(error)) < 1000
    assert outcomes == {"read", "refused"}


def test_broken_json_is_refused(tmp_path):
    weights.write(tmp_path / "hf", TINY, random_arrays(TINY), "huggingface")
    for text in ("", "{", "[]", "\x00", "[" * 100_000):
        (tmp_path / "hf" / "config.json").write_text(text)
        refusal(tmp_path / "hf", "config.json is no", num_heads=None)


def test_metadata_of_null_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, foreign())
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": None} | json.loads(data[8 : 8 + size])).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    cfg, _ = weights.read(path, num_heads=5)
    assert (cfg.width, cfg.num_heads) == (TINY.width, 5)


def test_shards_stay_in_their_folder(tmp_path):
    (tmp_path / "hf").mkdir()
    save(tmp_path / "secret.safetensors", foreign(format="huggingface"))
    index = {"weight_map": {"vit.layernorm.bias": "../secret.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(tmp_path / "hf", "leaves the folder", num_heads=None)


def test_an_altered_foreign_file_of_ours_is_refused(tmp_path):
    """Its card has the checksum; the `.pth` container itself would not see a flipped bit."""
    path = tmp_path / "x.pth"
    arrays = random_arrays(TINY)
    weights.write(path, TINY, arrays, "timm")
    data = bytearray(path.read_bytes())
    at = data.index(arrays["blocks.0.mlp.fc1.weight"].tobytes()[:64])
    data[at] ^= 1
    path.write_bytes(data)
    refusal(path, "altered after it was written")
    (tmp_path / "x.pth.json").unlink()
    weights.read(path, num_heads=5)


@pytest.mark.parametrize(
    "content", [b"hello, world", b"PK\x03\x04", b"\x80\x04.", b"\x93NUMPY", b"{}", bytes(1000)]
)
def test_not_a_weight_file(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    refusal(tmp_path / "x.safetensors", "is no weight file|not an intact|holds no state_dict")


def test_other_places(tmp_path):
    refusal(tmp_path / "nothing.safetensors", "is not there")
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", "is a folder without weights")
    save(
        tmp_path / "bert.safetensors",
        {"bert.embeddings.word_embeddings.weight": np.ones((3, 4), np.float32)},
    )
    refusal(tmp_path / "bert.safetensors", "the weights of no known ViT.*bert.embeddings")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    refusal(tmp_path / "tensor.pth", "holds no state_dict: it is a Tensor")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refusal(tmp_path / "module.pth", "holds a complete model as Python objects")


def test_a_claim_of_a_million_layers_ends_at_once(tmp_path):
    arrays = flax_arrays(GAP, "big_vision", LINEN)
    stacked = {
        n.replace("_0/", "/", 1): a[None] for n, a in arrays.items() if "encoderblock_0/" in n
    }
    stacked["Transformer/encoderblock/LayerNorm_0/bias"] = np.zeros((10**6, 1), np.float32)
    save(
        tmp_path / "x.npz", {n: a for n, a in arrays.items() if "encoderblock_" not in n} | stacked
    )
    refusal(tmp_path / "x.npz", "claims 1000000 layers")
    save(
        tmp_path / "y.safetensors",
        foreign() | {"blocks.999999.norm1.weight": np.ones(60, np.float32)},
    )
    refusal(tmp_path / "y.safetensors", "unknown: blocks.999999.norm1.weight")


def fuzz(tmp_path, count: int, seed: int) -> tuple[int, int]:
    """`(refused, read)` of mutated foreign files: no crash, no hang, finite values only."""
    rng = random.Random(seed)
    sound = {}
    for format in ("timm", "torchvision", "huggingface", "google", "big_vision"):
        for suffix in (".npz",) if format in ("google", "big_vision") else (".safetensors", ".pth"):
            save(tmp_path / f"sound{suffix}", foreign(format=format))
            sound[format, suffix] = (tmp_path / f"sound{suffix}").read_bytes()
    buffer = io.BytesIO()
    state = {name: torch.from_numpy(array) for name, array in foreign().items()}
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    sound["timm, legacy", ".pth"] = buffer.getvalue()
    sound["bf16", ".npz"] = _npz(
        {n: a.astype(ml_dtypes.bfloat16) for n, a in foreign(format="google").items()}
    )
    refused = read = 0
    for _ in range(count):
        (_, suffix), data = rng.choice(list(sound.items()))
        path = tmp_path / f"x{suffix}"
        path.write_bytes(_mutate_ends(data, rng))
        try:
            _, arrays = weights.read(path, num_heads=5)
            assert all(np.isfinite(array.astype(np.float32)).all() for array in arrays.values())
            read += 1
        except UserError as error:
            assert len(str(error)) < 3000
            refused += 1
    return refused, read


def _npz(arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _mutate_ends(data: bytes, rng: random.Random) -> bytes:
    """Zip keeps its table at the end: spoil that as often as the beginning."""
    return mutate(data, rng) if rng.random() < 0.5 else mutate(data[::-1], rng)[::-1]


@pytest.mark.filterwarnings("ignore")
def test_mutated_foreign_files(tmp_path):
    refused, read = fuzz(tmp_path, 300, seed=0)
    assert refused > 100 and read > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_foreign_files_2000(tmp_path):
    refused, read = fuzz(tmp_path, 2000, seed=1)
    assert refused > 500 and read > 100
