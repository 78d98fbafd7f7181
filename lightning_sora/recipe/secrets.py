"""Secrets of a recipe: told by the environment, recorded as such, and refused where a record hides them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lightning_sora.errors import SoraError
from lightning_sora.redaction import HIDDEN, redacted


def without_secrets(resolved: str, unresolved: str) -> tuple[str, dict[str, Any]]:
    """A resolved recipe as it is recorded: what comes from the environment named, passwords replaced.

    Args:
        resolved: the recipe with its interpolations resolved.
        unresolved: the same before; empty where it has none.

    Returns:
        the recipe as text and as mappings.
    """
    recipe: dict[str, Any] = yaml.safe_load(resolved)
    named = copy.deepcopy(recipe)
    for place, text in _from_environment(unresolved):
        section: Any = named
        try:
            for key in place[:-1]:
                section = section[key]
            known = section[place[-1]] is not None
        except (KeyError, IndexError, TypeError):
            continue  # a part of a text that the parser read as a whole
        if known:
            section[place[-1]] = text
    shown: dict[str, Any] = redacted(named)
    return (resolved if shown == recipe else yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)), shown


def _from_environment(unresolved: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The values that stem from the environment, also by way of others, with its variables still named."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if "${oc.env:" not in unresolved:
        return
    # Letters alone, so that resolvers which read their arguments again take them for text.
    variables = sorted(set(re.findall(r"\$\{oc\.env:[^${}]*\}", unresolved)))
    marks = {f"ENVIRONMENT{index}VARIABLE": variable for index, variable in enumerate(variables)}
    marked = unresolved
    for mark, variable in marks.items():
        marked = marked.replace(variable, mark)
    config = OmegaConf.create(yaml.safe_load(marked))
    for place, raw in _texts(yaml.safe_load(marked)):
        try:
            value = OmegaConf.select(config, "".join(f"[{key}]" for key in place))
        except OmegaConfBaseException:
            value = raw  # reckons with it: named as it is written
        text = str(value)
        if any(mark in text for mark in marks):
            for mark, variable in marks.items():
                text = text.replace(mark, variable)
            yield place[1:] if place[0] in ("fit", "validate", "test", "predict") else place, text


def _texts(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, str):
            yield (*place, key), item
        else:
            yield from _texts(item, (*place, key))


def refuse_hidden(recipe: Mapping[str, Any]) -> None:
    """Refuses a recipe of a record whose secrets were replaced.

    Raises:
        SoraError: with the key, and how to give the secret.
    """
    for place, text in _texts(recipe):
        if text == HIDDEN or f":{HIDDEN}@" in text or f"//{HIDDEN}@" in text or f"={HIDDEN}" in text:
            key = ".".join(str(part) for part in place if part != "init_args")
            raise SoraError(
                f"{key}={text!r} lacks its secret, which no record keeps; give it by --{key}='...${{oc.env:NAME}}...', "
                "which takes it from the environment and is recorded as such"
            )
