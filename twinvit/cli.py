"""The `twinvit` command: a table of its subcommands, each a function in a module of its own."""

from __future__ import annotations

import importlib
import inspect
import shlex
import sys
import traceback

import jax_vit  # noqa: F401 - registers the reader of orbax's folders; imports no framework
import torch_vit  # noqa: F401 - registers the reader of .pth files; imports no framework
from shared_vit.cli.function_command import run
from shared_vit.errors import UserError, nearest, run_main
from shared_vit.version import __version__
from twinvit.pages import verdicts

# name: (module, function, what it does); a module is imported only when its command runs.
COMMANDS = {
    "train": (
        "twinvit.training.command",
        "train",
        "train or evaluate one twin (train_jax.py and train_torch.py)",
    ),
    "evaluate": (
        "twinvit.training.command",
        "evaluate",
        "a run's newest checkpoint, or any weights, on the validation split",
    ),
    "predict": ("twinvit.predict.command", "predict", "class names and probabilities of images"),
    "embed": (
        "twinvit.predict.embed",
        "embed",
        "features of images, what a model's head is given, to an .npz",
    ),
    "presets": ("twinvit.presets", "presets", "the named settings, with published accuracies"),
    "models": ("twinvit.models", "models", "every named model: sizes, family, paper, formats"),
    "parity": (
        "twinvit.parity.command",
        "parity",
        "train both twins from the same flags and judge their curves",
    ),
    "curves": (
        "twinvit.parity.curves",
        "curves",
        "plot runs on disk, and judge two of them by the noise rule",
    ),
    "audit": (
        "twinvit.lockstep.audit",
        "audit",
        "the next step from every checkpoint of a run, taken by both twins",
    ),
    "report": ("twinvit.parity.proofs", "report", "an HTML page of each proof on disk"),
    "compare": (
        "twinvit.compare.command",
        "compare",
        "the same inputs through two models, layer by layer",
    ),
    "convert": ("twinvit.convert.command", "convert", "weights from any known format to any other"),
    "export": (
        "twinvit.programs.command",
        "export",
        "a program of either twin that runs without this package: torch, jax, onnx",
    ),
    "port": ("twinvit.port.cli", "main", "explain a port of any model: what is wrong, and where"),
    "prepare": (
        "shared_vit.data.prepare",
        "prepare",
        "ImageNet's tars to class folders; check a folder's images",
    ),
}

# Commands with a verdict exit with 0 same, 1 different, 2 undecided, 3 where they reached none:
JUDGES, NO_VERDICT = ("parity", "curves", "audit", "compare", "convert", "export"), 3

OF_PORT = ("explain", "map", "blind_spots", "causes")

USAGE = (
    "usage: twinvit COMMAND [flags]   (twinvit COMMAND --help lists a command's flags)\n\n"
    + "\n".join(f"  {name:<9}{text}" for name, (_, _, text) in COMMANDS.items())
)


def _main() -> int | None:
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"twinvit {__version__}")
        return 0
    name = args[0].replace("-", "_")
    if name in COMMANDS:
        args[0] = name
    if args[0] not in COMMANDS:
        hint = nearest(args[0], COMMANDS)
        if name in OF_PORT:
            hint = f"; did you mean `twinvit port {name}`?"
        raise UserError(f"unknown command {args[0]!r}{hint} Commands: {', '.join(COMMANDS)}.")
    module, function, _ = COMMANDS[args[0]]
    verdicts.command_line.set(shlex.join(["twinvit", *args]))
    command = getattr(importlib.import_module(module), function)
    if list(inspect.signature(command).parameters) == ["argv"]:  # it reads its flags itself
        return command(args[1:])
    status: int | None = run(command, args[1:], f"twinvit {args[0]}")
    return status


def _judge() -> int | None:
    """`_main`, with another status than a verdict's where there is none."""
    try:
        return _main()
    except SystemExit as error:  # wrong arguments
        return NO_VERDICT if error.code == 2 else error.code  # type: ignore[return-value]
    except (UserError, KeyboardInterrupt):
        raise
    except Exception:
        traceback.print_exc()
        return NO_VERDICT


def main() -> None:
    judges = len(sys.argv) > 1 and sys.argv[1] in JUDGES
    run_main(_judge, NO_VERDICT) if judges else run_main(_main)
