"""Draw a small data set of class folders: images of circles, squares and triangles.

python examples/draw_pictures.py FOLDER [--train=60] [--val=10]

It writes FOLDER/train/<class>/<number>.png and FOLDER/val/<class>/<number>.png, the layout that
`--data=folder --data_dir=FOLDER` reads.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDES = {"circle": 0, "square": 4, "triangle": 3}


def picture(shape: str, rng: np.random.Generator) -> Image.Image:
    """A bright shape on a dark ground, 48 x 40 px."""
    image = Image.new("RGB", (48, 40), tuple(rng.integers(0, 90, 3).tolist()))
    color = tuple(rng.integers(160, 256, 3).tolist())
    x, y, r = rng.integers(20, 29), rng.integers(18, 23), rng.integers(12, 17)
    draw = ImageDraw.Draw(image)
    if sides := SIDES[shape]:
        draw.regular_polygon((int(x), int(y), int(r)), sides, fill=color)
    else:
        draw.circle((int(x), int(y)), int(r), fill=color)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=60, help="pictures a class to train on")
    parser.add_argument("--val", type=int, default=10, help="pictures a class to evaluate on")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for split, count in (("train", args.train), ("val", args.val)):
        for shape in SIDES:
            below = args.folder / split / shape
            below.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(shape, rng).save(below / f"{number}.png")
    print(f"{len(SIDES) * (args.train + args.val)} images in {args.folder}")


if __name__ == "__main__":
    main()
