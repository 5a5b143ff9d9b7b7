"""`RuntimeConfig`: everything about a run that changes its curve by rounding at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from shared_vit.errors import UserError
from shared_vit.spec.settings import restore, setting


def keep_count(text: str) -> int:
    """The value of --keep: a number, or `all` as 0. Raises UserError."""
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--keep must be a number of at least 1, or all, not {text}")
    return int(text)


@dataclass(frozen=True)
class RuntimeConfig:
    """Devices, processes, workers, paths, intervals and logging of a run."""

    data_dir: str | None = setting(
        None,
        "Where the data are: a folder with train/ and val/ class folders, or the data_dir of TFDS.",
        group="data",
        open="the usual places",
    )
    on_bad_image: Literal["stop", "skip"] = setting(
        "stop",
        "What to do about an image that cannot be decoded: stop, or use its neighbour and count "
        "it.",
        group="data",
    )
    check_images: Literal["off", "on"] = setting(
        "off",
        "on: decode every image once before the first step, and name those that cannot be decoded.",
        group="data",
        historical="off",
    )
    data_check: Literal["sampled", "full"] = setting(
        "sampled",
        "What the content of an image folder is known again by: a checksum of 256 of its files, or "
        "of all of them as well, read at each start.",
        group="data",
        historical="sampled",
    )
    workers: int | None = setting(
        None,
        "Processes that decode images; 0: threads only.",
        group="data",
        ge=0,
        le=1024,
        open="chosen from the cores",
    )
    device: Literal["cpu", "gpu"] = setting(
        "cpu", "Kind of device.", group="machine", open="GPUs where there are any"
    )
    world_size: int = setting(
        1,
        "Devices to use on this host.",
        group="machine",
        ge=1,
        le=4096,
        open="every GPU, else one",
    )
    compile: Literal["on", "off"] | None = setting(
        None,
        "torch.compile in the PyTorch twin. JAX always compiles.",
        group="machine",
        open="on for GPUs",
    )
    remat: Literal["none", "block"] = setting(
        "none",
        "block: store only the input of each block, and recompute the block in the backward "
        "pass, for one more forward pass.",
        group="machine",
        historical="none",
    )
    shard: Literal["none", "params"] = setting(
        "none",
        "params: each device stores its shard of the parameters and of the optimizer's state.",
        group="machine",
        historical="none",
    )
    run_dir: str | None = setting(
        None,
        "Where the run is written.",
        group="run",
        open="runs/<preset>-<framework>, numbered where that is taken",
    )
    stop_at: int | None = setting(
        None,
        "Save after this many updates and exit with status 0; the schedule's length is unchanged.",
        group="run",
        ge=1,
    )
    eval_every: int = setting(
        0,
        "Evaluate every this many updates, and at the end; 0: only at the end.",
        group="run",
        ge=0,
        open="each epoch",
    )
    checkpoint_every: int = setting(
        0,
        "Save every this many updates, and at the end; 0: only at the end.",
        group="run",
        ge=0,
        open="as often as it evaluates",
    )
    keep: int = setting(
        2, "Checkpoints to keep: a number, or all.", group="run", parse=keep_count, metavar="N|all"
    )
    keep_best: Literal["off", "val_top1", "val_loss", "val_top1_ema"] = setting(
        "off",
        "Save at each evaluation that is the best so far by this metric, and keep that checkpoint "
        "in addition to the newest ones. best.json names it; it is used only on request.",
        group="run",
        historical="off",
    )
    wandb: Literal["off", "offline", "online"] = setting(
        "off", "Log to Weights & Biases as well.", group="run"
    )
    tensorboard: Literal["off", "on"] = setting(
        "off",
        "Write event files for TensorBoard as well, in tensorboard/ of --run_dir.",
        group="run",
        historical="off",
    )
    log_every: int = setting(
        1,
        "Updates from one that is shown, and sent to Weights & Biases and TensorBoard, to the "
        "next; evaluations always are. metrics.jsonl has every update, whatever this is.",
        group="run",
        ge=1,
        historical=1,
    )
    coordinator: str | None = setting(
        None, "Several processes of JAX: host:port of process 0.", group="hosts"
    )
    num_processes: int = setting(
        1,
        "Several processes of JAX: how many there are.",
        group="hosts",
        ge=1,
        le=100_000,
        open="one, or what SLURM says",
    )
    process_id: int = setting(
        0,
        "Several processes of JAX: the number of this one.",
        group="hosts",
        ge=0,
        open="0, or what SLURM says",
    )

    WRITTEN_ALWAYS: ClassVar = frozenset(
        ("data_check", "remat", "shard", "keep_best", "tensorboard", "log_every")
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "machine") -> RuntimeConfig:
        """From the dictionary of `dataclasses.asdict` or its JSON. Raises UserError."""
        return restore(cls, values, where)
