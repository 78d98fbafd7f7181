"""Sends records of a run to mlflow, and keeps them on disk while the server does not answer."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.tracking.store import brief

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
# Records that fail for these reasons would fail for ever.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}

Record = dict[str, Any]


class Outbox:
    """The way to mlflow of one run. Nothing that goes wrong here stops a training.

    A record that cannot be delivered goes to ``spool-RUN.jsonl``; later ones follow it, and the
    file is sent when the server answers again: at the next attempt, at the end of the run, or
    when a later run starts in the same folder. What mlflow refuses for good is moved to
    ``refused-RUN.jsonl``. Both are warned of.

    Args:
        client: of the store.
        run_id: the run that records belong to.
        folder: where the spool goes.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self._client, self.run_id, self._folder = client, run_id, folder
        self._retry_at = 0.0
        self._pause = FIRST_PAUSE

    @property
    def spool(self) -> Path:
        """The file of records that wait; absent when none does."""
        return self._folder / f"spool-{self.run_id}.jsonl"

    def metrics(self, rows: list[tuple[str, float, int, int]]) -> None:
        """Sends values as (name, value, milliseconds since 1970, step)."""
        for start in range(0, len(rows), METRICS_PER_CALL):
            self._send({"kind": "metrics", "rows": rows[start : start + METRICS_PER_CALL]})

    def params(self, params: dict[str, str]) -> None:
        names = list(params)
        for start in range(0, len(names), PARAMS_PER_CALL):
            self._send({"kind": "params", "values": {n: params[n] for n in names[start : start + PARAMS_PER_CALL]}})

    def tags(self, tags: dict[str, str]) -> None:
        self._send({"kind": "tags", "values": tags})

    def text(self, text: str, artifact: str) -> None:
        self._send({"kind": "text", "text": text, "artifact": artifact})

    def files(self, path: Path, folder: str) -> None:
        """Sends a file, or the contents of a folder."""
        self._send({"kind": "files", "path": str(path.absolute()), "folder": folder})

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        self._send({"kind": "dataset", "name": name, "digest": digest, "source": source, "context": context})

    def status(self, status: str) -> None:
        self._send({"kind": "status", "status": status, "time": _now()})

    def close(self) -> None:
        """Makes a last attempt at what waits."""
        if self.spool.exists() and not self._replay(self.spool):
            log.warning(
                "the mlflow store still does not answer; records of run %s wait in %s and are sent when a run "
                "next starts with the same trainer.default_root_dir",
                self.run_id,
                self.spool,
            )

    def replay_earlier(self) -> None:
        """Sends what earlier runs left in the folder."""
        for path in sorted(self._folder.glob("spool-*.jsonl")):
            if not self._replay(path):
                return

    def _send(self, record: Record) -> None:
        record["run_id"] = self.run_id
        if self._must_wait() or not self._deliver(record):
            self._keep(record)

    def _must_wait(self) -> bool:
        """Whether earlier records wait and cannot be sent now; records keep their order."""
        return self.spool.exists() and (time.monotonic() < self._retry_at or not self._replay(self.spool))

    def _keep(self, record: Record) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.spool.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _replay(self, path: Path) -> bool:
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines):
            if not self._deliver(json.loads(line)):
                part = path.with_suffix(".part")
                part.write_text("".join(f"{rest}\n" for rest in lines[index:]))
                part.replace(path)
                return False
        path.unlink()
        log.warning("the mlflow store answers again; %d records that waited are sent", len(lines))
        return True

    def _deliver(self, record: Record) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            _HANDLERS[record["kind"]](self._client, record)
        except (MlflowException, OSError) as problem:
            if getattr(problem, "error_code", None) in _REFUSALS or isinstance(problem, FileNotFoundError):
                self._refuse(record, problem)
                return True
            log.warning(
                "the mlflow store does not take records (%s); they are kept in %s, next attempt in %.0f s",
                brief(problem),
                self.spool,
                self._pause,
            )
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return False
        self._pause = FIRST_PAUSE
        return True

    def _refuse(self, record: Record, problem: Exception) -> None:
        refused = self._folder / f"refused-{record['run_id']}.jsonl"
        log.warning("mlflow refuses a record (%s); it is kept in %s", brief(problem), refused)
        self._folder.mkdir(parents=True, exist_ok=True)
        with refused.open("a") as file:
            file.write(json.dumps({**record, "reason": brief(problem)}) + "\n")


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
        raise FileNotFoundError(f"{path} is gone")


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
