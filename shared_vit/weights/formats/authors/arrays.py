"""Tensors that the programs of models' authors cut, join or shape in another way than timm: from
their form and into it.

Each function changes a dictionary of lazy arrays in place, and ignores names that are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from shared_vit.weights.lazy import LazyArray

AnyArray = np.ndarray | LazyArray
Named = dict[str, AnyArray]
Change = Callable[[Named], None]


def made(shape: Iterable[int], like: AnyArray, load: Callable[[], np.ndarray]) -> LazyArray:
    return LazyArray(tuple(shape), like.dtype, load)


def _rows(array: AnyArray, first: int, last: int) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(array)[first:last]


def _concatenated(parts: list[AnyArray], axis: int = 0) -> Callable[[], np.ndarray]:
    return lambda: np.concatenate([np.asarray(part) for part in parts], axis)


def _joined(parts: list[AnyArray]) -> LazyArray:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return made(shape, parts[0], _concatenated(parts))


def reshape(name: str, to: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Change:
    """One tensor in another shape, which `to` makes of its own."""

    def change(out: Named) -> None:
        if name in out:
            array = out[name]
            shape = to(tuple(array.shape))
            out[name] = made(shape, array, lambda: np.asarray(array).reshape(shape))

    return change


def projection_as_head(out: Named) -> None:
    """proj [width, out] without a bias -> a head."""
    if "proj" in out:
        array = out.pop("proj")
        width, classes = array.shape
        out["head.weight"] = made((classes, width), array, lambda: np.asarray(array).T)
        out["head.bias"] = made((classes,), array, lambda: np.zeros(classes, array.dtype))


def head_as_projection(out: Named) -> None:
    """A head, whose bias is zero -> proj [width, out]."""
    out.pop("head.bias", None)
    if "head.weight" in out:
        array = out.pop("head.weight")
        classes, width = array.shape
        out["proj"] = made(
            (width, classes), array, lambda: np.ascontiguousarray(np.asarray(array).T)
        )


def class_row_into_token(out: Named) -> None:
    """With registers DINOv2 has a position for the class token alone: the token takes it."""
    if "reg_token" not in out or "pos_embed" not in out:
        return
    token, rows = out["cls_token"], out["pos_embed"]
    shape = (1, rows.shape[1] - 1, rows.shape[2])
    out["cls_token"] = made(token.shape, token, lambda: np.asarray(token) + np.asarray(rows)[:, :1])
    out["pos_embed"] = made(shape, rows, lambda: np.asarray(rows)[:, 1:])


def class_row_of_zeros(out: Named) -> None:
    """With registers: a position of zeros for the class token."""
    if "reg_token" not in out:
        return
    rows = out["pos_embed"]
    shape = (1, rows.shape[1] + 1, rows.shape[2])
    first = np.zeros((1, 1, rows.shape[2]), rows.dtype)
    out["pos_embed"] = made(shape, rows, _concatenated([first, rows], axis=1))


def split_key_bias(out: Named) -> None:
    """DINOv3's bias of keys is masked out where the file has a mask, whatever it has there."""
    for name in [n for n in out if n.endswith("attn.qkv.bias") and f"{n}_mask" in out]:
        bias = out.pop(name)
        third = bias.shape[0] // 3
        for part, i in (("q_bias", 0), ("v_bias", 2)):
            new = name.replace("qkv.bias", part)
            out[new] = made((third,), bias, _rows(bias, i * third, (i + 1) * third))


def masked_key_bias(out: Named) -> None:
    """Biases of queries and values -> those of all three, with a mask that leaves out the keys'."""
    for name in [n for n in out if n.endswith("attn.q_bias")]:
        queries, values = out.pop(name), out.pop(name.replace("q_bias", "v_bias"))
        none = np.zeros(queries.shape, queries.dtype)
        new = name.replace("q_bias", "qkv.bias")
        out[new] = _joined([queries, none, values])
        out[f"{new}_mask"] = np.repeat(np.array([1, 0, 1], queries.dtype), queries.shape[0])


def pooling_in_two(out: Named) -> None:
    """Attention pooling's in_proj of query, key and value -> q and kv."""
    for leaf in ("weight", "bias"):
        packed = out.pop(f"attn_pool.attn.in_proj_{leaf}", None)
        if packed is None:
            continue
        width, more = packed.shape[0] // 3, packed.shape[1:]
        out[f"attn_pool.q.{leaf}"] = made((width, *more), packed, _rows(packed, 0, width))
        out[f"attn_pool.kv.{leaf}"] = made(
            (2 * width, *more), packed, _rows(packed, width, 3 * width)
        )


def pooling_in_one(out: Named) -> None:
    """Attention pooling's q and kv -> in_proj."""
    for leaf in ("weight", "bias"):
        if f"attn_pool.q.{leaf}" in out:
            parts = [out.pop(f"attn_pool.{part}.{leaf}") for part in ("q", "kv")]
            out[f"attn_pool.attn.in_proj_{leaf}"] = _joined(parts)


def joined_qkv(out: Named) -> None:
    """q_proj, k_proj and v_proj of each block -> qkv."""
    for name in [n for n in out if re.search(r"\.attn\.q_proj\.(weight|bias)$", n)]:
        parts = [out.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        out[name.replace("q_proj", "qkv")] = _joined(parts)


def split_qkv(out: Named) -> None:
    """qkv of each block -> q_proj, k_proj and v_proj."""
    for name in [n for n in out if re.search(r"\.attn\.qkv\.(weight|bias)$", n)]:
        array = out.pop(name)
        third, more = array.shape[0] // 3, array.shape[1:]
        for i, part in enumerate("qkv"):
            new = name.replace("qkv", f"{part}_proj")
            out[new] = made((third, *more), array, _rows(array, i * third, (i + 1) * third))


def without_two_rows(out: Named) -> None:
    """The first two rows of BEiT-3's positions are not used."""
    rows = out.pop("pos_embed.weight", None)
    if rows is not None:
        shape = (1, rows.shape[0] - 2, rows.shape[1])
        out["pos_embed"] = made(shape, rows, lambda: np.asarray(rows)[None, 2:])


def with_two_rows(out: Named) -> None:
    """BEiT-3's two rows that are not used, of zeros."""
    rows = out.pop("pos_embed")
    shape = (rows.shape[1] + 2, rows.shape[2])
    first = np.zeros((2, rows.shape[2]), rows.dtype)
    out["pos_embed.weight"] = made(
        shape, rows, lambda: np.concatenate([first, np.asarray(rows)[0]])
    )


def biases_of_split_qkv(out: Named) -> None:
    """Where queries, keys and values are apart, their biases' names are timm's."""
    for name in [n for n in out if n.endswith((".attn.q_bias", ".attn.v_bias"))]:
        start, part = name[: -len("q_bias")], name[-len("q_bias")]
        if f"{start}{part}_proj.weight" in out:
            out[f"{start}{part}_proj.bias"] = out.pop(name)


def third_of_gated(out: Named) -> None:
    """The product after a gated MLP in two parts is its third, w3."""
    for name in [n for n in out if n.endswith(".mlp.fc1_g.weight")]:
        block = name.removesuffix("fc1_g.weight")
        for leaf in ("weight", "bias"):
            if f"{block}fc2.{leaf}" in out:
                out[f"{block}w3.{leaf}"] = out.pop(f"{block}fc2.{leaf}")


def gated_in_pieces(out: Named) -> None:
    """A gated MLP whose two parts are one product: w12, and w3 after it."""
    for name in [n for n in out if n.endswith(".mlp.fc1.weight")]:
        block = name.removesuffix("fc1.weight")
        if out[name].shape[0] == 2 * out[f"{block}fc2.weight"].shape[1]:
            for leaf in ("weight", "bias"):
                for old, new in (("fc1", "w12"), ("fc2", "w3")):
                    if f"{block}{old}.{leaf}" in out:
                        out[f"{block}{new}.{leaf}"] = out.pop(f"{block}{old}.{leaf}")
