"""Images as a phone leaves them: fine-tune in JAX, evaluate, predict and export in PyTorch.

    python examples/phone_pictures.py OUT

It draws OUT/photos, class folders without a split into training and validation: rooms with a lamp
at the ceiling, on the floor or at a wall. A third of the photographs lie on their side and say so
in EXIF, one is HEIC, and one was cut while it was copied. A short run on handwritten digits is the
checkpoint that the fine-tuning begins with; for real images it is weights of the hub. It shows
each command, and takes less than two minutes on two cores.
"""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TURNS = {"ceiling": (0,), "floor": (2,), "wall": (1, 3)}  # quarters of a turn, of the room
EACH = 60  # photographs of a class
ORIENTATION, ON_ITS_SIDE = 0x0112, 6  # EXIF's tag, and what a phone held upright writes there


def room(quarters: int, rng: np.random.Generator) -> Image.Image:
    """A room and the light of a lamp in it, 96 x 96 px."""
    wall, light = rng.integers(20, 110, 3), rng.integers(190, 256, 3)
    image = Image.new("RGB", (96, 96), tuple(wall.tolist()))
    x, y, r = int(rng.integers(24, 72)), int(rng.integers(8, 22)), int(rng.integers(14, 22))
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=tuple(light.tolist()))
    return image.rotate(90 * quarters)


def jpeg(image: Image.Image, on_its_side: bool) -> bytes:
    """The photograph as a file; on its side, as the sensor saw it, with a note of that."""
    exif = Image.Exif()
    if on_its_side:
        image, exif[ORIENTATION] = image.rotate(90, expand=True), ON_ITS_SIDE
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=90)
    return file.getvalue()


def heic(image: Image.Image) -> bytes:
    """The photograph as HEIC; its first bytes alone where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    pillow_heif.register_heif_opener()
    file = io.BytesIO()
    image.save(file, "HEIF")
    return file.getvalue()


def draw_photos(folder: Path) -> None:
    """Photographs of all classes, IMG_0001 and so on."""
    rng, number = np.random.default_rng(0), 0
    for name, turns in TURNS.items():
        (folder / name).mkdir(parents=True)
        for i in range(EACH):
            number += 1
            picture = room(turns[i % len(turns)], rng)
            content, ending = jpeg(picture, on_its_side=i % 3 == 0), "jpg"
            if number == 7:
                content = content[: len(content) // 2]
            elif number == 70:
                content, ending = heic(picture), "heic"
            (folder / name / f"IMG_{number:04d}.{ending}").write_bytes(content)


def command(*arguments: object) -> None:
    """`twinvit ...`, as in a shell."""
    words = [str(a) for a in arguments]
    print("\n$ twinvit", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "twinvit", *words])
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    photos, start, run = out / "photos", out / "digits", out / "run"
    draw_photos(photos)
    command("train", "--framework=torch", "--preset=digits", "--depth=2", "--steps=150",
            "--warmup_steps=20", "--device=cpu", f"--run_dir={start}")  # fmt: skip
    # The one line.
    command("train", "--framework=jax", "--data=folder", f"--data_dir={photos}",
            f"--init_from={start}", "--image_size=16", "--exif=turn", "--on_bad_image=skip",
            "--steps=150", "--batch_size=32", "--lr=0.05", "--min_area=0.6", "--eval_every=60",
            "--device=cpu", f"--run_dir={run}")  # fmt: skip
    command("evaluate", run, "--framework=torch", "--device=cpu")
    shown = ("ceiling/IMG_0004.jpg", "floor/IMG_0064.jpg", "wall/IMG_0127.jpg")
    command("predict", run, *(photos / name for name in shown), "--framework=torch", "--top_k=1")
    command("export", run, out / "lamps.pt2", "--to=torch")


if __name__ == "__main__":
    main()
