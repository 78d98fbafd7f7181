"""What is looked at and checked from a notebook: the results, and how they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lightning_sora as ls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    for name, frames in (("a.mp4", 9), ("b.mp4", 5), ("c.png", 1)):
        ls.save_video(root / name, torch.full((frames, 16, 24, 3), 90, dtype=torch.uint8))
    (root / "a.txt").write_text("a grey clip")
    (root / "b[1].mp4").write_bytes((root / "b.mp4").read_bytes()[:200])
    return root


@pytest.mark.slow
def test_a_check_returns_what_is_good_and_why_the_rest_is_not(folder: Path, tmp_path: Path) -> None:
    found = ls.check_data(folder, processes=1)
    assert {name: info.frames for name, info in found.good.items()} == {"a.mp4": 9, "b.mp4": 5, "c.png": 1}
    assert (list(found.bad), list(found.misread), found.stills) == (["b[1].mp4"], [], {"c.png"})
    assert found.captioned == 1
    for shown in (str(found), found._repr_html_()):
        assert "b[1].mp4" in shown
        assert "2 videos, 1 images, 1 bad" in shown
    found.write_quarantine(tmp_path / "bad.jsonl")
    assert json.loads((tmp_path / "bad.jsonl").read_text())["file"] == "b[1].mp4"
    clips = ls.open_collection(folder)
    assert (clips.source, clips.style, len(clips.rows)) == ("folder", "folder", 4)


@pytest.mark.slow
def test_an_inspection_returns_its_plan_or_what_ends_a_training_with_it(folder: Path, tmp_path: Path) -> None:
    (folder / "b[1].mp4").unlink()
    asked = {"patch": (4, 8, 8), "height": 16, "width": 16, "frames": 9}
    found = ls.inspect_data(folder, sizes="packed", **asked)  # type: ignore[arg-type]
    assert (found.problem, found.refused, found.unreadable) == ("", {}, 0)
    assert found.plan is not None
    assert sum(found.plan.usage.grids.values()) == len(found.infos["train"])
    assert "data:image/png" in found._repr_html_()
    assert found.save_figure(tmp_path / "h.svg").read_text().lstrip().startswith("<?xml")
    impossible = ls.inspect_data(folder, sizes="bucketed(frames=(49,))", batch_size=64, **asked)  # type: ignore[arg-type]
    assert impossible.plan is None
    assert "none of" in impossible.problem
    assert "read as" in impossible._repr_html_()
    with pytest.raises(ls.SoraError, match="none of"):
        impossible.figure()
    with pytest.raises(ls.SoraError, match="nothing to inspect"):
        ls.inspect_data()
