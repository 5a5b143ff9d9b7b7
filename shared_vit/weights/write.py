"""Writing weights: canonical arrays to a file or folder of any format."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import atomic_write, temporary_path
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig, check_config
from shared_vit.spec.sides import plain
from shared_vit.weights import class_names as naming
from shared_vit.weights import formats
from shared_vit.weights.containers import Progress, container
from shared_vit.weights.containers.npz import write_npz
from shared_vit.weights.containers.safetensors import write_safetensors
from shared_vit.weights.folding import fold, folded_config, steps_for
from shared_vit.weights.formats import twinvit
from shared_vit.weights.formats.base import Format
from shared_vit.weights.formats.holds import check_held, check_zero
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.locate import card_path, checksum


def check_target(
    path: str | os.PathLike, cfg: ModelConfig, format: str, new_folder: bool = False
) -> None:
    """Raise UserError where the model cannot be written to `path` in `format`, before any work.

    `new_folder` says that the folder of `path` is still to be made.
    """
    path = Path(path)
    formats.check_name(format)
    suffixes = formats.suffixes_of(format)
    if path.suffix not in suffixes:
        kinds = " or ".join(suffix or "a folder (a name without a suffix)" for suffix in suffixes)
        raise UserError(f"{format} is written to {kinds}, not to {path.name}")
    if not new_folder and not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if path.suffix == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another name, or remove it")
    if path.suffix and path.is_dir():
        raise UserError(f"cannot write {path}: there is a folder of that name")
    if format not in twinvit.OWN:
        fmt = formats.KNOWN[format]
        check_held(fmt, folded_config(cfg, fmt), formats.FOREIGN)


def write_weights(
    path: str | os.PathLike,
    cfg: ModelConfig,
    arrays: Arrays,
    format: str = "torch",
    progress: Progress | None = None,
    class_names: Sequence[str] | None = None,
) -> list[str]:
    """Write canonical arrays completely or not at all, lazy ones one at a time (but for `.pth`).

    Returns what has to be set in the target's code for the same function. Another program's file
    gets a card next to it, `<name>.json`, with the function, a checksum and the code that builds
    the model and its input. `progress` is called with the bytes of each array; `class_names` are in
    the order of the logits, None where nobody knows them. Raises UserError.
    """
    path = Path(path)
    check_config(cfg)
    check_target(path, cfg, format)
    names = naming.checked(class_names, cfg.num_classes, path)
    if format in twinvit.OWN:
        twinvit.write(path, cfg, arrays, progress, names)
        return []
    canonical.check(cfg, arrays)
    fmt = formats.KNOWN[format]
    cfg, arrays, said = fold(cfg, arrays, steps_for(cfg, fmt))
    check_zero(fmt, cfg, arrays, str(path))
    file_arrays = {**fmt.written(cfg, arrays)}
    file_arrays |= fmt.beside(cfg, next(iter(file_arrays.values())).dtype)
    if path.suffix == "":
        _write_folder(path, fmt, cfg, file_arrays, progress, names)
    else:
        _write_file(path, fmt, cfg, file_arrays, progress, names)
        _write_json(card_path(path), _card(path, fmt, cfg, names))
    notes = said + fmt.notes(cfg, folder=path.suffix == "")
    if cfg.exif == "turn":
        notes.append(
            "this model was shown photographs turned upright by EXIF, which the target's code "
            "ignores: image = PIL.ImageOps.exif_transpose(image) before the preprocessing"
        )
    return notes


def _write_file(
    path: Path,
    fmt: Format,
    cfg: ModelConfig,
    arrays: Arrays,
    progress: Progress | None,
    names: naming.Names,
) -> None:
    if path.suffix == ".npz":
        write_npz(path, arrays, progress)
    elif path.suffix == ".pth":
        write = container("pth").write
        assert write is not None
        write(path, arrays, progress, fmt.under)
    else:
        metadata = {"format": "pt"}  # what transformers wants to see
        if fmt.name != "huggingface":  # its config.json holds the function
            metadata |= {"model_config": cfg.to_json(), **naming.to_metadata(names)}
        write_safetensors(path, arrays, metadata, progress)


def _write_folder(
    path: Path,
    fmt: Format,
    cfg: ModelConfig,
    arrays: Arrays,
    progress: Progress | None,
    names: naming.Names,
) -> None:
    temporary = temporary_path(path)
    try:
        temporary.mkdir()
        _write_file(temporary / "model.safetensors", fmt, cfg, arrays, progress, names)
        dtype = np.result_type(*{array.dtype for array in arrays.values()})
        for name, content in fmt.extras(cfg, dtype, names).items():
            _write_json(temporary / name, content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _card(path: Path, fmt: Format, cfg: ModelConfig, names: naming.Names) -> dict[str, object]:
    return {
        **({} if names is None else {naming.KEY: names}),
        "format": fmt.name,
        "load": fmt.how_to_load(cfg),
        "set_there": fmt.notes(cfg),
        "preprocessing": {
            # None: squashed; two numbers: height and width, which it covers.
            "shorter_side": plain(cfg.resized_shape) if cfg.eval_resize else None,
            "interpolation": cfg.interpolation,
            "image_size": plain(cfg.image_shape),
            "mean": cfg.mean,
            "std": cfg.std,
            "of": "RGB in [0, 1]",
            "code": fmt.how_to_preprocess(cfg),
        },
        "model_config": json.loads(cfg.to_json()),
        "sha256": checksum(path),
    }


def _write_json(path: Path, content: object) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
