"""The capabilities, a file of each kind; to add one, write a file here and import it below."""

from benchmarks.sora_tasks.capabilities import (  # noqa: F401  (they register themselves)
    composition,
    continuation,
    edit,
    framing,
    geometry,
    language,
    law,
    length,
    loop,
    paint,
    permanence,
    text,
)
