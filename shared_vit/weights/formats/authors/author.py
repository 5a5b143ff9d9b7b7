"""The files of a model's authors as formats of `twinvit convert`: read and written by way of timm's
names, of which each has another spelling."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.authors.programs import Program
from shared_vit.weights.formats.base import strip_prefixes
from shared_vit.weights.formats.left_out import without
from shared_vit.weights.formats.timm import Timm
from shared_vit.weights.formats.timm_architectures import differences
from shared_vit.weights.formats.timm_names import timm_table
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import Table, to_file


class Author(Timm):
    """One program's files. Without config.json of timm's or a card beside it, a file is known by
    its tensors, as timm's is."""

    def __init__(self, name: str, program: Program):
        self.name, self.program = name, program
        self.about = program.about
        self.suffixes = (".pth", *([] if program.under else [".safetensors"]))
        self.models = program.of if isinstance(program.of, str) else ".*"
        self.under, self.prefix = program.under, program.prefix

    def found(self, names: Arrays) -> bool:
        return self.program.known is not None and self.program.known(names)

    def strip(self, arrays: Arrays) -> Arrays:
        prefixes = ("module.", "_orig_mod.", "model.", self.prefix)
        return strip_prefixes(arrays, tuple(filter(None, prefixes)))

    def check_known(self, arrays: Arrays, where: str) -> None:
        super().check_known(arrays, where)
        for name, instead in self.program.needs.items():
            if name not in arrays:
                raise UserError(
                    f"{where} is {self.about} with {instead}, which the twins do not have: there "
                    f"is no {name}"
                )

    def without_ignored(self, arrays: Arrays) -> tuple[Arrays, list[str]]:
        return without(arrays, self.program.left_out)

    def check_left_out(self, cfg: ModelConfig, gone: Arrays, where: str) -> None:
        for name, array in self.program.follows(cfg).items():
            if name not in gone or tuple(gone[name].shape) != array.shape:
                continue
            theirs = np.asarray(gone[name])
            apart = _apart(theirs, array)
            if name.endswith("bias_mask"):  # of models that were never given one
                apart &= ~np.isnan(theirs.astype(np.float64))
            if apart.any():
                raise UserError(
                    f"{where}: its {name} has other values than {self.about} has "
                    f"({theirs[apart][0]:.6g} where {array[apart][0]:.6g} is expected): its "
                    "function is another one"
                )

    def in_known_names(self, arrays: Arrays) -> Arrays:
        return self.program.to_timm(arrays)

    def not_held(self, cfg: ModelConfig) -> list[str]:
        apart = [differences(cfg, other) for other in self.program.functions()]
        found = min(apart, key=len)
        if "pool" in found and cfg.pool in self.program.pools:
            found.remove("pool")
        if cfg.image_width and cfg.rope != "centred":
            found.append("image_width")
        if cfg.num_classes and self.program.head == "none":
            found.append("num_classes")
        return found

    def as_timms(self, cfg: ModelConfig) -> ModelConfig:
        """The model with the pooling of timm's name for it, which is an argument of timm's."""
        if not self.program.pools:
            return cfg
        same = (f.pool for f in self.program.functions() if differences(cfg, f) in ([], ["pool"]))
        return dataclasses.replace(cfg, pool=next(same, cfg.pool))

    def zeros(self, cfg: ModelConfig) -> tuple[str, ...]:
        return ("head.bias",) if self.program.head == "projection" else ()

    def table(self, cfg: ModelConfig) -> Table:
        return timm_table(cfg, self.program.spelling(cfg))

    def written(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        own = self.program.from_timm(to_file(self.table(cfg), arrays))
        return {self.prefix + name: array for name, array in own.items()}

    def beside(self, cfg: ModelConfig, dtype: np.dtype) -> dict[str, LazyArray]:
        return {
            self.prefix + name: _constant(array, dtype)
            for name, array in self.program.beside(cfg).items()
        }

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        return [f"{self.name}: {text}" for text in self.program.says]

    def how_to_load(self, cfg: ModelConfig) -> str:
        return self.program.load


def _constant(array: np.ndarray, dtype: np.dtype) -> LazyArray:
    kind = dtype if array.dtype.kind == "f" else array.dtype
    return LazyArray(array.shape, kind, lambda: array.astype(kind))


def _apart(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where the values of a file are not those expected, within its dtype's precision."""
    if expected.dtype.kind != "f":
        return np.asarray(found != expected)
    values = found.astype(np.float64)
    short = np.array_equal(values, values.astype(ml_dtypes.bfloat16).astype(np.float64))
    rounding = 2.0**-8 if short or found.dtype.itemsize == 2 else 1e-5
    limit = rounding * np.maximum(1, np.abs(expected))
    return ~(np.abs(values - expected) <= limit)
