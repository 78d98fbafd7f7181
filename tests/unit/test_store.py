"""The store on this machine: a sqlite file that cannot be used, folders of odd names, and folders that are moved."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param

from lightning_sora.ablation.reader import read_study
from lightning_sora.ablation.runs import ClientReader, open_reader
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.tracking import database, store
from lightning_sora.tracking.outbox import replay_earlier
from lightning_sora.tracking.spool import Spool

# A store is made for these.
pytestmark = pytest.mark.slow

ODD_NAMES = ("what?", "a%41b", "50%", "x?mode=memory", "a#b", "two words", "it's", "α")


def write_run(client, uri: str, name: str = "first", **params: str) -> str:
    run = client.create_run(store.experiment_id(client, uri, "toys"), run_name=name).info.run_id
    client.log_batch(run, [Metric("val/loss", 1.0, 0, 0)], [Param(*pair) for pair in params.items()])
    client.log_text(run, name, "notes/name.txt")
    return run


def locked_by_another(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("begin immediate")
    return connection


# A file that is no store.


def as_text(path: Path) -> None:
    path.write_text("not a database")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_other(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table songs (name text)")


def as_damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:4096] = bytes(4096 - 100)
    path.write_bytes(content)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [as_text, as_folder, as_other, as_damaged, as_pipe])
def test_what_is_no_store_is_named_before_mlflow_tries_it(client, monkeypatch, capfd, change: Callable) -> None:
    path = Path("mlflow.db").absolute()
    change(path)
    monkeypatch.setattr("mlflow.MlflowClient.__init__", lambda *_: pytest.fail("mlflow tries for 100 s"))
    with pytest.raises(SoraError, match=rf"{re.escape(str(path))} .*mlflow store.*MLFLOW_TRACKING_URI"):
        store.connect(store.resolve_uri())
    for command in ("compare", "ui"):
        assert main([command]) == 2
        assert str(path) in capfd.readouterr().err


def test_a_store_that_another_process_writes_for_ever_is_told(client, monkeypatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.01)
    monkeypatch.setattr("mlflow.MlflowClient.__init__", lambda *_: pytest.fail("mlflow tries for 100 s"))
    with closing(locked_by_another(Path("mlflow.db"))), pytest.raises(SoraError, match=r"mlflow.db is locked: another"):
        store.connect(store.resolve_uri())


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("451aebb31d03", r"older mlflow.* copy it to a safe place, then run `mlflow db upgrade 'sqlite:///.*mlflow.db'`$"),
        ("ffffffffffff", r"newer mlflow.*`pip install --upgrade mlflow`, or name another store \(.*\)$"),
    ],
)  # fmt: skip
def test_the_remedy_for_a_schema_of_another_version_is_told_whole(client, version: str, said: str) -> None:
    Path("deep" * 30).mkdir()
    path = shutil.copy("mlflow.db", "deep" * 30)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("update alembic_version set version_num = ?", (version,))
    with pytest.raises(SoraError, match=said):
        store.connect(store.resolve_uri(f"sqlite:///{path}"))


# Folders of odd names.


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_store_is_in_its_folder_whatever_that_is_called(client, tmp_path, monkeypatch, name: str) -> None:
    folder = tmp_path / "work" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    shutil.copy(tmp_path / "mlflow.db", folder)
    uri = store.resolve_uri()
    run = write_run(store.connect(uri), uri)
    with closing(sqlite3.connect("mlflow.db")) as connection:
        assert connection.execute("select run_uuid from runs").fetchall() == [(run,)]
    assert (folder / "mlruns/toys" / run / "artifacts/notes/name.txt").read_text() == "first"
    assert os.listdir(tmp_path / "work") == [name]
    assert store.resolve_uri(uri) == uri  # as subprocesses get it
    assert open_reader(uri).text(open_reader(uri).named([run])[run][0], "notes/name.txt") == "first"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sqlite:///what?/mlflow.db", "write %3F"),
        ("sqlite:///b\udcff/x.db", "no UTF-8"),
        ("sqlite://", "no sqlite store on a disk"),
        ("sqlite+pysqlite:///x.db", "no sqlite store on a disk"),
        ("SQLite:///x.db", "no sqlite store on a disk"),
        ("http://[::1", "no address"),
    ],
)
def test_an_address_that_would_be_another_place_is_refused(name: str, said: str) -> None:
    with pytest.raises(SoraError, match=said):
        store.resolve_uri(name)


def test_a_name_that_no_file_can_have_is_no_store(capsys) -> None:
    for command in ("compare", "ui"):
        assert main([command, "--uri", f"sqlite:///{'a' * 300}/mlflow.db"]) == 2
        assert "no mlflow store at" in capsys.readouterr().err


def test_damage_in_the_middle_of_a_store_is_told_with_its_file(client, tmp_path, capsys) -> None:
    run = write_run(client, store.resolve_uri(), dim="8")
    with closing(sqlite3.connect("mlflow.db")) as connection:
        root = connection.execute("select rootpage from sqlite_master where name = 'runs'").fetchone()[0]
        size = connection.execute("pragma page_size").fetchone()[0]
    with open("mlflow.db", "r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    assert main(["compare", run, run, "--no-report"]) == 2
    assert re.search(r"mlflow\.db cannot be used as an mlflow store \(.*malformed\)", capsys.readouterr().err)


@pytest.mark.parametrize("experiment", [".", "..", "a/../../b", "é" * 300, "two words"])
def test_artifacts_stay_below_the_store_whatever_their_experiment_is_called(client, tmp_path, experiment: str) -> None:
    uri = store.resolve_uri()
    run = client.create_run(store.experiment_id(client, uri, experiment)).info.run_id
    client.log_text(run, "hello", "a.txt")
    (file,) = (tmp_path / "mlruns").rglob("a.txt")
    assert file.relative_to(tmp_path / "mlruns").parts[1:] == (run, "artifacts", "a.txt")


# Folders that are moved.


@pytest.fixture
def project(client, tmp_path, monkeypatch) -> Path:
    """A folder with a store and one run in it."""
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(tmp_path / "mlflow.db", folder)
    monkeypatch.chdir(folder)
    write_run(store.connect(store.resolve_uri()), store.resolve_uri())
    return folder


def in_place(folder: Path, monkeypatch) -> tuple[str, dict[str, str]]:
    """The artifacts of every run of a store, once another run was written to it; and its address."""
    monkeypatch.chdir(folder)
    uri = store.resolve_uri()
    client = store.connect(uri)
    write_run(client, uri, "second")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return uri, {run.info.run_name: run.info.artifact_uri for run in runs}


def test_a_store_that_is_moved_takes_its_artifacts_along(project, tmp_path, monkeypatch, caplog) -> None:
    new = project.rename(tmp_path / "new")
    monkeypatch.chdir(new)
    direct = open_reader(store.resolve_uri())
    assert direct.text(direct.named(["first"])["first"][0], "notes/name.txt") == "first"
    uri, places = in_place(new, monkeypatch)
    assert all(place.startswith(new.as_uri()) for place in places.values())
    assert not project.exists()
    assert f"it named the folder {project}/mlruns/toys, and names {new}/mlruns/toys from now on" in caplog.text
    api = ClientReader(uri)
    for name in ("first", "second"):
        assert api.text(api.named([name])[name][0], "notes/name.txt") == name
    caplog.clear()
    in_place(new, monkeypatch)
    assert not caplog.records  # said once


def test_a_copy_writes_into_itself_and_leaves_the_original_alone(project, tmp_path, monkeypatch) -> None:
    new = Path(shutil.copytree(project, tmp_path / "new"))
    before = sorted(project.rglob("*"))
    _, places = in_place(new, monkeypatch)
    assert all(place.startswith(new.as_uri()) for place in places.values())
    _, places = in_place(project, monkeypatch)
    assert all(place.startswith(project.as_uri()) for place in places.values())
    assert [path for path in before if not path.exists()] == []
    assert sum("name.txt" in path.name for path in project.rglob("*")) == 2


def test_artifacts_that_are_left_behind_stay_one_tree_and_the_way_to_move_them_works(
    project, tmp_path, monkeypatch, caplog
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (project / "mlflow.db").rename(new / "mlflow.db")
    _, places = in_place(new, monkeypatch)
    assert all(place.startswith(project.as_uri()) for place in places.values())
    (command,) = re.findall("`(.*)`", caplog.text)
    assert os.system(command) == 0
    _, places = in_place(new, monkeypatch)
    assert all(place.startswith(new.as_uri()) for place in places.values())
    assert not (project / "mlruns/toys").exists()


def test_records_that_waited_in_a_folder_that_was_moved_are_sent(project, tmp_path, monkeypatch) -> None:
    uri = store.resolve_uri()
    client = store.connect(uri)
    run = write_run(client, uri, "waiting")
    spool = Spool(project / "outputs/tracking/spool-waiting.jsonl")
    for name, where in (("here", uri), ("elsewhere", "sqlite:////nowhere/mlflow.db")):
        known = run if name == "here" else "0" * 32
        spool.append({"kind": "tags", "values": {"note": name}, "run_id": known, "store": where})
    spool.close()
    monkeypatch.chdir(project.rename(tmp_path / "new"))
    uri = store.resolve_uri()
    client = store.connect(uri)
    replay_earlier(client, Path("outputs/tracking").absolute(), uri)
    assert client.get_run(run).data.tags["note"] == "here"
    assert "elsewhere" in Path("outputs/tracking/spool-waiting.jsonl").read_text()


# Many runs.


def test_runs_without_artifacts_are_compared_without_asking_mlflow_of_each(client, monkeypatch) -> None:
    uri = store.resolve_uri()
    experiment = store.experiment_id(client, uri, "toys")
    for name, arm, seed in (("a", "full", "0"), ("b", "time", "0"), ("c", "full", "1"), ("d", "time", "1")):
        run = client.create_run(experiment, run_name=name).info.run_id
        client.log_batch(
            run, [Metric("val/loss", 1.0, 0, 0)], [Param("model.attention", arm), Param("seed_everything", seed)]
        )
        client.set_terminated(run)
    both = [read_study(uri, ["a", "b", "c", "d"], reader=reader) for reader in (ClientReader(uri), open_reader(uri))]
    assert both[0] == both[1]
    monkeypatch.setattr("mlflow.MlflowClient.__init__", lambda *_: pytest.fail("one client per run and file"))
    assert read_study(uri, ["a", "b", "c", "d"]) == both[1]


def test_a_writer_that_was_killed_in_the_middle_locks_nobody_out(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    told = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('create table runs (name)'); c.execute('create table experiments (name)')\n"
        "c.execute('insert into runs values (1)')\n"
        "c.execute('pragma cache_size = 1'); c.execute('begin')\n"
        "c.execute('create table large (text)')\n"
        "c.executemany('insert into large values (?)', [('x' * 4000,)] * 200)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", told, str(file)], check=False)
    assert Path(f"{file}-journal").exists()
    with pytest.raises(sqlite3.OperationalError), sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True) as plain:
        plain.execute("select * from runs")
    database.check_database(file)
    with database.reading(file) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (1,)
        assert connection.execute("select name from sqlite_master where name = 'large'").fetchall() == []
