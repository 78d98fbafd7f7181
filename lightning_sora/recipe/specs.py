"""Specs in recipes: a text, or a mapping of one name to its options, which is parsed into its canonical text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import register_type

from lightning_sora.specs import canonical, is_mapping, spec


def _read(value: Any) -> Any:
    if not isinstance(value, str | Mapping):
        raise ValueError("no spec")
    # What refers to other keys is read when these are known.
    return value if isinstance(value, Mapping) and "${" in repr(value) else canonical(value)


def _write(value: Any) -> Any:
    if not isinstance(value, str | Mapping):
        raise ValueError("no spec")
    return dict(value) if isinstance(value, Mapping) else value


def _is_read(value: Any, _: type) -> bool:
    if isinstance(value, str):
        return canonical(value) == value
    return is_mapping(value) and "${" in repr(value)


def take_specs() -> None:
    """Has the parser of recipes read options of the type ``SpecText``."""
    register_type(spec, _write, _read, type_check=_is_read, fail_already_registered=False)
