"""Heads that people put on a model of a library: a linear layer under a name of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shared_vit.errors import UserError, some
from shared_vit.weights.choice import Said
from shared_vit.weights.lazy import Arrays

# What each library calls its own head.
_HEADS = {
    "timm": "head", "torchvision": "heads.head", "huggingface": "classifier",
    "mae": "head", "deit3": "head", "beit": "head", "eva02": "head",
}  # fmt: skip
_LIKELY = re.compile(
    r"(?:.*\.)?(?:heads?|classifier|classification_head|cls_head|fc|linear|output|out)"
    r"(?:\.[\w-]+)*\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
)
_POSITIONS = re.compile(r"(?:.*\.)?(?:pos_embed|pos_embedding|position_embeddings)")
# Attention pooling as transformers names it.
_POOLING = re.compile(r"(?:.*\.)?head\.(?:attention|layernorm|mlp)\.")
_PRE_LOGITS = re.compile(r"(?:.*\.)?pre_logits\.")


def with_own_head(
    format: str, arrays: Arrays, others: Arrays, where: str, said: Said
) -> tuple[Arrays, Arrays]:
    """`(arrays, others)` with a head under the library's own name, where one of another name is
    there: a weight [classes, width] and its bias, and nothing else beside them.

    others: arrays from outside the model's prefix, where a head of several layers is left out.
    Adds to `said` what was found. Raises UserError for such a head in the model itself.
    """
    name = _HEADS.get(format)
    if name is None or f"{name}.weight" in arrays or f"{name}.bias" in arrays:
        return arrays, others
    width = next(
        (a.shape[-1] for n, a in arrays.items() if _POSITIONS.fullmatch(n) and a.shape), None
    )
    for place, inside in ((arrays, True), (others, False)):
        group = {n: a for n, a in place.items() if _LIKELY.fullmatch(n) and _outside(n)}
        if not group:
            continue
        layer = _linear(group, width)
        if layer is None and inside and said.family == "mocov3":
            first = min(group)
            said.notices.append(f"left out: its projection, {len(group)} arrays ({first}, ...)")
            return {n: a for n, a in arrays.items() if n not in group}, others
        if layer is None and inside:
            raise UserError(
                f"{where}: its head is no single linear layer from {width} features, which the "
                f"twins have: {some([f'{n} {list(a.shape)}' for n, a in group.items()])}"
            )
        if layer is None:
            continue
        said.notices.append(f"its head is read from {layer}")
        made = {f"{name}.{leaf}": place[f"{layer}.{leaf}"] for leaf in ("weight", "bias")}
        without = [
            {n: a for n, a in each.items() if not n.startswith(f"{layer}.")}
            for each in (arrays, others)
        ]
        return {**without[0], **made}, without[1]
    return arrays, others


def _linear(group: Mapping[str, object], width: int | None) -> str | None:
    """The one linear layer that a group of arrays is; None for anything else."""
    if len(group) != 2:
        return None
    layers = {name.rpartition(".")[0] for name in group}
    if len(layers) != 1:
        return None
    layer = layers.pop()
    weight, bias = (getattr(group.get(f"{layer}.{n}"), "shape", None) for n in ("weight", "bias"))
    if weight is None or bias is None or len(weight) != 2:
        return None
    return layer if weight[1] == width and tuple(bias) == (weight[0],) else None


def _outside(name: str) -> bool:
    """Whether a name is not of a block: `blocks.0.attn.out.weight` is no head."""
    others = _PRE_LOGITS.match(name) or _POOLING.match(name)
    return not re.search(r"\.\d+\..*\.", name) and not others
