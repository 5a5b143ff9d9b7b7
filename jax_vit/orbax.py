"""Orbax's checkpoints, folders of arrays, read onto the host."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from shared_vit.errors import UserError
from shared_vit.files import reason
from shared_vit.weights.choice import Said, Which
from shared_vit.weights.containers import Container
from shared_vit.weights.containers.tree import flattened
from shared_vit.weights.lazy import LazyArray


def open_orbax(path: Path, which: Which | None, said: Said) -> dict[str, LazyArray]:
    """`{name: array}` of a checkpoint's folder, names joined by `/`; of a training state its
    parameters. All arrays are read at once. Raises UserError for a folder that orbax cannot read.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise UserError(
            f"{path} is of orbax, which reads it: pip install orbax-checkpoint"
        ) from error
    try:
        with ocp.PyTreeCheckpointer() as reader:
            names = reader.metadata(path.absolute()).item_metadata
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names.tree)
            tree = reader.restore(path.absolute(), restore_args=as_numpy)
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise UserError(f"{path} is no checkpoint that orbax reads: {reason(error)}") from error
    return flattened(tree, which, path, said)


CONTAINER = Container(open_orbax, None)
