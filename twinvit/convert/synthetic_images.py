"""Images made by code that look like photographs to a resize: gradients, texture and edges."""

import numpy as np

from shared_vit.spec.sides import Sides, sides


def drawn_images(size: Sides, seed: int = 0) -> list[np.ndarray]:
    """Four images, uint8 RGB [H, W, 3], for a model of `size` pixels, or of height and width.

    Wide, tall, smaller than the model's input, and nearly square.
    """
    shapes = [(1.5, 2.3), (2.1, 1.4), (0.7, 1.1), (2.0, 2.05)]
    rng = np.random.default_rng(seed)
    height, width = sides(size)
    return [_picture(max(2, round(height * h)), max(2, round(width * w)), rng) for h, w in shapes]


def plain_images(size: Sides) -> list[np.ndarray]:
    """Images of one colour each, uint8 RGB, of the shapes of `images`: every resize and crop
    leaves their colour as it is."""
    colours = [(0, 128, 255), (255, 0, 128), (37, 255, 0), (90, 201, 64)]
    shapes = [image.shape for image in drawn_images(size)]
    return [np.full(shape, colour, np.uint8) for shape, colour in zip(shapes, colours)]


def _picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.empty((height, width, 3))
    for channel in range(3):
        slow, fast = rng.uniform(0.5, 2, 2), rng.uniform(4, 12, 2)
        image[..., channel] = (
            0.5
            + 0.25 * np.sin(2 * np.pi * (slow[0] * x + slow[1] * y + rng.random()))
            + 0.10 * np.sin(2 * np.pi * (fast[0] * x - fast[1] * y + rng.random()))
        )
    for _ in range(6):
        centre_y, centre_x, radius = rng.random(), rng.random(), rng.uniform(0.05, 0.2)
        image[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = rng.random(3)
    return np.round(image.clip(0, 1) * 255).astype(np.uint8)
