"""Classes by the names that recipes call them by."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.plugins import load_packages


def find_class(name: str, base: type) -> type:
    """A class by its full path, or by its name alone where its module is imported.

    Raises:
        SoraError: there is none; near matches are named.
    """
    load_packages()
    known = {c.__name__: c for c in subclasses(base) if not c.__module__.startswith("lightning.")}
    short = name.rpartition(".")[2]
    found = known.get(name)
    reason = ""
    if "." in name:
        try:
            found = imported(name)
        except ModuleNotFoundError as problem:
            reason = f" ({problem})"
    if isinstance(found, type) and issubclass(found, base):
        return found
    hint = did_you_mean(short, known)
    raise SoraError(
        f"class_path {name!r} is no {base.__name__} that can be found{reason}; {hint}known: {', '.join(sorted(known))}"
    )


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def subclasses(base: type) -> set[type]:
    """All classes that are made from a base and were imported, directly or by way of others."""
    direct: list[type] = base.__subclasses__()
    return set(direct).union(*(subclasses(c) for c in direct))
