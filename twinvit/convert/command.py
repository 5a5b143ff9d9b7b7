"""`twinvit convert`: weights from any known format to any other, with their function."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from shared_vit.cli.function_command import Flag, Positional
from shared_vit.errors import UserError
from shared_vit.spec.config import ModelConfig
from shared_vit.spec.input import describe_input
from shared_vit.spec.sides import shown
from shared_vit.weights.adapt import adapt
from shared_vit.weights.formats import suffixes_of
from shared_vit.weights.locate import SUFFIXES, card_path
from shared_vit.weights.overrides import Exif, Interpolation, with_input
from shared_vit.weights.positions import Positions, describe_positions
from shared_vit.weights.read import Source, open_weights
from shared_vit.weights.write import check_target, write_weights
from twinvit.pages.verdicts import Verdict, announce
from twinvit.verdict_flags import checked

To = Literal[
    "torch", "jax", "timm", "torchvision", "huggingface", "google", "big_vision",
    "dinov3", "dinov2", "perception_encoder", "clip", "aimv2", "beit3", "eva02_clip", "eva02",
    "beit", "deit3", "mae", "dino", "ijepa",
]  # fmt: skip
From = Literal["auto"] | To

_MODEL_FOLDER = (
    "checkpoints",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "flax_model.msgpack",
    "_METADATA",
)


def convert(
    src: Annotated[str, Positional("SRC")],
    dst: Annotated[str, Positional("DST")],
    to: To,
    from_: Annotated[From, Flag("from")] = "auto",
    verify: bool = False,
    num_heads: int | None = None,
    image_size: int | str | None = None,
    positions: Positions = "bicubic",
    num_classes: int | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    overwrite: bool = False,
    mean: str | None = None,
    std: str | None = None,
    interpolation: Interpolation | None = None,
    eval_resize: float | None = None,
    exif: Exif | None = None,
    json: str | None = None,
    quiet: bool = False,
    github: bool = False,
) -> int:
    """Convert weights and the function they were trained for.

    Exit status: 0 written, and with --verify the same; 1 different; 2 undecided; 3 not converted.

    Args:
        src: Weight file, run or checkpoint directory, model folder, a folder of many weight
            files, or hf:OWNER/NAME[@REVISION][/FILE] on the Hugging Face hub.
        dst: File to write (.safetensors, .npz, .pth), or a name without suffix for a model folder.
        to: Format to write; torch and jax are the same file.
        from_: Format of SRC; by default it is found from the file.
        verify: Run both twins and the formats' own libraries on both files, on images too, and
            write a certificate.
        num_heads: Attention heads, for files that do not say.
        image_size: New side of the input in pixels, or height and width as in 32,96; learned
            positions are resampled.
        positions: How: bicubic with antialias (timm's), dinov2 (of DINOv2's hub models without
            registers), or corners (big_vision's).
        num_classes: Classes; another number than the file's makes a new head of zeros.
        dtype: Dtype of the arrays in DST; by default that of SRC.
        overwrite: Replace DST where it exists.
        mean: Of red, green and blue in [0, 1], R,G,B or one number, instead of what SRC says.
        std: By which the pixels are divided, in the same way.
        interpolation: Filter of the resize.
        eval_resize: Shorter side over the centre crop; 0 squashes to a square.
        exif: Ignore the orientation in EXIF, or turn photographs upright.
        json: Of --verify: where to write the verdict as JSON; without a path to standard output,
            where nothing else is written then.
        quiet: Of --verify: print the verdict's line only.
        github: Of --verify: print annotations of a GitHub workflow, too.
    """
    flags = checked(json, quiet, github)
    if flags.given() and not verify:
        raise UserError("--json, --quiet and --github say what --verify found: add --verify")
    input_of = dict(
        mean=mean, std=std, interpolation=interpolation, eval_resize=eval_resize, exif=exif
    )
    read = dict(format=from_, num_heads=num_heads, num_classes=num_classes, image_size=image_size)
    adapted = dict(image_size=image_size, num_classes=num_classes, dtype=dtype)
    if image_size is not None:
        adapted["positions"] = positions
    how = _How(to, verify, overwrite, read, adapted, input_of)
    return announce(flags, lambda: _converted(Path(src), Path(dst), how))


@dataclasses.dataclass
class _How:
    """What is to be done with each file.

    read: of `open_weights`. adapted: of `adapt`. input_of: of `with_input`.
    """

    to: To
    verify: bool
    overwrite: bool
    read: Mapping[str, Any]
    adapted: Mapping[str, Any]
    input_of: Mapping[str, Any]


def _converted(source: Path, target: Path, how: _How) -> Verdict | int:
    """Write what is requested: 0, or the verdict of a comparison. Raises UserError before the first
    file is written."""
    many = _many(source)
    if many and how.verify:
        raise UserError("--verify takes one file at a time")
    if how.verify:
        _check_verified(how.input_of)
    pairs = _pairs(many, target, how.to) if many else [(source, target)]
    jobs = [_job(here, there, bool(many), how) for here, there in pairs]
    if many:
        target.mkdir(exist_ok=True)
    for job in jobs:
        job.write(how.to)
    if not how.verify:
        return 0
    from twinvit.convert.certificate import certify

    return certify(jobs[0].source, source, target, how.to, how.read["num_heads"], dict(how.adapted))


def _check_verified(changes: Mapping[str, Any]) -> None:
    """Raise UserError for changes of the input, of which a comparison with SRC says nothing."""
    if any(value is not None for value in changes.values()):
        raise UserError(
            "--verify compares with what SRC says: convert with --verify first, and set mean, std, "
            "resize or EXIF in a second conversion"
        )


@dataclasses.dataclass
class _Job:
    """One file to write: its model and arrays, of a source that was read."""

    source: Source
    cfg: ModelConfig
    arrays: Mapping[str, Any]
    positions: Positions
    there: Path

    def write(self, to: To) -> None:
        """Write it with a bar of its progress; a certificate of the file that it replaces goes."""
        from twinvit.convert.certificate import certificate_path

        _say(self.source, self.cfg)
        if self.cfg.grid != self.source.cfg.grid:
            print(f"positions {describe_positions(self.source.cfg, self.cfg, self.positions)}")
        # Another number of classes is another task.
        same = self.cfg.num_classes == self.source.cfg.num_classes
        names = self.source.class_names if same else None
        size = sum(array.nbytes for array in self.arrays.values())
        certificate_path(self.there).unlink(missing_ok=True)
        from tqdm import tqdm

        with tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
            notes = write_weights(self.there, self.cfg, self.arrays, to, bar.update, names)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"wrote {self.there} ({to})")


def _job(here: Path, there: Path, new_folder: bool, how: _How) -> _Job:
    """One file, read, adapted and free to be written. Raises UserError."""
    opened = open_weights(here, **how.read)
    opened = dataclasses.replace(opened, cfg=with_input(opened.cfg, **how.input_of))
    cfg, arrays = adapt(opened.cfg, opened.arrays, **how.adapted)
    check_target(there, cfg, how.to, new_folder=new_folder)
    _check_free(opened, there, how.overwrite)
    return _Job(opened, cfg, arrays, how.adapted.get("positions", "bicubic"), there)


def _check_free(source: Source, there: Path, overwrite: bool) -> None:
    """Raise UserError where a file would be overwritten: one that is read, always."""
    for path in (there, card_path(there)):
        if not path.is_file():
            continue
        if any(path.samefile(file) for file in source.files if file.exists()):
            raise UserError(f"{path} is what is read: write to another name")
        if not overwrite:
            raise UserError(f"{path} exists already: choose another name, or say --overwrite")


def _many(source: Path) -> list[Path]:
    """The weight files of a folder that is itself no model, run or checkpoint."""
    if not source.is_dir() or any((source / name).exists() for name in _MODEL_FOLDER):
        return []
    if any(child.name.startswith("step_") for child in source.iterdir()):
        return []
    return sorted(
        child for child in source.iterdir() if child.suffix in SUFFIXES and child.is_file()
    )


def _pairs(files: list[Path], folder: Path, to: str) -> list[tuple[Path, Path]]:
    """`(file, file to write)` for many files."""
    pairs = [(file, folder / (file.stem + suffixes_of(to)[0])) for file in files]
    names = Counter(there for _, there in pairs)
    twice = next((there for there, count in names.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"two files of {files[0].parent} would be written to {twice}: rename one")
    if (folder.exists() and not folder.is_dir()) or not folder.parent.is_dir():
        raise UserError(f"cannot write into {folder}: expected a folder, or a new name in one")
    return pairs


def _say(source: Source, cfg: ModelConfig) -> None:
    step = "" if source.step is None else f", step {source.step}"
    act = f"{cfg.gelu} GELU" if cfg.activation == "gelu" else cfg.activation
    origin = "" if source.origin is None else f", {source.origin.describe()}"
    print(
        f"found {source.format} in {source.path}{step}{origin}: width {cfg.width}, "
        f"depth {cfg.depth}, {cfg.num_heads} heads, patch {cfg.patch_size}, "
        f"image {shown(cfg.image_shape)}, {cfg.num_classes} classes, {act}, "
        f"eps {cfg.norm_eps:g}, pooling by {cfg.pool}"
    )
    if source.assumed:
        print(f"the file does not say, taken as usual: {'; '.join(source.assumed)}")
    print(f"input: {describe_input(cfg)}")
    for notice in source.notices:
        print(f"notice: {notice}", file=sys.stderr)
