"""transformers of Hugging Face: a folder with `config.json`, or a bare file, of its plain ViTs.

`kinds` has a row for each layout, `names` the spellings of versions 4 and 5, `layouts` where
tensors lie; `reading` and `writing` are the two ways, `images` the preprocessing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.base import Format, Hints, Reading, strip_prefixes
from shared_vit.weights.formats.huggingface import layouts, names, writing
from shared_vit.weights.formats.huggingface.images import image_notes, processor_args
from shared_vit.weights.formats.huggingface.reading import read_file
from shared_vit.weights.formats.huggingface.writing import config_args
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import Table

__all__ = ["HuggingFace", "config_args", "processor_args"]


class HuggingFace(Format):
    name = "huggingface"
    about = "a plain ViT of Hugging Face's transformers"
    suffixes = ("", ".safetensors")

    def found(self, names_found: Arrays) -> bool:
        return names.is_known(names.spelled(names_found))

    def strip(self, arrays: Arrays) -> Arrays:
        return strip_prefixes(arrays, ("module.", "_orig_mod."))

    def without_ignored(self, arrays: Arrays) -> tuple[Arrays, list[str]]:
        return names.without_others(arrays)

    def not_held(self, cfg: ModelConfig) -> list[str]:
        return writing.fewest_not_held(cfg)

    def zeros(self, cfg: ModelConfig) -> tuple[str, ...]:
        return layouts.zero(writing.kind_of_model(cfg), cfg)

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        return read_file(arrays, hints, self)

    def table(self, cfg: ModelConfig) -> Table:
        return writing.written_table(cfg)

    def prepare(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        return writing.folded(cfg, arrays)

    def beside(self, cfg: ModelConfig, dtype: np.dtype) -> dict[str, LazyArray]:
        return writing.beside(cfg, dtype)

    def extras(
        self, cfg: ModelConfig, dtype: np.dtype, class_names: tuple[str, ...] | None = None
    ) -> dict[str, object]:
        return {
            "config.json": writing.config_json(cfg, dtype, class_names),
            "preprocessor_config.json": processor_args(cfg),
        }

    def labels(self, config: Mapping[str, Any]) -> object:
        return config.get("id2label")

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        kind = writing.kind_of_model(cfg)
        defaults = writing.usual(kind)
        own = {
            key: value
            for key, value in config_args(cfg).items()
            if defaults.get(key, value) != value
        }
        told = image_notes(cfg)
        if own and not folder:
            text = ", ".join(f"{key}={value!r}" for key, value in own.items())
            told.append(
                "transformers computes another function unless it is given: "
                f"{writing.config_class(kind)}(..., {text}); a folder would say so"
            )
        return told

    def how_to_load(self, cfg: ModelConfig) -> str:
        return writing.how_to_load(cfg)

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        values = processor_args(cfg)
        kind = values.pop("image_processor_type")
        args = ", ".join(f"{key}={value!r}" for key, value in values.items())
        return f"transformers.{kind}({args})"
