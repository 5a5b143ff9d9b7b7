"""Command lines of commands that are functions, and the parser that all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest

from shared_vit.cli.function_command import Flag, Positional, parser_of, run
from shared_vit.cli.parser import Parser
from shared_vit.errors import UserError

To = Literal["torch", "jax"]


def everything(
    src: Annotated[str, Positional("SRC")],
    more: Annotated[tuple[Path, ...], Positional("MORE")],
    to: To,
    from_: Annotated[Literal["auto"] | To, Flag("from")] = "auto",
    size: int | str | None = None,
    share: float = 0.5,
    verify: bool = True,
    runs: tuple[Path, ...] = (),
    output: Annotated[Path, Flag(aliases=("-o",))] = Path("out"),
    json: str | None = None,
) -> dict[str, object]:
    """Take one of each.

    Args:
        src: a file.
        more: others.
        to: where to, 100 % of it.
        verify: look at it.
    """
    return dict(locals())


def called(*argv: str) -> dict[str, object]:
    found = run(everything, argv, "twinvit everything")
    assert isinstance(found, dict)
    return found


def test_what_is_not_given_is_the_function_s_own() -> None:
    assert called("a", "--to=jax") == {
        "src": "a", "more": (), "to": "jax", "from_": "auto", "size": None, "share": 0.5,
        "verify": True, "runs": (), "output": Path("out"), "json": None,
    }  # fmt: skip


def test_values_have_their_types() -> None:
    found = called(
        "a", "b", "--to", "torch", "c", "--from=jax", "--size=32", "--share=2", "--no-verify",
        "--runs", "x", "y", "-o", "z", "--json",
    )  # fmt: skip
    assert found == {
        "src": "a", "more": (Path("b"), Path("c")), "to": "torch", "from_": "jax", "size": 32,
        "share": 2.0, "verify": False, "runs": (Path("x"), Path("y")), "output": Path("z"),
        "json": "-",
    }  # fmt: skip
    assert called("a", "--to=jax", "--size=32,96", "--json", "f")["size"] == "32,96"
    assert called("a", "--to=jax", "--size=None")["size"] is None


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("--to=jax",), "the following arguments are required: SRC"),
        (("a",), "the following arguments are required: --to"),
        (("a", "--to=tensorflow"), "argument --to: invalid choice: 'tensorflow'"),
        (("a", "--to=jax", "--share=half"), "argument --share: invalid float value: 'half'"),
        (("a", "--to=jax", "--shares=1"), "'--shares=1'; did you mean '--share'?"),
        (("a", "--to=jax", "--ver"), "unknown argument '--ver'"),
    ],
)
def test_wrong_arguments(
    argv: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        called(*argv)
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert why in said
    assert said.startswith("error: ")
    assert said.endswith("twinvit everything --help lists the flags.\n")


def test_help_has_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        called("--help")
    assert left.value.code == 0
    assert capsys.readouterr().out == (
        "usage: twinvit everything SRC MORE ... [--flag=value ...]\n\nTake one of each.\n\n"
        "  SRC                     a file.\n  MORE ...                others.\n\n"
        "  --to {torch,jax}        where to, 100 % of it. Required.\n"
        "  --from {auto,torch,jax}\n                          Default: auto.\n"
        "  --size N|TEXT\n  --share X               Default: 0.5.\n"
        "  --verify                look at it. --no_verify leaves it out.\n  --runs PATH ...\n"
        "  -o, --output PATH       Default: out.\n  --json [PATH]\n"
        "  -h, --help              show this and exit\n"
    )


def test_a_command_of_commands_names_the_flags_of_the_chosen_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    top = Parser(prog="twinvit port")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("map").add_argument("--two-words")
    commands.add_parser("other").add_argument("--two-wands")
    assert top.parse_args(["map", "--two_words=x"]).two_words == "x"
    with pytest.raises(SystemExit):
        top.parse_args(["map", "--two-word=x"])
    said = capsys.readouterr().err
    assert "did you mean '--two-words'?" in said
    assert "twinvit port map --help" in said


def test_flags_of_no_command_line_raise() -> None:
    parser = parser_of(everything, "run.toml")
    parser.raises = True
    with pytest.raises(UserError, match=r"run\.toml: unknown argument '--sizes'; did you mean"):
        parser.parse_args(["a", "--to=jax", "--sizes"])
