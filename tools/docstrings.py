"""Docstrings as Markdown: what they say of each parameter is a list.

The package's docstrings are plain text, in which a line such as `name: what it is` speaks of a parameter and lines that
are indented go on with it. An extension of Griffe, which reads them for the API reference; mkdocs.yml names it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ABOUT = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (?=\S)")


def as_markdown(docstring: str, names: set[str]) -> str:
    """A docstring with what it says of each of these names as an item of a list."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        found = _ABOUT.match(line)
        if found and {name.strip("* ") for name in found[1].split(",")} <= names:
            if not in_list:
                lines.append("")
            in_list = True
            line = "- " + ", ".join(f"`{name.strip()}`" for name in found[1].split(",")) + ": " + line[found.end() :]
        elif in_list and line and not line[0].isspace():
            lines.append("")
            in_list = False
        lines.append(line)
    return "\n".join(lines)


class Parameters(griffe.Extension):
    """Makes the docstrings of functions and classes Markdown."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self._walk(pkg)

    def _walk(self, scope: griffe.Module | griffe.Class) -> None:
        for member in scope.members.values():
            if isinstance(member, griffe.Alias):
                continue
            names: set[str] = set()
            if isinstance(member, griffe.Function):
                names = {parameter.name.strip("*") for parameter in member.parameters}
            elif isinstance(member, griffe.Class):
                names = {parameter.name for parameter in member.parameters} | {*member.members}
            if member.docstring and names:
                member.docstring.value = as_markdown(member.docstring.value, names)
            if isinstance(member, griffe.Module | griffe.Class):
                self._walk(member)
