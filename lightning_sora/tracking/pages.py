"""The mlflow pages of past runs, served on this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence

from lightning_sora.errors import SoraError
from lightning_sora.lifeline import end_group, guard
from lightning_sora.tracking.database import check_database, database_path, follow, for_mlflow, reading
from lightning_sora.tracking.described import CHANGED
from lightning_sora.tracking.store import KIND, TRAINING, resolve_uri

FIRST_PORT = 5000
PORTS_TRIED = 50
START_SECONDS = 180
METRICS = (
    "SELECT DISTINCT key FROM latest_metrics JOIN runs USING (run_uuid) WHERE experiment_id = ? "
    "AND lifecycle_stage = 'active' ORDER BY key"
)
CHANGES = (
    "SELECT value FROM tags JOIN runs USING (run_uuid) WHERE experiment_id = ? AND key = ? "
    "AND lifecycle_stage = 'active' ORDER BY start_time DESC LIMIT 50"
)
#: Where mlflow's server takes a tag of an experiment.
SET_TAG = "/api/2.0/mlflow/experiments/set-experiment-tag"
#: The name of the view that the pages open with; mlflow keeps views as tags of the experiment.
VIEW = "lightning_sora"
PARAMS_SHOWN, METRICS_SHOWN = 4, 4
#: Scores that are worth a column, the most telling first.
SCORES = (
    "fvd", "clip_score", "adherence", "rfvd", "psnr", "lpips", "accuracy", "denoising_error", "loss",
)  # fmt: skip

log = logging.getLogger(__name__)


def serve(uri: str | None, host: str, port: int | None, tell: Callable[[str], None]) -> None:
    """Serves a store until Ctrl-C; of a remote store it tells the address.

    Args:
        uri: of the store; None for MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        host: address to listen at.
        port: None for the first free one from 5000 on.
        tell: hears where the pages are.

    Raises:
        SoraError: no store, no such port, or mlflow does not start.
    """
    uri = resolve_uri(uri)
    database = database_path(uri)
    if database is None:
        if not uri.startswith("http"):
            raise SoraError(f"{uri} is a database without pages; start `mlflow server --backend-store-uri ...` on it")
        tell(f"{uri} has its own pages: {uri.rstrip('/')}/")
        return
    if not os.path.exists(database):
        raise SoraError(
            f"no mlflow store at {database}; run `lightning-sora fit` in this folder first, or give --uri "
            "sqlite:///PATH/mlflow.db"
        )
    experiment = latest_experiment(uri)
    follow(database)
    port = _port(host, port)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", for_mlflow(uri)]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    tell("starting mlflow, which may take a minute ...")
    # Ended by SIGTERM, it must still end the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        watch = guard(server)
        try:
            _wait(server, f"http://{host}:{port}/health")
            if server.poll() is None:
                address = f"http://{host}:{port}"
                page = "#/experiments" if experiment is None else prepared_page(address, *experiment)
                tell(f"{address}/{page}\nCtrl-C stops it")
            server.wait()
        except KeyboardInterrupt:
            return  # the usual way to leave
        finally:
            _end(server)
            watch.kill()
            watch.wait()
        log.seek(0)
        last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["it gave no reason"]
    raise SoraError(f"mlflow ended with status {server.returncode}: {last[0]}; try `{' '.join(command[2:])}`")


def latest_experiment(uri: str) -> tuple[str, list[str]] | None:
    """The experiment that was run last and the columns to show of it, read without loading mlflow.

    Raises:
        SoraError: the file is no mlflow store.
    """
    database = database_path(uri)
    assert database is not None
    check_database(database)
    try:
        with reading(database) as connection:
            query = "SELECT experiment_id FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time DESC LIMIT 1"
            row = connection.execute(query).fetchone()
            if row is None:
                return None
            metrics = [name for (name,) in connection.execute(METRICS, row)]
            changed = [text for (text,) in connection.execute(CHANGES, (*row, CHANGED))]
    except sqlite3.Error as problem:
        raise SoraError(f"{database} is not an mlflow store ({problem}); give --uri of one") from problem
    return str(row[0]), columns(metrics, changed)


def columns(metrics: Sequence[str], changed: Sequence[str]) -> list[str]:
    """What to show of each run, as mlflow's pages name columns: what was changed, its scores, its cost.

    Args:
        metrics: all that runs have.
        changed: of each run, the keys that it changed, with spaces between.
    """
    keys = dict.fromkeys(key.removesuffix("+") for text in changed for key in text.split())
    # A score as a whole, not its parts by level, size or fact.
    names = [f"{split}/{score}" for split in ("test", "val") for score in SCORES]
    scores = [name for name in names if name in metrics]
    shown = [f"params.`{key}`" for key in keys][:PARAMS_SHOWN]
    shown += [f"metrics.`{name}`" for name in scores[:METRICS_SHOWN]]
    return [*shown, "metrics.`cost/seconds`"]


def prepared_page(address: str, experiment: str, shown: Sequence[str]) -> str:
    """The page of an experiment's runs, once the server knows what to show there.

    Args:
        address: of the server.
        experiment: the id.
        shown: the columns.
    """
    tags = {KIND: TRAINING, f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": list(shown)})}
    for key, value in tags.items():
        body = json.dumps({"experiment_id": experiment, "key": key, "value": value}).encode()
        asked = urllib.request.Request(f"{address}{SET_TAG}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=10):
                pass
        except OSError as problem:
            log.warning("mlflow's pages show columns of their own choice: %s", problem)
    # mlflow opens in another mode without the first parameter.
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def _port(host: str, asked: int | None) -> int:
    for port in [asked] if asked is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError):
                continue
            return port
    raise SoraError(
        f"port {asked or f'{FIRST_PORT} and the next {PORTS_TRIED}'} at {host} cannot be used; give another --port"
    )


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    """Returns when the server answers or has ended."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None:
        if time.monotonic() > deadline:
            raise SoraError(f"mlflow did not answer within {START_SECONDS} s at {address}; see `mlflow doctor`")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.3)


def _end(server: subprocess.Popen[bytes]) -> None:
    # Its workers are in its group and would outlive it.
    ending = threading.Thread(target=end_group, args=(server.pid,))
    ending.start()
    server.wait()
    ending.join()
