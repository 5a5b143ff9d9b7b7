"""What the formats of other programs have in common: the interface, and sizes from shapes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import SIZES, ModelConfig
from shared_vit.weights.formats.holds import Rule, in_kinds, not_held
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.table import Table, plain, side_of, split_qkv, to_file


@dataclass(frozen=True)
class Hints:
    """What is known in addition to a file's arrays: its path, its JSON, the caller's arguments."""

    where: str
    config: Mapping[str, Any] | None = None  # config.json
    processor: Mapping[str, Any] | None = None  # preprocessor_config.json
    num_heads: int | None = None
    num_classes: int | None = None
    image_size: int | None = None
    format_said: bool = False  # whether the caller said which format it is


@dataclass
class Notes:
    """What the reader of a file reports."""

    assumed: list[str] = field(default_factory=list)  # not in the file; the format's default
    notices: list[str] = field(default_factory=list)  # guessed, and may be wrong


@dataclass
class Reading:
    """The model of a file. A table without `head.*` means that the file has no head."""

    cfg: ModelConfig
    table: Table
    notes: Notes


class Format:
    """The format of another program. `table` maps canonical names to the arrays of the file."""

    name: str
    about: str  # for messages: "... is not {about}"
    suffixes: tuple[str, ...]  # of the files it is written to; "" is a folder
    under: tuple[str, ...] = ()  # keys of a checkpoint (.pth), each of which holds the arrays
    ignored: Mapping[str, str] = {}  # start of an array's name: why it is left out
    foreign: Mapping[str, str] = {}  # part of an array's name: what our models do not have
    # What its code can compute: of a field that is not named, the historical value alone.
    holds: Mapping[str, Rule] = {}
    # Canonical names, `*` for the number of a block, of tensors that it has no place for: they are
    # zeros when read, and must be zeros to be written.
    zero: tuple[str, ...] = ()

    def found(self, names: Arrays) -> bool:
        """Whether a file with these names is likely of this format."""
        raise NotImplementedError

    def strip(self, arrays: Arrays) -> Arrays:
        """The arrays that matter, without prefixes."""
        return arrays

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        """The model of the arrays. Raises UserError where no model of this project computes it."""
        raise NotImplementedError

    def without_ignored(self, arrays: Arrays) -> tuple[Arrays, list[str]]:
        """The arrays that a model of this project may have, and what was left out, in words."""
        told = []
        for start, why in self.ignored.items():
            if any(name.startswith(start) for name in arrays):
                arrays = {name: a for name, a in arrays.items() if not name.startswith(start)}
                told.append(f"left out: {why}")
        return arrays, told

    def check_left_out(self, cfg: ModelConfig, gone: Arrays, where: str) -> None:
        """Raise UserError where an array that was left out says of another function than `cfg`."""

    def in_known_names(self, arrays: Arrays) -> Arrays:
        """The arrays under the names that the other methods use, where the file has others."""
        return arrays

    def not_held(self, cfg: ModelConfig) -> list[str]:
        """The fields whose values in `cfg` the format does not hold."""
        return not_held(cfg, self.holds)

    def zeros(self, cfg: ModelConfig) -> tuple[str, ...]:
        """`zero`, of a format in which it depends on the model."""
        return self.zero

    def beside(self, cfg: ModelConfig, dtype: np.dtype) -> dict[str, LazyArray]:
        """Arrays that the target's code wants in a file and that the model does not use."""
        return {}

    def table(self, cfg: ModelConfig) -> Table:
        """How a model is written."""
        raise NotImplementedError

    def table_of(self, cfg: ModelConfig, arrays: Arrays) -> Table:
        """How a known model lies in a file with these arrays."""
        return self.table(cfg)

    def prepare(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        """Canonical arrays as the format can hold them, for the same function."""
        return arrays

    def written(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        """The file's arrays, made from canonical ones."""
        return to_file(self.table(cfg), self.prepare(cfg, arrays))

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        """What has to be set in the target's code for the same function.

        A folder's JSON may set it.
        """
        return []

    def extras(
        self, cfg: ModelConfig, dtype: np.dtype, class_names: tuple[str, ...] | None = None
    ) -> dict[str, object]:
        """`{file name: JSON content}` next to the weights in a folder."""
        return {}

    def labels(self, config: Mapping[str, Any]) -> object:
        """What a folder's config.json says of the classes: a list, an object, or nothing."""
        return None

    def how_to_load(self, cfg: ModelConfig) -> str:
        """The target's code that builds the model."""
        raise NotImplementedError

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        """The target's code that turns an image into the model's input."""
        raise NotImplementedError

    def check_known(self, arrays: Arrays, where: str) -> None:
        """Raise UserError, by name, for a part that no plain ViT has."""
        for part, thing in self.foreign.items():
            hit = next((name for name in arrays if part in name), None)
            if hit is not None:
                raise UserError(
                    f"{where} is not a plain ViT: it has {thing} ({hit}), and the twins have none"
                )


def sizes(
    arrays: Arrays,
    name_of: Callable[[str], Any],
    depth: int,
    patch_axis: int,
    fmt: Format,
    hints: Hints,
) -> dict[str, int]:
    """Width, depth, MLP width, patch, classes and pre-logits of a ModelConfig, from shapes.

    They are read from arrays that every ViT has, and so that a transposed weight is found by
    comparison with them: from one axis, or from the product of both.
    """

    def length(canonical_name: str, ndim: int = 1, axis: int = 0) -> int:
        return shape(canonical_name, ndim)[axis]

    def shape(canonical_name: str, ndim: int) -> tuple[int, ...]:
        name = name_of(canonical_name)
        if name not in arrays:
            raise UserError(f"{hints.where} is not {fmt.about}: missing: {name}")
        found = tuple(map(int, arrays[name].shape))
        if len(found) != ndim or not all(found):
            raise UserError(
                f"{hints.where} is not {fmt.about}: {name} has shape {found}, expected {ndim} axes"
            )
        return found

    if not depth:
        raise UserError(
            f"{hints.where} is not {fmt.about}: missing: {name_of('blocks.0.norm1.weight')}"
        )
    if depth > 1000:
        raise UserError(f"{hints.where} claims {depth} layers: no ViT has so many")
    width = length("blocks.0.norm1.weight")
    return dict(
        width=width,
        depth=depth,
        mlp_dim=max(1, math.prod(shape("blocks.0.mlp.fc2.weight", 2)) // width),
        patch_size=length("patch_embed.proj.weight", 4, patch_axis),
        num_classes=_classes(length, arrays, name_of) or classes_said(hints),
        pre_logits=length("pre_logits.bias") if name_of("pre_logits.bias") in arrays else 0,
    )


def _classes(length: Callable[..., int], arrays: Arrays, name_of: Callable[[str], Any]) -> int:
    """Of a file's head, by its bias where it has one; 0 without a head."""
    if not has_head(arrays, name_of):
        return 0
    return length("head.bias") if name_of("head.bias") else length("head.weight", 2)


def has_head(arrays: Arrays, name_of: Callable[[str], Any]) -> bool:
    return name_of("head.weight") in arrays or name_of("head.bias") in arrays


def classes_said(hints: Hints) -> int:
    """The caller's number of classes for a file without a head; 0, no head, where nobody says."""
    return hints.num_classes or 0


def image_size(rows: int, patch: int, name: str, hints: Hints) -> int:
    """The image's side, from the rows of the position embedding that belong to patches."""
    side = side_of(rows)
    if side is None:
        raise UserError(
            f"{hints.where}: {name} has {rows} rows for patches, expected a square number: only "
            "square images are known"
        )
    return side * patch


def position_rows(arrays: Arrays, name: str, fmt: Format, hints: Hints) -> int:
    """The rows of the position embedding, of all tokens. Raises UserError where it has none."""
    if name not in arrays:
        raise UserError(f"{hints.where} is not {fmt.about}: missing: {name}")
    shape = tuple(arrays[name].shape)
    if len(shape) != 3:
        raise UserError(
            f"{hints.where} is not {fmt.about}: {name} has shape {shape}, expected [1, tokens, "
            "width]"
        )
    return int(shape[1])


# By width, from Ti to G.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}


def heads(values: Mapping[str, int], said: int | None, hints: Hints, notes: Notes) -> int:
    """The number of heads: the file's, else the caller's, else the known size's, else width / 64.

    Adds to `notes`. Raises UserError where nothing fits.
    """
    requested = hints.num_heads
    if said is not None:
        if requested not in (None, said):
            raise UserError(
                f"{hints.where} says that it has {said} heads; --num_heads={requested} "
                "contradicts it"
            )
        return said
    if requested is not None:
        return requested
    width = values["width"]
    size = (width, values["depth"], values["mlp_dim"])
    known = next((h for w, d, h, m in SIZES.values() if (w, d, m) == size), None)
    if known is not None:
        notes.assumed.append(f"{known} heads")
        return known
    guess = _HEADS.get(width) or (width // 64 if width % 64 == 0 else None)
    if guess is None:
        raise UserError(
            f"{hints.where} does not say how many heads it has, and a width of {width} is no known "
            "size: say --num_heads=N"
        )
    notes.notices.append(
        f"the number of heads is in no array of {hints.where}: taken as {guess}; --num_heads=N "
        "sets another"
    )
    return guess


def model(hints: Hints, **values: Any) -> ModelConfig:
    """A ModelConfig; a UserError in it names the file."""
    try:
        return ModelConfig(**values)
    except UserError as error:
        raise UserError(f"{hints.where}: {error}") from error


def strip_prefixes(arrays: Arrays, prefixes: tuple[str, ...]) -> Arrays:
    """Without prefixes that all names have, such as DDP's `module.`."""
    for prefix in prefixes * 2:
        if arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def torch_table(
    cfg: ModelConfig,
    name_of: Callable[[str], str | list[str]],
    head: bool = True,
    zero: tuple[str, ...] = (),
) -> Table:
    """The table of a format in torch's layouts.

    `name_of` gives one name, or three where q, k and v are apart. Tensors of `Format.zero` are not
    in it.
    """
    table: Table = {}
    for name, shape in canonical.shapes(cfg).items():
        if (name.startswith("head.") and not head) or in_kinds(name, zero):
            continue
        target = name_of(name)
        if isinstance(target, str):
            table[name] = [plain(target, shape)]
        else:
            table[name] = _plain_thirds(target, (cfg.width, *shape[1:]))
    return table


def _plain_thirds(names: list[str], shape: tuple[int, ...]) -> list[Any]:
    return split_qkv(names, lambda name: plain(name, shape), shape[0])


def split_name(name: str) -> tuple[str, str, str]:
    """`blocks.3.mlp.fc1.weight` -> ("3", "mlp.fc1", "weight"); "" first outside the blocks."""
    layer, rest = "", name
    if name.startswith("blocks."):
        _, layer, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return (layer, module, leaf) if module else (layer, leaf, "")
