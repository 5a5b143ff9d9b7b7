"""From a path to a model: its function and its canonical arrays, which stay on disk until read.

The way of a tensor: `locate` finds its file, `containers` read the file, `formats` know its names,
`table` turns it into the canonical array, `adapt` changes its size or type.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError, some
from shared_vit.files import open_regular
from shared_vit.spec import canonical, init
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.input import describe_input
from shared_vit.spec.sides import Sides, sides
from shared_vit.weights import class_names as naming
from shared_vit.weights import formats, table
from shared_vit.weights.adapt import zeros
from shared_vit.weights.choice import Said, Which
from shared_vit.weights.containers import check_count, container
from shared_vit.weights.containers.archive import open_zip
from shared_vit.weights.containers.msgpack import is_msgpack, open_msgpack
from shared_vit.weights.containers.npz import open_npz
from shared_vit.weights.containers.safetensors import OwnFile, open_safetensors
from shared_vit.weights.containers.tree import torch_names
from shared_vit.weights.families import (
    tell_family,
    with_family,
    without_chunks,
    without_counters,
    without_pretraining,
)
from shared_vit.weights.formats import twinvit
from shared_vit.weights.formats.base import Format, Hints, Notes, Reading
from shared_vit.weights.hub import Origin
from shared_vit.weights.lazy import Arrays, LazyArray
from shared_vit.weights.locate import JsonObject, Located, card_path, checksum, locate
from shared_vit.weights.not_weights import HDF5, HEAD, archive_of_another_kind, what_it_is
from shared_vit.weights.own_heads import with_own_head
from shared_vit.weights.prefixes import say_left_out, without_prefix


@dataclass
class Source:
    """Weights, found and checked but for their values.

    `arrays` are canonical and lazy: reading one raises UserError where its values are not finite.
    """

    path: Path
    format: str
    cfg: ModelConfig
    arrays: dict[str, LazyArray]
    files: list[Path]  # what the arrays are read from
    step: int | None = None  # of a checkpoint
    class_names: tuple[str, ...] | None = None  # in the order of the logits; None: nobody said
    assumed: list[str] = field(default_factory=list)  # not in the file; the format's default
    notices: list[str] = field(default_factory=list)  # guessed, and may be wrong
    origin: Origin | None = None  # of files that were downloaded
    elsewhere: bool = False  # not written by this project, so that it cannot say all of a function
    new_head: bool = False  # the file has none; this one is of zeros

    def told(self, cfg: ModelConfig) -> list[str]:
        """Notices, and what was taken for granted where the file does not say; `cfg` is the model
        as it is used."""
        if not self.assumed:
            return list(self.notices)
        text = "; ".join(self.assumed)
        said = f"{self.path} does not say, taken as usual: {text} ({describe_input(cfg)})"
        return [*self.notices, said]


def open_weights(
    path: str | os.PathLike,
    format: str = "auto",
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | str | None = None,
) -> Source:
    """Open a weight file, a run or checkpoint directory, or a folder of Hugging Face's or timm's,
    or one on the hub: `hf:OWNER/NAME[@REVISION][/FILE]`.

    `format` is one of `formats.NAMES`, or found from the file. `num_heads` is for files that do not
    say; `num_classes` for those without a head, which get one of zeros, else none; `image_size`
    (pixels) for those with fixed positions only. Raises UserError.
    """
    formats.check_name(format, "auto")
    path = Path(path)
    found = locate(path)
    path, said = found.path, Said()
    arrays, metadata = _contents(found.files, found.which, said)
    side = None if image_size is None else sides(image_size)[0]
    said_it = format != "auto"
    hints = Hints(str(path), found.config, found.processor, num_heads, num_classes, side, said_it)
    if metadata.get("format") == twinvit.FORMAT:
        if format not in ("auto", *twinvit.OWN):
            raise UserError(f"{path} is a file of this project (torch, jax), not of {format}")
        if len(found.files) > 1:
            raise UserError(f"{path} is in {len(found.files)} files; this project writes one")
        source = _own(found.files[0], OwnFile(arrays, metadata, ""), hints)
    elif format in twinvit.OWN:
        raise UserError(f"{path} is no file of this project: leave --from out, or name its format")
    else:
        known = None if format == "auto" else formats.KNOWN[format]
        mine, others = _of_the_model(arrays, known, found, said)
        fmt = known or _detected(mine, path)
        stated, names = _stated(found.files[0], metadata, found.card)
        source = _foreign(fmt, mine, hints, stated, others, said)
        source.class_names = source.class_names or names
        source.elsewhere = stated is None
    return _with_files(source, found)


def file_arrays(path: str | os.PathLike, format: str) -> Arrays:
    """The arrays of another program's file by the format's own names, without prefixes, and without
    what a training script added to the weights; of an author's file all. Lazy. Raises UserError."""
    formats.check_name(format)
    fmt, found, said = formats.KNOWN[format], locate(Path(path)), Said()
    arrays, others = _of_the_model(_contents(found.files, found.which, said)[0], fmt, found, said)
    arrays = fmt.strip(arrays)
    if format in formats.AUTHORS:
        return arrays
    arrays, _ = fmt.without_ignored(arrays)
    return with_own_head(fmt.name, arrays, others, str(path), said)[0]


def _of_the_model(
    arrays: Arrays, fmt: Format | None, found: Located, said: Said
) -> tuple[Arrays, Arrays]:
    """The arrays of a model of the format, or of any, and the others; `said` gets notices."""
    known = formats.KNOWN.values() if fmt is None else [fmt]
    arrays = without_chunks(arrays)

    def is_known(names: Arrays) -> bool:
        return any(each.found(each.strip(names)) for each in known)

    mine, others = without_prefix(arrays, is_known, found.which, str(found.path), said)
    tell_family(others, said)
    mine, counters = without_counters(without_pretraining(mine, said))
    return mine, {**others, **counters}


def _with_files(source: Source, found: Located) -> Source:
    source.files, source.step, source.origin = found.files, found.step, found.origin
    if found.origin is not None:
        source.path = found.path  # the name, not where the cache stores it
    source.notices = found.notices + source.notices
    return source


def _own(file: Path, opened: OwnFile, hints: Hints) -> Source:
    cfg, arrays = twinvit.model_of(file, opened)
    _check_heads(cfg, hints, str(file))
    names = naming.from_metadata(file, opened.metadata, cfg.num_classes)
    return Source(file, ", ".join(twinvit.OWN), cfg, arrays, [file], class_names=names)


def _foreign(
    fmt: Format,
    arrays: Arrays,
    hints: Hints,
    stated: ModelConfig | None,
    others: Arrays,
    said: Said,
) -> Source:
    arrays = fmt.strip(arrays)
    fmt.check_known(arrays, hints.where)
    every = fmt.in_known_names(arrays)
    arrays, left_out = fmt.without_ignored(every)
    arrays, others = with_own_head(fmt.name, arrays, others, hints.where, said)
    say_left_out(others, said)
    if stated is None:
        reading = fmt.read(arrays, hints)
    else:
        _check_heads(stated, hints, hints.where)
        reading = Reading(stated, fmt.table_of(stated, arrays), Notes())
    cfg, pieces = reading.cfg, reading.table
    if stated is None and hints.config is None:
        cfg = with_family(cfg, reading.notes, fmt.name, said.family)
    table.check(pieces, arrays, hints.where, fmt.about)
    fmt.check_left_out(cfg, every, hints.where)
    made = {}
    for name, shape in canonical.shapes(cfg).items():
        if name not in pieces:
            made[name] = _made(name, shape, cfg)
            pieces[name] = [table.plain(name, shape)]
    labels = fmt.labels(hints.config or {})
    return Source(
        Path(hints.where),
        fmt.name,
        cfg,
        table.to_canonical(cfg, pieces, {**arrays, **made}, hints.where),
        [],
        class_names=naming.from_foreign(labels, cfg.num_classes, reading.notes.notices),
        assumed=reading.notes.assumed + left_out,
        notices=said.notices + reading.notes.notices,
        new_head="head.weight" in made,
    )


def _check_heads(cfg: ModelConfig, hints: Hints, where: str) -> None:
    if hints.num_heads not in (None, cfg.num_heads):
        raise UserError(
            f"{where} says that it has {cfg.num_heads} heads; --num_heads={hints.num_heads} "
            "contradicts it"
        )


def _made(name: str, shape: tuple[int, ...], cfg: ModelConfig) -> LazyArray:
    """What a file need not hold: a head of zeros, fixed positions, what its format has no place
    for."""
    if name == "pos_embed":
        return LazyArray(shape, np.dtype(np.float32), lambda: init.sincos2d(cfg))
    return zeros(shape, np.dtype(np.float32))


def _detected(arrays: Arrays, path: Path) -> Format:
    for fmt in formats.KNOWN.values():
        if fmt.found(fmt.strip(arrays)):
            return fmt
    raise UserError(
        f"{path} holds the weights of no known ViT (formats: {', '.join(formats.NAMES)}); it has "
        f"{len(arrays)} arrays: {some(sorted(arrays), separator=', ')}"
    )


def _stated(
    file: Path, metadata: Mapping[str, str], card: JsonObject | None
) -> tuple[ModelConfig | None, naming.Names]:
    """The ModelConfig and the class names that this project wrote into another program's file or
    next to it."""
    if "model_config" in metadata:
        cfg = twinvit.config_of(file, metadata)
        return cfg, naming.from_metadata(file, metadata, cfg.num_classes)
    if card is None:
        return None, None
    beside = card_path(file)
    if card["sha256"] != checksum(file):
        raise UserError(
            f"{file} was altered after it was written ({beside.name} has its checksum): use "
            f"another copy, or remove {beside.name} to read it as any other file"
        )
    keys = [key for key in ("model_config", naming.KEY) if key in card]
    said = {key: json.dumps(card[key]) for key in keys}
    cfg = twinvit.config_of(beside, said)
    return cfg, naming.from_metadata(beside, said, cfg.num_classes)


def _contents(
    files: list[Path], which: Which | None, said: Said
) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """`(arrays, metadata)` of one file, or of several shards."""
    arrays: dict[str, LazyArray] = {}
    metadata: dict[str, str] = {}
    for file in files:
        more, metadata = _container(file, which, said)
        twice = next((name for name in more if name in arrays), None)
        if twice is not None:
            raise UserError(f"{file}: the tensor {twice} is in another shard, too")
        arrays |= more
        check_count(file, len(arrays))
    return arrays, metadata


def _tree(arrays: Arrays) -> dict[str, Any]:
    """Arrays of a tree of Flax's modules, under torch's names unless Google's formats know them."""
    if any(formats.FOREIGN[name].found(arrays) for name in ("google", "big_vision")):
        return dict(arrays)
    return dict(torch_names(arrays))


def _container(
    file: Path, which: Which | None, said: Said
) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """By the first bytes, not by the name: safetensors, `.npz`, PyTorch's zip or pickle, or Flax's
    msgpack; a folder is of orbax."""
    if file.is_dir():
        return _tree(container("orbax").open(file, which, said)), {}
    try:
        with open_regular(file) as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if head[8:9] == b"{":
        return open_safetensors(file)
    if head[:2] == b"PK":
        with open_zip(file) as archive:
            names = archive.namelist()
        if (kind := archive_of_another_kind(names)) is not None:
            raise UserError(f"{file} is {kind}")
        if not any(name.endswith("data.pkl") for name in names):
            return open_npz(file), {}
    elif is_msgpack(head) and not head.startswith(HDF5):
        return _tree(open_msgpack(file, which, said)), {}
    elif head[:1] != b"\x80":
        raise UserError(
            f"{file} is no weight file: expected safetensors, .npz or .pth, and {what_it_is(head)}"
        )
    return container("pth").open(file, which, said), {}
