"""From a path to files: the weights, and the JSON files that say what no array does."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_vit.checksummed import parse_object, read_checksummed
from shared_vit.errors import UserError
from shared_vit.files import open_regular, read_limited
from shared_vit.weights import checkpoints, hub
from shared_vit.weights.choice import Which, split_choice
from shared_vit.weights.formats.huggingface.kinds import MODEL_TYPES
from shared_vit.weights.formats.timm_architectures import named
from shared_vit.weights.not_weights import checkpoints_below, folder_of_another_kind

AVERAGE = "ema.safetensors"  # the averaged weights in a run's checkpoint
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".msgpack")
_LONGEST_JSON = 1 << 26  # bytes; an index of shards or 20,000 labels take 2 MB
_MOST_SHARDS = 500  # each stays open
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "flax_model.msgpack",
)
_OF_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
_WITH_CONFIG = (
    "model",
    "pytorch_model",
    "flax_model",
)  # how files begin that a config.json next to them is about

TIMM_WRAPPER = "timm_wrapper"

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class Located:
    """The files of a path. JSON objects are None where there is no such file."""

    path: Path
    files: list[Path]  # one, or the shards of one
    config: JsonObject | None = None  # config.json of Hugging Face or timm
    processor: JsonObject | None = None  # preprocessor_config.json
    card: JsonObject | None = None  # what this project wrote next to another program's file
    step: int | None = None  # of a checkpoint
    notices: list[str] = field(default_factory=list)
    origin: hub.Origin | None = None  # of files that were downloaded
    which: Which | None = None  # of averaged and raw weights, as the path requests


def locate(path: Path) -> Located:
    """What belongs to a path, which may end in `#ema` or `#raw`: see `_locate`.

    The averaged weights of a run's checkpoint are a file of their own.
    """
    path, which = split_choice(path)
    found = _locate(path)
    file = found.files[0]
    average = file.with_name(AVERAGE)
    if file.name == checkpoints.MODEL and file.with_name(checkpoints.STATE).exists():
        if which == "ema" and not average.exists():
            raise UserError(f"{path} has no average of its weights (--ema): leave #ema out")
        if which == "ema":
            return dataclasses.replace(found, files=[average])
        if average.exists() and which is None:
            notice = f"the weights of {path} are taken; their moving average is {path}#ema"
            found.notices.append(notice)
        return found
    return dataclasses.replace(found, which=which)


def _locate(path: Path) -> Located:
    """What belongs to a weight file, a run or checkpoint directory, a model folder, or a name of
    the hub, of which it downloads what it needs.

    Of a run it is its newest intact checkpoint, as when it is resumed; a notice names those that
    were skipped. Raises UserError where there is nothing.
    """
    if hub.is_name(path):
        return _downloaded(path)
    if not path.exists():
        raise UserError(
            f"{path} is not there: expected a weight file, a run or checkpoint directory, a model "
            "folder, or hf:OWNER/NAME of the Hugging Face hub"
        )
    if not path.is_dir():
        return dataclasses.replace(_with_json(path, [path]), step=_step_of(path))
    if (path / checkpoints.STATE).exists():
        step = _step(checkpoints.opened(path).document)
        return Located(path, [path / checkpoints.MODEL], step=step)
    inner = path / "checkpoints"
    run_dir = path if inner.is_dir() else path.parent
    found = checkpoints.newest_in(inner if inner.is_dir() else path, _of_run(run_dir))
    if found is not None:
        notices = [f"skipped a checkpoint, {line}" for line in found.skipped]
        return Located(path, [found.path / checkpoints.MODEL], step=found.step, notices=notices)
    for name in _IN_FOLDER:
        file = path / name
        if file.exists():
            return _with_json(path, _shards(file) if name.endswith(".json") else [file])
    if (tree := _orbax(path)) is not None:
        return Located(path, [tree])
    if (newest := _newest_step(path)) is not None:
        return Located(path, [newest], notices=[f"of the checkpoints in {path} {newest} is read"])
    if below := checkpoints_below(path):
        names = ", ".join(folder.name for folder in below[-4:])
        raise UserError(
            f"{path} has no weights of its own, and the checkpoints {names} in it: name one of "
            f"them, {below[-1]}"
        )
    if (kind := folder_of_another_kind(path)) is not None:
        raise UserError(f"{path} is {kind}")
    raise UserError(
        f"{path} is a folder without weights: expected checkpoints/step_N, model.safetensors, "
        "pytorch_model.bin, flax_model.msgpack or a checkpoint of orbax in it"
    )


def _orbax(folder: Path) -> Path | None:
    """The folder of orbax's arrays: this one, or the one item in it."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and (p / "_METADATA").exists())
    if len(inner) == 1:
        return inner[0]
    return folder if any((folder / name).exists() for name in _OF_ORBAX) and not inner else None


def _newest_step(folder: Path) -> Path | None:
    """The newest of Flax's files `checkpoint_N`, or the arrays in the newest of the folders that
    orbax's manager makes of steps, as their own programs restore it."""
    found: list[tuple[int, Path]] = []
    for path in folder.iterdir():
        step = re.fullmatch(r"(?:\w+_)?(\d{1,15})", path.name)
        if step is None:
            continue
        if path.is_file() and path.name.startswith("checkpoint_"):
            found.append((int(step[1]), path))
        elif path.is_dir() and (tree := _orbax(path)) is not None:
            found.append((int(step[1]), tree))
    return max(found)[1] if found else None


def card_path(file: Path) -> Path:
    """The JSON file that goes with another program's weight file: function, checksum, how to load
    it."""
    return file.with_name(file.name + ".json")


def checksum(file: Path) -> str:
    """SHA-256 of a file, or of the files of a folder, in hexadecimal."""
    if file.is_dir():
        inner = sorted(p for p in file.rglob("*") if p.is_file())
        lines = (f"{checksum(p)} {p.relative_to(file)}" for p in inner)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else."""
    try:
        return parse_object(path, read_limited(path, _LONGEST_JSON))
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _of_run(run_dir: Path) -> checkpoints.Accept | None:
    """The checkpoints of the run in a folder; None where its config.json has no identity."""
    try:
        document = read_checksummed(run_dir / "config.json")
    except (FileNotFoundError, UserError):  # of version 1, or no run's
        return None
    return checkpoints.of_run(document.get("id"), document.get("first_version"))


def _step_of(file: Path) -> int | None:
    """The step of the checkpoint that a file is the model of; None for other files."""
    if file.name != checkpoints.MODEL:
        return None
    try:
        return _step(read_checksummed(file.with_name(checkpoints.STATE)))
    except (FileNotFoundError, UserError):  # no state, or another program's
        return None


def _step(state: JsonObject) -> int | None:
    step = state.get("step")
    return step if isinstance(step, int) else None


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index} has no weight_map of file names")
    names = sorted(set(table.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index}: its weight_map leaves the folder")
    if not 0 < len(names) <= _MOST_SHARDS:
        raise UserError(f"{index} names {len(names)} files: expected 1 to {_MOST_SHARDS}")
    return [index.parent / name for name in names]


def _downloaded(path: Path) -> Located:
    """The config before the weights, so that another kind of model is refused before it is here."""
    repository = hub.Repository(str(path))
    folder, slash, name = repository.file.rpartition("/")
    if not name or name.startswith(_WITH_CONFIG):
        config = repository.find(f"{folder}{slash}config.json")
        theirs = _foreign_config(config, f"config.json of {path}") if config else None
        if theirs and "model_type" in theirs:
            repository.find(f"{folder}{slash}preprocessor_config.json")
        architecture = str(theirs.get("architecture", "vit")) if theirs else "vit"
        known = re.match("vit|deit", architecture) or named(architecture[:200])
        if not known:  # and not mobilevit or maxvit
            raise UserError(
                f"config.json of {path} says architecture = {architecture!r:.80}, expected a ViT"
            )
    if name:
        files = [repository.need(repository.file)]
        repository.find(f"{folder}{slash}{card_path(files[0]).name}")
    else:
        found = next((file for file in map(repository.find, _IN_FOLDER) if file is not None), None)
        if found is None:
            raise UserError(
                f"{path} has no {', '.join(_IN_FOLDER)} at revision {repository.revision}: name "
                f"its weight file, {path}/FILE"
            )
        files = [found]
        if found.suffix == ".json":
            files = [repository.need(shard.name) for shard in _shards(found)]
    return dataclasses.replace(_with_json(path, files), origin=repository.origin(files))


def _foreign_config(config: Path, where: str) -> JsonObject | None:
    """A config.json of Hugging Face's or timm's; None for a run's, or another program's. Raises
    UserError for a Hugging Face model that is no ViT."""
    theirs = read_json(config)
    if "model_type" not in theirs and "architecture" not in theirs:
        return None
    if theirs.get("model_type") == TIMM_WRAPPER:  # transformers' folder of a model of timm's
        return {key: value for key, value in theirs.items() if key != "model_type"}
    said = theirs.get("model_type", "vit")
    if not isinstance(said, str) or said not in MODEL_TYPES:
        raise UserError(
            f"{where} says model_type = {said!r:.80}, expected one of {', '.join(MODEL_TYPES)}"
        )
    return theirs


def _with_json(path: Path, files: list[Path]) -> Located:
    file = files[0]
    card = card_path(file)
    content = read_json(card) if card.exists() else {}
    own = content if "model_config" in content and "sha256" in content else None
    config = file.parent / "config.json"
    if not config.is_file() or not file.name.startswith(_WITH_CONFIG):
        return Located(path, files, card=own)
    theirs = _foreign_config(config, str(config))
    if theirs is None:
        return Located(path, files, card=own)
    processor = file.parent / "preprocessor_config.json"
    return Located(path, files, theirs, read_json(processor) if processor.exists() else None, own)
