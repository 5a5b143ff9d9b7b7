"""What Griffe does not see of this project by itself; an extension of mkdocs.yml's reference."""

from __future__ import annotations

import html
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def help_of(path: str) -> str:
    """The help of a setting, `module.Class.field`, as Markdown.

    The text is that of the class itself, which the source need not show (an f-string). The modules
    that hold settings import the standard library alone, so that the site needs no framework.
    Help is plain text of the command line: [/FILE] is no link in it, <name> no tag.
    """
    module, cls, field = path.rsplit(".", 2)
    settings_of = importlib.import_module("shared_vit.spec.settings").settings_of
    text = settings_of(getattr(importlib.import_module(module), cls))[field].help
    return re.sub(r"([\\`*_\[\]])", r"\\\1", html.escape(text, quote=False))


class Reference(griffe.Extension):
    """Documents fields made by `setting`, and functions that share a submodule's name."""

    def __init__(self) -> None:
        self.functions: list[griffe.Function] = []

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Read `name: type = setting(default, help, ...)` as a default and a docstring."""
        made = attr.value
        if (
            isinstance(made, griffe.ExprCall)
            and made.canonical_path == "shared_vit.spec.settings.setting"
        ):
            attr.value = made.arguments[0]
            text = help_of(attr.path)
            attr.docstring = griffe.Docstring(text, parent=attr)

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Remember functions of packages: a submodule of the name replaces them."""
        if func.parent is not None and func.parent.is_init_module:
            self.functions.append(func)

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """Put functions back, as `weights.read`: Python finds it before `weights/read.py`.

        The event of the whole package, which comes after Griffe's own work on dataclasses.
        """
        for func in self.functions:
            package = func.parent
            if package is None or func.package is not mod or package[func.name] is func:
                continue
            for member in package.members.values():
                if member.is_alias and member.target_path.startswith(f"{func.path}."):
                    _ = member.target  # found while the submodule is in its place
            package.set_member(func.name, func)
