"""Docstrings as Markdown: the roles of reStructuredText become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

import lightning_sora

ROLE = re.compile(r":(meth|class|func|attr|mod|data|exc):`~?\.?([^`]+)`")
TOGETHER = re.compile(r"( +)([a-z_0-9]+(?:, [a-z_0-9]+)+): (.*)")
PAPER = re.compile(r"\barXiv:(\d{4}\.\d{4,5})")


def plain(text: str) -> str:
    """Roles as code, double backticks as single ones, papers as links, and examples as what the parser calls them."""
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = ROLE.sub(lambda found: _code(found[1], found[2].removeprefix("lightning_sora.")), text)
    return PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text.replace("``", "`"))


def _code(role: str, name: str) -> str:
    """A name as code; of a public class or function, as a link to its place."""
    place = name.rpartition(".")[2]
    public = place in lightning_sora.__all__ and (not place.isupper() or place in ("FVD", "KVD"))
    shown = public and role in ("class", "func", "exc")
    return f"[`{name}`][lightning_sora.{place}]" if shown else f"`{name}`"


def apart(text: str) -> str:
    """Arguments that a docstring explains together, ``a, b: words``, each with these words."""
    lines, found = text.splitlines(), []
    while lines:
        line = lines.pop(0)
        together = TOGETHER.fullmatch(line)
        if together is None:
            found.append(line)
            continue
        indent, names, words = together.groups()
        further = []
        while lines and lines[0].startswith(indent + " "):
            further.append(lines.pop(0))
        for name in names.split(", "):
            found += [f"{indent}{name}: {words}", *further]
    return "\n".join(found)


class Roles(griffe.Extension):
    """Rewrites every docstring that is shown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = apart(plain(obj.docstring.value))
