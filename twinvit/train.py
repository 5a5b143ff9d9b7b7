"""`train_jax.py`, `train_torch.py` and `twinvit train`: flags to a run of one of the twins."""

import importlib
import os
import signal
import sys

from shared_vit.errors import UserError, run_main
from shared_vit.run.command_line import parse
from shared_vit.run.interrupt import EXIT_INTERRUPTED

FRAMEWORKS = ("torch", "jax")


def main(framework: str) -> None:
    """The main function of a training script; ends the process."""
    run_main(lambda: run(framework, sys.argv[1:], prog=f"train_{framework}.py"))


def train(argv: list[str]) -> int:
    """`twinvit train --framework={torch,jax}` and the flags of the training scripts."""
    rest = [arg for arg in argv if not arg.startswith("--framework=")]
    given = [arg.split("=", 1)[1] for arg in argv if arg.startswith("--framework=")]
    if len(given) != 1 or given[0] not in FRAMEWORKS:
        raise UserError(f"twinvit train needs --framework={' or --framework='.join(FRAMEWORKS)}")
    return run(given[0], rest, prog="twinvit train")


train.takes_training_flags = True


def _before_the_loop(*_: object) -> None:
    """A scheduler that stops a job while it starts is told to start it again, as later."""
    print("SIGTERM: the run has not begun, nothing to save", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


def run(framework: str, argv: list[str], prog: str) -> int:
    """Train or evaluate by the flags; returns the exit status. Raises UserError."""
    signal.signal(signal.SIGTERM, _before_the_loop)
    cfg = parse(argv, prog)
    # After the flags, so that `--help` does not wait for the framework.
    return importlib.import_module(f"{framework}_vit.train").train(cfg)
