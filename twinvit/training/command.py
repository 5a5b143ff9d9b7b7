"""The training scripts, `twinvit train` and `twinvit evaluate`: flags to a run of one twin."""

from __future__ import annotations

import importlib
import os
import signal
import sys

from shared_vit.errors import UserError, run_main
from shared_vit.run.command_line import parse
from shared_vit.run.interrupt import EXIT_INTERRUPTED
from twinvit.frameworks import FRAMEWORKS, take_framework

EVALUATE_HELP = """\
usage: twinvit evaluate RUN_OR_WEIGHTS [--framework={torch,jax}] [--flag=value ...]

Evaluates a run's newest checkpoint, one of its checkpoints, or weights in any format that
`twinvit convert` reads, on disk or as hf:OWNER/NAME[@REVISION][/FILE] on the Hugging Face hub, each
example of the validation split once. A run knows its data; for other weights name them by --preset,
or --data and --data_dir. PyTorch evaluates unless --framework=jax.

`twinvit train --help` lists the other flags, of which --image_size, --positions, --eval_resize,
--batch_size, --precision, --device, --world_size and --workers make sense here.
"""


def main(framework: str) -> None:
    """The main function of a training script; ends the process."""
    run_main(lambda: run(framework, sys.argv[1:], prog=f"train_{framework}.py"))


def train(argv: list[str]) -> int:
    """`twinvit train --framework={torch,jax}` and the flags of the training scripts."""
    framework, rest = take_framework(argv)
    if framework is None and {"-h", "--help"} & set(argv):
        framework = "torch"  # both take the same flags
    if framework is None:
        raise UserError(f"twinvit train needs --framework={' or --framework='.join(FRAMEWORKS)}")
    return run(framework, rest, prog="twinvit train")


def evaluate(argv: list[str]) -> int:
    """`twinvit evaluate RUN_OR_WEIGHTS`: --mode=eval with --init_from, in PyTorch by default."""
    if {"-h", "--help"} & set(argv):
        print(EVALUATE_HELP, end="")
        return 0
    framework, rest = take_framework(argv)
    if not rest or rest[0].startswith("-"):
        raise UserError("twinvit evaluate needs a run or a weight file: twinvit evaluate RUN")
    path, *flags = rest
    argv = ["--mode=eval", f"--init_from={path}", *flags]
    return run(framework or "torch", argv, prog="twinvit evaluate")


def _before_the_loop(*_: object) -> None:
    """A scheduler that stops a job while it starts gets the exit status that means "start again",
    as later."""
    print("SIGTERM: the run has not begun, nothing to save", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


def run(framework: str, argv: list[str], prog: str) -> int:
    """Train or evaluate by the flags; returns the exit status. Raises UserError."""
    signal.signal(signal.SIGTERM, _before_the_loop)
    requested = parse(argv, prog)
    # Imported after the flags are read, so that --help does not wait for the framework.
    return importlib.import_module(f"{framework}_vit.train").train(requested)
