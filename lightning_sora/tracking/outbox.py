"""Sends records of a run to mlflow from a thread of its own; they are on disk until the store has them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sora.errors import SoraError
from lightning_sora.redaction import redacted
from lightning_sora.tracking.database import database_path
from lightning_sora.tracking.spool import Record, Spool
from lightning_sora.tracking.store import brief

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
#: The store's own words for records that it will never take. A proxy's 400 or 404 is none of them.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class Outbox:
    """The way to mlflow of one run. Nothing that goes wrong with the store stops or slows a training.

    Every record goes to ``spool-RUN-....jsonl`` first, so that it outlives the process, and is sent from there, in
    order, by a thread. Where the store does not take it, the thread tries again after a pause, at the end of the run,
    or when a later run starts in the same folder. What the store itself refuses for good is moved to
    ``refused-RUN.jsonl``, lines that hold no record to ``damaged-RUN.jsonl``. All of this is warned of.

    Args:
        client: of the store.
        run_id: the run that records belong to.
        folder: where the spool goes.
        store: which store it is, without a password; its records are sent to no other.
        every: seconds that metrics may wait to be sent together.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path, store: str = "", every: float = 10.0) -> None:
        self.run_id, self._store, self._every = run_id, store, every
        name = f"spool-{run_id}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}.jsonl"
        self._spool = Spool(folder / name)
        self._sender = _Sender(client, self._spool, store)
        self._changed = threading.Condition()
        self._rows = 0
        self._urgent = self._closing = self._full = False
        self._thread: threading.Thread | None = None

    @property
    def spool(self) -> Path:
        """The file of records that wait; empty when none does, absent after the end."""
        return self._spool.path

    def metrics(self, rows: list[tuple[str, float, int, int]]) -> None:
        """Sends values as (name, value, milliseconds since 1970, step), after a while and together."""
        self._rows += len(rows)
        self._keep({"kind": "metrics", "rows": rows}, urgent=self._rows >= METRICS_PER_CALL)

    def params(self, params: dict[str, str]) -> None:
        names = list(params)
        for start in range(0, len(names), PARAMS_PER_CALL):
            self._keep({"kind": "params", "values": {n: params[n] for n in names[start : start + PARAMS_PER_CALL]}})

    def tags(self, tags: dict[str, str]) -> None:
        self._keep({"kind": "tags", "values": tags})

    def text(self, text: str, artifact: str) -> None:
        self._keep({"kind": "text", "text": text, "artifact": artifact})

    def files(self, path: Path, folder: str) -> None:
        """Sends a file, or the contents of a folder, as they are by then."""
        self._keep({"kind": "files", "path": str(path.absolute()), "folder": folder})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        self._keep({"kind": "dataset", "name": name, "digest": digest, "source": source, "context": context})

    def status(self, status: str) -> None:
        self._keep({"kind": "status", "status": status, "time": _now()})

    def hurry(self) -> None:
        """Has everything sent now, without waiting for it."""
        with self._changed:
            self._urgent = True
            self._changed.notify()

    def sync(self) -> None:
        """Returns once every record is on the disk itself."""
        self._spool.sync()

    def close(self) -> None:
        """Makes a last attempt at what waits, and returns after it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        if not self._sender.rest():
            self._spool.close()
            return
        log.warning(
            "the mlflow store does not answer; records of run %s wait in %s and are sent when a run next starts with "
            "the same trainer.default_root_dir",
            self.run_id,
            self.spool,
        )
        self._spool.close()

    def _keep(self, record: Record, urgent: bool = True) -> None:
        if record["kind"] != "files":  # those are found by their path
            record = redacted(record)
        try:
            self._spool.append({**record, "run_id": self.run_id, "store": self._store})
        except OSError as problem:
            if not self._full:  # said once: there is one for every step
                log.warning("records of run %s are lost: %s cannot be written (%s)", self.run_id, self.spool, problem)
            self._full = True
            return
        self._full = False
        if self._thread is None:
            # Not waited for where a process ends without `close`: what is left is on disk.
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
        if urgent:
            self.hurry()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._urgent or self._closing, timeout=self._every)
                closing, self._urgent, self._rows = self._closing, False, 0
            sent = self._sender.send(closing)
            if closing or (self._closing and not sent):
                return


def replay_earlier(client: MlflowClient, folder: Path, store: str = "") -> None:
    """Sends what earlier runs left in a folder; what runs in it at present does so itself."""
    for path in sorted(folder.glob("spool-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        try:
            spool = Spool(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError as problem:
            log.warning("records of an earlier run in %s cannot be sent: %s", path, problem)
            continue
        sender = _Sender(client, spool, store, earlier=True)
        sent = sender.send(last=True)
        sender.rest()
        spool.close()
        if not sent:
            return


class _Sender:
    """Takes a spool to its store, from its first record to its last."""

    def __init__(self, client: MlflowClient, spool: Spool, store: str, earlier: bool = False) -> None:
        self._client, self._spool, self._store = client, spool, store
        self._done = 0  # bytes of the spool that are dealt with
        self._late = earlier  # whether what is sent is late, which then is said
        self._retry_at, self._pause = 0.0, FIRST_PAUSE

    def send(self, last: bool = False) -> bool:
        """Sends all that waits, unless a pause is on.

        Args:
            last: try in spite of the pause.

        Returns:
            whether nothing is left that this store could take.
        """
        if not last and time.monotonic() < self._retry_at:
            return False
        sent, whole = 0, True
        for record, lines, end in _together(self._spool, self._done):
            if record is None:
                if not self._set_aside("damaged", lines):
                    whole = False
                    break
            elif record.get("store", self._store) != self._store and not self._moved_here(record):
                log.warning(
                    "%s waits for another mlflow store, %s; it is sent when a run with that tracking.uri starts here",
                    self._spool.path,
                    record["store"],
                )
                break
            elif (problem := self._failure(record)) is None:
                sent += len(lines)
            elif _is_final(problem):
                if not self._set_aside("refused", lines, brief(problem)):
                    whole = False
                    break
            else:
                self._wait(problem)
                whole = False
                break
            self._done = end
        if self._late and sent:
            log.warning("%d records that waited in %s are in the mlflow store now", sent, self._spool.path)
        if whole:
            self._pause, self._retry_at, self._late = FIRST_PAUSE, 0.0, False
            self._done = self._spool.empty(self._done)
        return whole

    def _moved_here(self, record: Record) -> bool:
        """Whether a record is for the sqlite store that this one was, before its folder was moved."""
        from mlflow.exceptions import MlflowException

        before = database_path(record["store"])
        if before is None or before.exists() or database_path(self._store) is None:
            return False
        try:
            return self._client.get_run(record["run_id"]) is not None
        except MlflowException:
            return False

    def _failure(self, record: Record) -> Exception | None:
        try:
            _HANDLERS[record["kind"]](self._client, record)
        except Exception as problem:  # each kind of store has errors of its own
            return problem
        return None

    def rest(self) -> int:
        """Forgets what is dealt with, and returns how many bytes are left."""
        try:
            self._spool.keep_from(self._done)
        except SoraError as problem:  # all of it is sent again, which changes nothing
            log.warning("%s", problem)
        self._done = 0
        return self._spool.path.stat().st_size

    def _wait(self, problem: Exception) -> None:
        log.warning(
            "the mlflow store does not take records (%s); they are kept in %s, next attempt in %.0f s",
            brief(problem),
            self._spool.path,
            self._pause,
        )
        self._late = True
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _set_aside(self, kind: str, lines: list[bytes], reason: str = "") -> bool:
        """Moves lines to a file of their own; whether that could be written."""
        target = self._spool.path.with_name(f"{kind}-{self._spool.path.name.removeprefix('spool-')}")
        try:
            with target.open("ab") as file:
                for line in lines:
                    told = json.dumps({**json.loads(line), "reason": reason}).encode() if reason else line.rstrip(b"\n")
                    file.write(told + b"\n")
        except OSError as problem:
            self._wait(problem)
            return False
        if reason:
            log.warning("mlflow refuses %d record(s) (%s); kept in %s", len(lines), reason, target)
        else:
            log.warning("%d line(s) of %s hold no record; kept in %s", len(lines), self._spool.path, target)
        return True


def _together(spool: Spool, start: int) -> Iterator[tuple[Record | None, list[bytes], int]]:
    """Records with the lines that they are made of and the byte after those; metrics together, up to one call's."""
    gathered: Record | None = None
    lines: list[bytes] = []
    end = start
    for record, line, after in spool.read(start):
        joins = record is not None and record["kind"] == "metrics"
        if gathered is not None and record is not None and joins and _joinable(gathered, record):
            gathered["rows"] += record["rows"]
            lines.append(line)
            end = after
            continue
        if gathered is not None:
            yield gathered, lines, end
            gathered = None
        if joins:
            gathered, lines, end = record, [line], after
        else:
            yield record, [line], after
    if gathered is not None:
        yield gathered, lines, end


def _joinable(gathered: Record, record: Record) -> bool:
    same = all(gathered.get(name) == record.get(name) for name in ("run_id", "store"))
    return same and len(gathered["rows"]) + len(record["rows"]) <= METRICS_PER_CALL


class _Gone(Exception):
    """A file that was to be sent is not there any more."""


def _is_final(problem: Exception) -> bool:
    """Whether a record would fail for this reason for ever."""
    return isinstance(problem, _Gone) or getattr(problem, "error_code", None) in REFUSALS


def _now() -> int:
    return int(time.time() * 1000)


def _send_metrics(client: MlflowClient, record: Record) -> None:
    from mlflow.entities import Metric

    client.log_batch(record["run_id"], metrics=[Metric(*row) for row in record["rows"]])


def _send_params(client: MlflowClient, record: Record) -> None:
    from mlflow.entities import Param

    client.log_batch(record["run_id"], params=[Param(*pair) for pair in record["values"].items()])


def _send_tags(client: MlflowClient, record: Record) -> None:
    from mlflow.entities import RunTag

    client.log_batch(record["run_id"], tags=[RunTag(*pair) for pair in record["values"].items()])


def _send_text(client: MlflowClient, record: Record) -> None:
    client.log_text(record["run_id"], record["text"], record["artifact"])


def _send_files(client: MlflowClient, record: Record) -> None:
    path = Path(record["path"])
    if path.is_dir():
        client.log_artifacts(record["run_id"], str(path), record["folder"])
    elif path.exists():
        client.log_artifact(record["run_id"], str(path), record["folder"])
    else:
        raise _Gone(f"{path} is gone")


def _send_dataset(client: MlflowClient, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(record["name"], record["digest"], "code", json.dumps({"source": record["source"]}))
    client.log_inputs(
        record["run_id"], datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])]
    )


def _send_status(client: MlflowClient, record: Record) -> None:
    if record["status"] == "RUNNING":
        client.update_run(record["run_id"], status="RUNNING")
    else:
        client.set_terminated(record["run_id"], record["status"], record["time"])


_HANDLERS = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "text": _send_text,
    "files": _send_files,
    "dataset": _send_dataset,
    "status": _send_status,
}
