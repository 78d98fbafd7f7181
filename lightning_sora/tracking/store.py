"""Where runs are kept: an mlflow store that needs no set-up."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from lightning_sora.errors import SoraError
from lightning_sora.redaction import HIDDEN, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient
    from mlflow.entities import Run as Run

SQLITE = "sqlite:///"
#: Folder beside a sqlite store where artifacts go.
ARTIFACTS = "mlruns"
# mlflow's own defaults hang for minutes on a server that is not there. These give up after about 20 s: twice 10 s.
_PATIENCE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def resolve_uri(uri: str | None = None) -> str:
    """The address of the store: what is given, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` here.

    ``./mlflow.db`` is also where mlflow's own commands look by default. A relative sqlite path
    is made absolute. The user and password of an http address move to ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD`` of this process, where mlflow finds them.

    Raises:
        SoraError: a plain folder, which mlflow no longer writes to; ``***`` for a password, as records have it.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).expanduser().absolute()}"
    if f"{HIDDEN}@" in uri:
        raise SoraError(
            f"tracking uri {uri!r} lacks its password, which no record keeps; write ${{oc.env:NAME}} in its place, or "
            "set MLFLOW_TRACKING_URI or, for http, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    parts = urlsplit(uri)
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


def database_path(uri: str) -> Path | None:
    """The file of a sqlite store, None for any other."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where artifacts of an experiment go: beside the database; the server decides for a remote store."""
    database = database_path(uri)
    if database is None:
        return None
    folder = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in experiment)
    return (database.parent / ARTIFACTS / folder).as_uri()


def connect(uri: str) -> MlflowClient:
    """Opens the store, creating a sqlite one on first use, safely among several processes.

    Args:
        uri: as ``resolve_uri`` returns it.

    Raises:
        SoraError: the store cannot be reached or opened.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # How it makes its tables; and errors at length, which are raised as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    database = database_path(uri)
    try:
        if database is None:
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        artifacts = database.parent / ARTIFACTS
        artifacts.mkdir(parents=True, exist_ok=True)
        with locked(artifacts / f".{database.name}.lock"):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
    except (MlflowException, OSError) as problem:
        raise unusable(uri, problem) from problem


def unusable(uri: str, problem: BaseException) -> SoraError:
    """The error of a run that cannot begin because of its store."""
    return SoraError(
        f"the mlflow store {uri} cannot be used ({brief(problem)}); start it, set tracking.uri or "
        "MLFLOW_TRACKING_URI to one that runs, or train without it by --tracking.enabled=false"
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
            return client.create_experiment(name, artifact_location=artifact_root(uri, name))
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
