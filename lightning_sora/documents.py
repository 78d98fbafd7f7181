"""YAML as people write it, read within bounds: nested or referring to itself without end, it is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_sora.errors import SoraError
from lightning_sora.texts import read_text

DEEPEST = 100  # what stands in what; recipes are a dozen deep
LARGEST = 100_000  # parts, where what is referred to counts wherever it is
#: What PyYAML raises of values that are none of their kind, such as 2020-13-45 or a number of 5,000 digits.
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Looks at the size of every part, with its references in place, before anything is made of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.within = self.written = 0
        self.sizes: dict[int, tuple[int, int]] = {}  # of parts: how many, how deep

    def compose_node(self, parent: Any, index: Any) -> Any:
        refers = self.check_event(yaml.AliasEvent)
        self.within += 1
        self._refuse(self.within, 0)
        node = super().compose_node(parent, index)
        self.within -= 1
        if refers and id(node) not in self.sizes:
            raise SoraError("a part of it refers to itself")
        if not refers:
            self.written += 1
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
            counted = [self.sizes[id(part)] for part in parts]
            size, depth = 1 + sum(one for one, _ in counted), 1 + max((deep for _, deep in counted), default=0)
            self._refuse(depth, size)
            self.sizes[id(node)] = size, depth
        return node

    def _refuse(self, depth: int, size: int) -> None:
        if depth > DEEPEST:
            raise SoraError(f"it is nested more than {DEEPEST} deep")
        if size > max(LARGEST, 4 * self.written):
            raise SoraError(f"its references to its own parts make more than {LARGEST:,} parts of it")


def parse_yaml(text: str, origin: object) -> Any:
    """What a YAML text holds.

    Args:
        origin: where it is from, for the message.

    Raises:
        SoraError: it is not YAML, nested without end, or grows without bounds where its references are followed.
    """
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except SoraError as problem:
        raise SoraError(f"{origin} cannot be read as YAML: {problem}; write it plainly") from None
    except UNREADABLE as problem:
        kind = "" if isinstance(problem, yaml.YAMLError | ValueError) else f"{type(problem).__name__} "
        raise SoraError(f"{origin} is not readable YAML: {kind}{problem}") from problem
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        SoraError: as :func:`parse_yaml`; or it cannot be read.
    """
    return parse_yaml(read_text(path), path)


def refuse_unbounded(text: str, origin: object) -> None:
    """Refuses YAML that is nested without end or grows without bounds; other mistakes are its reader's to tell.

    Raises:
        SoraError: it does.
    """
    if not any(sign in text for sign in "[{*"):
        return
    loader = _Loader(text)
    try:
        loader.get_single_node()
    except SoraError as problem:
        raise SoraError(f"{origin}: {problem}; write it plainly") from None
    except yaml.YAMLError:
        return
    finally:
        loader.dispose()
