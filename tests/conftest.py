"""Shared by all tests."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Tests are small, and two workers run side by side: a second thread costs more than it brings, here and in the
# processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# First imported within a test, it would log to what that test captures, and fail in those that follow.
import lightning.pytorch  # noqa: F401
import pytest
import torch

# Whoever starts the tests in the background has Ctrl-C ignored, and every process of theirs inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plugins_of_one_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test loads as a plugin is unknown to the next one, which may run in the same process or not."""
    # Not above: annotations are checked in modules that are imported after pytest is set up.
    from lightning_sora import directions, plugins, registry

    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(directions, "DIRECTIONS", dict(directions.DIRECTIONS))
    before = {name: set(parts._builders) for name, parts in registry.named().items()}
    yield
    for name, parts in registry.named().items():
        # The package's own parts stay: a module that a test was the first to import is not imported again.
        for part in set(parts._builders) - before.get(name, set()):
            if not parts._builders[part].__module__.startswith("lightning_sora."):
                del parts._builders[part]


@pytest.fixture(autouse=True)
def _process_of_one_test() -> Iterator[None]:
    """Commands that are run in this process set variables and hooks of it, which end with a process of their own."""
    variables, hook = dict(os.environ), sys.excepthook
    yield
    sys.excepthook = hook
    if os.environ != variables:
        os.environ.clear()
        os.environ.update(variables)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real clips with captions, several codecs, one corrupt."""
    root = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_SORA_TEST_DATA is unset: real clips are not at hand")
    return Path(root) / "clips"
