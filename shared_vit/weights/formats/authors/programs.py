"""The programs of models' authors: their names of tensors, from and to timm's, and what else is in
their files.

A file is read and written by way of timm's names (`timm_names`): patterns rename, and changes of
`arrays` cut and join.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from shared_vit.spec import relative, rope
from shared_vit.spec.config import ModelConfig
from shared_vit.weights.formats.authors import arrays as change
from shared_vit.weights.formats.timm_architectures import architectures
from shared_vit.weights.formats.timm_names import Spelling
from shared_vit.weights.lazy import Arrays

Renames = Mapping[str, str]  # patterns, and what replaces them, in order


@dataclass(frozen=True)
class Program:
    """The files of one program.

    about: for messages. known: whether a file has its names; None: they are timm's, so that it is
    found by its name alone. read, after_reading, write, before_writing: to timm's names, and from
    them. of: timm's names of its models, as a pattern, or their functions. spelling: of timm's
    names, in which it is written. head: whether it has a linear layer for classes, a product
    without a bias, or none. left_out: patterns of tensors outside the function, and what they are.
    beside: such tensors, which its code wants. follows: those that the function decides, so that
    other values mean another function. prefix: of all names, in the file. under: the keys of the
    checkpoint that hold the names. load: its code. says: to be known there. pools: of the features,
    where a file does not say which. needs: tensors of its models, and what a file without has.
    """

    about: str
    load: str
    of: str | tuple[ModelConfig, ...]
    known: Callable[[Arrays], bool] | None = None
    read: Renames = field(default_factory=dict)
    after_reading: tuple[change.Change, ...] = ()
    write: Renames = field(default_factory=dict)
    before_writing: tuple[change.Change, ...] = ()
    spelling: Callable[[ModelConfig], Spelling] = lambda cfg: frozenset()  # noqa: E731
    head: str = "none"
    left_out: Mapping[str, str] = field(default_factory=dict)
    beside: Callable[[ModelConfig], Mapping[str, np.ndarray]] = lambda cfg: {}  # noqa: E731
    follows: Callable[[ModelConfig], Mapping[str, np.ndarray]] = lambda cfg: {}  # noqa: E731
    prefix: str = ""
    under: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)

    def functions(self) -> list[ModelConfig]:
        """Models of the functions that it has."""
        if not isinstance(self.of, str):
            return list(self.of)
        known = architectures().items()
        return [each.cfg for name, each in known if re.fullmatch(self.of, name)]

    def to_timm(self, arrays: Arrays) -> Arrays:
        """Its arrays under timm's names."""
        out = renamed(arrays, self.read)
        for each in self.after_reading:
            each(out)
        return out

    def from_timm(self, arrays: Arrays) -> Arrays:
        """timm's arrays under its names, without the prefix."""
        out = dict(arrays)
        for each in self.before_writing:
            each(out)
        return renamed(out, self.write)


def renamed(arrays: Arrays, patterns: Renames) -> change.Named:
    out: change.Named = {}
    for name, array in arrays.items():
        for pattern, new in patterns.items():
            name = re.sub(pattern, new, name)
        out[name] = array
    return out


def _spelled(*words: str) -> Callable[[ModelConfig], Spelling]:
    return lambda cfg: frozenset(words)


_MASK = {r"mask_token": "the token that stands for masked patches"}
_TABLES = {r"(.*\.)?rope\.freqs_(cos|sin)": "tables of rotary positions"}


def _mask_token(cfg: ModelConfig) -> dict[str, np.ndarray]:
    return {"mask_token": np.zeros((1, cfg.width))}


def _periods(cfg: ModelConfig) -> dict[str, np.ndarray]:
    """DINOv3's wavelengths over 2 pi, float64 [width of a head / 4]."""
    if cfg.rope != "centred":
        return {}
    d = cfg.head_width
    return {"rope_embed.periods": cfg.rope_base ** (4.0 * np.arange(d // 4) / d)}


def _bias_masks(cfg: ModelConfig) -> dict[str, np.ndarray]:
    mask = np.repeat([1.0, 0.0, 1.0], cfg.width)
    return {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(cfg.depth)}


def _rotary_tables(cfg: ModelConfig) -> dict[str, np.ndarray]:
    """EVA-02's, of the patches: float64 [patches, width of a head]."""
    if not cfg.rope.startswith("axial"):
        return {}
    sin, cos = (table[cfg.num_prefix :] for table in rope.tables(cfg))
    return {"rope.freqs_sin": sin, "rope.freqs_cos": cos}


def _indices(cfg: ModelConfig) -> dict[str, np.ndarray]:
    if not cfg.relative_bias:
        return {}
    index = relative.index(cfg.grid)
    return {f"blocks.{i}.attn.relative_position_index": index for i in range(cfg.depth)}


# CLIP's residual blocks.
_FROM_RESBLOCKS = {
    r"\.ls_([12])\.gamma$": r".gamma_\1",
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
_TO_RESBLOCKS = {
    r"^patch_embed\.proj\.": "conv1.",
    r"^cls_token$": "class_embedding",
    r"^pos_embed$": "positional_embedding",
    r"^norm_pre\.": "ln_pre.",
    r"^norm\.": "ln_post.",
    r"^(blocks\.\d+)\.norm([12])\.": r"\1.ln_\2.",
    r"^(blocks\.\d+)\.gamma_([12])$": r"\1.ls_\2.gamma",
    r"^(blocks\.\d+\.attn)\.qkv\.": r"\1.in_proj_",
    r"^(blocks\.\d+\.attn)\.proj\.": r"\1.out_proj.",
    r"^((?:blocks\.\d+|attn_pool)\.mlp)\.fc1\.": r"\1.c_fc.",
    r"^((?:blocks\.\d+|attn_pool)\.mlp)\.fc2\.": r"\1.c_proj.",
    r"^blocks\.": "transformer.resblocks.",
}
_FROM_TOKENS = (
    change.reshape("cls_token", lambda s: (1, 1, s[-1])),
    change.reshape("pos_embed", lambda s: (1, *s[-2:])),
)
_TO_TOKENS = (
    change.reshape("cls_token", lambda s: s[-1:]),
    change.reshape("pos_embed", lambda s: s[-2:]),
)
_FIRST_BLOCK = "transformer.resblocks.0.ln_1.weight"
# Gated MLPs with their parts apart.
_FROM_GATED = {
    r"\.mlp\.w12\.": ".mlp.fc1.",
    r"\.mlp\.w1\.": ".mlp.fc1_g.",
    r"\.mlp\.w2\.": ".mlp.fc1_x.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}
_TO_GATED = {
    r"\.mlp\.fc1_g\.": ".mlp.w1.",
    r"\.mlp\.fc1_x\.": ".mlp.w2.",
}


def _clip() -> Program:
    return Program(
        "a ViT of CLIP (OpenAI's and open_clip's)",
        "open_clip.create_model(NAME).load_state_dict(weights, strict=False), whose text tower "
        "these weights do not have",
        r"vit_.*_clip_.*",
        known=lambda names: {"conv1.weight", "class_embedding", _FIRST_BLOCK} <= set(names),
        read=_FROM_RESBLOCKS,
        after_reading=(*_FROM_TOKENS, change.projection_as_head),
        write=_TO_RESBLOCKS,
        before_writing=(*_TO_TOKENS, change.head_as_projection),
        head="projection",
        prefix="visual.",
        says=("its names of models with QuickGELU end in -quickgelu or are OpenAI's",),
    )


def _perception_encoder() -> Program:
    return Program(
        "a Perception Encoder",
        "core.vision_encoder.pe.VisionTransformer(...).load_ckpt(FILE)",
        r"vit_pe_.*",
        known=lambda names: (
            {"conv1.weight", _FIRST_BLOCK} <= set(names)
            and ("attn_pool.probe" in names or "ln_post.weight" not in names)
        ),
        read={
            r"^attn_pool\.probe$": "attn_pool.latent",
            r"^attn_pool\.attn\.out_proj\.": "attn_pool.proj.",
            r"^attn_pool\.layernorm\.": "attn_pool.norm.",
            **_FROM_RESBLOCKS,
        },
        after_reading=(*_FROM_TOKENS, change.pooling_in_two, change.projection_as_head),
        write={
            r"^attn_pool\.latent$": "attn_pool.probe",
            r"^attn_pool\.proj\.": "attn_pool.attn.out_proj.",
            r"^attn_pool\.norm\.": "attn_pool.layernorm.",
            **_TO_RESBLOCKS,
        },
        before_writing=(*_TO_TOKENS, change.pooling_in_one, change.head_as_projection),
        spelling=_spelled("gamma"),
        head="projection",
        prefix="visual.",
    )


def _dinov2() -> Program:
    gated = "blocks.0.mlp.w12.weight"
    return Program(
        "a DINOv2",
        'torch.hub.load("facebookresearch/dinov2", NAME, pretrained=False)'
        ".load_state_dict(weights, strict=True)",
        r"vit_.*dinov2",
        known=lambda names: (
            "register_tokens" in names or gated in names and "blocks.0.attn.q_bias" not in names
        ),
        read={r"^register_tokens$": "reg_token", **_FROM_GATED},
        after_reading=(change.class_row_into_token,),
        write={r"^reg_token$": "register_tokens"},
        before_writing=(change.class_row_of_zeros, change.gated_in_pieces),
        left_out=_MASK,
        beside=_mask_token,
        says=(
            "with registers its class token has a position, which is zero here: the token has it",
        ),
    )


def _dinov3() -> Program:
    return Program(
        "a DINOv3",
        "dinov3.models.vision_transformer.DinoVisionTransformer(..., qkv_bias=BIASES, "
        "mask_k_bias=True).load_state_dict(weights, strict=True), where BIASES says whether "
        "blocks.0.attn.qkv.bias is there",
        r"vit_.*dinov3.*",
        known=lambda names: "storage_tokens" in names and "blocks.0.attn.qkv.weight" in names,
        read={
            r"^storage_tokens$": "reg_token",
            r"\.ls([12])\.gamma$": r".gamma_\1",
            **_FROM_GATED,
        },
        after_reading=(change.split_key_bias,),
        write={
            r"^reg_token$": "storage_tokens",
            r"\.gamma_([12])$": r".ls\1.gamma",
            **_TO_GATED,
        },
        before_writing=(change.masked_key_bias, change.third_of_gated),
        spelling=lambda cfg: frozenset(("gamma", "qv_bias") + ("split_fc1",) * cfg.gated),
        left_out={
            **_MASK,
            r"rope_embed\.periods": "the wavelengths of rotary positions, which are the model's",
            r"blocks\.\d+\.attn\.qkv\.bias_mask": "masks of biases",
            r"local_cls_norm\..*": "a norm of pretraining",
        },
        beside=lambda cfg: {**_mask_token(cfg), **_periods(cfg)},
        follows=lambda cfg: {**_periods(cfg), **_bias_masks(cfg)},
        says=("its code gives the class token, and timm the mean of the patches",),
        pools=("token", "mean"),
    )


def _aimv2() -> Program:
    return Program(
        "an AIMv2",
        "aim.v2.torch.models.AIMv2VisionEncoder(...).load_state_dict(weights, strict=True)",
        r"aimv2_.*",
        known=lambda names: "preprocessor.patchifier.proj.weight" in names,
        read={
            r"^preprocessor\.patchifier\.": "patch_embed.",
            r"^preprocessor\.pos_embed$": "pos_embed",
            r"^trunk\.post_trunk_norm\.": "norm.",
            r"^trunk\.": "",
            r"\.norm_([12])\.": r".norm\1.",
            r"\.mlp\.fc1\.": ".mlp.fc1_g.",
            r"\.mlp\.fc3\.": ".mlp.fc1_x.",
        },
        write={
            r"^patch_embed\.": "preprocessor.patchifier.",
            r"^pos_embed$": "preprocessor.pos_embed",
            r"^norm\.": "trunk.post_trunk_norm.",
            r"^blocks\.": "trunk.blocks.",
            r"\.norm([12])\.": r".norm_\1.",
            r"\.mlp\.fc1_g\.": ".mlp.fc1.",
            r"\.mlp\.fc1_x\.": ".mlp.fc3.",
        },
        spelling=_spelled("split_fc1"),
        needs={
            "preprocessor.pos_embed": "positions that are computed for images of any size (native)"
        },
        says=("its code gives the tokens, of which timm takes the mean",),
    )


def _beit3() -> Program:
    return Program(
        "a BEiT-3",
        "utils.load_model_and_may_interpolate(FILE, model, 'model', ''), whose text branch these "
        "weights do not have",
        r"beit3_.*",
        known=lambda names: any("self_attn.q_proj.A.weight" in name for name in names),
        read={
            r"^beit3\.": "",
            r"vision_embed\.cls_token": "cls_token",
            r"vision_embed\.mask_token": "mask_token",
            r"vision_embed\.": "patch_embed.",
            r"encoder\.embed_positions\.": "pos_embed.",
            r"^encoder\.": "",
            r"layers\.": "blocks.",
            r"ffn\.A\.ffn_layernorm\.": "mlp.norm.",
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
        after_reading=(change.without_two_rows, change.joined_qkv),
        write={
            r"^(blocks\.\d+)\.mlp\.norm\.": r"\1.ffn.A.ffn_layernorm.",
            r"^(blocks\.\d+)\.mlp\.": r"\1.ffn.A.",
            r"^(blocks\.\d+)\.attn\.norm\.": r"\1.self_attn.inner_attn_ln.A.",
            r"^(blocks\.\d+)\.attn\.proj\.": r"\1.self_attn.out_proj.A.",
            r"^(blocks\.\d+)\.attn\.([qkv]_proj)\.": r"\1.self_attn.\2.A.",
            r"^(blocks\.\d+)\.norm1\.": r"\1.self_attn_layer_norm.A.",
            r"^(blocks\.\d+)\.norm2\.": r"\1.final_layer_norm.A.",
            r"^blocks\.": "beit3.encoder.layers.",
            r"^norm\.": "beit3.encoder.layer_norm.A.",
            r"^pos_embed\.": "beit3.encoder.embed_positions.A.",
            r"^patch_embed\.": "beit3.vision_embed.",
            r"^cls_token$": "beit3.vision_embed.cls_token",
        },
        before_writing=(change.with_two_rows, change.split_qkv),
        head="linear",
        under=("model",),
        left_out={
            **_MASK,
            r".*\.B\..*|text_embed\..*": "the text's branch",
        },
    )


def _eva02() -> Program:
    return Program(
        "an EVA-02",
        "timm.create_model(NAME) of EVA-02's asuka/, and utils.load_state_dict(model, "
        "weights['model'])",
        r"eva02_(tiny|small|base|large)_patch14_\d+",
        known=lambda names: (
            "storage_tokens" not in names
            and (
                "blocks.0.mlp.w1.weight" in names
                or {"blocks.0.mlp.w12.weight", "blocks.0.attn.q_bias"} <= set(names)
            )
        ),
        read={
            **_FROM_GATED,
            r"\.mlp\.ffn_ln\.": ".mlp.norm.",
            r"\.attn\.inner_attn_ln\.": ".attn.norm.",
        },
        after_reading=(change.biases_of_split_qkv,),
        write={
            **_TO_GATED,
            r"\.mlp\.norm\.": ".mlp.ffn_ln.",
            r"\.attn\.norm\.": ".attn.inner_attn_ln.",
            r"\.attn\.([qv])_proj\.bias$": r".attn.\1_bias",
        },
        before_writing=(change.gated_in_pieces, change.third_of_gated),
        spelling=lambda cfg: (
            frozenset({"qv_bias"})
            if cfg.inner_norm == "none"
            else frozenset({"split_fc1", "split_qkv"})
        ),
        head="linear",
        left_out={**_MASK, **_TABLES},
        beside=_rotary_tables,
        follows=_rotary_tables,
        under=("model",),
    )


def _eva02_clip() -> Program:
    eva02 = _eva02()
    return Program(
        "an EVA-02 CLIP",
        "eva_clip.create_model(NAME).load_state_dict(weights, strict=False), whose text tower "
        "these weights do not have",
        r"eva02_(base|large)_.*clip.*",
        known=lambda names: (
            "blocks.0.mlp.w1.weight" in names and "blocks.0.attn.inner_attn_ln.weight" in names
        ),
        read=eva02.read,
        after_reading=eva02.after_reading,
        write=eva02.write,
        before_writing=eva02.before_writing,
        spelling=eva02.spelling,
        head="linear",
        left_out=eva02.left_out,
        beside=eva02.beside,
        follows=eva02.follows,
        prefix="visual.",
    )


def _beit() -> Program:
    return Program(
        "a BEiT",
        "utils.load_state_dict(model, weights['model']) of unilm's beit/",
        r"beit(v2)?_.*",
        spelling=_spelled("gamma", "qv_bias"),
        head="linear",
        left_out={
            **_MASK,
            r"blocks\.\d+\.attn\.relative_position_index": "indices of relative positions",
        },
        beside=_indices,
        follows=_indices,
        under=("model",),
    )


def _deit3() -> Program:
    return Program(
        "a DeiT-III",
        "models_v2.NAME(...).load_state_dict(weights['model'], strict=True)",
        r"deit3_.*",
        spelling=_spelled("gamma"),
        head="linear",
        under=("model",),
    )


_NO_TOKEN = ModelConfig(class_token=False, pool="mean")
PROGRAMS: Mapping[str, Program] = {
    "dinov3": _dinov3(),
    "dinov2": _dinov2(),
    "perception_encoder": _perception_encoder(),
    "clip": _clip(),
    "aimv2": _aimv2(),
    "beit3": _beit3(),
    "eva02_clip": _eva02_clip(),
    "eva02": _eva02(),
    "beit": _beit(),
    "deit3": _deit3(),
    "mae": Program(
        "a ViT of MAE",
        "models_vit.vit_SIZE(...).load_state_dict(weights['model'], strict=True)",
        (ModelConfig(), ModelConfig(pool="mean", norm_after_pool=True)),
        head="linear",
        left_out=_MASK,
        under=("model",),
    ),
    "dino": Program(
        "a ViT of DINO",
        "utils.load_pretrained_weights(model, FILE, 'teacher', NAME, PATCH)",
        (ModelConfig(),),
    ),
    "ijepa": Program(
        "a ViT of I-JEPA",
        "encoder.load_state_dict(weights['target_encoder'])",
        (_NO_TOKEN,),
        prefix="module.",
        under=("encoder", "target_encoder"),
        says=("its code gives the tokens, of which timm takes the mean",),
    ),
}
