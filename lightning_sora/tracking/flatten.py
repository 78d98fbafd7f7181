"""A resolved recipe as mlflow parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_sora.redaction import redacted

#: What keys begin with that say where a run is kept or goes on from, not what it is.
ELSEWHERE = ("tracking.", "checkpoint.dirpath", "trainer.default_root_dir", "trainer.enable_progress_bar", "ckpt_path")
KEY_LENGTH = 250
VALUE_LENGTH = 500
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")


def flatten(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Every leaf of a recipe under its dotted name, as on the command line.

    ``init_args`` is left out of names, so that ``model.init_args.dim`` is ``model.dim``. Lists of
    plain values are one JSON text; lists of sections are numbered. Unset values are left out.
    Secrets are replaced. Values longer than ``VALUE_LENGTH`` end in a note of their full length: the recipe that is
    stored beside them is whole.
    """
    return {key[:KEY_LENGTH]: _cut(value) for key, value in _leaves(redacted(recipe), "")}


def metric_name(name: str) -> str:
    """A name that mlflow accepts, with ``_`` for each character that it does not."""
    return _NOT_ALLOWED.sub("_", name)[:KEY_LENGTH]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, name if key == "init_args" and name else _join(name, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                yield from _leaves(item, _join(name, str(index)))
        elif value:
            yield name, json.dumps(list(value), default=str, ensure_ascii=False)
    elif value is not None:
        yield name, str(value)


def _join(name: str, key: str) -> str:
    return metric_name(f"{name}.{key}" if name else key)


def _cut(text: str) -> str:
    if len(text) <= VALUE_LENGTH:
        return text
    note = f"... ({len(text)} characters; whole in recipe/)"
    return text[: VALUE_LENGTH - len(note)] + note
