"""Groups of sharpness-aware minimization (Foret et al. 2021): m-sharpness without devices."""

from __future__ import annotations

import numpy as np

from shared_vit.errors import UserError


def sam_group(rows: np.ndarray, groups: int) -> np.ndarray:
    """The group of each row of the global batch: its pair's number, (row // 2) mod `groups`.

    Each group takes the ascent step by its own gradient. A group does not depend on devices,
    processes or parts, and mixed pairs stay together; with G groups m is the batch over G. rows:
    int [n], counted in the global batch -> int [n].
    """
    return rows // 2 % groups


def check_sam_groups(batch_size: int, parts: int, groups: int) -> None:
    """Raise UserError unless every device and part has as many rows of each group.

    parts: devices of all processes times `grad_accum`.
    """
    if batch_size % (2 * groups * parts):
        raise UserError(
            f"--sam_groups={groups}: --batch_size={batch_size} is not divisible by 2 x {groups} "
            f"groups x {parts} parts (devices x --grad_accum), so the groups would differ in size"
        )
