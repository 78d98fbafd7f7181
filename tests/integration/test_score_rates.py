"""`lightning-sora score` of videos of several frame rates: refused until one is given, and on the card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main

RANDOM = "random(width=4, side=16)"


def at_rate(folder: Path, count: int, fps: float, side: int = 32) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        pixels = torch.from_numpy(np.random.default_rng(index).integers(0, 256, (16, side, side, 3), dtype=np.uint8))
        media.write_mp4(folder / f"{fps:g}-{index}.mp4", pixels, fps)
    return folder


def score(*arguments: object) -> int:
    return main(["score", *map(str, arguments)])


def test_differing_rates_are_refused_until_one_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = at_rate(tmp_path / "slow", 8, 8.0), at_rate(tmp_path / "fast", 8, 16.0)
    sides = ("--real", slow, "--generated", fast, "--extractor", RANDOM, "--min-clips", 8, "--frames", 6)
    assert score(*sides) == 2
    said = capsys.readouterr().err
    assert "real videos: 8 at 8; generated videos: 8 at 16 fps" in said
    assert "--fps 8 " in said
    assert score(*sides, "--fps", 8, "--out", tmp_path / "one.json") == 0
    assert json.loads((tmp_path / "one.json").read_text())["clip"]["fps"] == 8
    at_rate(slow, 2, 24.0)
    assert score("--generated", slow, "--metrics", "temporal_flickering", "--frames", 6) == 2
    assert "8 at 8, 2 at 24" in capsys.readouterr().err


def test_the_card_has_the_rate_and_a_reference_of_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, same = at_rate(tmp_path / "real", 8, 30.0), at_rate(tmp_path / "same", 8, 30.0, side=48)
    slow, kept, out = at_rate(tmp_path / "slow", 8, 8.0), tmp_path / "kept", tmp_path / "scores.json"
    options = ("--extractor", RANDOM, "--min-clips", 8, "--frames", 6)
    assert score("--real", real, "--generated", same, *options, "--save-reference", kept, "--out", out) == 0
    assert "real videos are 32x32, generated ones 48x48" in capsys.readouterr().err
    assert json.loads(out.read_text())["clip"]["fps"] == 30
    (reference,) = kept.glob("*.safetensors")
    assert score("--reference", reference, "--generated", same, *options, "--compare", out) == 0
    assert score("--reference", reference, "--generated", slow, *options) == 2
    assert "clip.fps: 30.0 against 8.0" in capsys.readouterr().err
    assert score("--reference", reference, "--generated", same, *options, "--fps", 30) == 2
    assert "clip.resampled" in capsys.readouterr().err


def test_the_extractor_that_goes_by_seconds_is_told_the_files_rate(tmp_path: Path) -> None:
    """One second of the same frames shown once, and each shown twice: the same moments, and the same numbers."""
    found = []
    for fps, times in ((8.0, 1), (16.0, 2)):
        for side, first in (("real", 0), ("made", 50)):
            folder = tmp_path / f"{side}{fps:g}"
            folder.mkdir()
            for index in range(first, first + 8):
                tone = np.random.default_rng(index).integers(40, 200, (12, 1, 1, 3), dtype=np.uint8)
                pixels = torch.from_numpy(np.broadcast_to(tone, (12, 32, 32, 3)).copy())
                media.write_mp4(folder / f"{index}.mp4", pixels.repeat_interleave(times, 0), fps)
        sides = ("--real", tmp_path / f"real{fps:g}", "--generated", tmp_path / f"made{fps:g}")
        out = tmp_path / f"{fps:g}.json"
        options = ("--metrics", "kvd", "--extractor", "world", "--min-clips", 8, "--frames", 10 * times)
        assert score(*sides, *options, "--out", out) == 0
        found.append(json.loads(out.read_text())["scores"]["kvd"]["value"])
    assert found[0] == pytest.approx(found[1], rel=0.1)
