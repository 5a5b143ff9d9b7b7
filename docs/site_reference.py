"""What Griffe does not see of this project by itself; an extension of mkdocs.yml's reference."""

from __future__ import annotations

import ast
import html
import re
from typing import Any

import griffe


class Reference(griffe.Extension):
    """Documents fields made by `setting`, and functions that share a submodule's name."""

    def __init__(self) -> None:
        self.functions: list[griffe.Function] = []

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Read `name: type = setting(default, help, ...)` as a default and a docstring."""
        made = attr.value
        if (
            isinstance(made, griffe.ExprCall)
            and made.canonical_path == "shared_vit.spec.settings.setting"
        ):
            attr.value = made.arguments[0]
            # The help of the command line is plain text: [/FILE] is no link, <name> no tag.
            text = html.escape(ast.literal_eval(node.value.args[1]), quote=False)
            text = re.sub(r"([\\`*_\[\]])", r"\\\1", text)
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
