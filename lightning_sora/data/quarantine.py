"""Lists of files that must not be used, with the reason."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path, shown
from lightning_sora.redaction import redact
from lightning_sora.sealing import write_whole
from lightning_sora.texts import parsed_json, read_text

log = logging.getLogger(__name__)


def write_quarantine(path: Path, reasons: Mapping[str, str]) -> None:
    """Writes one JSON object a line: the file, relative to the folder that was checked, and the reason."""
    lines = [
        json.dumps({"file": _name(file), "reason": reason}, ensure_ascii=False) for file, reason in reasons.items()
    ]
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def banned_among(names: Iterable[str], path: str | None) -> dict[str, str]:
    """Of some clips those on a list, with the reason; a clip that is cut out of a file, "FILE#FRAME", by its file too.

    Raises:
        SoraError: see :func:`read_quarantine`.
    """
    listed = read_quarantine(path)
    found, met = {}, set()
    for name in names:
        named = _name(name)
        entry = next((one for one in (named, named.rpartition("#")[0]) if one in listed), None)
        if entry is not None:
            found[name] = listed[entry]
            met.add(entry)
    strangers = [name for name in listed if name not in met]
    if strangers:
        log.warning("%d entries of %s are no clips of this source, such as %r", len(strangers), path, strangers[0])
    return found


def _name(file: str) -> str:
    # Passwords and signatures of URLs are no part of what a file is.
    return redact(file) if "://" in file else shown(file)


def read_quarantine(path: str | None) -> dict[str, str]:
    """file -> reason; empty for None.

    Raises:
        SoraError: no such list, or a line that is none of it.
    """
    if path is None:
        return {}
    if not os.path.isfile(local_path(path)):
        raise SoraError(f"no quarantine list at {path}; make one with `lightning-sora data check FOLDER --out {path}`")
    found = {}
    for number, line in enumerate(read_text(local_path(path)).split("\n"), start=1):
        if line.strip():
            row = parsed_json(line, path, number)
            if not isinstance(row, dict) or not {"file", "reason"} <= set(row):
                raise SoraError(f'{path}, line {number}: must be {{"file": ..., "reason": ...}}')
            found[str(row["file"])] = str(row["reason"])
    return found
