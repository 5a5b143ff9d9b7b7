"""Writing weights: canonical arrays to a file or folder of any format."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError, nearest
from shared_vit.files import beside, whole_file
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import table as layout
from shared_vit.weights.containers import container, npz
from shared_vit.weights.containers import safetensors as native
from shared_vit.weights.formats.base import Format
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.read import FORMATS, NAMES, NATIVE, card_path, checksum


def check_target(
    path: str | os.PathLike, cfg: ModelConfig, format: str, new_folder: bool = False
) -> None:
    """Raise UserError where the model cannot be written to `path` in `format`, before any work.

    `new_folder` says that the folder of `path` is still to be made.
    """
    path = Path(path)
    if format not in NAMES:
        raise UserError(
            f"unknown format {format!r}{nearest(format, NAMES)} Formats: {', '.join(NAMES)}."
        )
    suffixes = (".safetensors",) if format in NATIVE else FORMATS[format].suffixes
    if path.suffix not in suffixes:
        kinds = " or ".join(suffix or "a folder (a name without a suffix)" for suffix in suffixes)
        raise UserError(f"{format} is written to {kinds}, not to {path.name}")
    if not new_folder and not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if path.suffix == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another name, or remove it")
    if path.suffix and path.is_dir():
        raise UserError(f"cannot write {path}: there is a folder of that name")
    if format not in NATIVE:
        FORMATS[format].refuse(cfg)


def write_weights(
    path: str | os.PathLike, cfg: ModelConfig, arrays: Arrays, format: str = "torch"
) -> list[str]:
    """Write canonical arrays, one at a time in memory if they are lazy (but for `.pth`); whole or not at all.

    Returns what has to be set in the target's code, so that it computes this model's function. A foreign file gets a
    card beside it, `<name>.json`, with the function, a checksum and the code that builds the model. Raises UserError.
    """
    path = Path(path)
    check_target(path, cfg, format)
    if format in NATIVE:
        native.write(path, cfg, arrays)
        return []
    canonical.check(cfg, arrays)
    fmt = FORMATS[format]
    file_arrays = layout.to_file(fmt.table(cfg), fmt.prepare(cfg, arrays))
    if path.suffix == "":
        _write_folder(path, fmt, cfg, file_arrays)
    else:
        _write_file(path, fmt, cfg, file_arrays)
        _write_json(card_path(path), _card(path, fmt, cfg))
    return fmt.notes(cfg, folder=path.suffix == "")


def _write_file(path: Path, fmt: Format, cfg: ModelConfig, arrays: dict[str, LazyArray]) -> None:
    if path.suffix == ".npz":
        npz.write_npz(path, arrays)
    elif path.suffix == ".pth":
        container("pth").write(path, arrays)
    else:  # "pt" is what transformers wants to see; its own config.json holds the function
        metadata = {"format": "pt"} | (
            {} if fmt.name == "huggingface" else {"model_config": cfg.to_json()}
        )
        native.write_safetensors(path, arrays, metadata)


def _write_folder(path: Path, fmt: Format, cfg: ModelConfig, arrays: dict[str, LazyArray]) -> None:
    temporary = beside(path)
    try:
        temporary.mkdir()
        _write_file(temporary / "model.safetensors", fmt, cfg, arrays)
        dtype = np.result_type(*{array.dtype for array in arrays.values()})
        for name, content in fmt.extras(cfg, dtype).items():
            _write_json(temporary / name, content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _card(path: Path, fmt: Format, cfg: ModelConfig) -> dict[str, object]:
    return {
        "format": fmt.name,
        "load": fmt.how_to_load(cfg),
        "set_there": fmt.notes(cfg),
        "preprocessing": {
            "image_size": cfg.image_size,
            "mean": cfg.mean,
            "std": cfg.std,
            "of": "RGB in [0, 1]",
        },
        "model_config": json.loads(cfg.to_json()),
        "sha256": checksum(path),
    }


def _write_json(path: Path, content: object) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
