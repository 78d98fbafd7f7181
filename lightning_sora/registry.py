"""Names for parts: register, create, list.

A part is asked for by a *spec*: a name, or a name with keyword options, as in
``"window(size=(2, 4, 4))"``. The same string is a recipe value, a command-line flag, an mlflow
parameter and a row of a table. Options are Python literals; nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.names import at_home

T = TypeVar("T")
SHOWN = 300  # letters of a spec that cannot be read


@dataclass(frozen=True)
class Spec:
    """A parsed request: which part, with which options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"

    @classmethod
    def parse(cls, text: str | Spec) -> Spec:
        """Reads ``"name"`` or ``"name(option=literal, ...)"``.

        Raises:
            SoraError: the text is no such form, or an option is not a Python literal.
        """
        if isinstance(text, Spec):
            return text
        try:
            node = ast.parse(text.strip(), mode="eval").body
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
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise SoraError(
                f"cannot read the spec {shown!r} ({reason}); write 'name' or 'name(option=value, ...)' "
                "with values that are Python literals"
            ) from problem
        return cls(node.func.id, options)


class Registry(Generic[T]):
    """A named collection of builders of one kind of part.

    Args:
        kind: what the parts are, in words for messages ("attention block").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """A decorator that files a class or function under ``name``; duplicates raise."""

        def decorate(builder: Callable[..., T]) -> Callable[..., T]:
            if name in self._builders:
                raise SoraError(
                    f"the {self.kind} {name!r} is registered already, by "
                    f"{_where(self._builders[name])}; choose another name"
                )
            self._builders[name] = builder
            return builder

        return decorate

    def list(self, pattern: str = "*") -> list[str]:
        """The registered names that match a shell wildcard, sorted."""
        return sorted(n for n in self._builders if fnmatch.fnmatchcase(n, pattern))

    def builder(self, name: str) -> Callable[..., T]:
        """The class or function behind a name.

        Raises:
            SoraError: unknown name; near matches and the known names are listed.
        """
        if name not in self._builders:
            hint = did_you_mean(name, self._builders, repr)
            raise SoraError(f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self.list()) or 'none'}")
        return self._builders[name]

    def options(self, name: str, given: tuple[str, ...] = ()) -> dict[str, inspect.Parameter]:
        """The options that a spec of this name may set, less those that the framework gives."""
        parameters = inspect.signature(self.builder(name)).parameters
        hidden = {"self", *given}
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return {n: p for n, p in parameters.items() if n not in hidden and p.kind in kinds}

    def create(self, spec: str | Spec, /, *args: Any, **given: Any) -> T:
        """Builds the part that ``spec`` asks for.

        Args:
            spec: ``"name"`` or ``"name(option=literal)"``.
            args, given: what the framework supplies to every part of this kind; a spec may not set these.

        Raises:
            SoraError: unknown name, or an option that the part does not accept or whose value is of another type.
        """
        spec = Spec.parse(spec)
        builder = self.builder(spec.name)
        signature = inspect.signature(builder)
        positional = tuple(signature.parameters)[: len(args)]
        accepted = self.options(spec.name, (*given, *positional))
        unknown = [option for option in spec.options if option not in accepted]
        if unknown:
            raise SoraError(
                f"{self.kind} {spec.name!r} does not accept {', '.join(map(repr, unknown))}; "
                f"it accepts: {', '.join(accepted) or 'no options'}"
            )
        required = [n for n, p in accepted.items() if p.default is p.empty and n not in spec.options]
        if required:
            raise SoraError(
                f"{self.kind} {spec.name!r} needs {', '.join(map(repr, required))}; "
                f"write '{spec.name}({required[0]}=...)'"
            )
        check_types(f"{self.kind} {spec.name!r}", builder, spec.options)
        options = {n: at_home(value) if isinstance(value, str) else value for n, value in spec.options.items()}
        return builder(*args, **given, **options)

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Undoes, on leaving, whatever was registered inside."""
        before = dict(self._builders)
        try:
            yield
        finally:
            self._builders = before


def check_types(part: str, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Compares the values of options with the plain types (numbers, words, sequences of them) they are annotated by.

    Args:
        part: what is built, for the message.

    Raises:
        SoraError: a value is of another type. What is annotated by anything else is not looked at.
    """
    hints = _hints(builder)
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            raise SoraError(f"{part}: {name}={value!r} must be {_described(hints[name])}")


def _hints(builder: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(builder.__init__ if inspect.isclass(builder) else builder)
    except (NameError, TypeError, AttributeError):  # annotated by names that exist for a type checker alone
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if origin not in (tuple, list, Sequence):
        return True
    if not isinstance(value, tuple | list):
        return False
    if origin is tuple and inner[-1:] != (...,):
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(one, inner[0]) for one in value)


def _described(hint: Any) -> str:
    if hint is NoneType:
        return "None"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_described, get_args(hint)))
    return hint.__name__ if inspect.isclass(hint) and not get_args(hint) else str(hint).split("collections.abc.")[-1]


def _where(builder: Callable[..., Any]) -> str:
    return f"{getattr(builder, '__module__', '?')}.{getattr(builder, '__qualname__', builder)}"
