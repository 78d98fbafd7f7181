"""The benchmark of reading runs, at sizes of no meaning, and all its readers read the same frames."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import data


def test_it_writes_a_page_that_names_whatever_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    threads = torch.get_num_threads()
    try:
        data.main(["--quick", "--out", str(tmp_path / "page.md")])
    finally:
        torch.set_num_threads(threads)
    text = (tmp_path / "page.md").read_text()
    assert "Absent:" in text
    assert "decord (" in text
    assert text.count("| ours | ") == text.count("| PyAV loop | ") == 2
    assert text.count("| ours, fast colours | ") == 2
    assert "bfloat16" in text
    assert "instruction set:" in text


def test_every_reader_reads_the_same_frames(tmp_path: Path) -> None:
    path = data.film(tmp_path / "a.mp4", data.QUICK, 4, 4)
    found, _ = data.readers(path)
    for first in (0, 3, 9):
        exact = data.ours(path, first, 3, None)
        other = data.ours(path, first - 1 if first else 1, 3, None)
        for read in found.values():
            near = data.difference(exact, read(path, first, 3, None))[1]
            assert near < data.difference(exact, other)[1] / 2
