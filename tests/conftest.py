"""Shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

# Two threads at most: tests are small, and oversubscribed cores slow them down.
torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real clips with captions, several codecs, one corrupt."""
    root = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_SORA_TEST_DATA is unset: real clips are not at hand")
    return Path(root) / "clips"
