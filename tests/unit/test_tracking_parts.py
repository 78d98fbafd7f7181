"""Parts of the tracker: the store, the outbox, names of parameters, the state of the code, whole checkpoints."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.tracking import provenance, store
from lightning_sora.tracking.flatten import flatten, metric_name


@pytest.mark.slow
def test_three_processes_may_create_the_store_at_once(tmp_path):
    # In a process of its own, which can fork before it has threads.
    code = """
import multiprocessing, sys
import mlflow.store.tracking.sqlalchemy_store
from lightning_sora.tracking import store

def create(uri, gate):
    gate.wait()
    client = store.connect(uri)
    client.create_run(store.experiment_id(client, uri, "shared"))

context = multiprocessing.get_context("fork")
gate = context.Barrier(3)
workers = [context.Process(target=create, args=(sys.argv[1], gate)) for _ in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print([worker.exitcode for worker in workers])
"""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[0, 0, 0]"
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_the_environment_names_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert store.resolve_uri() == "http://somewhere:5000"
    assert store.resolve_uri("sqlite:///x.db") == f"sqlite:///{Path.cwd() / 'x.db'}"
    with pytest.raises(SoraError, match="no longer supports"):
        store.resolve_uri("mlruns")


def test_flattened_names_are_those_of_the_command_line():
    recipe = {
        "model": {"class_path": "A", "init_args": {"dim": 3, "prompts": ["é", "b"], "none": None, "deep": {"x": 1}}},
        "trainer": {"callbacks": [{"class_path": "C", "init_args": {"n": 1}}], "empty": []},
    }
    assert flatten(recipe) == {
        "model.class_path": "A",
        "model.dim": "3",
        "model.prompts": '["é", "b"]',
        "model.deep.x": "1",
        "trainer.callbacks.0.class_path": "C",
        "trainer.callbacks.0.n": "1",
    }
    assert metric_name("val/r@5 (mean)") == "val/r_5 _mean_"


def test_the_patch_of_a_dirty_checkout_restores_what_ran(tmp_path):
    def git(*words: str, folder: Path = tmp_path / "a") -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "a"
    source.mkdir()
    git("init", "-q", "-b", "trunk")
    (source / "old.py").write_text("one\n\n")
    git("add", ".")
    git("commit", "-qm", "first")
    assert not provenance.code_state(source).dirty
    (source / "old.py").write_text("two\n\n")
    (source / "new.py").write_text("three\n")
    state = provenance.code_state(source)
    assert state.dirty
    assert state.branch == "trunk"
    assert state.commit == git("rev-parse", "HEAD")

    copy = tmp_path / "b"
    git("clone", "-q", str(source), str(copy))
    (tmp_path / "p.patch").write_text(state.patch)
    git("apply", str(tmp_path / "p.patch"), folder=copy)
    assert (copy / "old.py").read_text() == "two\n\n"
    assert (copy / "new.py").read_text() == "three\n"


def test_a_folder_without_git_is_no_repository(tmp_path, monkeypatch):
    assert provenance.code_state(tmp_path).commit == provenance.NO_REPOSITORY
    monkeypatch.setenv("PATH", os.devnull)
    assert provenance.code_state().tags()["git.commit"] == provenance.NO_REPOSITORY


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path):
    from lightning_sora.tracking.checkpoint import AtomicCheckpointIO

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "unpicklable": threading.Lock()}, path)
    assert torch.load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]
