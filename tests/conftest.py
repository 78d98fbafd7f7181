"""Shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

# Tests are small: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real clips with captions, several codecs, one corrupt."""
    root = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_SORA_TEST_DATA is unset: real clips are not at hand")
    return Path(root) / "clips"
