"""What every foreign format has in common: the interface, sizes found from shapes, and the number of heads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import SIZES, ModelConfig
from shared_vit.weights import table as layout
from shared_vit.weights.lazy import Arrays


@dataclass
class Hints:
    """What is known besides a file's arrays: its path, the JSON files beside it, and what the caller said."""

    where: str
    config: Mapping | None = None  # config.json
    processor: Mapping | None = None  # preprocessor_config.json
    num_heads: int | None = None
    num_classes: int | None = None
    image_size: int | None = None


@dataclass
class Reading:
    """What a format makes of a file. A table without `head.*` means that the file has no head."""

    cfg: ModelConfig
    table: layout.Table
    assumed: list[str] = field(
        default_factory=list
    )  # what the file does not say, and was taken as usual
    notices: list[str] = field(default_factory=list)  # what was guessed, and may be wrong


class Format:
    """A foreign format. Arrays come and go under the file's names; `table` maps canonical names to them."""

    name: str
    about: str  # for messages: "... is not {about}"
    suffixes: tuple[str, ...]  # of the files it is written to; "" is a folder
    ignored: Mapping[str, str] = {}  # start of an array's name: why it is left out
    foreign: Mapping[
        str, str
    ] = {}  # part of an array's name: the thing that our models do not have

    def found(self, names: Arrays) -> bool:
        """Whether a file with these names is likely of this format."""
        raise NotImplementedError

    def strip(self, arrays: Arrays) -> Arrays:
        """The arrays that matter, without prefixes."""
        return arrays

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        """The model that the arrays make. Raises UserError where they make none that we have."""
        raise NotImplementedError

    def table(self, cfg: ModelConfig) -> layout.Table:
        """How a model is written."""
        raise NotImplementedError

    def prepare(self, cfg: ModelConfig, arrays: Arrays) -> Arrays:
        """Canonical arrays as the format can hold them, for the same function."""
        return arrays

    def refuse(self, cfg: ModelConfig) -> None:
        """Raise UserError for a model whose function nothing built with the target's own code computes."""

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        """What has to be set in the target's code, so that it computes the function; a folder's JSON may set it."""
        return []

    def extras(self, cfg: ModelConfig, dtype: np.dtype) -> dict[str, object]:
        """`{file name: JSON content}` beside the weights in a folder."""
        return {}

    def how_to_load(self, cfg: ModelConfig) -> str:
        """The target's code that builds the model."""
        raise NotImplementedError

    def check_known(self, arrays: Arrays, where: str) -> None:
        """Raise UserError, by name, for a part that is none of a plain ViT."""
        for part, thing in self.foreign.items():
            hit = next((name for name in arrays if part in name), None)
            if hit is not None:
                raise UserError(
                    f"{where} is not a plain ViT: it has {thing} ({hit}), which the twins have not"
                )


def sizes(
    arrays: Arrays,
    name_of: Callable[[str], str],
    depth: int,
    patch_axis: int,
    norm: str,
    fmt: Format,
    hints: Hints,
) -> dict:
    """Width, depth, MLP width, patch, classes and pre-logits of a ModelConfig, from shapes.

    They are read off the one-dimensional arrays, so that a transposed weight is found by comparison with them.
    """

    def length(canonical_name: str, ndim: int = 1, axis: int = 0) -> int:
        name = name_of(canonical_name)
        if name not in arrays:
            raise UserError(f"{hints.where} is not {fmt.about}: missing: {name}")
        shape = arrays[name].shape
        if len(shape) != ndim or not shape[axis]:
            raise UserError(
                f"{hints.where} is not {fmt.about}: {name} has shape {tuple(shape)}, expected {ndim} axes"
            )
        return int(shape[axis])

    if not depth:
        raise UserError(
            f"{hints.where} is not {fmt.about}: missing: {name_of('blocks.0.norm1.weight')}"
        )
    if depth > 1000:
        raise UserError(f"{hints.where} claims {depth} layers: no ViT has so many")
    return dict(
        width=length(f"{norm}.bias"),
        depth=depth,
        mlp_dim=length("blocks.0.mlp.fc1.bias"),
        patch_size=length("patch_embed.proj.weight", 4, patch_axis),
        num_classes=length("head.bias") if has_head(arrays, name_of) else classes_said(hints),
        pre_logits=length("pre_logits.bias") if name_of("pre_logits.bias") in arrays else 0,
    )


def has_head(arrays: Arrays, name_of: Callable[[str], str]) -> bool:
    return name_of("head.weight") in arrays or name_of("head.bias") in arrays


def classes_said(hints: Hints) -> int:
    if hints.num_classes is None:
        raise UserError(
            f"{hints.where} has no head: say how many classes (--num_classes=N), and it gets a head of zeros"
        )
    return hints.num_classes


def image_size(rows: int, patch: int, name: str, hints: Hints) -> int:
    """The image's side, from the rows of the position embedding that belong to patches."""
    side = layout.side_of(rows)
    if side is None:
        raise UserError(
            f"{hints.where}: {name} has {rows} rows for patches, expected a square number: only square images are known"
        )
    return side * patch


_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}  # by width, from Ti to G


def heads(
    values: Mapping, said: int | None, hints: Hints, reading_notes: tuple[list[str], list[str]]
) -> int:
    """The number of heads: what the file says, else the caller, else that of the known size, else width / 64.

    `reading_notes` are the lists of assumptions and notices to add to. Raises UserError where nothing fits.
    """
    assumed, notices = reading_notes
    asked = hints.num_heads
    if said is not None:
        if asked not in (None, said):
            raise UserError(
                f"{hints.where} says that it has {said} heads; --num_heads={asked} contradicts it"
            )
        return said
    width = values["width"]
    if asked is not None:
        return asked
    known = next(
        (
            h
            for w, d, h, m in SIZES.values()
            if (w, d, m) == (width, values["depth"], values["mlp_dim"])
        ),
        None,
    )
    if known is not None:
        assumed.append(f"{known} heads")
        return known
    guess = _HEADS.get(width) or (width // 64 if width % 64 == 0 else None)
    if guess is None:
        raise UserError(
            f"{hints.where} does not say how many heads it has, and a width of {width} is no known size: say --num_heads=N"
        )
    notices.append(
        f"the number of heads is in no array of {hints.where}: taken as {guess}; --num_heads=N sets another"
    )
    return guess


def model(hints: Hints, **values) -> ModelConfig:
    """A ModelConfig; a UserError in it names the file."""
    try:
        return ModelConfig(**values)
    except UserError as error:
        raise UserError(f"{hints.where}: {error}") from error


def section(config: Mapping, key: str, where: str) -> Mapping:
    """An object within a JSON file, empty where there is none. Raises UserError for anything else."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: its JSON says {key} = {value!r:.80}, expected an object")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def number(config: Mapping, key: str, kind: type, default, where: str):
    """A number from a JSON file. Raises UserError for anything else."""
    value = config.get(key, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # image and patch sizes may be pairs
    if value is None:
        return default
    if not _is_number(value) or kind(value) != value:
        raise UserError(f"{where}: its JSON says {key} = {value!r:.80}, expected a number")
    return kind(value)


def colours(
    config: Mapping, mean_key: str, std_key: str, default: tuple, where: str
) -> tuple[tuple, tuple]:
    """Mean and standard deviation of R, G and B from a JSON file, or `default`. Raises UserError."""
    out = []
    for key, usual in zip((mean_key, std_key), default):
        value = config.get(key) or usual
        triple = isinstance(value, (list, tuple)) and len(value) == 3
        if not triple or not all(_is_number(v) for v in value):
            raise UserError(f"{where}: its JSON says {key} = {value!r:.80}, expected three numbers")
        out.append(tuple(float(v) for v in value))
    return out[0], out[1]


HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # images in [-1, 1], as Google trained


def strip_prefixes(arrays: Arrays, prefixes: tuple[str, ...]) -> Arrays:
    """Without prefixes that all names have, such as DDP's `module.`."""
    for prefix in prefixes * 2:
        if arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def torch_table(
    cfg: ModelConfig, name_of: Callable[[str], str | list[str]], head: bool = True
) -> layout.Table:
    """The table of a format in torch's layouts. `name_of` gives one name, or three for q, k and v apart."""
    table: layout.Table = {}
    for name, shape in canonical.shapes(cfg).items():
        if name.startswith("head.") and not head:
            continue
        target = name_of(name)
        if isinstance(target, str):
            table[name] = [layout.plain(target, shape)]
        else:
            third = (cfg.width, *shape[1:])
            table[name] = layout.thirds(
                target, lambda n, third=third: layout.plain(n, third), cfg.width
            )
    return table


def split_name(name: str) -> tuple[str, str, str]:
    """`blocks.3.mlp.fc1.weight` -> ("3", "mlp.fc1", "weight"); outside the blocks the first is empty."""
    layer, rest = "", name
    if name.startswith("blocks."):
        _, layer, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return (layer, module, leaf) if module else (layer, leaf, "")
