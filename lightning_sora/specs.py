"""Specs: the texts that ask for a part by name.

A spec is written in one of these ways, whatever the kind of part and wherever it stands: in a recipe, behind a flag, in
a call from Python.

    window                            a part by its name
    window(size=(2, 4, 4))            with options: Python literals, of which nothing is evaluated
    {window: {size: [2, 4, 4]}}       the same as a YAML mapping, of the name to the options
    hf:models/t5                      the part `hf`, with the one option that it needs: hf(name='models/t5')
    outputs/world_expander            a path, where a part of the kind reads one: run(path='outputs/world_expander')
    spec:window                       a spec, whatever else the text could be

Whichever is used, :func:`canonical` gives one text for it, which is what runs record and are told apart by. Within
options a further spec is written as text: ``{gated: {operator: "tile(tile=2)"}}``.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path

SHOWN = 300  # letters of a spec that cannot be read
#: Before a spec that is to be read as one, whatever else its text could be.
SPEC = "spec:"
_PREFIXED = re.compile(r"(\w+):(?!//)(.*)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Spec:
    """A parsed request: which part, with which options.

    Two are equal if they ask for the same, however they were written.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{k}={_literal(v)}' for k, v in sorted(self.options.items()))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def parse(cls, asked: str | Mapping[str, Any] | Spec) -> Spec:
        """Reads ``"name"``, ``"name(option=literal, ...)"`` or ``{"name": {"option": value, ...}}``.

        Raises:
            SoraError: it is of no such form, or an option is not a Python literal.
        """
        if isinstance(asked, Spec):
            return asked
        if isinstance(asked, Mapping):
            return cls(*_of_mapping(asked))
        try:
            node = ast.parse(asked.strip(), mode="eval").body
            if isinstance(node, ast.Name):
                return cls(node.id)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                raise ValueError(f"parts have names without a module: {node.func.attr!r}")
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                raise ValueError("not a call of a name")
            if node.args or any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("options are given by name")
            options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError) as problem:
            reason = problem.msg if isinstance(problem, SyntaxError) else str(problem)
            # Of its parser's depth, Python's own words say nothing.
            reason = "nested too deeply" if isinstance(problem, RecursionError | MemoryError) else reason
            shown = asked if len(asked) <= SHOWN else f"{asked[:SHOWN]}..."
            raise SoraError(
                f"cannot read the spec {shown!r} ({reason}); write 'name' or 'name(option=value, ...)' "
                "with values that are Python literals"
            ) from problem
        return cls(node.func.id, options)


def canonical(asked: str | Mapping[str, Any] | Spec) -> str:
    """The one text of a spec, however it is written: options in order of their names, sequences as tuples.

    What is no spec, such as a path or a pattern of layers, comes back as it is.

    Raises:
        SoraError: a mapping that is no spec.

    Example:
        >>> canonical({"window": {"size": [2, 4, 4]}}), canonical("window( size=[2,4,4] )"), canonical("runs/vae")
        ('window(size=(2, 4, 4))', 'window(size=(2, 4, 4))', 'runs/vae')
    """
    if not isinstance(asked, str):
        return str(Spec.parse(asked))
    if asked.startswith(SPEC):
        return SPEC + canonical(asked.removeprefix(SPEC))
    try:
        return str(Spec.parse(asked))
    except SoraError:
        return asked


def is_mapping(value: Any) -> bool:
    """Whether a value is a spec as a mapping: of one name to its options, or to nothing."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((name, options),) = value.items()
    return isinstance(name, str) and name.isidentifier() and (options is None or isinstance(options, Mapping))


def _of_mapping(asked: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if not is_mapping(asked):
        raise SoraError(
            f"cannot read the spec {dict(asked)!r}; as a mapping it is of one name to its options, such as "
            "{window: {size: [2, 4, 4]}}"
        )
    ((name, options),) = asked.items()
    return name, {str(option): value for option, value in (options or {}).items()}


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_literal(item)}' for key, item in value.items())}}}"
    return repr(value)


def prefixed(text: str) -> tuple[str, str] | None:
    """The word before a colon that a text begins with, and what follows; None without one, and of URLs."""
    found = _PREFIXED.fullmatch(text)
    return None if found is None else (found[1], found[2])


def is_path(text: str) -> bool:
    """Whether a text that names no part is a path: it is there, or looks like one."""
    return os.path.exists(local_path(text)) or ("(" not in text and ("/" in text or text.endswith(".ckpt")))


class spec(str):
    """What a parser of recipes knows an option by that is a spec; the values are plain texts."""

    __slots__ = ()


if TYPE_CHECKING:
    SpecText = str
else:
    #: The type of an option that is a spec: a text, or in a recipe also a mapping, which arrives as its canonical text.
    SpecText = spec | str
