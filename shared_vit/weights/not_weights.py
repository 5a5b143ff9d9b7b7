"""Files found where weights were expected, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HEAD = 512  # first bytes by which they are identified
HDF5, _ONE_ARRAY = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"


def what_it_is(head: bytes) -> str:
    """A sentence for a file that is no weight file, from its first `HEAD` bytes."""
    start = head.lstrip().lower()
    if not head:
        return "it is empty: it was not written or downloaded completely"
    if head.startswith(b"version https://git-lfs"):
        return (
            "it is a pointer of git-lfs, which stands for the weights: `git lfs pull` in its "
            "repository fetches them"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return (
            "it is a web page: download the file itself (on the Hugging Face hub the address has "
            "/resolve/, and not /blob/)"
        )
    if start.startswith((b"{", b"[")):
        return "it is JSON: name the weight file itself, or its folder"
    if head.startswith(HDF5):
        return (
            "it is HDF5, as Keras and MATLAB write it, which says no names of ours: `twinvit port` "
            "compares a Keras model itself"
        )
    if head.startswith(_ONE_ARRAY):
        return (
            "it has NumPy arrays without names (numpy.save, equinox.tree_serialise_leaves): save "
            "them with their names, as .npz or safetensors"
        )
    if head[:1] == b"\x08" and b"pytorch" in head:
        return (
            "it is a program of ONNX, which no longer has the model's names: convert the weights "
            "that it was exported from"
        )
    return "its first bytes are of none of them"


def archive_of_another_kind(names: Sequence[str]) -> str | None:
    """A sentence for a zip archive of these entries that is no file of weights."""
    entries = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in entries:
        return (
            "a program of TorchScript: torch.save(torch.jit.load(FILE).state_dict(), OTHER) saves "
            "its weights"
        )
    if "archive_format" in entries:
        return (
            "a program of torch.export: torch.save(torch.export.load(FILE).state_dict, OTHER) "
            "saves its weights"
        )
    if "model.weights.h5" in entries:
        return "a model of Keras: `twinvit port` compares it itself"
    return None


def folder_of_another_kind(folder: Path) -> str | None:
    """A sentence for a folder of arrays or programs that this project does not read."""
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        return (
            "a checkpoint of torch.distributed.checkpoint, whose plan is Python objects: `python "
            "-m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth` makes one "
            "file of it"
        )
    if (folder / "adapter_config.json").is_file():
        return (
            "an adapter of PEFT, which is added to another model's weights: "
            "model.merge_and_unload().save_pretrained(FOLDER) saves the sum"
        )
    if (folder / "saved_model.pb").is_file():
        return "a program of TensorFlow (SavedModel): convert the weights that it was made from"
    return None


def checkpoints_below(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` that a trainer of transformers left in a folder, newest last."""
    found = [p for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name[11:]))
