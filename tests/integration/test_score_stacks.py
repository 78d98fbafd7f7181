"""`lightning-sora score` of what is no video file: folders of numbered frames, arrays, still images."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_sora import media
from lightning_sora.cli import main

RANDOM = "random(width=4, side=16)"
COUNT, FRAMES = 9, 6


def video_of(index: int) -> np.ndarray:
    """Noise that no codec could keep."""
    return np.random.default_rng(index).integers(0, 256, (FRAMES + index % 3, 24, 32, 3), dtype=np.uint8)


def frames_of(folder: Path, video: np.ndarray, pattern: str = "frame_{}.png", first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(video):
        Image.fromarray(picture).save(folder / pattern.format(number + first))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same clips as folders of frames, as an array each, and as one array of all."""
    root = tmp_path_factory.mktemp("stacks")
    for index in range(COUNT):
        # Not padded: by name alone, frame 10 would come before frame 2.
        frames_of(root / "frames" / "deep" / f"clip{index}", video_of(index), first=8)
        (root / "arrays").mkdir(exist_ok=True)
        np.save(root / "arrays" / f"clip{index}.npy", video_of(index))
    (root / "one").mkdir()
    np.save(root / "one" / "all.npy", np.stack([video_of(index)[:FRAMES] for index in range(COUNT)]))
    return {name: root / name for name in ("frames", "arrays", "one")}


def score(*arguments: object) -> int:
    options = ["--extractor", RANDOM, "--metrics", "fvd,temporal_flickering", "--frames", FRAMES, "--min-clips", 8]
    return main(["score", *map(str, [*options, *arguments])])


def scores(out: Path, *arguments: object) -> dict[str, Any]:
    assert score(*arguments, "--out", out) == 0
    return json.loads(out.read_text())


def test_frames_and_arrays_are_the_clips_that_they_hold(made: dict[str, Path], tmp_path: Path) -> None:
    expected = {i: 1 - np.abs(np.diff(video_of(i)[:FRAMES].astype(float), axis=0)).mean() / 255 for i in range(COUNT)}
    for kind, folder in made.items():
        found = scores(tmp_path / f"{kind}.json", "--real", made["frames"], "--generated", folder)
        values = found["clips"]["temporal_flickering"]
        assert len(values) == COUNT
        told = {int(re.findall(r"\d+", name)[0]): value for name, value in values.items()}
        assert told == pytest.approx(expected)
        assert found["scores"]["fvd"]["value"] == pytest.approx(0, abs=1e-9)  # the same clips in another coat
        assert found["clip"] == {"frames": FRAMES, "fps": None, "resampled": False, "offset": "first"}
        assert found["protocol"]["clips"] == {"real": COUNT, "generated": COUNT}


def test_the_middle_and_the_rate_are_those_that_are_asked_for(made: dict[str, Path], tmp_path: Path) -> None:
    found = scores(tmp_path / "s.json", "--real", made["one"], "--generated", made["arrays"], "--offset", "center",
                   "--fps", 8, "--metrics", "temporal_flickering")  # fmt: skip
    middle = video_of(2)[1 : 1 + FRAMES].astype(float)
    assert found["clips"]["temporal_flickering"]["clip2.npy"] == pytest.approx(
        1 - np.abs(np.diff(middle, axis=0)).mean() / 255
    )
    assert found["clip"]["fps"] == 8


def test_frames_beside_videos_are_taken_at_their_rate(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(COUNT):
        media.write_mp4(tmp_path / "real" / f"{index}.mp4", torch.from_numpy(video_of(index)), 12)
    found = scores(tmp_path / "s.json", "--real", tmp_path / "real", "--generated", made["frames"])
    assert found["clip"]["fps"] == 12
    assert f"{COUNT} folders of frames and arrays tell no rate and are taken to be at 12 fps" in capsys.readouterr().err


def test_captions_of_folders_and_arrays_come_from_tables_and_texts(made: dict[str, Path], tmp_path: Path) -> None:
    from lightning_sora.lab.score_videos import find_videos
    from lightning_sora.metrics.protocol import ClipProtocol

    frames_of(tmp_path / "a", video_of(0))
    frames_of(tmp_path / "b", video_of(1))
    np.save(tmp_path / "c.npy", video_of(2))
    (tmp_path / "metadata.csv").write_text("file_name,text\na,in a table\n")
    (tmp_path / "b.txt").write_text("beside the folder")
    (tmp_path / "c.txt").write_text("beside the array")
    videos = find_videos(tmp_path, ClipProtocol(4), 1, captions=True)
    assert {v.id: v.caption for v in videos} == {
        "a": "in a table", "b": "beside the folder", "c.npy": "beside the array"
    }  # fmt: skip


def _broken(folder: Path, kind: str) -> None:
    video = video_of(0)
    if kind == "gap":
        frames_of(folder / "x", video)
        (folder / "x" / "frame_3.png").unlink()
    elif kind == "twice":
        frames_of(folder / "x", video)
        Image.fromarray(video[0]).save(folder / "x" / "frame_04.png")
    elif kind == "sizes":
        frames_of(folder / "x", video)
        Image.fromarray(video[0][:20]).save(folder / "x" / "frame_2.png")
    elif kind == "damage":
        frames_of(folder / "x", video)
        (folder / "x" / "frame_2.png").write_bytes(b"no image")
    elif kind == "short":
        frames_of(folder / "x", video[:3])
    elif kind == "float":
        np.save(folder / "x.npy", video.astype(np.float32) / 255)
    elif kind == "channels first":
        np.save(folder / "x.npy", video.transpose(0, 3, 1, 2))
    elif kind == "objects":
        np.save(folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "cut":
        np.save(folder / "x.npy", video)
        (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-100])
    elif kind == "text":
        (folder / "x.npy").write_text("no array")
    elif kind == "deep header":
        header = "{'descr': " + "(" * 4000 + ")" * 4000 + "}\n"
        (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    elif kind == "nothing":
        np.save(folder / "x.npy", video[:0])
    elif kind == "stills":
        for name in ("a.png", "b.png"):
            Image.fromarray(video[0]).save(folder / name)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gap", "x (frames are missing after frame_2.png)"),
        ("twice", "x (two frames have the number of frame_04.png)"),
        ("sizes", "x (its frames differ in size (height x width: 24x32, 20x32))"),
        ("damage", "frame_2.png: not an image in a known format"),
        ("short", "x (3 frames)"),
        ("float", "x.npy: it is float32 [6, 24, 32, 3]; it must be uint8 [frames height width 3]"),
        ("channels first", "x.npy: it is uint8 [6, 3, 24, 32]; it must be"),
        ("objects", "x.npy: no array that can be read"),
        ("cut", "x.npy: no array that can be read"),
        ("text", "x.npy: no array that can be read"),
        ("deep header", "x.npy: no array that can be read"),
        ("nothing", "x.npy: it is empty"),
        ("stills", "there is no video under"),
    ],
)
def test_what_is_no_clip_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    _broken(tmp_path, kind)
    assert main(["score", "--generated", str(tmp_path), "--metrics", "temporal_flickering", "--frames", "6"]) == 2
    assert words in capsys.readouterr().err
