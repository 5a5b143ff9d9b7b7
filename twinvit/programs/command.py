"""`twinvit export`: a program of either twin that runs without this package."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from shared_vit.cli.function_command import Positional
from shared_vit.weights.overrides import Exif, Interpolation
from shared_vit.weights.positions import Positions
from twinvit.convert.same_function import VERDICTS
from twinvit.programs.check import NotKept
from twinvit.programs.target import BATCH, Output, Platform, Precision, To
from twinvit.programs.write import export as write


def export(
    path: Annotated[str, Positional("RUN_OR_WEIGHTS")],
    out: Annotated[str, Positional("OUT")],
    to: To,
    output: Output = "probabilities",
    precision: Precision = "fp32",
    batch_size: int | None = None,
    platforms: tuple[Platform, ...] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    num_heads: int | None = None,
    image_size: int | str | None = None,
    positions: Positions = "bicubic",
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
    eval_resize: float | None = None,
    exif: Exif | None = None,
) -> int:
    """Write uint8 images [B, S, S, 3] -> probabilities [B, classes], or features, as one file.

    Exit status: 0 written, and checked to be the same; 1 different from the twin and 2 undecided,
    not written; 3 not exported.

    Args:
        path: Run or checkpoint directory, or a weight file of any known format.
        out: File to write: .pt2 (torch), .jax or .onnx; its card is OUT.json.
        to: Framework that is to run the program.
        output: What the program gives: probabilities, or the features that a head is given.
        precision: Of the products inside; onnx has fp32 only.
        batch_size: Fix the batch size; by default any can be given to the program.
        platforms: Of a program for jax; by default cpu and cuda.
        overwrite: Replace OUT where it exists.
        verify: Load the program and compare it with the twin before it is saved.
        num_heads: Attention heads, for weight files that do not say.
        image_size: Side of the input in pixels, or height and width as in 32,96; by default that of
            the weights.
        positions: How learned positions become those of another image size: bicubic with antialias
            (timm's), dinov2 (of DINOv2's hub models), or corners (big_vision's).
        mean: Of red, green and blue in [0, 1], R,G,B or one number, instead of what weights say.
        std: By which the pixels are divided, in the same way.
        interpolation: Filter of the resize, in the card.
        eval_resize: Shorter side over the centre crop, in the card; 0 squashes to a square.
        exif: Ignore the orientation in EXIF, or turn images upright, in the card.
    """
    try:
        card = write(
            path,
            out,
            to,
            output=output,
            precision=precision,
            batch_size=batch_size,
            platforms=platforms,
            overwrite=overwrite,
            verify=verify,
            num_heads=num_heads,
            image_size=image_size,
            positions=positions,
            mean=mean,
            std=std,
            interpolation=interpolation,
            eval_resize=eval_resize,
            exif=exif,
        )
    except NotKept as error:
        print(f"{error.verdict}: {error}", file=sys.stderr)
        return VERDICTS.index(error.verdict)
    print(f"wrote {out} ({_said(card)})")
    return 0


def _said(card: dict[str, Any]) -> str:
    batch = card["input"]["shape"][0]
    size = "any batch" if batch == BATCH else f"batch {batch}"
    kind = f"{card['target']}, {card['precision']}, {size}"
    check = card["check"]
    if check is None:
        return f"{kind}; not checked"
    what = "features" if check["of"] == "features" else "logits"
    found = f"{what} {check['relative_l2']:.1e} from the twin's"
    return f"{kind}; same: {found} on {check['pictures']} images, limit {check['limit']:.1e}"
