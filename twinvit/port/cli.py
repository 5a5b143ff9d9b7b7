"""`twinvit port explain | record | map | blind_spots | causes`."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_vit.cli.parser import Parser
from twinvit.pages import verdicts
from twinvit.port import command_verdicts as told
from twinvit.port.command_inputs import arrays_of, check_writable, inputs, jax_inputs, load
from twinvit.port.errors import PortError

if TYPE_CHECKING:
    from twinvit.port.report import Report

SAME, DIFFERENT, UNDECIDED, NO_VERDICT = 0, 1, 2, 3


class _Parser(Parser):
    """Leaves with status 3 where the arguments are wrong: 2 means undecided."""

    status = NO_VERDICT


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    top = _Parser(
        prog="twinvit port",
        description="Explain a port between PyTorch and JAX: what is wrong, where, and the proof.",
        epilog="exit status: 0 same, 1 different, 2 undecided (the report says why), 3 no verdict "
        "(wrong arguments, a model that does not import or run, or an error of this program)",
    )
    commands = top.add_subparsers(dest="command", required=True)
    _explain_flags(commands)
    _record_flags(commands)
    mapped = commands.add_parser("map", help="propose a map of weights")
    mapped.add_argument("torch_model", metavar="pkg.mod:make_torch", help="as of explain")
    mapped.add_argument("jax_model", metavar="pkg.mod:make_jax", help="as of explain")
    mapped.add_argument("-o", "--out", type=Path, required=True, help="the map's file, TOML")
    _verdict_flags(mapped, "the map and its verdict")
    blind = commands.add_parser("blind_spots", help="what a test with this tolerance lets through")
    blind.add_argument("torch_model", metavar="pkg.mod:make_torch", help="as of explain")
    _inputs(blind)
    blind.add_argument("--atol", type=float, default=1e-5, help="the test's absolute tolerance")
    blind.add_argument("--rtol", type=float, default=0.0, help="the test's relative tolerance")
    blind.add_argument(
        "--metric",
        default="allclose",
        choices=("allclose", "cosine", "kl", "top1"),
        help="what the test compares by",
    )
    _verdict_flags(blind, "what passes and the verdict")
    commands.add_parser("causes", help="print the catalogue")
    for listed in commands._choices_actions:
        commands.choices[listed.dest].description = _sentence(listed.help or "")
    for command in commands.choices.values():
        command.add_argument(
            "--traceback", action="store_true", help="show where an error comes from"
        )
    return top


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _explain_flags(commands: Any) -> None:
    p = commands.add_parser("explain", help="the port = the reference + these edits")
    p.add_argument(
        "torch_model",
        metavar="pkg.mod:make_torch",
        help="an nn.Module, or a function that makes one; a file works as well: net.py:make; or a "
        "recording, of the side that is right",
    )
    p.add_argument(
        "jax_model",
        metavar="pkg.mod:make_jax",
        help="the port, or a function that makes it; one that "
        "takes an argument is given the PyTorch model; or a recording",
    )
    _inputs(p)
    p.add_argument(
        "--jax-shape",
        dest="jax_shapes",
        action="append",
        default=[],
        metavar="2,224,224,3",
        help="an input's shape as the port takes it: the same numbers with their axes in this "
        "order; once for each input",
    )
    p.add_argument("--weights", default="as_is", help="as_is (default), transfer, or a map's file")
    p.add_argument(
        "--output", default=None, help="name or number of the compared array of a structured output"
    )
    p.add_argument(
        "--reference",
        default=None,
        choices=("torch", "jax"),
        help="the side that is right, torch by default (of recordings the first): texts speak of "
        "the other, which is to be changed",
    )
    p.add_argument("--grad", action="store_true", help="compare gradients, too")
    p.add_argument("--train", action="store_true", help="compare train mode, too")
    p.add_argument("--html", type=Path, default=None, help="write the report as a page")
    _verdict_flags(p, "the report")


def _verdict_flags(p: argparse.ArgumentParser, what: str) -> None:
    p.add_argument(
        "--json",
        nargs="?",
        const="-",
        default=None,
        metavar="PATH",
        help=f"write {what} as JSON to a file, or without a path (or with -) to standard "
        "output, where nothing else is written then",
    )
    p.add_argument("--quiet", action="store_true", help="print the verdict's line only")
    p.add_argument(
        "--github", action="store_true", help="print annotations of a GitHub workflow, too"
    )


def _record_flags(commands: Any) -> None:
    p = commands.add_parser(
        "record", help="write one model's program into a folder, where the other is not installed"
    )
    p.add_argument("model", metavar="pkg.mod:make", help="a model, or a function that makes one")
    p.add_argument("--framework", required=True, choices=("torch", "jax"))
    p.add_argument("-o", "--out", type=Path, required=True, help="the folder to make")
    p.add_argument(
        "--inputs",
        dest="inputs_file",
        type=Path,
        default=None,
        metavar="inputs.npz",
        help="arrays as the PyTorch model takes them, the same for both sides; names but arr_0, "
        "arr_1 are those of its arguments",
    )
    _inputs(p)
    p.add_argument(
        "--jax-inputs",
        dest="jax_inputs_file",
        type=Path,
        default=None,
        metavar="own.npz",
        help="arrays as the JAX model takes them, where it takes others",
    )
    p.add_argument("--grad", action="store_true", help="so that gradients can be compared")
    p.add_argument("--train", action="store_true", help="so that train mode can be compared")
    p.add_argument("--quiet", action="store_true", help="print nothing")


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _inputs(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--shape",
        dest="inputs",
        type=lambda text: ("--shape", text),
        action="append",
        default=[],
        metavar="2,3,224,224",
        help="an input's shape as PyTorch takes it; once for each input, in their order",
    )
    p.add_argument(
        "--int",
        dest="inputs",
        type=lambda text: ("--int", text),
        action="append",
        metavar="2,16:100",
        help="an integer input's shape and upper bound, in place of --shape",
    )
    p.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        default=0,
        help="of the inputs, drawn from a standard normal distribution",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 same, 1 different, 2 undecided, 3 no verdict.

    Raises SystemExit where the arguments are wrong (3) or help was requested (0).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-"):
        given[0] = given[0].replace("-", "_")
    arguments = parser().parse_args(given)
    arguments.command_line = shlex.join(["twinvit", "port", *given])
    verdicts.command_line.set(arguments.command_line)
    try:
        return _COMMANDS[arguments.command](arguments)
    except PortError as error:
        message = str(error)
        cause: BaseException = error
    except (Exception, SystemExit) as error:  # SystemExit(0) of a model would say: the same
        message = f"no verdict, an unexpected {_one_line(error)}; --traceback shows where"
        cause = error
    if arguments.traceback:
        traceback.print_exception(cause)
    print(f"error: {message}", file=sys.stderr)
    return NO_VERDICT


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _models(arguments: argparse.Namespace) -> tuple[Any, Any]:
    _need("torch")
    _need("jax")
    model = load(arguments.torch_model)
    return model, load(arguments.jax_model, model)


def _need(framework: str, why: str = "explaining a port needs both frameworks") -> None:
    try:
        importlib.import_module(framework)
    except ImportError as error:
        raise PortError(f"{framework} is not installed; {why}") from error


def _progress() -> Callable[[str], None]:
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def _explain(arguments: argparse.Namespace) -> int:
    from twinvit.port.recording.folder import is_recording

    flags = _flags(arguments)
    verdicts.clear(flags.json)
    paths = (arguments.torch_model, arguments.jax_model)
    recorded = [is_recording(path) for path in paths]
    if any(recorded) and not all(recorded):
        raise PortError(
            f"{paths[recorded.index(False)]} is no recording, and the other is; give two "
            "recordings or two models"
        )
    if recorded[0] and (arguments.inputs or arguments.jax_shapes):
        raise PortError("recordings hold their inputs; leave --shape, --int and --jax-shape out")
    explained = _of_recordings if recorded[0] else _of_models
    check_writable(arguments.html)
    with verdicts.printing(verdicts.Flags(flags.json)):
        report = explained(
            arguments,
            weights=arguments.weights,
            what=_what(arguments),
            output=arguments.output,
            progress=None if arguments.quiet else _progress(),
        )
        report.seed, report.command = arguments.seed, arguments.command_line
        _print(report, arguments)
    if arguments.json is not None:
        report.to_json(arguments.json)
    if arguments.html is not None:
        report.to_html(arguments.html)
    return report.exit_status


def _what(arguments: argparse.Namespace) -> tuple[str, ...]:
    chosen = [k for k in ("grad", "train") if getattr(arguments, k)]
    return ("forward", *chosen)


def _of_models(arguments: argparse.Namespace, **rest: Any) -> Report:
    arrays = inputs(arguments)
    given = jax_inputs(arguments.jax_shapes, arrays)
    model, jax_model = _models(arguments)
    from twinvit.port.explainer import explain

    side = arguments.reference or "torch"
    return explain(model, jax_model, arrays, jax_inputs=given, reference=side, **rest)


def _of_recordings(arguments: argparse.Namespace, **rest: Any) -> Report:
    _need("torch")
    _need("jax")
    from twinvit.port.recording.explain import explain_recordings

    paths = arguments.torch_model, arguments.jax_model
    return explain_recordings(*paths, right=arguments.reference, **rest)


def _record(arguments: argparse.Namespace) -> int:
    from twinvit.port.recording.folder import check_new
    from twinvit.port.recording.record import record_model

    check_new(arguments.out)
    if arguments.inputs_file is not None and arguments.inputs:
        raise PortError("give --inputs, or --shape and --int, not both")
    file = arguments.inputs_file
    arrays = inputs(arguments) if file is None else arrays_of(file)
    own = None if arguments.jax_inputs_file is None else arrays_of(arguments.jax_inputs_file)
    _need(arguments.framework, "recording its model needs it")
    record_model(
        arguments.out,
        load(arguments.model),
        arrays,
        framework=arguments.framework,
        what=_what(arguments),
        jax_inputs=own,
        progress=None if arguments.quiet else _progress(),
    )
    return SAME


def _print(report: Report, arguments: argparse.Namespace) -> None:
    """The report or its first line, and annotations; on standard error where standard output is
    the JSON's."""
    from twinvit.port.annotations import workflow_commands
    from twinvit.port.report_text import verdict_line

    lines = [verdict_line(report) if arguments.quiet else str(report)]
    if arguments.github:
        lines += workflow_commands(report)
    verdicts.print_safely("\n".join(lines), sys.stdout)


def _flags(arguments: argparse.Namespace) -> verdicts.Flags:
    """How the verdict is said. Raises PortError for a path that no file can be written to."""
    if why := verdicts.not_writable(arguments.json):
        raise PortError(f"--json {arguments.json}: {why}")
    return verdicts.Flags(arguments.json, arguments.quiet, arguments.github)


def _map(arguments: argparse.Namespace) -> int:
    def work() -> verdicts.Verdict:
        check_writable(arguments.out)
        model, jax_model = _models(arguments)
        from twinvit.port.weight_map import map_weights

        found = map_weights(model, jax_model)
        found.save(arguments.out)
        print(f"{len(found.rules)} arrays mapped, written to {arguments.out}")
        for text in found.ambiguous:
            print(f"ambiguous: {text}")
        for text in found.unused:
            print(f"unused: {text}")
        return told.of_map(found, model, jax_model, arguments.out)

    return verdicts.announce(_flags(arguments), work)


def _blind_spots(arguments: argparse.Namespace) -> int:
    def work() -> verdicts.Verdict:
        arrays = inputs(arguments)
        _need("torch")
        model = load(arguments.torch_model)
        from twinvit.port.audit import blind_spots

        result = blind_spots(
            model,
            arrays,
            atol=arguments.atol,
            rtol=arguments.rtol,
            metric=arguments.metric,
            progress=None if arguments.quiet else _progress(),
        )
        print(result)
        return told.of_blind_spots(result, model, arrays, arguments.seed)

    return verdicts.announce(_flags(arguments), work)


def _causes(arguments: argparse.Namespace) -> int:
    _need("torch")
    from twinvit.port.causes import describe

    for name, family, text in describe():
        print(f"{name:20} {family:13} {text}")
    return SAME


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "explain": _explain,
    "record": _record,
    "map": _map,
    "blind_spots": _blind_spots,
    "causes": _causes,
}

if __name__ == "__main__":
    sys.exit(main())
