"""`twinvit port explain | map | blind_spots | causes`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinvit.port.errors import PortError

SAME, DIFFERENT, NO_JUDGEMENT = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    top = argparse.ArgumentParser(
        prog="twinvit port",
        description="Explain a port between PyTorch and JAX: what is wrong, where, and the proof.",
        epilog="exit status: 0 same, 1 different (the causes are "
        "printed), 2 cannot be judged (the reason is printed)",
    )
    commands = top.add_subparsers(dest="command", required=True)
    explain = commands.add_parser("explain", help="the port = the reference + these edits")
    explain.add_argument(
        "torch_model",
        metavar="pkg.mod:make_torch",
        help="an nn.Module, or a function that makes one",
    )
    explain.add_argument(
        "jax_model",
        metavar="pkg.mod:make_jax",
        help="the port, or a function that makes it; one that "
        "takes an argument is given the PyTorch model",
    )
    _inputs(explain)
    explain.add_argument(
        "--weights", default="as_is", help="as_is (default), transfer, or a map's file"
    )
    explain.add_argument(
        "--output", default=None, help="name or number of the compared array of a structured output"
    )
    explain.add_argument("--grad", action="store_true", help="compare gradients, too")
    explain.add_argument("--train", action="store_true", help="compare train mode, too")
    explain.add_argument("--html", type=Path, default=None, help="write the report as a page")
    explain.add_argument("--json", type=Path, default=None, help="write the report as JSON")
    mapped = commands.add_parser("map", help="propose a map of weights")
    mapped.add_argument("torch_model", metavar="pkg.mod:make_torch")
    mapped.add_argument("jax_model", metavar="pkg.mod:make_jax")
    mapped.add_argument("-o", "--out", type=Path, required=True, help="the map's file, TOML")
    blind = commands.add_parser("blind_spots", help="what a test with this tolerance lets through")
    blind.add_argument("torch_model", metavar="pkg.mod:make_torch")
    _inputs(blind)
    blind.add_argument("--atol", type=float, default=1e-5)
    blind.add_argument("--rtol", type=float, default=0.0)
    blind.add_argument("--metric", default="allclose", choices=("allclose", "cosine", "kl", "top1"))
    commands.add_parser("causes", help="print the catalogue")
    return top


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
        type=int,
        default=0,
        help="of the inputs, drawn from a standard normal distribution",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except PortError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_JUDGEMENT


def load(name: str, *given: Any) -> Any:
    """What `pkg.mod:name` names: an object, or what a function of that name makes.

    A function whose first parameter has no default is given `given`.

    Raises:
        PortError: it cannot be imported or called.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise PortError(f"{name!r} names no factory; write pkg.mod:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = getattr(error, "name", None)
        if missing in ("torch", "jax", "flax", "equinox", "haiku"):
            raise PortError(
                f"{name} needs {missing}, which is not installed; install it and try again"
            ) from error
        raise PortError(
            f"{module_name} cannot be imported: {error}; run in its folder or set PYTHONPATH"
        ) from error
    except Exception as error:
        raise PortError(
            f"{module_name} fails while it is imported: {type(error).__name__}: {error}"
        ) from error
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise PortError(f"{module_name} has no {attribute}") from error
    if not (inspect.isfunction(found) or inspect.isclass(found) or inspect.isbuiltin(found)):
        return found
    needed = [
        p
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > len(given):
        raise PortError(
            f"{name} takes {len(needed)} arguments; a factory takes none"
            + (", or the PyTorch model" if given else "")
        )
    try:
        return found(*given[: len(needed)])
    except PortError:
        raise
    except Exception as error:
        raise PortError(f"{name}() fails: {type(error).__name__}: {error}") from error


def inputs(arguments: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Arrays as the flags ask for them, in the flags' order."""
    rng = np.random.default_rng(arguments.seed)
    made: list[np.ndarray] = []
    for flag, text in arguments.inputs:
        if flag == "--shape":
            made.append(rng.standard_normal(_shape(text)))
            continue
        shape, _, bound = text.partition(":")
        if not bound.isdigit() or int(bound) < 1:
            raise PortError(f"--int {text}: write shape:bound, e.g. 2,16:100")
        made.append(rng.integers(0, int(bound), _shape(shape)))
    if not made:
        raise PortError("no input: give --shape 2,3,224,224 (or --int 2,16:100 for tokens)")
    return tuple(made)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = (0,)
    if any(n < 1 for n in shape):
        raise PortError(f"{text!r} is no shape; write e.g. 2,3,224,224")
    return shape


def _check_writable(*paths: Path | None) -> None:
    """Raises PortError for a path that no file can be written to, before long work starts."""
    for path in paths:
        if path is None:
            continue
        folder = path.resolve().parent
        if not folder.is_dir():
            raise PortError(f"{path}: its folder does not exist")
        if path.is_dir():
            raise PortError(f"{path} is a folder; name a file in it")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise PortError(f"{path} cannot be written; name another file")


def _models(arguments: argparse.Namespace) -> tuple[Any, Any]:
    _need("torch")
    _need("jax")
    model = load(arguments.torch_model)
    return model, load(arguments.jax_model, model)


def _need(framework: str) -> None:
    try:
        importlib.import_module(framework)
    except ImportError as error:
        raise PortError(
            f"{framework} is not installed; explaining a port needs both frameworks"
        ) from error


def _progress() -> Callable[[str], None]:
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def _explain(arguments: argparse.Namespace) -> int:
    arrays = inputs(arguments)
    _check_writable(arguments.html, arguments.json)
    model, jax_model = _models(arguments)
    from twinvit.port.explainer import explain

    what = (
        "forward",
        *(("grad",) if arguments.grad else ()),
        *(("train",) if arguments.train else ()),
    )
    report = explain(
        model,
        jax_model,
        arrays,
        weights=arguments.weights,
        what=what,
        output=arguments.output,
        progress=_progress(),
    )
    print(report)
    if arguments.json is not None:
        report.to_json(arguments.json)
    if arguments.html is not None:
        report.to_html(arguments.html)
    return SAME if report.same else DIFFERENT


def _map(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.out)
    model, jax_model = _models(arguments)
    from twinvit.port.weight_map import map_weights

    found = map_weights(model, jax_model)
    found.save(arguments.out)
    print(f"{len(found.rules)} arrays mapped, written to {arguments.out}")
    for text in found.ambiguous:
        print(f"ambiguous: {text}")
    for text in found.unused:
        print(f"unused: {text}")
    return SAME if not found.ambiguous and not found.unused else DIFFERENT


def _blind_spots(arguments: argparse.Namespace) -> int:
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
        progress=_progress(),
    )
    print(result)
    return DIFFERENT if result.missed else SAME


def _causes(arguments: argparse.Namespace) -> int:
    _need("torch")
    from twinvit.port.causes import describe

    for name, family, text in describe():
        print(f"{name:20} {family:13} {text}")
    return SAME


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "explain": _explain,
    "map": _map,
    "blind_spots": _blind_spots,
    "causes": _causes,
}

if __name__ == "__main__":
    sys.exit(main())
