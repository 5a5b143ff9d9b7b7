"""The twins' names, and the flag that names one."""

from __future__ import annotations

from typing import Literal

from shared_vit.errors import UserError

Framework = Literal["torch", "jax"]
FRAMEWORKS: tuple[Framework, ...] = ("torch", "jax")


def take_framework(argv: list[str]) -> tuple[Framework | None, list[str]]:
    """The value of --framework, None where it is not given, and the other arguments.

    Raises UserError for another name, and for two.
    """
    flag = "--framework"
    rest, given = [], []
    arguments = iter(argv)
    for arg in arguments:
        if arg == flag:
            given.append(next(arguments, ""))
        elif arg.startswith(f"{flag}="):
            given.append(arg[len(flag) + 1 :])
        else:
            rest.append(arg)
    known = [name for name in FRAMEWORKS if given == [name]]
    if given and not known:
        raise UserError(f"--framework is one of {', '.join(FRAMEWORKS)}, not {' '.join(given)!r}")
    return (known[0] if known else None), rest
