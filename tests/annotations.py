"""Annotations of shapes are checked in tests alone; compilation is to see the code as users have it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping


@contextmanager
def plain_annotations() -> Iterator[None]:
    """Compiles what users compile: checks of shapes, which tests alone have, cut it into pieces."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
