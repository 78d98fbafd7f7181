"""Registries: the parts of one kind by name; register, create, list. How a part is asked for, :mod:`.specs` says."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.names import at_home
from lightning_sora.plugins import load_packages, none_is_offered
from lightning_sora.specs import SPEC, Spec, is_path, prefixed

if TYPE_CHECKING:
    from lightning_sora.contracts import Contract

T = TypeVar("T")
B = TypeVar("B", bound=Callable[..., Any])
#: What stood before a spec that is to be read as one, formerly.
FORMER = "untrained:"


class Registry(Generic[T]):
    """A named collection of the parts of one kind.

    Args:
        kind: what the parts are, in words for messages ("attention block").
        name: what ``lightning-sora list`` calls the kind ("attention"); None for one that is not listed.
        given: the arguments that the framework supplies to each part; all must take them, and no spec may set them.
        functions: the parts are called with what is given, whenever they are used: functions, whose keyword-only
            arguments are the options of a spec; or classes that are made with the options and have a ``__call__``.
            Otherwise parts are made with what is given and the options, by a class or a function.
        path: the part that reads a path.
        contract: the module whose ``CONTRACT`` every part must keep.

    Example:
        >>> from lightning_sora.registry import Registry
        >>> greetings = Registry("greeting", given=("name",), functions=True)
        >>> @greetings.register("hello")
        ... def hello(name: str, *, mark: str = "!") -> str:
        ...     return f"Hello {name}{mark}"
        >>> greetings.create("hello(mark='?')")("you"), greetings.list("h*")
        ('Hello you?', ['hello'])
    """

    def __init__(
        self,
        kind: str,
        *,
        name: str | None = None,
        given: Sequence[str] = (),
        functions: bool = False,
        path: str | None = None,
        contract: str | None = None,
    ) -> None:
        self.kind, self.name, self.given, self.functions, self.path = kind, name, tuple(given), functions, path
        self._contract = contract
        self._builders: dict[str, Callable[..., Any]] = {}
        if name is not None:
            if name in _REGISTRIES:
                raise SoraError(f"a registry {name!r} is there already, of the kind {_REGISTRIES[name].kind!r}")
            _REGISTRIES[name] = self

    @property
    def contract(self) -> Contract | None:
        """What every part must keep, if that is written down."""
        return None if self._contract is None else importlib.import_module(self._contract).CONTRACT

    def register(self, name: str) -> Callable[[B], B]:
        """Files the class or function that it decorates under a name.

        Raises:
            SoraError: a name that is taken or no word, or a part that lacks a method or does not take what it is given.
        """

        def decorate(builder: B) -> B:
            if name in self._builders:
                raise SoraError(
                    f"the {self.kind} {name!r} is registered already, by "
                    f"{_where(self._builders[name])}; choose another name"
                )
            if not name.isidentifier():
                raise SoraError(f"the {self.kind} {name!r} cannot be named in a spec; use letters, digits and _")
            self._check_sound(name, builder)
            self._builders[name] = builder
            return builder

        return decorate

    def _check_sound(self, name: str, builder: Callable[..., Any]) -> None:
        if inspect.isabstract(builder):
            lacking = ", ".join(sorted(builder.__abstractmethods__))  # type: ignore[attr-defined]
            raise SoraError(f"the {self.kind} {name!r} does not define {lacking}, as every {self.kind} must")
        if not self.given:
            return
        called: Any = builder.__call__ if self.functions and inspect.isclass(builder) else builder
        parameters = inspect.signature(called).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        if missing := [argument for argument in self.given if argument not in parameters]:
            raise SoraError(
                f"the {self.kind} {name!r} must take {', '.join(missing)}: every {self.kind} is given "
                f"{', '.join(self.given)}"
            )

    def list(self, pattern: str = "*") -> list[str]:
        """The registered names that match a shell wildcard, sorted, those of installed packages among them.

        Raises:
            SoraError: a package whose plugin cannot be loaded.
        """
        load_packages(self.name)
        return sorted(n for n in self._builders if fnmatch.fnmatchcase(n, pattern))

    def builder(self, name: str) -> Callable[..., Any]:
        """The class or function behind a name.

        Raises:
            SoraError: unknown name; near matches and the known names are listed.
        """
        if not self._has(name):
            hint = did_you_mean(name, self._builders, repr)
            known = ", ".join(self.list()) or "none"
            if none_is_offered():
                known += "; parts of plugins are missing, as this is not installed: `pip install -e .` in its folder"
            own = "" if self.name is None else "; one of your own comes from its file, by --plugins FILE"
            raise SoraError(f"unknown {self.kind} {name!r}; {hint}known: {known}{own}")
        return self._builders[name]

    def _has(self, name: str) -> bool:
        if name not in self._builders:
            load_packages(self.name)
        return name in self._builders

    def options(self, name: str, given: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
        """The options that a spec of this name may set.

        Args:
            given: what is supplied besides the registry's own ``given``.
        """
        builder = self.builder(name)
        # What functions are given may have defaults; to what a class makes it is given later.
        called, made = self.functions and not inspect.isclass(builder), self.functions and inspect.isclass(builder)
        hidden = {"self", *given, *(() if made else self.given)}
        kinds = {inspect.Parameter.KEYWORD_ONLY} | ({inspect.Parameter.POSITIONAL_OR_KEYWORD} if not called else set())
        parameters = inspect.signature(builder).parameters
        return {n: p for n, p in parameters.items() if n not in hidden and p.kind in kinds}

    def describe(self, name: str) -> tuple[str, str]:
        """A part as a spec with all of its options, and the first paragraph of its documentation in one line."""
        options = [
            f"{p.name}={'...' if p.default is p.empty else repr(p.default)}" for p in self.options(name).values()
        ]
        told = (inspect.getdoc(self.builder(name)) or "").split("\n\n")[0]
        return f"{name}({', '.join(options)})" if options else name, " ".join(told.split())

    def resolve(self, asked: str | Mapping[str, Any] | Spec) -> Spec:
        """Which part is asked for, by any of the ways to write a spec (see the module).

        Raises:
            SoraError: it cannot be read, or names no part.
        """
        if not isinstance(asked, str):
            return Spec.parse(asked)
        if asked.startswith(FORMER):
            raise SoraError(f"{asked!r}: {FORMER!r} is now {SPEC!r}; write {asked.replace(FORMER, SPEC, 1)!r}")
        if asked.startswith(SPEC):
            return Spec.parse(asked.removeprefix(SPEC))
        parted = prefixed(asked)
        if self.path is not None and is_path(asked):
            names_one = self._has(asked) or (parted is not None and self._has(parted[0]))
            if not names_one:
                return self._of_one_option(self.path, asked)
        return Spec.parse(asked) if parted is None else self._of_one_option(*parted)

    def _of_one_option(self, name: str, text: str) -> Spec:
        options = self.options(name)
        needed = [option for option, p in options.items() if p.default is p.empty]
        if len(needed) != 1:
            told = f"{name!r} needs {', '.join(needed)}" if needed else f"{name!r} needs none"
            first = next(iter(needed or options), None)
            raise SoraError(
                f"{self.kind} '{name}:{text}': a colon is followed by the one option that a part needs, and {told}; "
                f"write '{name if first is None else f'{name}({first}=...)'}'"
            )
        return Spec(name, {needed[0]: text})

    def create(self, spec: str | Mapping[str, Any] | Spec, /, *args: Any, **given: Any) -> T:
        """Makes the part that a spec asks for.

        Args:
            spec: in any of the ways of the module.
            args, given: what the framework supplies to every part of this kind; a spec may not set these.

        Raises:
            SoraError: unknown name, or an option that the part does not accept or whose value is of another type.
        """
        spec = self.resolve(spec)
        builder = self.builder(spec.name)
        positional = tuple(inspect.signature(builder).parameters)[: len(args)] if args else ()
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
        if self.functions and not inspect.isclass(builder):
            return functools.partial(builder, **options) if options else builder  # type: ignore[return-value]
        return builder(*args, **given, **options)

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Undoes, on leaving, whatever was registered inside."""
        load_packages(self.name)  # which registers once, and is not to be undone
        before = dict(self._builders)
        try:
            yield
        finally:
            self._builders = before


_REGISTRIES: dict[str, Registry[Any]] = {}


def named() -> dict[str, Registry[Any]]:
    """The listed registries of all modules that are imported so far, by name."""
    return dict(sorted(_REGISTRIES.items()))


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
            raise SoraError(f"{part}: {name}={value!r} must be {described(hints[name])}")


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
    if hint in (bool, NoneType) or (inspect.isclass(hint) and issubclass(hint, str)):
        return isinstance(value, str if issubclass(hint, str) else hint)
    if origin not in (tuple, list, Sequence):
        return True
    if not isinstance(value, tuple | list):
        return False
    if origin is tuple and inner[-1:] != (...,):
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(one, inner[0]) for one in value)


def described(hint: Any) -> str:
    """A type in words, as in "str or list[str]"."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (NoneType, ...):
        return "None" if hint is NoneType else "..."
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(described, inner)))
    if origin in (tuple, list, Sequence):
        return f"{origin.__name__}[{', '.join(map(described, inner))}]"
    if inspect.isclass(hint) and not inner and issubclass(hint, str):
        return "str"
    return hint.__name__ if inspect.isclass(hint) and not get_args(hint) else str(hint).split("collections.abc.")[-1]


def _where(builder: Callable[..., Any]) -> str:
    return f"{getattr(builder, '__module__', '?')}.{getattr(builder, '__qualname__', builder)}"
