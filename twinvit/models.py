"""`twinvit models`: every named model."""

from __future__ import annotations

import dataclasses

from shared_vit.spec import canonical
from shared_vit.spec.config import model_config
from shared_vit.spec.families import FAMILIES, MODELS, family_of
from shared_vit.weights.formats import AUTHORS, FOREIGN


def models(image_size: int = 224, num_classes: int = 1000) -> None:
    """Print every named model: sizes, parameters, and what its family is.

    Args:
        image_size: Side of the image in pixels, of which the positions depend.
        num_classes: Classes of the head; 0: no head.
    """
    for family, about in FAMILIES.items():
        names = [name for name in MODELS if family_of(name) is about]
        print(f"{family}: {about.about}\n    {about.paper}; licence {about.licence}")
        if about.hub:
            print(f"    published weights: hf:{about.hub}")
        print(f"    weights in the formats {', '.join(formats_of(names[0]))}")
        print(f"    {'':<12} patch  width  depth  heads  MLP width  million parameters")
        for name in names:
            print(f"    {row(name, image_size, num_classes)}")


def row(name: str, image_size: int = 224, num_classes: int = 1000) -> str:
    """One model's line. An image that the patch does not divide is made smaller."""
    patch = MODELS[name]["patch_size"]
    cfg = model_config(name, num_classes, max(1, image_size // patch) * patch)
    sizes = f"{patch:>5}  {cfg.width:>5}  {cfg.depth:>5}  {cfg.num_heads:>5}  {cfg.mlp_dim:>9}"
    return f"{name:<12} {sizes}  {canonical.num_params(cfg) / 1e6:.1f}"


def formats_of(name: str) -> list[str]:
    """The formats that can hold a named model, with a head or without."""
    cfg = model_config(name)
    both = cfg, dataclasses.replace(cfg, num_classes=0)
    known = {**FOREIGN, **AUTHORS}.items()
    return ["torch", "jax", *(n for n, fmt in known if not all(map(fmt.not_held, both)))]


def files_table() -> str:
    """Which formats read and write each family, as rows of Markdown, for docs/models.md."""
    lines = ["| family | libraries' formats | its authors' |", "|---|---|---|"]
    for family, about in FAMILIES.items():
        name = f"{family}_{about.models.split()[0]}"
        found = formats_of(name)
        parts = ([n for n in found if (n in AUTHORS) == own] for own in (False, True))
        cells = (" ".join(f"`{n}`" for n in part) for part in parts)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table() -> str:
    """The families as rows of Markdown, for docs/models.md."""
    head = "| names | what it is | paper | licence of the weights | on the hub |"
    rows = [
        f"| {' '.join(f'`{family}_{m}`' for m in about.models.split())} | {about.about} "
        f"| {about.paper} | {about.licence} | `hf:{about.hub}` |"
        for family, about in FAMILIES.items()
    ]
    return "\n".join([head, "|---|---|---|---|---|", *rows])
