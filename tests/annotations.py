"""Annotations of shapes are checked in tests alone; compilation is to see the code as users have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

# An int is good enough where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
#: Inside, each dimension's name stands for one size.
SIZES_OF_ONE_CALL = jaxtyping.jaxtyped("context")


@contextmanager
def plain_annotations() -> Iterator[None]:
    """Compiles what users compile: checks of shapes, which tests alone have, cut it into pieces."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def jaxtyped(part: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Checks a signature as ``jaxtyping.jaxtyped`` does, at half of its time, which was a third of all that tests take.

    The same function stands for the parameters and for what is returned, no arguments are bound by name (no shape here
    is computed of an argument), and a function without shapes has no sizes to remember.
    """
    if part is None:
        return partial(jaxtyped, typechecker=typechecker)
    if isinstance(part, classmethod | staticmethod):
        return type(part)(jaxtyped(part.__func__, typechecker=typechecker))
    if isinstance(part, property):
        return property(*(f and jaxtyped(f, typechecker=typechecker) for f in (part.fget, part.fset, part.fdel)))
    if inspect.isclass(part):
        if "__init__" in vars(part) and hasattr(part, "__dataclass_fields__"):
            part.__init__ = jaxtyped(part.__init__, typechecker=typechecker)
        return part
    hints = {name: _hint(annotation, part.__globals__) for name, annotation in part.__annotations__.items()}
    if inspect.isgeneratorfunction(part):
        hints.pop("return", None)  # of what is yielded, not of what is returned
    shaped = any(map(_has_shape, hints.values()))
    if not shaped and "<locals>" in part.__qualname__:
        return part  # made anew at each call of what is around it
    copy = FunctionType(part.__code__, part.__globals__, part.__name__, part.__defaults__, part.__closure__)
    copy.__kwdefaults__, copy.__qualname__, copy.__annotations__ = part.__kwdefaults__, part.__qualname__, hints
    strict = typechecker(copy)

    def with_sizes(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return part(*args, **kwargs)
        with SIZES_OF_ONE_CALL:
            return strict(*args, **kwargs)

    def without_sizes(*args: Any, **kwargs: Any) -> Any:
        return part(*args, **kwargs) if jaxtyping.config.jaxtyping_disable else strict(*args, **kwargs)

    wrapper = with_sizes if shaped else without_sizes
    # As beartype's own frames: not a file that anybody's part is in, see `errors.raised_in`.
    wrapper.__code__ = wrapper.__code__.replace(co_filename="<checks of shapes>")
    return wraps(part)(wrapper)


def _hint(annotation: Any, names: dict[str, Any]) -> Any:
    """What an annotation stands for; anything, where it is a name that is not there yet, or for mypy alone."""

    def one(value: Any) -> None: ...

    one.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(one, names, include_extras=True)["value"]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list):
        return any(map(_has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
