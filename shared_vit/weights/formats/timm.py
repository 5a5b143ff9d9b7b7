"""timm's plain ViTs (1.0): `VisionTransformer`, whose names are the canonical ones, and the classes
`Eva`, `Beit`, `NaFlexVit` and that of distilled models.

Function and sizes follow from the name of the architecture and the arguments of `create_model`,
preprocessing is in `pretrained_cfg`. The first ViTs need no name.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared_vit.errors import UserError, some
from shared_vit.spec.config import SIZES, ModelConfig
from shared_vit.spec.settings import settings_of
from shared_vit.spec.sides import plain
from shared_vit.weights.formats import resize
from shared_vit.weights.formats.base import (
    Format,
    Hints,
    Notes,
    Reading,
    has_head,
    heads,
    image_size,
    model,
    position_rows,
    sizes,
    strip_prefixes,
    torch_table,
)
from shared_vit.weights.formats.holds import ANY, BOTH, FREE, Rule
from shared_vit.weights.formats.json_fields import HALF, colours, number, section
from shared_vit.weights.formats.left_out import without
from shared_vit.weights.formats.timm_architectures import (
    Architecture,
    architectures,
    arguments,
    candidates,
    differences,
    function_of,
    named,
    nearest_to,
)
from shared_vit.weights.formats.timm_family import (
    architecture_of_file,
    check_pooling,
    heads_of,
    read_family,
    unknown_arguments,
)
from shared_vit.weights.formats.timm_names import spelling_of, timm_table
from shared_vit.weights.lazy import Arrays
from shared_vit.weights.table import Table, count_layers, side_of, without_prefix_rows

_SIZE_NAMES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}
_PATCHES = {"ti": (16,), "s": (16, 32), "b": (8, 16, 32), "l": (14, 16, 32), "h": (14,)}
_PLAIN = re.compile(r"vit_(tiny|small|base|large|huge|giant|gigantic)_patch\d+_\d+$")
_GELU = {None: "erf", "gelu": "erf", "gelu_tanh": "tanh"}
_STOCK = {
    f"vit_{long}_patch{p}_224": (p, SIZES[short])
    for short, long in _SIZE_NAMES.items()
    for p in _PATCHES[short]
}
# Other spellings of the same tensors: a pattern, and its replacement.
_SPELLINGS = {
    r"^pre_logits\.fc\.": "pre_logits.",  # timm before 0.6
}
_LEFT_OUT = {
    r"mask_token": "the token that stands for masked patches",
    r"(.*\.)?rope\.freqs_(cos|sin)": "tables of rotary positions",
    r"blocks\.\d+\.attn\.relative_position_index": "indices of relative positions",
}
_GLOBAL_POOL = {"token": "token", "mean": "avg", "map": "map"}
# Fields that add or remove no part of a model.
_SETTINGS = ("pool", "gelu", "activation", "norm_eps", "rope_base", "rope_offset")
# What decides the function, among `create_model`'s arguments.
_FUNCTION = ("act_layer", "global_pool", "fc_norm", "class_token", "pool_include_prefix")
# crop_pct: of timm's ViTs where nothing is said, and of a pretrained_cfg without the field.
_CROP_VIT, _CROP_DEFAULT = 0.9, 0.875


# Fields that the first ViTs have not: timm has the combinations that its architectures are made of.
_LATER = tuple(
    name for name in settings_of(ModelConfig) if name not in (*FREE, "image_width", "pre_logits")
)


def _usual_or_named(name: str, *usual: str) -> Rule:
    """The values of the first ViTs, and others in the function of one of timm's architectures."""
    values = usual or (settings_of(ModelConfig)[name].historical,)
    return lambda cfg: getattr(cfg, name) in values or nearest_to(cfg) is not None


def is_plain(cfg: ModelConfig) -> bool:
    """Whether a model is one of the first ViTs, or MAE's, which `create_model`'s arguments make."""
    about = settings_of(ModelConfig)
    later = any(getattr(cfg, name) != about[name].historical for name in _LATER)
    return not later and cfg.pool in ("token", "mean") and cfg.pos_embed != "none"


class Timm(Format):
    name = "timm"
    about = "a ViT of timm"
    suffixes: tuple[str, ...] = (".safetensors", ".pth", "")
    models = ".*"  # timm's names of models that it has, as a pattern
    holds = {
        "num_classes": ANY,
        "class_token": BOTH,
        "pool": _usual_or_named("pool", "token", "mean"),
        "pos_embed": _usual_or_named("pos_embed", "learned", "sincos2d"),
        "pool_class_token": BOTH,
        "norm_after_pool": BOTH,
        "image_width": ANY,
        **{name: _usual_or_named(name) for name in _LATER},
    }

    def not_held(self, cfg: ModelConfig) -> list[str]:
        """The fields whose values in `cfg` the format does not hold; of a later ViT those in which
        it differs from the nearest of timm's architectures, where these are no more."""
        fields = super().not_held(cfg)
        if not fields:
            return fields

        def far(apart: list[str]) -> tuple[int, int]:  # a setting before a part of the model
            return len(apart), sum(name not in _SETTINGS for name in apart)

        nearest = min((differences(cfg, a.cfg) for a in architectures().values()), key=far)
        return nearest if 0 < len(nearest) <= len(fields) else fields

    foreign = {
        "rel_pos_bias": "relative positions shared by all blocks",
        "pos_embed_y": "positions in two factors",
        "lambda_q1": "differential attention",
        "patch_embed.backbone": "a convolutional stem",
    }

    def found(self, names: Arrays) -> bool:
        return "blocks.0.attn.proj.weight" in names

    def strip(self, arrays: Arrays) -> Arrays:
        arrays = strip_prefixes(arrays, ("module.", "_orig_mod.", "model.", "timm_model."))
        return {_canonical(name): array for name, array in arrays.items()}

    def without_ignored(self, arrays: Arrays) -> tuple[Arrays, list[str]]:
        return without(arrays, _LEFT_OUT)

    def check_known(self, arrays: Arrays, where: str) -> None:
        super().check_known(arrays, where)
        for name in [n for n in arrays if n.endswith(".attn.k_proj.weight")]:
            queries = arrays.get(name.replace("k_proj", "q_proj"))
            if queries is not None and queries.shape[:1] != arrays[name].shape[:1]:
                raise UserError(
                    f"{where} has fewer heads of keys than of queries ({name}), as the larger "
                    "Sapiens2 have, and the twins have as many"
                )

    def read(self, arrays: Arrays, hints: Hints) -> Reading:
        config, notes = hints.config or {}, Notes()
        said = named(str(config.get("architecture", ""))[:200]) or named(Path(hints.where).name)
        args = {**config, **section(config, "model_args", hints.where)}
        check_pooling(args, arrays, hints)
        if unknown := unknown_arguments(section(config, "model_args", hints.where)):
            raise UserError(
                f"{hints.where}: its config.json gives create_model {', '.join(unknown)}, whose "
                "effect is not known: the function may be another one"
            )
        plain_said = said is None or is_plain(said.cfg)
        if plain_said and not _is_later(arrays):
            return self._read_plain(arrays, said, hints, notes)
        pretrained = section(config, "pretrained_cfg", hints.where) or config
        architecture = architecture_of_file(arrays, said, hints, notes, self.models)
        values = read_family(arrays, architecture, args, pretrained, hints)
        if not pretrained:
            pretrained = architecture.pretrained
            notes.assumed.append(f"the preparation of images of timm's {architecture.name}")
        mean, std = colours(pretrained, "mean", "std", HALF, hints.where)
        eval_resize, interpolation = resize.from_timm(
            pretrained, values["image_size"], _CROP_DEFAULT, not values["image_width"], hints, notes
        )
        cfg = model(
            hints,
            **values,
            mean=mean,
            std=std,
            eval_resize=eval_resize,
            interpolation=interpolation,
        )
        head = "head.weight" in arrays or "head.bias" in arrays
        return Reading(cfg, timm_table(cfg, spelling_of(arrays), head), notes)

    def _read_plain(
        self, arrays: Arrays, said: Architecture | None, hints: Hints, notes: Notes
    ) -> Reading:
        config = hints.config or {}
        args = {**config, **section(config, "model_args", hints.where)}
        # Before timm 0.9 the file itself was the pretrained_cfg.
        pretrained = section(config, "pretrained_cfg", hints.where) or config
        after = "fc_norm.weight" in arrays
        depth = count_layers(r"blocks\.(\d+)\.", arrays)
        values = sizes(arrays, str, depth, -1, self, hints)
        class_token = "cls_token" in arrays
        pool = "mean" if after or not class_token or args.get("global_pool") == "avg" else "token"
        rows = position_rows(arrays, "pos_embed", self, hints)
        # `no_embed_class`: the class token has no position. Ours has one, of zeros.
        wide = _oblong(args, pretrained, values["patch_size"], rows, class_token)
        if wide is not None:
            (size, width), patches = wide
            bare = class_token and patches == rows
        else:
            bare = class_token and side_of(rows - 1) is None
            patches = rows - (class_token and not bare)
            size, width = image_size(patches, values["patch_size"], "pos_embed", hints), 0
        num_heads = number(args, "num_heads", int, None, hints.where)
        if said is not None:
            num_heads = heads_of(values["width"], said.cfg, args, hints)
        gelu = _gelu(args, config, said, hints, notes)
        mean, std = colours(pretrained, "mean", "std", HALF, hints.where)
        usual = _CROP_DEFAULT if pretrained else _CROP_VIT
        eval_resize, interpolation = resize.from_timm(
            pretrained, size, usual, not width, hints, notes
        )
        cfg = model(
            hints,
            **values,
            num_heads=heads(values, num_heads, hints, notes),
            image_size=size,
            image_width=width,
            class_token=class_token,
            pool=pool,
            pool_class_token=pool == "mean"
            and class_token
            and args.get("pool_include_prefix") is True,
            norm_after_pool=after,
            gelu=gelu,
            norm_eps=1e-6 if said is None else said.cfg.norm_eps,
            mean=mean,
            std=std,
            eval_resize=eval_resize,
            interpolation=interpolation,
        )
        if not config:
            notes.assumed.append(
                f"{gelu} GELU, eps {cfg.norm_eps:g}, mean and std 0.5, bicubic resize, crop 0.9 "
                "(timm's defaults)"
            )
        if not config and said is None:
            _say_other_gelu(cfg, notes)
        table = torch_table(cfg, str, has_head(arrays, str))
        if bare:
            table["pos_embed"] = [without_prefix_rows("pos_embed", cfg)]
        return Reading(cfg, table, notes)

    def table(self, cfg: ModelConfig) -> Table:
        architecture = None if is_plain(cfg) else nearest_to(cfg)
        return timm_table(cfg, frozenset() if architecture is None else architecture.spelling)

    def table_of(self, cfg: ModelConfig, arrays: Arrays) -> Table:
        return timm_table(cfg, spelling_of(arrays))

    def notes(self, cfg: ModelConfig, folder: bool = False) -> list[str]:
        if not is_plain(cfg):
            return []  # the name implies it
        extra = {key: value for key, value in model_args(cfg).items() if key in _FUNCTION}
        out = []
        if extra and not folder:
            text = ", ".join(f"{k}={v!r}" for k, v in extra.items())
            out.append(
                f"timm computes another function unless it is given: timm.create_model(..., {text})"
            )
        if cfg.norm_eps != 1e-6:
            out.append(
                f"timm's LayerNorm eps is 1e-6, this model's {cfg.norm_eps:g}: "
                f"timm.create_model(..., {_norm_layer(cfg)})"
            )
        return out

    def labels(self, config: Mapping[str, Any]) -> object:
        """The descriptions, where there is one of each name: names may be WordNet numbers."""
        pretrained = config.get("pretrained_cfg")
        sections = (config, pretrained if isinstance(pretrained, Mapping) else {})
        names, described = (
            next((s[key] for s in sections if s.get(key)), None)
            for key in ("label_names", "label_descriptions")
        )
        if isinstance(names, Mapping):
            names = [names.get(str(i)) for i in range(len(names))]
        if isinstance(names, list) and isinstance(described, Mapping):
            known = [described.get(name) for name in names if isinstance(name, str)]
            return known if len(known) == len(names) and all(known) else names
        return names

    def extras(
        self, cfg: ModelConfig, dtype: np.dtype, class_names: tuple[str, ...] | None = None
    ) -> dict[str, object]:
        args = model_args(cfg)
        return {
            "config.json": {
                **({} if class_names is None else {"label_names": list(class_names)}),
                "architecture": architecture_of(cfg),
                "num_classes": cfg.num_classes,
                "num_features": cfg.width,
                "global_pool": args.get("global_pool", _GLOBAL_POOL[cfg.pool]),
                "model_args": args,
                "pretrained_cfg": {
                    **data_config(cfg),
                    "fixed_input_size": True,
                    "num_classes": cfg.num_classes,
                    "first_conv": "patch_embed.proj",
                    "classifier": "head",
                },
            }
        }

    def how_to_load(self, cfg: ModelConfig) -> str:
        args = "".join(f", {k}={v!r}" for k, v in model_args(cfg).items())
        if cfg.norm_eps != 1e-6 and is_plain(cfg):
            args += f", {_norm_layer(cfg)}"
        name = architecture_of(cfg)
        return f'timm.create_model("{name}"{args}).load_state_dict(weights, strict=True)'

    def how_to_preprocess(self, cfg: ModelConfig) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in data_config(cfg).items())
        return f"timm.data.create_transform({args})"


def _say_other_gelu(cfg: ModelConfig, notes: Notes) -> None:
    """Add a notice that models with tanh GELU have the same tensors as a file that nothing
    names."""
    of_size = "width", "depth", "mlp_dim", "patch_size"
    other = dataclasses.replace(cfg, gelu="tanh")
    names = [
        name
        for name, each in architectures().items()
        if function_of(each.cfg) == function_of(other)
        and all(getattr(each.cfg, field) == getattr(cfg, field) for field in of_size)
    ]
    if names:
        notes.notices.append(
            f"its GELU is taken as erf; {some(names, 3, ', ')} have the same tensors and tanh GELU "
            "(SigLIP's authors compute that): the file's own name or timm's config.json would say"
        )


def _oblong(
    args: Mapping[str, Any], pretrained: Mapping[str, Any], patch: int, rows: int, class_token: bool
) -> tuple[tuple[int, int], int] | None:
    """`((height, width), patches)` of an image that is not square, as JSON says; None for squares
    and for what does not fit the rows of the positions."""
    for said in (args.get("img_size"), pretrained.get("input_size")):
        pair = said[-2:] if isinstance(said, list) else []
        if len(pair) == 2 and all(type(side) is int and side > 0 for side in pair):
            height, width = pair
            patches = (height // patch) * (width // patch)
            if height != width and patches in (rows, rows - class_token):
                return (height, width), patches
    return None


def _canonical(name: str) -> str:
    """The canonical spelling of a name, before a format is found by it."""
    for pattern, ours in _SPELLINGS.items():
        name = re.sub(pattern, ours, name)
    return name


def data_config(cfg: ModelConfig) -> dict[str, Any]:
    """Evaluation's preprocessing, as in a `pretrained_cfg` and for `timm.data.create_transform`."""
    return {
        "input_size": [3, *cfg.image_shape],
        "interpolation": cfg.interpolation,
        "crop_pct": resize.crop_pct(cfg),
        "crop_mode": "center" if cfg.eval_resize else "squash",
        "mean": list(cfg.mean),
        "std": list(cfg.std),
    }


def architecture_of(cfg: ModelConfig) -> str:
    """timm's name for these sizes, else one whose sizes arguments change: B/16 of first ViTs."""
    if not is_plain(cfg):
        architecture = nearest_to(cfg)
        assert architecture is not None
        return architecture.name
    size = (cfg.patch_size, (cfg.width, cfg.depth, cfg.num_heads, cfg.mlp_dim))
    return next((name for name, stock in _STOCK.items() if stock == size), "vit_base_patch16_224")


def model_args(cfg: ModelConfig) -> dict[str, Any]:
    """Arguments of `create_model` that make `architecture_of(cfg)` this model, but for the eps."""
    if not is_plain(cfg):
        return arguments(architectures()[architecture_of(cfg)], cfg)
    patch, (width, depth, num_heads, _) = _STOCK[architecture_of(cfg)]
    args: dict[str, Any] = {}
    if cfg.image_shape != (224, 224):
        args["img_size"] = plain(cfg.image_shape)
    for key, value, usual in (
        ("patch_size", cfg.patch_size, patch),
        ("embed_dim", cfg.width, width),
        ("depth", cfg.depth, depth),
        ("num_heads", cfg.num_heads, num_heads),
    ):
        if value != usual:
            args[key] = value
    if cfg.mlp_dim != 4 * cfg.width:
        exact = cfg.mlp_dim / cfg.width
        whole = int(cfg.width * exact) == cfg.mlp_dim
        args["mlp_ratio"] = exact if whole else (cfg.mlp_dim + 0.5) / cfg.width
    if cfg.num_classes != 1000:
        args["num_classes"] = cfg.num_classes
    if cfg.pool == "mean":
        args |= {"global_pool": "avg", "fc_norm": cfg.norm_after_pool}
    if not cfg.class_token:
        args["class_token"] = False
    if cfg.pool_class_token:
        args["pool_include_prefix"] = True
    if cfg.gelu == "tanh":
        args["act_layer"] = "gelu_tanh"
    return args


def _norm_layer(cfg: ModelConfig) -> str:
    return f"norm_layer=functools.partial(timm.layers.LayerNorm, eps={cfg.norm_eps:g})"


_LATER_PARTS = re.compile(
    r"(reg_token|dist_token|head_dist|attn_pool|norm_pre|rope|embeds|patch_embed\.norm)\b.*"
    r"|blocks\.\d+\.(ls\d|gamma_\d|attn\.(q_|k_|v_|norm|relative)|mlp\.(norm|fc1_)).*"
)
_USUAL_PARTS = frozenset(
    ("pos_embed", "patch_embed.proj.bias", "blocks.0.norm1.bias", "blocks.0.mlp.fc1.bias")
    + ("blocks.0.attn.qkv.bias", "blocks.0.attn.proj.bias", "norm.bias", "fc_norm.bias")
)


def _is_later(arrays: Arrays) -> bool:
    """Whether a file has tensors that the first ViTs have not, or is a known one without some of
    theirs."""
    if any(_LATER_PARTS.fullmatch(name) for name in arrays):
        return True
    lacks = _USUAL_PARTS - set(arrays) not in ({"norm.bias"}, {"fc_norm.bias"})
    return (
        lacks and next(candidates({n: tuple(a.shape) for n, a in arrays.items()}), None) is not None
    )


def _gelu(
    args: Mapping[str, Any],
    config: Mapping[str, Any],
    said: Architecture | None,
    hints: Hints,
    notes: Notes,
) -> str:
    activation = args.get("act_layer")
    if not isinstance(activation, str | None) or activation not in _GELU:
        raise UserError(
            f"{hints.where}: its activation is {activation!r:.80}; known are GELU, erf and tanh"
        )
    if said is not None and activation is None:
        return said.cfg.gelu
    architecture = str(config.get("architecture", ""))[:80]
    plain = _PLAIN.match(architecture.partition(".")[0])
    if architecture and "act_layer" not in args and not plain:
        notes.notices.append(
            f"timm's {architecture} may have defaults of its own; its GELU is taken as erf"
        )
    return _GELU[activation]
