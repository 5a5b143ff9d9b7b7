"""Layer-wise learning rates and frozen tensors, by canonical name."""

from __future__ import annotations

from shared_vit.errors import UserError
from shared_vit.spec import canonical
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.recipe import Freeze, Recipe, parse_freeze

_OF_THE_HEAD = ("pre_logits.", "head.")


def lr_scales(cfg: ModelConfig, layer_decay: float) -> dict[str, float]:
    """`{canonical name: factor}` of the learning rate of every tensor (He et al. 2022, MAE).

    `layer_decay` to the power of the number of layers above: last norm and head 1, the last block
    `layer_decay`, the embeddings `layer_decay` to the power of depth + 1. The factor multiplies the
    entire update, weight decay included. (timm counts the last norm to the last block.) Raises
    UserError for a `layer_decay` outside (0, 1].
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"--layer_decay must be above 0 and at most 1, not {layer_decay}")
    rows = canonical.arrays(cfg)
    return {name: layer_decay ** (cfg.depth + 1 - row.lr_layer) for name, row in rows.items()}


def frozen(cfg: ModelConfig, freeze: Freeze) -> frozenset[str]:
    """Canonical names of the tensors that a run leaves as they are.

    trunk: all but the head (and its pre-logits layer); embed: class token, positions and patches;
    a number N: those and the first N blocks; none: no tensor. Frozen tensors have no gradient, no
    part in the global norm, and no slots. Raises UserError for more blocks than the model has.
    """
    rows = canonical.arrays(cfg)
    if freeze == "none":
        return frozenset()
    if freeze == "trunk":
        return frozenset(name for name in rows if not name.startswith(_OF_THE_HEAD))
    blocks = 0 if freeze == "embed" else freeze
    if not isinstance(blocks, int) or not 0 <= blocks <= cfg.depth:
        raise UserError(
            f"--freeze={freeze}: none, embed, trunk or a number of blocks is expected, and the "
            f"model has {cfg.depth} blocks"
        )
    return frozenset(name for name, row in rows.items() if row.lr_layer <= blocks)


def trained_names(recipe: Recipe) -> list[str]:
    """Canonical names of the tensors that a run's optimizer updates, in canonical order.

    Raises UserError where `freeze` names more blocks than the model has.
    """
    still = frozen(recipe.model, parse_freeze(recipe.freeze))
    rows = canonical.arrays(recipe.model)
    return [n for n, row in rows.items() if row.trained and n not in still]
