"""Runs as they are kept: through mlflow's API, or read directly from a sqlite store, which is far quicker."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from lightning_sora.sealing import read_json
from lightning_sora.tracking.database import beside, check_database, database_path, database_uri, reading
from lightning_sora.tracking.store import connect

if TYPE_CHECKING:
    from lightning_sora.tracking.store import MlflowClient, Run

#: What the direct reader needs of mlflow's private schema.
SCHEMA = {
    "runs": {"run_uuid", "name", "status", "start_time", "lifecycle_stage", "artifact_uri", "experiment_id"},
    "metrics": {"key", "value", "step", "timestamp", "run_uuid", "is_nan"},
    "params": {"key", "value", "run_uuid"},
    "tags": {"key", "value", "run_uuid"},
}
RAW = "surrogateescape"  # so that damaged text is told as such, by its digest
REMEDY = "restore it from a copy, or delete the run and train it again"
PER_QUERY = 500
#: What one request to a server may name, and how many requests wait for it at once.
API_PER_QUERY = 100
AT_ONCE = 8

History = Mapping[str, tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        history: every value of every metric, as (step, value) in order.
    """

    run_id: str
    name: str
    status: str
    start_time: int
    artifact_uri: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    history: History = field(default_factory=dict)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: values[-1][1] for name, values in self.history.items() if values}


class RunReader(ABC):
    """Finds runs of one store."""

    @abstractmethod
    def tagged(self, tags: Mapping[str, str]) -> list[RunData]:
        """Runs with all of these tags, newest first; without params and history."""

    @abstractmethod
    def named(self, names: Sequence[str]) -> dict[str, list[RunData]]:
        """For each: the run of this id, or the runs of this name, newest first; without params and history."""

    @abstractmethod
    def full(self, run_ids: Sequence[str]) -> list[RunData]:
        """These runs with everything, in this order."""

    @abstractmethod
    def text(self, run: RunData, path: str) -> str | None:
        """A text artifact; None where the run has none."""

    def folder(self, run: RunData) -> Path | None:
        """Where the run's artifacts are, if on this machine."""
        parsed = urlparse(run.artifact_uri)
        path = Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None
        return path if path is not None and path.is_dir() else None

    def json(self, run: RunData, path: str) -> Any:
        """A JSON artifact; None where the run has none.

        Raises:
            SoraError: it is damaged.
        """
        text = self.text(run, path)
        return None if text is None else read_json(text.encode(errors=RAW), f"{path} of run {run.run_id}", REMEDY)


def open_reader(uri: str) -> RunReader:
    """The fastest way to read a store: the file itself where it is sqlite with the schema that is known."""
    database = database_path(uri)
    if database is not None and os.path.exists(database):
        check_database(database)
        if _schema_known(database):
            return SqliteReader(database)
    return ClientReader(uri)


def _schema_known(database: Path) -> bool:
    with reading(database) as connection:
        for table, needed in SCHEMA.items():
            columns = {row[1] for row in connection.execute(f"pragma table_info({table})")}
            if not needed <= columns:
                return False
    return True


class SqliteReader(RunReader):
    """Reads mlflow's sqlite file, and never writes to it."""

    COLUMNS = "run_uuid, name, status, start_time, artifact_uri"

    def __init__(self, database: Path) -> None:
        self.database = database

    def tagged(self, tags: Mapping[str, str]) -> list[RunData]:
        conditions = " and ".join(
            "exists (select 1 from tags t where t.run_uuid = runs.run_uuid and t.key = ? and t.value = ?)" for _ in tags
        )
        values = [text for item in tags.items() for text in item]
        return self._runs(conditions, values)

    def named(self, names: Sequence[str]) -> dict[str, list[RunData]]:
        found = []
        for part in _parts(names):
            marks = ", ".join("?" * len(part))
            found += self._runs(f"(run_uuid in ({marks}) or name in ({marks}))", [*part, *part])
        return _by_name(names, found)

    def full(self, run_ids: Sequence[str]) -> list[RunData]:
        found: dict[str, RunData] = {}
        for part in _parts(run_ids):
            marks = ", ".join("?" * len(part))
            with reading(self.database) as connection:
                params: dict[str, dict[str, str]] = {run: {} for run in part}
                for run, key, value in connection.execute(
                    f"select run_uuid, key, value from params where run_uuid in ({marks})", part
                ):
                    params[run][key] = value
                history: dict[str, dict[str, list[tuple[int, float]]]] = {run: {} for run in part}
                for run, key, step, value, nan in connection.execute(
                    "select run_uuid, key, step, value, is_nan from metrics "
                    f"where run_uuid in ({marks}) order by step, timestamp",
                    part,
                ):
                    history[run].setdefault(key, []).append((step, math.nan if nan else value))
            for run in self._runs(f"run_uuid in ({marks})", part):
                kept = {name: tuple(values) for name, values in history[run.run_id].items()}
                found[run.run_id] = RunData(
                    run.run_id,
                    run.name,
                    run.status,
                    run.start_time,
                    run.artifact_uri,
                    params[run.run_id],
                    run.tags,
                    kept,
                )
        return [found[run] for run in run_ids if run in found]

    def folder(self, run: RunData) -> Path | None:
        return beside(self.database, run.artifact_uri)

    def text(self, run: RunData, path: str) -> str | None:
        if urlparse(run.artifact_uri).scheme not in ("", "file"):
            return self._elsewhere.text(run, path)
        folder = self.folder(run)
        file = folder / path if folder is not None else None
        return file.read_text(encoding="utf-8", errors=RAW) if file is not None and file.is_file() else None

    @cached_property
    def _elsewhere(self) -> ClientReader:
        return ClientReader(database_uri(self.database))

    def _runs(self, condition: str, values: Iterable[str]) -> list[RunData]:
        with reading(self.database) as connection:
            rows = connection.execute(
                f"select {self.COLUMNS} from runs where lifecycle_stage = 'active' and {condition} "
                "order by start_time desc, run_uuid",
                list(values),
            ).fetchall()
            tags: dict[str, dict[str, str]] = {row[0]: {} for row in rows}
            for part in _parts(list(tags)):
                marks = ", ".join("?" * len(part))
                for run, key, value in connection.execute(
                    f"select run_uuid, key, value from tags where run_uuid in ({marks})", part
                ):
                    tags[run][key] = value
        return [
            RunData(run, name or "", status, start, uri or "", {}, tags[run]) for run, name, status, start, uri in rows
        ]


class ClientReader(RunReader):
    """Reads any store through mlflow's API: several requests at once, since each of them waits for its answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._listings: dict[tuple[str, str], set[str]] = {}

    @cached_property
    def client(self) -> MlflowClient:
        return connect(self.uri)

    @cached_property
    def _experiments(self) -> list[str]:
        return [experiment.experiment_id for experiment in self.client.search_experiments()]

    def tagged(self, tags: Mapping[str, str]) -> list[RunData]:
        return self._search(" and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()))

    def named(self, names: Sequence[str]) -> dict[str, list[RunData]]:
        found: list[RunData] = []
        for part in _parts(names, API_PER_QUERY):
            found += self._search(f"attributes.run_id IN ({', '.join(map(_quoted, part))})")
        ids = {run.run_id for run in found}
        # Of names, mlflow compares one at a time.
        conditions = [f"attributes.run_name = {_quoted(name)}" for name in names if name not in ids]
        _ = self._experiments  # before several ask for it at once
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for some in pool.map(self._search, conditions):
                found += some
        return _by_name(names, found)

    def full(self, run_ids: Sequence[str]) -> list[RunData]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._full, run_ids))

    def _full(self, run_id: str) -> RunData:
        run = self.client.get_run(run_id)
        history = {}
        for name in run.data.metrics:
            values = sorted(self.client.get_metric_history(run_id, name), key=lambda m: (m.step, m.timestamp))
            history[name] = tuple((m.step, m.value) for m in values)
        return _data(run, dict(run.data.params), history)

    def text(self, run: RunData, path: str) -> str | None:
        from tempfile import TemporaryDirectory

        if path not in self._listed(run.run_id, path.rpartition("/")[0]):
            return None
        with TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run.run_id, path, folder)).read_text(
                encoding="utf-8", errors=RAW
            )

    def _listed(self, run_id: str, folder: str) -> set[str]:
        if (run_id, folder) not in self._listings:
            items = self.client.list_artifacts(run_id, folder or None)
            self._listings[run_id, folder] = {item.path for item in items}
        return self._listings[run_id, folder]

    def _search(self, condition: str) -> list[RunData]:
        found: list[RunData] = []
        token = None
        while True:
            page = self.client.search_runs(
                self._experiments,
                condition,
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += [_data(run, {}, {}) for run in page]
            token = page.token
            if not token:
                return found


def _parts(values: Sequence[str], length: int = PER_QUERY) -> Iterator[list[str]]:
    """The values in lists that one query can name."""
    for start in range(0, len(values), length):
        yield list(values[start : start + length])


def _quoted(value: str) -> str:
    quote = '"' if "'" in value else "'"
    return f"{quote}{value.replace(quote, '')}{quote}"


def _by_name(names: Sequence[str], runs: Iterable[RunData]) -> dict[str, list[RunData]]:
    """For each name the run of this id, or the runs of this name, newest first."""
    ids: dict[str, list[RunData]] = {}
    named: dict[str, list[RunData]] = {}
    for run in sorted(runs, key=lambda run: (-run.start_time, run.run_id)):
        ids[run.run_id] = [run]
        named.setdefault(run.name, []).append(run)
    return {name: ids.get(name) or named.get(name) or [] for name in names}


def _data(run: Run, params: Mapping[str, str], history: History) -> RunData:
    info = run.info
    tags = dict(run.data.tags)
    return RunData(
        info.run_id, info.run_name or "", info.status, info.start_time, info.artifact_uri, params, tags, history
    )
