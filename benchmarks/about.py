"""What a file of results says of where it comes from."""

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def origin(packages: Iterable[str], folders: Iterable[Path | None] = ()) -> dict[str, Any]:
    """The command, the machine, the versions and the date; `folders` are written as DIR."""
    return {
        "command": command(folders),
        "machine": machine(),
        "versions": versions(packages),
        "date": datetime.date.today().isoformat(),
    }


def command(folders: Iterable[Path | None] = ()) -> str:
    """This process's command line, from the repository's root."""
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else sys.argv[0]
    hidden = {str(folder) for folder in folders if folder is not None}

    def shown(argument: str) -> str:
        flag, equals, value = argument.rpartition("=")
        return f"{flag}{equals}DIR" if value in hidden else argument

    return " ".join(["python", name, *map(shown, sys.argv[1:])])


def cpu() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of NVIDIA's GPUs, by their driver."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return []


def machine() -> dict[str, Any]:
    found = {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.platform()}
    return found | ({"gpus": names} if (names := gpus()) else {})


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found
