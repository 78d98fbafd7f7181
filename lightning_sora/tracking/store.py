"""Where runs are kept: an mlflow store that needs no set-up."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from lightning_sora.errors import SoraError
from lightning_sora.redaction import HIDDEN, redact
from lightning_sora.tracking.database import (
    ARTIFACTS,
    SQLITE,
    check_database,
    database_path,
    database_uri,
    folder_name,
    follow,
    for_mlflow,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient
    from mlflow.entities import Run as Run

# mlflow's own defaults hang for minutes on a server that is not there: these give up after about 20 s, twice 10 s.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one appears for each file
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
# Of a database that is not there, with pauses that double from 0.1 s: mlflow's own ten last 100 s.
_ATTEMPTS = 5
#: What tells mlflow's pages that an experiment trains models, so that they open on its runs.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
#: What mlflow says of tables that another version of it made.
_OTHER_SCHEMA = re.compile(r"database schema \(found version (\w+), but expected (\w+)\)")


def resolve_uri(uri: str | None = None) -> str:
    """The address of the store: what is given, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` here.

    ``./mlflow.db`` is also where mlflow's own commands look by default. A relative sqlite path
    is made absolute. The user and password of an http address move to ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD`` of this process, where mlflow finds them.

    Raises:
        SoraError: a plain folder, which mlflow no longer writes to; ``***`` for a password, as records have it.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if "?" in uri and uri.startswith(SQLITE):
        raise SoraError(
            f"tracking uri {uri!r} has a '?', after which the address of a database has options, and a sqlite store "
            "takes none; write %3F for one in the name of a folder"
        )
    if (database := database_path(uri)) is not None:
        return database_uri(database.expanduser().absolute())
    scheme = uri.partition("://")[0].lower()
    if scheme.partition("+")[0] == "sqlite" and "://" in uri:  # else one in memory, or one that is not looked after
        raise SoraError(f"tracking uri {uri!r} is no sqlite store on a disk; write sqlite:///PATH/mlflow.db")
    if f"{HIDDEN}@" in uri:
        raise SoraError(
            f"tracking uri {uri!r} lacks its password, which no record keeps; write ${{oc.env:NAME}} in its place, or "
            "set MLFLOW_TRACKING_URI or, for http, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    try:
        parts = urlsplit(uri)
    except ValueError as problem:
        raise SoraError(f"tracking uri {uri!r} is no address ({problem}); write http(s)://HOST:PORT") from problem
    if parts.scheme in ("http", "https") and parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        return identity(uri)
    if uri.startswith("file:") or "://" not in uri:
        raise SoraError(
            f"tracking uri {uri!r} is a folder, which mlflow no longer supports; "
            "write sqlite:///PATH/mlflow.db or http(s)://HOST:PORT"
        )
    return uri


def identity(uri: str) -> str:
    """Which store it is: its address without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where artifacts of an experiment go: beside the database; the server decides for a remote store."""
    database = database_path(uri)
    if database is None:
        return None
    return (database.parent / ARTIFACTS / folder_name(experiment)).as_uri()


def connect(uri: str) -> MlflowClient:
    """Opens the store, creating a sqlite one on first use, safely among several processes.

    Args:
        uri: as ``resolve_uri`` returns it.

    Raises:
        SoraError: the store cannot be reached or opened.
    """
    database = database_path(uri)
    if database is not None:
        check_database(database, write=True)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.store.db.utils
    from alembic.util import CommandError
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    mlflow.store.db.utils.MAX_RETRY_COUNT = _ATTEMPTS
    # How it makes its tables; and errors at length, which are raised as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        if database is None:
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        artifacts = database.parent / ARTIFACTS
        artifacts.mkdir(parents=True, exist_ok=True)
        with locked(artifacts / f".{database.name}.lock"):
            follow(database)
            client = MlflowClient(for_mlflow(uri))
            client.search_experiments(max_results=1)
            return client
    # Of a driver that is not installed, Python's own error.
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, OSError, ImportError) as problem:
        raise unusable(uri, problem) from problem


def unusable(uri: str, problem: BaseException) -> SoraError:
    """The error of a run that cannot begin because of its store."""
    uri = identity(uri)
    if (versions := _OTHER_SCHEMA.search(str(problem))) is not None:
        return _of_another_version(uri, *versions.groups())
    return SoraError(
        f"the mlflow store {uri} cannot be used ({brief(problem)}); start it, set tracking.uri or "
        "MLFLOW_TRACKING_URI to one that runs, or train without it by --tracking.enabled=false"
    )


def _of_another_version(uri: str, found: str, expected: str) -> SoraError:
    from importlib.metadata import version
    from importlib.resources import files

    migrations = files("mlflow.store.db_migrations").joinpath("versions").iterdir()
    if any(file.name.startswith(f"{found}_") for file in migrations):
        return SoraError(
            f"the mlflow store {uri} was made by an older mlflow: its schema is {found}, and mlflow "
            f"{version('mlflow')} needs {expected}; copy it to a safe place, then run `mlflow db upgrade "
            f"'{for_mlflow(uri)}'`"
        )
    return SoraError(
        f"the mlflow store {uri} was made by a newer mlflow: mlflow {version('mlflow')} does not know its schema "
        f"{found}; run `pip install --upgrade mlflow`, or name another store (tracking.uri, --uri or "
        "MLFLOW_TRACKING_URI)"
    )


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The id of an experiment, which is created where missing.

    Raises:
        SoraError: the experiment was deleted and is still in mlflow's bin.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_root(uri, name), tags={KIND: TRAINING})
        except MlflowException:
            # Another process may have been quicker.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise SoraError(
            f"the mlflow experiment {name!r} is deleted; restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or set tracking.experiment to another name"
        )
    return found.experiment_id


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock on a file, which ends with the process at the latest."""
    import fcntl

    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def brief(problem: BaseException, length: int = 200) -> str:
    """The first words of an error, on one line, without secrets."""
    text = redact(" ".join(str(problem).split())) or type(problem).__name__
    return text if len(text) <= length else f"{text[:length]}..."
