"""The field's evaluation protocols: their files, the clips that they choose, and what `score` makes of both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data.manifest import MANIFESTS
from lightning_sora.errors import SoraError
from lightning_sora.lab.protocols import load_protocol, protocol_names, real_clips

SMALL = """
title: small
data: {style: "frames(fps=25)", splits: [train], videos: 12}
clip: {frames: 4, stride: 3, height: 16, width: 16}
clips: 10
how: []
sources: []
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve videos of frames, wider than high, of a drift that tells the frame; one more is too short."""
    for number in range(13):
        folder = tmp_path / "data" / "sky_train" / f"v{number:02d}"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        tone = rng.uniform(60, 120, 3)
        for t in range(15 if number < 12 else 9):
            picture = np.broadcast_to(tone + 5 * t, (24, 40, 3)).copy()
            picture[:, :4] = picture[:, 36:] = 255  # which a cut in the middle leaves out
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{t:04d}.png")
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "data"


def generated(folder: Path, count: int = 10, side: int = 16) -> Path:
    folder.mkdir()
    for number in range(count):
        video = torch.from_numpy(np.random.default_rng(100 + number).integers(0, 255, (4, side, side, 3), np.uint8))
        media.write_mp4(folder / f"{number}.mp4", video, 8.0)
    return folder


@pytest.mark.parametrize("name", protocol_names())
def test_protocols_of_the_package_are_whole_and_say_where_they_are_from(name: str) -> None:
    found = load_protocol(name)
    MANIFESTS.create(found.style)
    assert found.sources
    assert found.clips == 2048
    assert (found.frames, found.height) == (16, 64 if name == "kinetics600" else 256)
    assert found.stride == {"taichi": 6, "ucf101": 3, "skytimelapse": 3, "faceforensics": 3}.get(name, 1)


def test_clips_of_a_data_set_are_cut_as_the_protocol_says(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = load_protocol(data.parent / "small.yaml")
    clips = real_clips(protocol, data)
    assert len({clip.id for clip in clips}) == len(clips) == 10
    assert "has 13 videos, and the data set of small has 12" in capsys.readouterr().err
    assert [clip.id for clip in clips] == [clip.id for clip in real_clips(protocol, data)]
    starts = set()
    for clip in clips:
        video = clip.read().float()
        assert video.shape == (4, 16, 16, 3)
        assert torch.equal(video, clip.read().float())
        shown = video.mean(dim=(1, 2, 3))
        assert (shown.diff() - 15).abs().max() < 1  # every third frame, and nothing of the white edges
        tone = np.random.default_rng(int(clip.id[-2:])).uniform(60, 120, 3).mean()
        starts.add(round((float(shown[0]) - tone) / 5))
    assert starts <= set(range(6))
    assert len(starts) > 2


def test_score_by_a_protocol_and_its_card(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = generated(tmp_path / "made")
    flags = ["score", "--generated", str(made), "--protocol", str(tmp_path / "small.yaml"), "--frames", "4",
             "--extractor", "random(width=4, side=16)", "--min-clips", "8"]  # fmt: skip
    assert main([*flags, "--real", str(data), "--out", str(tmp_path / "s.json")]) == 0
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["protocol"]["clips"] == {"real": 10, "generated": 10}
    assert told["protocol"]["clip"]["protocol"] == {
        "name": "small", "stride": 3, "height": 16, "width": 16, "clips": 10, "splits": ["train"],
        "start": "drawn, seed 0", "crop": "center",
    }  # fmt: skip
    assert main([*flags, "--real", str(data), "--save-reference", str(tmp_path / "kept")]) == 0
    (kept,) = (tmp_path / "kept").glob("*.safetensors")
    assert main([*flags, "--reference", str(kept), "--out", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["scores"]["fvd"]["value"] == pytest.approx(
        told["scores"]["fvd"]["value"], rel=1e-6
    )
    (tmp_path / "other.yaml").write_text(SMALL.replace("stride: 3", "stride: 1"))
    capsys.readouterr()
    assert main([*flags, "--reference", str(kept), "--protocol", str(tmp_path / "other.yaml")]) == 2
    assert "clip.protocol.stride: 3 against 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "count", "side", "words"),
    [
        ([], 9, 16, "9 generated videos, and the protocol small takes 10"),
        ([], 10, 24, "is 24x24 (height x width), and clips of the protocol small are 16x16"),
        (["--frames", "3"], 10, 16, "takes 4 frames as they are recorded"),
        (["--fps", "8"], 10, 16, "leave out --fps"),
        (["--protocol", "ucf"], 10, 16, "no protocol is called 'ucf'; did you mean 'ucf101'"),
    ],
)
def test_what_is_not_as_the_protocol_has_it(
    data: Path, tmp_path: Path, flags: list[str], count: int, side: int, words: str, capsys: Any
) -> None:
    made = generated(tmp_path / "made", count, side)
    common = ["score", "--generated", str(made), "--real", str(data), "--extractor", "random(width=4, side=16)",
              "--min-clips", "8", "--protocol", str(tmp_path / "small.yaml"), "--frames", "4"]  # fmt: skip
    assert main([*common, *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("stride: 3", "stride: 0"), "stride is 0; it must be a whole number"),
        (("clips: 10", "clips: many"), "clips is 'many'"),
        (("splits: [train]", "splits: [all]"), r"splits is \['all'\]"),
        (("how: []", "who: []"), "a protocol has the parts clip, clips, data"),
        (("height: 16, ", ""), "clip has the parts frames, stride, height, width"),
    ],
)
def test_a_protocol_that_is_none(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    (tmp_path / "p.yaml").write_text(SMALL.replace(*change))
    with pytest.raises(SoraError, match=words):
        load_protocol(tmp_path / "p.yaml")


def test_a_data_set_without_the_split_is_refused(data: Path) -> None:
    (data.parent / "p.yaml").write_text(SMALL.replace("[train]", "[test]"))
    with pytest.raises(SoraError, match="13 videos of train, and the protocol p takes those of test"):
        real_clips(load_protocol(data.parent / "p.yaml"), data)
