"""Shared by the tests of what is kept in mlflow."""

from __future__ import annotations

import shutil

import pytest

from lightning_sora.tracking import store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A sqlite store made once; making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def client(empty_store, tmp_path, monkeypatch):
    """A fresh working directory whose `mlflow.db` is the default store, and a client of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return store.connect(store.resolve_uri())
