"""Tables of captions, as ``lightning-sora caption`` writes them."""

from __future__ import annotations

from pathlib import Path

from lightning_sora.errors import SoraError

COLUMNS = ("id", "caption", "confidence")


def read_captions(path: Path) -> dict[str, tuple[str, float]]:
    """id -> (caption, confidence).

    Raises:
        SoraError: no such file, not Parquet, wrong columns, or a clip with two captions.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise SoraError(f"no table of captions at {path}; make one with `lightning-sora caption ... --out {path}`")
    try:
        found = pyarrow.parquet.read_schema(path).names
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise SoraError(f"{path} has the columns {', '.join(found)}; needed are {', '.join(COLUMNS)}")
        columns = pyarrow.parquet.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise SoraError(f"{path} is not a Parquet file ({problem}); give the table that `caption` wrote") from problem
    captions = {
        str(clip_id): (str(caption or ""), float(confidence or 0.0))
        for clip_id, caption, confidence in zip(*(columns[name] for name in COLUMNS), strict=True)
    }
    if len(captions) < len(columns["id"]):
        raise SoraError(f"{path} has {len(columns['id'])} rows for {len(captions)} clips; keep one row for each clip")
    return captions
