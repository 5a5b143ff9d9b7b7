"""What a Mix does to a batch, written in NumPy; the reference for both twins."""

from __future__ import annotations

import numpy as np

from shared_vit.data.mixing import Mix


def mix(images: np.ndarray, labels: np.ndarray, draw: Mix) -> tuple[np.ndarray, ...]:
    """Normalised images [B, H, W, 3] and labels [B] -> mixed images, labels, partners' labels."""
    partner = np.arange(len(images)) ^ 1
    top, left, bottom, right = draw.box
    mixed = draw.pixels * images + (1 - draw.pixels) * images[partner]
    mixed[:, top:bottom, left:right] = images[partner, top:bottom, left:right]
    return mixed, labels, labels[partner]


def mixed_loss(
    logits: np.ndarray, own: np.ndarray, partners: np.ndarray, lam: float, smoothing: float = 0.0
) -> np.ndarray:
    """[B]: cross-entropy with (1 - s) (lam e_own + (1 - lam) e_partner) + s / K, in closed form."""
    highest = logits.max(1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
    rows = np.arange(len(logits))
    of_labels = lam * logits[rows, own] + (1 - lam) * logits[rows, partners]
    return total - (1 - smoothing) * of_labels - smoothing * logits.mean(1)
