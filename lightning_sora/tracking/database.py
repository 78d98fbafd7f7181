"""The sqlite file of a store: where it is, whether it can be used, and what a move of its folder means for it."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lightning_sora.errors import SoraError

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
#: Folder beside a sqlite store where artifacts go.
ARTIFACTS = "mlruns"
LONGEST = 200  # bytes of the name of a folder in it
#: What every sqlite file begins with.
HEADER = b"SQLite format 3\0"
#: How long another process may hold the file: writers are done within a few seconds.
PATIENCE = 10.0
REMEDY = "move it away, or name another store (tracking.uri, --uri or MLFLOW_TRACKING_URI)"


def database_uri(path: Path) -> str:
    """The address of a sqlite file, with those signs escaped that mean something in an address.

    Raises:
        SoraError: its name is no text, so that no address can hold it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise SoraError(
            f"{str(path)!r} is no UTF-8, which the address of an mlflow store must be; rename the folder, or set "
            "tracking.uri or MLFLOW_TRACKING_URI to a store elsewhere"
        ) from None
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def database_path(uri: str) -> Path | None:
    """The file of a sqlite store, None for any other."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def for_mlflow(uri: str) -> str:
    """An address as mlflow is to be given it."""
    # Of what begins with "sqlite:///" it makes the folder, of the name as it is escaped.
    return uri.replace("sqlite:", "sqlite+pysqlite:", 1) if uri.startswith(SQLITE) and "%" in uri else uri


@contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes nothing, but that it undoes what a killed process had begun to write.

    Without that, no reader is let in: the file beside the database says how it was.

    Raises:
        SoraError: the database cannot be read, or a part of it that is asked for is damaged.
    """
    uri = f"{database.absolute().as_uri()}?mode=ro"
    try:
        if Path(f"{database}-journal").exists():
            with closing(sqlite3.connect(f"{uri[:-1]}w", uri=True, timeout=PATIENCE)) as connection:
                connection.execute("select count(*) from sqlite_master").fetchone()
        with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as connection:
            yield connection
    except sqlite3.Error as problem:
        raise _unreadable(database, problem) from problem


def check_database(database: Path, *, write: bool = False) -> None:
    """Refuses at once what mlflow would try for minutes and then end on: no store, or one that is locked.

    Args:
        write: look whether it can be written to as well. A file that is missing then will do.

    Raises:
        SoraError: with what is wrong with which file.
    """
    if not os.path.lexists(database) and write:
        return
    if not database.is_file():
        what = "a folder" if database.is_dir() else "no file"
        raise SoraError(f"{database} is not an mlflow store: it is {what}; {REMEDY}")
    try:
        with database.open("rb") as file:
            begun = file.read(len(HEADER))
        if begun and begun != HEADER:
            raise SoraError(f"{database} is not an mlflow store: it is no sqlite database; {REMEDY}")
        with reading(database) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        if tables and not {"runs", "experiments"} <= tables:
            raise SoraError(f"{database} is not an mlflow store: it has tables of something else; {REMEDY}")
        if write:
            with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as connection:
                connection.execute("begin immediate")
                connection.execute("rollback")
    except (sqlite3.Error, OSError) as problem:
        raise _unreadable(database, problem) from problem


def _unreadable(database: Path, problem: Exception) -> SoraError:
    if "locked" in str(problem):
        return SoraError(
            f"{database} is locked: another process has been writing to it for {PATIENCE:.0f} s; end that, or "
            "name another store (tracking.uri, --uri or MLFLOW_TRACKING_URI)"
        )
    return SoraError(f"{database} cannot be used as an mlflow store ({problem}); {REMEDY}")


def follow(database: Path) -> None:
    """Has a store that was moved together with its artifacts name the place where these are now.

    Else a run would make the old folders again, far from its store. Artifacts that were left behind stay where they
    are, which is said.
    """
    if not database.is_file() or not database.stat().st_size:
        return
    with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection, connection:
        rows = connection.execute("select experiment_id, name, artifact_location from experiments").fetchall()
        for experiment, name, address in rows:
            new = _place_here(database, address)
            if new is None or new.name not in (folder_name(name), str(experiment)):
                continue
            old = _path(address)
            if old.is_dir() and not new.is_dir():
                if new.name == folder_name(name):  # mlflow names its own by number, and makes them where it is run
                    log.warning(
                        "%s was moved without its artifacts, which stay in %s and are still written there; "
                        "`mkdir -p '%s' && mv '%s' '%s'` moves them too",
                        database, old, new.parent, old, new,
                    )  # fmt: skip
                continue
            followed = _rename(connection, experiment, address, new.as_uri())
            if followed:
                log.warning(
                    "%s was moved here with its artifacts: of %d runs it named the folder %s, and names %s from now on",
                    database, followed, old, new,
                )  # fmt: skip


def beside(database: Path, address: str) -> Path | None:
    """Where artifacts of a run are: beside their store if they are there, else where it says, if on this machine."""
    recorded = _path(address) if urlsplit(address).scheme in ("", "file") else None
    if recorded is None:
        return None
    *_, folder, experiment, run, last = ("", "", "", "", *recorded.parts)
    here = database.parent / ARTIFACTS / experiment / run / last
    if folder == ARTIFACTS and here.is_dir():
        return here
    return recorded if recorded.is_dir() else None


def folder_name(experiment: str) -> str:
    """The folder of an experiment's artifacts: one name, that a file system takes."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in experiment)
    if name in (".", ".."):
        return name.replace(".", "_")
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _rename(connection: sqlite3.Connection, experiment: object, old: str, new: str) -> int:
    """Replaces the address of an experiment's artifacts, and counts the runs that this moves."""
    connection.execute("update experiments set artifact_location = ? where experiment_id = ?", (new, experiment))
    runs = "select run_uuid, artifact_uri from runs where experiment_id = ? and substr(artifact_uri, 1, ?) = ?"
    followed = 0
    for run, place in connection.execute(runs, (experiment, len(old) + 1, f"{old}/")).fetchall():
        here = new + place[len(old) :]
        if _path(place).is_dir() and not _path(here).is_dir():
            continue  # made after the copy was, or not copied
        connection.execute("update runs set artifact_uri = ? where run_uuid = ?", (here, run))
        followed += 1
    return followed


def _place_here(database: Path, address: str | None) -> Path | None:
    """Where an experiment's artifacts belong, if its store was elsewhere when it was made."""
    if not address or urlsplit(address).scheme not in ("", "file"):
        return None
    recorded = _path(address)
    here = database.parent / ARTIFACTS / recorded.name
    if recorded.parent.name != ARTIFACTS or recorded == here:
        return None
    if recorded.is_dir() and here.is_dir() and recorded.samefile(here):
        return None
    return here


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
