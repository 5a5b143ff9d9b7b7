"""Opening weights: from a path to canonical arrays, whatever the format, without reading the arrays."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError, nearest
from shared_vit.files import reason
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import table as layout
from shared_vit.weights.containers import container, npz
from shared_vit.weights.containers import safetensors as native
from shared_vit.weights.formats.base import Format, Hints, classes_said
from shared_vit.weights.formats.flax import BigVision, Google
from shared_vit.weights.formats.huggingface import HuggingFace
from shared_vit.weights.formats.timm import Timm
from shared_vit.weights.formats.torchvision import Torchvision
from shared_vit.weights.lazy import Arrays, LazyArray

NATIVE = ("torch", "jax")  # the same file
FORMATS: dict[str, Format] = {
    f.name: f for f in (Timm(), Torchvision(), HuggingFace(), Google(), BigVision())
}
NAMES = (*NATIVE, *FORMATS)
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
_JSON_LIMIT = 1 << 26


@dataclass
class Source:
    """Weights that were found and checked, but for their values.

    `arrays` are canonical and lazy: reading one raises UserError where its values are not finite.
    """

    path: Path
    format: str
    cfg: ModelConfig
    arrays: dict[str, LazyArray]
    assumed: list[str] = field(
        default_factory=list
    )  # what the file does not say, and was taken as usual
    notices: list[str] = field(default_factory=list)  # what was guessed, and may be wrong


def open_weights(
    path: str | os.PathLike,
    format: str = "auto",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> Source:
    """Find out what `path` holds: a weight file, a run or checkpoint directory, a folder of Hugging Face's or timm's.

    `num_heads` is for files that do not say; `num_classes` for those without a head, which get one of zeros;
    `image_size` (pixels) for those with fixed positions only. Raises UserError.
    """
    if format not in ("auto", *NAMES):
        raise UserError(
            f"unknown format {format!r}{nearest(format, NAMES)} Formats: auto, {', '.join(NAMES)}."
        )
    path = Path(path)
    files, config, processor = _locate(path)
    hints = Hints(str(path), config, processor, num_heads, num_classes, image_size)
    arrays, metadata = _contents(files)
    if metadata.get("format") == native.FORMAT:
        if format not in ("auto", *NATIVE):
            raise UserError(f"{path} is a file of this project (torch, jax), not of {format}")
        return _own(files[0], hints)
    if format in NATIVE:
        raise UserError(f"{path} is no file of this project: leave --from out, or name its format")
    fmt = _detect(arrays, path) if format == "auto" else FORMATS[format]
    return _foreign(fmt, arrays, hints, _stated(files[0], metadata))


def _own(file: Path, hints: Hints) -> Source:
    cfg, arrays = native.open_model(file)
    if hints.num_heads not in (None, cfg.num_heads):
        raise UserError(
            f"{file} says that it has {cfg.num_heads} heads; --num_heads={hints.num_heads} contradicts it"
        )
    return Source(file, "torch, jax", cfg, _finite(arrays, file))


def _foreign(fmt: Format, arrays: Arrays, hints: Hints, stated: ModelConfig | None) -> Source:
    arrays = fmt.strip(arrays)
    fmt.check_known(arrays, hints.where)
    left_out = []
    for start, why in fmt.ignored.items():
        if any(name.startswith(start) for name in arrays):
            arrays = {name: array for name, array in arrays.items() if not name.startswith(start)}
            left_out.append(f"left out: {why}")
    if stated is not None:
        if hints.num_heads not in (None, stated.num_heads):
            raise UserError(
                f"{hints.where} has {stated.num_heads} heads; --num_heads={hints.num_heads} contradicts it"
            )
        cfg, table, assumed, notices = stated, fmt.table(stated), [], []
    else:
        reading = fmt.read(arrays, hints)
        cfg, table, assumed, notices = reading.cfg, reading.table, reading.assumed, reading.notices
    layout.check(table, arrays, hints.where, fmt.about)
    own = {name: _named(array, name, hints.where) for name, array in arrays.items()}
    for name, shape in canonical.shapes(cfg).items():
        if name not in table:
            own[name] = _made(name, shape, cfg, hints)
            table[name] = [layout.plain(name, shape)]
    return Source(
        Path(hints.where),
        fmt.name,
        cfg,
        layout.to_canonical(cfg, table, own),
        assumed + left_out,
        notices,
    )


def _made(name: str, shape: tuple[int, ...], cfg: ModelConfig, hints: Hints) -> LazyArray:
    """What a file need not hold: a head of zeros, or fixed positions."""
    from shared_vit.spec import init

    if name == "pos_embed":
        return LazyArray(shape, np.dtype(np.float32), lambda: init.sincos2d(cfg))
    classes_said(hints)
    return LazyArray(shape, np.dtype(np.float32), lambda: np.zeros(shape, np.float32))


def _finite(arrays: Arrays, where: Path) -> dict[str, LazyArray]:
    return {name: _named(array, name, str(where)) for name, array in arrays.items()}


def _named(array: LazyArray, name: str, where: str) -> LazyArray:
    def load() -> np.ndarray:
        values = np.asarray(array)
        if layout.is_float(values.dtype) and not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise UserError(
                f"{where}: the tensor {name} has {count} values that are not finite; expected numbers only"
            )
        return values

    return LazyArray(tuple(array.shape), array.dtype, load)


def _detect(arrays: Arrays, path: Path) -> Format:
    for fmt in FORMATS.values():
        if fmt.found(fmt.strip(arrays)):
            return fmt
    raise UserError(
        f"{path} holds the weights of no ViT that is known (formats: {', '.join(NAMES)}); it has "
        f"{len(arrays)} arrays: {layout.some(sorted(arrays))}"
    )


def _stated(file: Path, metadata: Mapping[str, str]) -> ModelConfig | None:
    """The ModelConfig that this project wrote into a foreign file, or beside it."""
    if "model_config" in metadata:
        return native.config_of(file, metadata)
    card = card_path(file)
    if not card.exists():
        return None
    content = read_json(card)
    if "model_config" not in content or "sha256" not in content:
        return None
    if content["sha256"] != checksum(file):
        raise UserError(
            f"{file} was altered after it was written ({card.name} has its checksum): use another copy, or remove "
            f"{card.name} to read it as any other file"
        )
    return native.config_of(card, {"model_config": json.dumps(content["model_config"])})


def card_path(file: Path) -> Path:
    """The JSON file that goes with a foreign weight file of ours: its function, checksum and how to load it."""
    return file.with_name(file.name + ".json")


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError for anything else."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many")
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("expected an object")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON: {reason(error)}") from error


def _contents(files: list[Path]) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """`(arrays, metadata)` of one file, or of several shards."""
    arrays: dict[str, LazyArray] = {}
    metadata: dict[str, str] = {}
    for file in files:
        more, metadata = _container(file)
        twice = next((name for name in more if name in arrays), None)
        if twice is not None:
            raise UserError(f"{file}: the tensor {twice} is in another shard, too")
        arrays |= more
    return arrays, metadata


def _container(file: Path) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """By the first bytes, not by the name: safetensors, `.npz`, or PyTorch's zip or pickle."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if head[8:9] == b"{":
        return native.open_safetensors(file)
    if head[:2] == b"PK":
        with npz.open_zip(file) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            return npz.open_npz(file), {}
    elif head[:1] != b"\x80":
        raise UserError(
            f"{file} is no weight file: expected safetensors, .npz or .pth, and its first bytes are of none of them"
        )
    return container("pth").open(file), {}


def _locate(path: Path) -> tuple[list[Path], dict | None, dict | None]:
    """`(weight files, config.json, preprocessor_config.json)` of a path."""
    if not path.exists():
        raise UserError(
            f"{path} is not there: expected a weight file, a run or checkpoint directory, or a model folder"
        )
    if not path.is_dir():
        return [path], *_beside(path)
    newest = _newest_checkpoint(path)
    if newest is not None:
        return [newest], None, None
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        file = path / name
        if file.exists():
            return _shards(file) if name.endswith(".json") else [file], *_beside(file)
    raise UserError(
        f"{path} is a folder without weights: expected checkpoints/step_N/model.safetensors, model.safetensors or "
        "pytorch_model.bin in it"
    )


def _newest_checkpoint(folder: Path) -> Path | None:
    inner = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    steps = {
        int(match[1]): step / "model.safetensors"
        for step in inner.iterdir()
        if (match := re.fullmatch(r"step_(\d+)", step.name))
        and (step / "model.safetensors").is_file()
    }
    return steps[max(steps)] if steps else None


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index} has no weight_map of file names")
    names = sorted(set(table.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index}: its weight_map leaves the folder")
    return [index.parent / name for name in names]


def _beside(file: Path) -> tuple[dict | None, dict | None]:
    """The config.json of Hugging Face or timm beside a file, if there is one, and the image processor's."""
    config = file.parent / "config.json"
    if not config.is_file() or not file.name.startswith(("model", "pytorch_model")):
        return None, None
    content = read_json(config)
    if "model_type" not in content and "architecture" not in content:
        return None, None  # a run's configuration, or another program's
    if content.get("model_type", "vit") != "vit":
        raise UserError(f"{config} says model_type = {content['model_type']!r:.80}, expected 'vit'")
    processor = file.parent / "preprocessor_config.json"
    return content, read_json(processor) if processor.is_file() else None
