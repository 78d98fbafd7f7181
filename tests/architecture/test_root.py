"""What lies at the top of the repository: nothing that a test, an example or a training left there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    ".ci", ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "benchmarks", "docs", "lightning_sora",
    "mkdocs.yml", "pyproject.toml", "recipes", "requirements.lock", "tests",
}  # fmt: skip


def test_the_top_holds_what_it_is_known_for() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("what is committed is known from a checkout alone")
    told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.partition("/")[0] for line in told.splitlines()} == TOP
