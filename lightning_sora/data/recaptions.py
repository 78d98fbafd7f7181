"""Tables of captions, as ``lightning-sora caption`` writes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path
from lightning_sora.sealing import is_whole, parquet_bytes, verify, write_whole

NEEDED = ("id", "caption", "confidence")
MORE = ("content", "error")  # may be there
VERSION = 1  # of the columns that are written
COLUMNS = (
    "id", "split", "content", "caption", "original", "confidence", "frames", "height", "width", "fps", "captioner",
    "captioner_hash", "whole", "error",
)  # fmt: skip

log = logging.getLogger(__name__)


class Recaption(NamedTuple):
    """A clip's new caption.

    Attributes:
        confidence: in [0, 1].
        content: that of the clip (:class:`ClipInfo`) when it was captioned; empty where the table does not tell.
        error: why there is no caption, if there is none.
    """

    caption: str
    confidence: float
    content: str = ""
    error: str = ""


def read_captions(path: str | Path) -> dict[str, Recaption]:
    """By the ids of the clips.

    Raises:
        SoraError: no such file, damaged, not Parquet, wrong columns, or a clip with two captions.
    """
    import pyarrow
    import pyarrow.parquet

    path = local_path(path)
    if not os.path.isfile(path):
        raise SoraError(f"no table of captions at {path}; make one with `lightning-sora caption ... --out {path}`")
    remedy = f"run `lightning-sora caption ... --out {path}` again, or copy it again"
    content = pyarrow.py_buffer(verify(path.read_bytes(), path, remedy))
    try:
        found = pyarrow.parquet.read_schema(content).names
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise SoraError(f"{path} has the columns {', '.join(found)}; needed are {', '.join(NEEDED)}")
        columns = pyarrow.parquet.read_table(content, columns=[*NEEDED, *(n for n in MORE if n in found)]).to_pydict()
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise SoraError(f"{path} is not a Parquet file ({problem}); give the table that `caption` wrote") from problem
    empty = [""] * len(columns["id"])
    values = [*(columns[name] for name in NEEDED), *(columns.get(name, empty) for name in MORE)]
    captions = {
        str(clip_id): Recaption(str(caption or ""), float(confidence or 0.0), str(content or ""), str(error or ""))
        for clip_id, caption, confidence, content, error in zip(*values, strict=True)
    }
    if len(captions) < len(columns["id"]):
        raise SoraError(f"{path} has {len(columns['id'])} rows for {len(captions)} clips; keep one row for each clip")
    return captions


def write_captions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table with a row for each clip, which has all of ``COLUMNS``."""
    import pyarrow

    kinds = dict.fromkeys(COLUMNS, pyarrow.string())
    kinds |= dict.fromkeys(("confidence", "fps"), pyarrow.float64())
    kinds |= dict.fromkeys(("frames", "height", "width"), pyarrow.int64()) | {"whole": pyarrow.bool_()}
    schema = pyarrow.schema(list(kinds.items()), metadata={"lightning_sora.captions": str(VERSION)})
    write_whole(path, parquet_bytes(pyarrow.Table.from_pylist(list(rows), schema=schema)))


def is_table(path: Path, *, without_errors: bool = False) -> bool:
    """Whether a file is a whole table of captions.

    Args:
        without_errors: and every clip in it could be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        if is_whole(path.read_bytes()) is False:
            log.warning("%s is damaged: its bytes are not those that were written: its clips are captioned again", path)
            return False
        if not set(COLUMNS) <= set(pyarrow.parquet.read_schema(path).names):
            return False
        return not without_errors or not any(pyarrow.parquet.read_table(path, columns=["error"])["error"].to_pylist())
    except (pyarrow.ArrowInvalid, OSError):
        return False


def merge_captions(parts: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Writes one table of several, and returns its rows; of a clip that several hold, the first."""
    import pyarrow.parquet

    rows: dict[str, dict[str, Any]] = {}
    for part in parts:
        for row in pyarrow.parquet.read_table(part).to_pylist():
            rows.setdefault(row["id"], row)
    write_captions(out, list(rows.values()))
    return list(rows.values())
