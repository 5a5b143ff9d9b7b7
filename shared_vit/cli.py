"""The `twinvit` command: one table of subcommands, each a typed function in the module that does the work."""

import importlib
import sys

from shared_vit.errors import UserError, nearest, run_main

# name: (module, function, what it does); a module is imported only when its command runs.
COMMANDS = {
    "parity": ("shared_vit.parity", "parity", "train both twins from the same flags and judge their curves"),
    "curves": ("shared_vit.parity", "curves", "judge the curves of two runs on disk, by the noise rule"),
    "compare": ("shared_vit.compare_models", "compare", "the same inputs through two models, layer by layer"),
    "convert": ("shared_vit.weights.convert", "convert", "weights from any known format to any other"),
    "prepare": ("shared_vit.data.prepare", "prepare", "ImageNet's tars to class folders; check a folder's images"),
}

USAGE = "usage: twinvit COMMAND [flags]   (twinvit COMMAND --help tells a command's flags)\n\n" + "\n".join(
    f"  {name:<9}{text}" for name, (_, _, text) in COMMANDS.items()
)


def _main() -> int | None:
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] not in COMMANDS:
        raise UserError(f"unknown command {args[0]!r}{nearest(args[0], COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    module, function, _ = COMMANDS[args[0]]
    command = getattr(importlib.import_module(module), function)
    if getattr(command, "takes_training_flags", False):
        return command(args[1:])
    import tyro

    return tyro.cli(command, args=args[1:], prog=f"twinvit {args[0]}", use_underscores=True)


def main() -> None:
    run_main(_main)
