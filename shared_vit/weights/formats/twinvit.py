"""This project's own weight files: safetensors with a ModelConfig, a version and a checksum.

Metadata: `format` is "twinvit"; `format_version` counts the changes of this format, absent in files
of version 1 that are older than the field; `model_config` is the ModelConfig as JSON;
`class_names` is a JSON list in the order of the logits, absent where nobody said them and in files
older than the field: a reader that does not know it loses the names alone, so the version stayed;
`twinvit_checksum` is SHA-256 over the file.
"""

import json
import os
import re
from collections.abc import Mapping

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.weights import class_names as naming
from shared_vit.weights.containers import Progress
from shared_vit.weights.containers.safetensors import OWN_FORMAT, OwnFile, write_safetensors
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import finite

FORMAT = OWN_FORMAT
VERSION = 1
OWN = ("torch", "jax")  # the names of this format: both twins read the same file


def write(
    path: str | os.PathLike,
    cfg: ModelConfig,
    arrays: Arrays,
    progress: Progress | None = None,
    class_names: naming.Names = None,
) -> str:
    """Write canonical arrays with their ModelConfig; returns the checksum in the file.

    Raises UserError where names or shapes do not fit `cfg`, or the file cannot be written.
    """
    canonical.check(cfg, arrays)
    class_names = naming.checked(class_names, cfg.num_classes, path)
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "model_config": cfg.to_json(),
        **naming.to_metadata(class_names),
    }
    return write_safetensors(path, arrays, metadata, progress)


def model_of(path: str | os.PathLike, opened: OwnFile) -> tuple[ModelConfig, dict[str, LazyArray]]:
    """`(cfg, arrays)` of a file that `write` made and that was verified when it was opened.

    The arrays are in canonical order and read on access, which raises UserError where values
    are not finite. Raises UserError for any other file, a newer version, or arrays that do not fit
    the ModelConfig.
    """
    arrays, metadata = opened.arrays, opened.metadata
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a model file of this project: its format is {metadata.get('format')!r}"
        )
    check_version(path, metadata)
    cfg = config_of(path, metadata)
    canonical.check(cfg, arrays, where=str(path))
    return cfg, {name: _checked(arrays[name], name, path) for name in canonical.shapes(cfg)}


def check_version(path: str | os.PathLike, metadata: Mapping[str, str]) -> None:
    """Raise UserError for a file of a version that is newer than this program."""
    version = metadata.get("format_version", "1")
    if not re.fullmatch(r"\d{1,9}", version) or not 1 <= int(version) <= VERSION:
        raise UserError(
            f"{path} is of version {version[:20]!r} of its format, and this program knows versions "
            f"up to {VERSION}: update the program"
        )


def config_of(path: str | os.PathLike, metadata: Mapping[str, str]) -> ModelConfig:
    """The ModelConfig in a file's metadata. Raises UserError where this version can read none."""
    try:
        return ModelConfig.from_dict(json.loads(metadata["model_config"]))
    except (KeyError, ValueError, TypeError, RecursionError, UserError) as error:
        why = "there is none" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: its metadata has no usable model_config: {why}") from error


def _checked(array: LazyArray, name: str, path: str | os.PathLike) -> LazyArray:
    return LazyArray(array.shape, array.dtype, lambda: finite(array, name, str(path)))
