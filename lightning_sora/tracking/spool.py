"""Records of a run on disk, first in, first out: what is in it outlives the process, whatever ends that."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lightning_sora.writing import whole

Record = dict[str, Any]

#: What a record of each kind must hold, besides its kind and its run.
PARTS: dict[str, dict[str, type]] = {
    "metrics": {"rows": list},
    "params": {"values": dict},
    "tags": {"values": dict},
    "text": {"text": str, "artifact": str},
    "files": {"path": str, "folder": str},
    "dataset": {"name": str, "digest": str, "source": str, "context": str},
    "status": {"status": str, "time": int},
}


class Spool:
    """A file of one record per line, held by one process.

    Args:
        path: of the file, which is made where missing.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: the process that held it has just done with it.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._file: IO[bytes] = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                raise FileNotFoundError(path)
        except OSError:
            self._file.close()
            raise

    def append(self, record: Record) -> None:
        """Adds a record; it is the system's from here on, so that the death of this process does not lose it."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            before = self._size()
            try:
                self._file.write(line)
                self._file.flush()
            except OSError:
                os.ftruncate(self._file.fileno(), before)  # no half line before the next record
                raise

    def sync(self) -> None:
        """Returns once everything is on the disk itself."""
        os.fsync(self._file.fileno())

    def read(self, start: int) -> Iterator[tuple[Record | None, bytes, int]]:
        """Records from a byte on, as they are by now.

        Yields:
            the record, None for a line that holds none; the line; the byte after it.
        """
        with self._lock:
            stop = self._size()
        with self.path.open("rb") as file:
            file.seek(start)
            while start < stop:
                line = file.readline()
                start += len(line)
                if line.strip():
                    yield _parsed(line), line, start

    def empty(self, end: int) -> int:
        """Forgets all records if they end at this byte; returns where the next one is to be read."""
        with self._lock:
            if end < self._size():
                return end
            os.ftruncate(self._file.fileno(), 0)
            return 0

    def keep_from(self, start: int) -> None:
        """Forgets the records before a byte, at the end of its use."""
        if self.empty(start) == 0:
            return
        with self.path.open("rb") as file, whole(self.path) as part:
            file.seek(start)
            part.write_bytes(file.read())

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Lets go of the file, and removes it if nothing is in it."""
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
        self._file.close()


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # cut off, or not even text
        return None
    if not isinstance(record, dict) or not isinstance(record.get("run_id"), str):
        return None
    parts = PARTS.get(str(record.get("kind")))
    if parts is None or not all(isinstance(record.get(name), kind) for name, kind in parts.items()):
        return None
    if record["kind"] == "metrics" and not all(isinstance(row, list) and len(row) == 4 for row in record["rows"]):
        return None
    return record
