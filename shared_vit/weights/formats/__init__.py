"""Formats of weight files, by name: names of arrays, layouts, and what a file says of the function.

`torch` and `jax` are the two names of this project's own format (`twinvit.py`).
"""

from shared_vit.errors import UserError, nearest
from shared_vit.weights.formats.authors.author import Author
from shared_vit.weights.formats.authors.programs import PROGRAMS
from shared_vit.weights.formats.base import Format
from shared_vit.weights.formats.big_vision import BigVision
from shared_vit.weights.formats.google import Google
from shared_vit.weights.formats.huggingface import HuggingFace
from shared_vit.weights.formats.timm import Timm
from shared_vit.weights.formats.torchvision import Torchvision
from shared_vit.weights.formats.twinvit import OWN

# Formats of the programs of models' authors, each of a few functions.
AUTHORS: dict[str, Author] = {name: Author(name, program) for name, program in PROGRAMS.items()}
FOREIGN: dict[str, Format] = {
    f.name: f for f in (Timm(), Torchvision(), HuggingFace(), Google(), BigVision())
}
# In the order in which a file's names are tried.
KNOWN: dict[str, Format] = {**AUTHORS, **FOREIGN}
NAMES = (*OWN, *FOREIGN, *AUTHORS)


def check_name(name: str, *more: str) -> None:
    """Raise UserError for a name that is neither a format's nor one of `more`."""
    known = (*more, *NAMES)
    if name not in known:
        raise UserError(
            f"unknown format {name!r}{nearest(name, known)} Formats: {', '.join(known)}."
        )


def suffixes_of(name: str) -> tuple[str, ...]:
    """Suffixes of the files that a format is written to; "" is a folder."""
    return (".safetensors",) if name in OWN else KNOWN[name].suffixes
