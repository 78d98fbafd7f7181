"""Tables of captions, as ``lightning-sora caption`` writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path
from lightning_sora.sealing import verify

COLUMNS = ("id", "caption", "confidence")
MORE = ("content", "error")  # may be there


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
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise SoraError(f"{path} has the columns {', '.join(found)}; needed are {', '.join(COLUMNS)}")
        columns = pyarrow.parquet.read_table(content, columns=[*COLUMNS, *(n for n in MORE if n in found)]).to_pydict()
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise SoraError(f"{path} is not a Parquet file ({problem}); give the table that `caption` wrote") from problem
    empty = [""] * len(columns["id"])
    values = [*(columns[name] for name in COLUMNS), *(columns.get(name, empty) for name in MORE)]
    captions = {
        str(clip_id): Recaption(str(caption or ""), float(confidence or 0.0), str(content or ""), str(error or ""))
        for clip_id, caption, confidence, content, error in zip(*values, strict=True)
    }
    if len(captions) < len(columns["id"]):
        raise SoraError(f"{path} has {len(columns['id'])} rows for {len(captions)} clips; keep one row for each clip")
    return captions
