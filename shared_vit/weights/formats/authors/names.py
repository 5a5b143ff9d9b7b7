"""Names of the authors' own code, as timm's: DINOv2, DINOv3, CLIP (OpenAI's and open_clip's),
Perception Encoder, AIMv2, EVA-02 and its CLIP, BEiT-3. DeiT-III's are a spelling of timm's.

Most is renaming; the rest is cut, joined or given other axes when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from shared_vit.weights.lazy import Arrays, LazyArray

_AnyArray = np.ndarray | LazyArray


@dataclass(frozen=True)
class Original:
    """The names of one program.

    known: whether a file has them. renames: patterns, and what is written in their place, in
    order. finish: changes of arrays, under the new names.
    """

    about: str
    known: Callable[[Arrays], bool]
    renames: Mapping[str, str]
    finish: tuple[Callable[[dict[str, _AnyArray]], None], ...] = field(default=())


def in_timms_names(arrays: Arrays) -> Arrays:
    """The arrays under timm's names where the names are an author's; else as they are."""
    for original in ORIGINALS:
        if original.known(arrays):
            return _translated(original, arrays)
    return arrays


def _translated(original: Original, arrays: Arrays) -> Arrays:
    out: dict[str, _AnyArray] = {}
    for name, array in arrays.items():
        for pattern, ours in original.renames.items():
            name = re.sub(pattern, ours, name)
        out[name] = array
    for change in original.finish:
        change(out)
    return out


def left_out(arrays: Arrays) -> tuple[Arrays, list[str]]:
    """The arrays without what an author's file has beside the function, and a line for each."""
    said = []
    for pattern, why in _BESIDE.items():
        hits = [name for name in arrays if re.fullmatch(pattern, name)]
        if hits:
            arrays = {name: array for name, array in arrays.items() if name not in hits}
            said.append(f"left out: {why} ({len(hits)}: {hits[0]})")
    return arrays, said


_BESIDE = {
    r"mask_token": "the token that stands for masked patches",
    r"rope_embed\.periods|(.*\.)?rope\.freqs_(cos|sin)": "tables of rotary positions",
    r"blocks\.\d+\.attn\.qkv\.bias_mask": "masks of biases",
    r"blocks\.\d+\.attn\.relative_position_index": "indices of relative positions",
    r"local_cls_norm\..*": "a norm of pretraining",
    r".*\.B\..*|text_embed\..*": "the text's branch",
}


def _made(shape: tuple[int, ...], like: _AnyArray, load: Callable[[], np.ndarray]) -> LazyArray:
    return LazyArray(shape, like.dtype, load)


def _reshape(name: str, to: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable:
    def change(out: dict[str, _AnyArray]) -> None:
        if name in out:
            array = out[name]
            shape = to(tuple(array.shape))
            out[name] = _made(shape, array, lambda: np.asarray(array).reshape(shape))

    return change


def _projection_as_head(out: dict[str, _AnyArray]) -> None:
    """proj [width, out] without a bias -> a head."""
    if "proj" in out:
        array = out.pop("proj")
        width, classes = array.shape
        out["head.weight"] = _made((classes, width), array, lambda: np.asarray(array).T)
        out["head.bias"] = _made((classes,), array, lambda: np.zeros(classes, array.dtype))


def _class_row_into_token(out: dict[str, _AnyArray]) -> None:
    """With registers DINOv2 has a position for the class token alone: the token takes it."""
    if "reg_token" not in out or "pos_embed" not in out:
        return
    token, rows = out["cls_token"], out["pos_embed"]
    shape = (1, rows.shape[1] - 1, rows.shape[2])
    out["cls_token"] = _made(
        tuple(token.shape), token, lambda: np.asarray(token) + np.asarray(rows)[:, :1]
    )
    out["pos_embed"] = _made(shape, rows, lambda: np.asarray(rows)[:, 1:])


def _split_key_bias(out: dict[str, _AnyArray]) -> None:
    """DINOv3's bias of keys is masked out where the file has a mask, whatever it has there."""
    for name in [n for n in out if n.endswith("attn.qkv.bias") and f"{n}_mask" in out]:
        bias = out.pop(name)
        third = bias.shape[0] // 3
        for part, i in (("q_bias", 0), ("v_bias", 2)):
            new = name.replace("qkv.bias", part)
            out[new] = _made((third,), bias, _rows(bias, i * third, (i + 1) * third))


def _rows(array: _AnyArray, first: int, last: int) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(array)[first:last]


def _pooling_in_two(out: dict[str, _AnyArray]) -> None:
    """Attention pooling's in_proj of query, key and value -> q and kv."""
    for leaf in ("weight", "bias"):
        packed = out.pop(f"attn_pool.attn.in_proj_{leaf}", None)
        if packed is None:
            continue
        width, more = packed.shape[0] // 3, packed.shape[1:]
        out[f"attn_pool.q.{leaf}"] = _made((width, *more), packed, _rows(packed, 0, width))
        out[f"attn_pool.kv.{leaf}"] = _made(
            (2 * width, *more), packed, _rows(packed, width, 3 * width)
        )


def _joined_qkv(out: dict[str, _AnyArray]) -> None:
    """q_proj, k_proj and v_proj of each block -> qkv."""
    for name in [n for n in out if re.search(r"\.attn\.q_proj\.(weight|bias)$", n)]:
        parts = [out.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        shape = (3 * parts[0].shape[0], *parts[0].shape[1:])
        out[name.replace("q_proj", "qkv")] = _made(shape, parts[0], _concatenated(parts))


def _concatenated(parts: list[_AnyArray]) -> Callable[[], np.ndarray]:
    return lambda: np.concatenate([np.asarray(part) for part in parts])


def _beit3_positions(out: dict[str, _AnyArray]) -> None:
    """The first two rows of BEiT-3's positions are not used."""
    rows = out.pop("pos_embed.weight", None)
    if rows is not None:
        shape = (1, rows.shape[0] - 2, rows.shape[1])
        out["pos_embed"] = _made(shape, rows, lambda: np.asarray(rows)[None, 2:])


_RESIDUAL_BLOCKS = {
    r"^conv1\.": "patch_embed.proj.",
    r"^class_embedding$": "cls_token",
    r"^positional_embedding$": "pos_embed",
    r"^ln_pre\.": "norm_pre.",
    r"^ln_post\.": "norm.",
    r"^transformer\.resblocks\.": "blocks.",
    r"\.ln_([12])\.": r".norm\1.",
    r"(blocks\.\d+\.attn)\.in_proj_": r"\1.qkv.",
    r"(blocks\.\d+\.attn)\.out_proj\.": r"\1.proj.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
_TOKENS = (
    _reshape("cls_token", lambda s: (1, 1, s[-1])),
    _reshape("pos_embed", lambda s: (1, *s[-2:])),
)
_FIRST_BLOCK = "transformer.resblocks.0.ln_1.weight"

ORIGINALS = (
    Original(
        "DINOv3",
        lambda names: "storage_tokens" in names and "blocks.0.attn.qkv.weight" in names,
        {
            r"^storage_tokens$": "reg_token",
            r"\.ls([12])\.gamma$": r".gamma_\1",
            r"\.mlp\.w1\.": ".mlp.fc1_g.",
            r"\.mlp\.w2\.": ".mlp.fc1_x.",
            r"\.mlp\.w3\.": ".mlp.fc2.",
        },
        (_split_key_bias,),
    ),
    Original(
        "DINOv2",
        lambda names: "register_tokens" in names or "blocks.0.mlp.w12.weight" in names,
        {
            r"\.mlp\.w12\.": ".mlp.fc1.",
            r"\.mlp\.w3\.": ".mlp.fc2.",
            r"^register_tokens$": "reg_token",
        },
        (_class_row_into_token,),
    ),
    Original(
        "Perception Encoder",
        lambda names: _FIRST_BLOCK in names and "attn_pool.probe" in names,
        {
            r"^attn_pool\.probe$": "attn_pool.latent",
            r"^attn_pool\.attn\.out_proj\.": "attn_pool.proj.",
            r"^attn_pool\.layernorm\.": "attn_pool.norm.",
            r"\.ls_([12])\.gamma$": r".gamma_\1",
            **_RESIDUAL_BLOCKS,
        },
        (*_TOKENS, _pooling_in_two, _projection_as_head),
    ),
    Original(
        "CLIP",
        lambda names: _FIRST_BLOCK in names and "class_embedding" in names,
        {r"\.ls_([12])\.gamma$": r".gamma_\1", **_RESIDUAL_BLOCKS},
        (*_TOKENS, _projection_as_head),
    ),
    Original(
        "AIMv2",
        lambda names: "preprocessor.patchifier.proj.weight" in names,
        {
            r"^preprocessor\.patchifier\.": "patch_embed.",
            r"^preprocessor\.pos_embed$": "pos_embed",
            r"^trunk\.post_trunk_norm\.": "norm.",
            r"^trunk\.": "",
            r"\.norm_([12])\.": r".norm\1.",
            r"\.mlp\.fc1\.": ".mlp.fc1_g.",
            r"\.mlp\.fc3\.": ".mlp.fc1_x.",
        },
    ),
    Original(
        "BEiT-3",
        lambda names: any("self_attn.q_proj.A.weight" in name for name in names),
        {
            r"^beit3\.": "",
            r"vision_embed\.cls_token": "cls_token",
            r"vision_embed\.mask_token": "mask_token",
            r"vision_embed\.": "patch_embed.",
            r"encoder\.embed_positions\.": "pos_embed.",
            r"^encoder\.": "",
            r"layers\.": "blocks.",
            r"ffn\.ffn_layernorm\.": "mlp.norm.",
            r"ffn\.": "mlp.",
            r"self_attn_layer_norm\.": "norm1.",
            r"self_attn\.": "attn.",
            r"final_layer_norm\.": "norm2.",
            r"inner_attn_ln": "norm",
            r"layer_norm\.": "norm.",
            r"out_proj": "proj",
            r"\.A\.": ".",
        },
        (_beit3_positions, _joined_qkv),
    ),
    Original(
        "EVA-02",
        lambda names: "blocks.0.mlp.w1.weight" in names and "storage_tokens" not in names,
        {
            r"\.mlp\.w1\.": ".mlp.fc1_g.",
            r"\.mlp\.w2\.": ".mlp.fc1_x.",
            r"\.mlp\.w3\.": ".mlp.fc2.",
            r"\.mlp\.ffn_ln\.": ".mlp.norm.",
            r"\.attn\.inner_attn_ln\.": ".attn.norm.",
            r"\.attn\.([qv])_bias$": r".attn.\1_proj.bias",
        },
    ),
)
