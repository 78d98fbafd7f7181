"""Data sets of the field in the layouts in which they are distributed, each on a folder that is made here."""

import csv
import json
import os
import pickle
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data import decode
from lightning_sora.data.collection import open_collection
from lightning_sora.data.frame_folder import FrameFolder
from lightning_sora.data.manifest import read_manifest
from lightning_sora.data.manifest.field_sets import Frames, class_in_words
from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources import SOURCES
from lightning_sora.data.sources.listed import probed
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import Crop, VideoSize

STEP = 10  # of grey, from frame to frame


def film(path: Path, frames: int = 6, fps: float = 25.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    media.write_mp4(path, torch.full((frames, 16, 24, 3), 90, dtype=torch.uint8), fps)


def frames_of(folder: Path, count: int = 20, pattern: str = "{:06d}.png", first: int = 0) -> Path:
    """Frame n has the grey n * STEP."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = torch.full((16, 24, 3), number * STEP, dtype=torch.uint8)
        media.write_image(folder / pattern.format(first + number), picture)
    return folder


def ucf(root: Path) -> Path:
    names = {
        "train": ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.mp4", "YoYo/v_YoYo_g08_c01.mp4"],
        "test": ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4", "YoYo/v_YoYo_g01_c01.mp4"],
    }
    for name in names["train"] + names["test"]:
        film(root / "UCF-101" / name)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("".join(f"{n} {i}\r\n" for i, n in enumerate(names["train"], 1)))
    (lists / "testlist01.txt").write_text("".join(f"{n}\r\n" for n in names["test"]))
    return root / "UCF-101"


def test_ucf101_is_found_by_its_names_and_split_by_its_lists(tmp_path: Path) -> None:
    found = open_collection(ucf(tmp_path))
    assert (found.source, found.style) == ("manifest", "ucf101")
    assert {row.id: (row.split, row.captions) for row in found.rows} == {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4": ("test", ("apply eye makeup",)),
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.mp4": ("train", ("apply eye makeup",)),
        "YoYo/v_YoYo_g01_c01.mp4": ("test", ("yo yo",)),
        "YoYo/v_YoYo_g08_c01.mp4": ("train", ("yo yo",)),
    }
    assert {row.split for row in read_manifest(tmp_path / "UCF-101", "ucf101(fold=None)")[1]} == {None}
    source = SOURCES.create("manifest", root=str(tmp_path / "UCF-101"), split="test", seed=0)
    assert len(source.infos) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [("HandstandPushups", "handstand pushups"), ("TaiChi", "tai chi"), ("Skijet", "skijet"), ("YoYo", "yo yo")],
)
def test_classes_become_words(name: str, words: str) -> None:
    assert class_in_words(name) == words


def test_lists_and_files_of_ucf101_that_do_not_agree(tmp_path: Path) -> None:
    root = ucf(tmp_path)
    for style, words in (("ucf101(fold=2)", r"trainlist02\.txt is missing"), ("ucf101(fold=4)", "fold=4")):
        with pytest.raises(SoraError, match=words):
            read_manifest(root, style)
    (root / "YoYo" / "v_YoYo_g08_c01.mp4").unlink()
    with pytest.raises(SoraError, match=r"1 videos .*v_YoYo_g08_c01\.mp4, which is listed but not there"):
        read_manifest(root)
    film(root / "YoYo" / "v_YoYo_g08_c01.mp4")
    film(root / "YoYo" / "v_YoYo_g09_c01.mp4")
    with pytest.raises(SoraError, match="which is there but not listed"):
        read_manifest(root)


def _unlisted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes a folder one that cannot be listed, which permissions cannot for the root user."""
    scandir = os.scandir

    def refusing(path: Any = ".") -> Any:
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize("style", ["auto", "ucf101", "frames"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    film(tmp_path / "b" / "x.mp4")
    (tmp_path / "a").mkdir()
    _unlisted(monkeypatch, tmp_path / "a")
    with pytest.raises(SoraError, match=r"a cannot be listed \(Permission denied\); make it readable"):
        read_manifest(tmp_path, style)


@pytest.mark.parametrize("name", ["x.csv", "annotations/x.csv", "msrvtt.json"])
def test_a_folder_with_the_name_of_a_table_is_none(tmp_path: Path, name: str) -> None:
    film(tmp_path / name / "a.mp4")
    assert [row.id for row in read_manifest(tmp_path)[1]] == [f"{name}/a.mp4"]


def test_folders_of_frames_are_videos_of_the_asked_rate(tmp_path: Path) -> None:
    frames_of(tmp_path / "sky_train" / "a" / "a_1", pattern="a_frames_{:08d}.png")
    frames_of(tmp_path / "sky_test" / "b" / "b_1", pattern="b_frames_{:08d}.png", first=312)
    spec = "manifest(style='frames(fps=30)')"
    source = SOURCES.create(spec, root=str(tmp_path), split="train", seed=0)
    assert [(i.id, i.frames, i.height, i.width, i.fps) for i in source.infos] == [("sky_train/a/a_1", 20, 16, 24, 30.0)]
    assert [i.id for i in SOURCES.create(spec, root=str(tmp_path), split="test", seed=0).infos] == ["sky_test/b/b_1"]
    for stride in (1, 3):  # every third frame: a third of the rate
        starts = set()
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            clip = source.load(0, Crop(VideoSize(6, 16, 16), fps=30 / stride), generator=generator)
            shown = clip.video.float().mean(dim=(1, 2, 3))
            assert torch.equal(shown.diff(), torch.full((5,), float(STEP * stride)))
            starts.add(round(float(shown[0]) / STEP))
        assert starts <= set(range(20 - 5 * stride))
        assert len(starts) > 2
    before = source.fingerprint()
    assert source.fingerprint() == SOURCES.create(spec, root=str(tmp_path), split="train", seed=0).fingerprint()
    frames_of(tmp_path / "sky_train" / "a" / "a_1", count=1, pattern="a_frames_{:08d}.png", first=0)
    media.write_image(
        tmp_path / "sky_train" / "a" / "a_1" / "a_frames_00000019.png", torch.zeros((16, 24, 3), dtype=torch.uint8)
    )
    assert SOURCES.create(spec, root=str(tmp_path), split="train", seed=0).fingerprint() != before


def test_a_folder_of_frames_reads_as_the_video_of_the_same_frames(tmp_path: Path) -> None:
    place = FrameFolder(frames_of(tmp_path / "a", 12), 10.0)
    assert decode.probe(place) == decode.VideoInfo(12, 16, 24, 10.0)
    shades = [round(float(f.float().mean())) // STEP for f in decode.read_clip(place, 0.2, 4, 5.0)]
    assert shades == [2, 4, 6, 8]
    assert [round(float(f.float().mean())) // STEP for f in decode.read_clip(place, 0.0, 4, 20.0)] == [0, 0, 1, 1]
    assert decode.read_clip(place, 0.0, 2, size=(8, 12)).shape == (2, 8, 12, 3)
    with pytest.raises(DecodeError, match=r"ends at 1\.20 s"):
        decode.read_clip(place, 0.5, 8, 10.0)
    assert decode.check(place) is None
    with place.open() as content:
        assert content.read() == b"".join(file.read_bytes() for file in place.files)
        assert place.size == content.tell()


def test_a_folder_of_frames_crosses_processes_and_is_listed_anew_where_it_changed(tmp_path: Path) -> None:
    place = FrameFolder(frames_of(tmp_path / "a", 5), 10.0)
    assert decode.probe(pickle.loads(pickle.dumps(place))) == decode.VideoInfo(5, 16, 24, 10.0)
    frames_of(tmp_path / "a", 9)
    assert decode.probe(place).frames == 9
    with pytest.raises(DecodeError, match="No such file"):
        decode.probe(FrameFolder(tmp_path / "gone", 10.0))


def test_a_folder_of_frames_that_grew_or_was_mended_is_probed_anew(tmp_path: Path) -> None:
    place = FrameFolder(frames_of(tmp_path / "a", 5), 10.0)
    assert probed(place).frames == 5
    frames_of(tmp_path / "a", 9)
    assert probed(place).frames == 9
    first = tmp_path / "a" / "000000.png"
    whole = first.read_bytes()
    first.write_bytes(b"no picture")
    with pytest.raises(DecodeError):
        probed(place)
    first.write_bytes(whole)
    assert probed(place).frames == 9


def test_a_folder_of_frames_is_checked_one_image_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = FrameFolder(frames_of(tmp_path / "a", 12), 10.0)
    read, alive = media.read_image, list[weakref.ref[torch.Tensor]]()

    def watched(path: Any) -> torch.Tensor:
        assert sum(one() is not None for one in alive) <= 1
        image = read(path)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(media, "read_image", watched)
    assert decode.check(place) is None
    assert len(alive) == 12
    media.write_image(place.files[7], torch.zeros((16, 26, 3), dtype=torch.uint8))
    assert decode.check(place) == "000007.png has another size than 000000.png"
    place.files[7].write_bytes(b"no picture")
    assert "000007.png" in str(decode.check(place))


def test_data_inspect_shows_folders_of_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        frames_of(tmp_path / "set" / f"v{number}", 12)
    spec = f"manifest(root={str(tmp_path / 'set')!r}, style='frames(fps=10)')"
    flags = ["--patch", "1,8,8", "--height", "16", "--width", "16", "--sizes", "fixed", "--frames", "5"]
    assert main(["data", "inspect", "--source", spec, *flags, "--out", str(tmp_path / "out.png")]) == 0
    assert "cannot be read" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "000005.png").unlink(), "frames are missing after 000004.png"),
        (lambda f: (f / "000005.png").rename(f / "cover.png"), "cover.png is not named as the other frames"),
        (lambda f: (f / "000005.png").rename(f / "00004.png"), "two frames have the number"),
    ],
)
def test_frames_that_are_no_video(tmp_path: Path, change: Any, words: str) -> None:
    change(frames_of(tmp_path / "a", 10))
    with pytest.raises(DecodeError, match=words):
        _ = FrameFolder(tmp_path / "a", 25.0).files


def test_folders_of_frames_that_cannot_be_read(tmp_path: Path) -> None:
    frames_of(tmp_path / "set" / "a")
    with pytest.raises(SoraError, match="fps=0 of folders"):
        read_manifest(tmp_path / "set", "frames(fps=0)")
    for rate in ("25", None, True, [25]):
        with pytest.raises(SoraError, match=re.escape(f"fps={rate!r} of folders")):
            Frames(rate)  # type: ignore[arg-type]
    film(tmp_path / "set" / "a" / "x.mp4")
    with pytest.raises(SoraError, match=r"x\.mp4 is a video, where folders of frames"):
        read_manifest(tmp_path / "set", "frames")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(frames_of(tmp_path / "b"))
    with pytest.raises(SoraError, match="lies outside of it"):
        read_manifest(tmp_path / "out", "frames", confined=True)


def kinetics(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    rows = [
        ("air drumming", "_dbcJuKJQNs", "40", "50", "train"), ("abseiling", "-3B32lodo2M", "59", "69", "validate"),
        ("yoga", "gone_gone_1", "0", "10", "test"),
    ]  # fmt: skip
    with (root / "annotations" / "k600.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
        writer.writerows(rows)
    film(root / "train" / "air drumming" / "_dbcJuKJQNs_000040_000050.mp4")
    film(root / "val" / "-3B32lodo2M_000059_000069.mp4")
    return root


def test_kinetics_is_read_by_its_table_and_counts_what_is_gone(tmp_path: Path, caplog: Any) -> None:
    found = open_collection(kinetics(tmp_path))
    assert found.style == "kinetics"
    assert {(row.captions, row.split) for row in found.rows} == {
        (("air drumming",), "train"), (("abseiling",), "val")
    }  # fmt: skip
    assert "1 of the 3 videos" in caplog.text
    assert "gone_gone_1_000000_000010" in caplog.text
    for file in tmp_path.rglob("*.mp4"):
        file.unlink()
    with pytest.raises(SoraError, match="none of the 3 videos that it lists"):
        read_manifest(tmp_path / "annotations" / "k600.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("youtube_id,time_start,time_end\nabc,inf,10\n", "row 1: its times are no numbers"),
        ("youtube_id,time_start,time_end\nabc,nan,10\n", "row 1: its times are no numbers"),
        ("youtube_id, time_start, time_end\nabc,0,10\n", "the columns are youtube_id,  time_start"),
    ],
)
def test_tables_of_kinetics_that_cannot_be_followed(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "k.csv").write_text(text)
    with pytest.raises(SoraError, match=words):
        read_manifest(tmp_path)


def test_thumbnails_are_no_videos_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    kinetics(tmp_path)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4"))
    for file in list(tmp_path.rglob("*.mp4")):
        media.write_image(file.with_suffix(".png"), torch.zeros((16, 24, 3), dtype=torch.uint8))
    assert sorted(row.id for row in read_manifest(tmp_path)[1]) == names
    for name in ("x", "y"):  # which no table lists
        film(tmp_path / name / "other.mp4")
    assert sorted(row.id for row in read_manifest(tmp_path)[1]) == names
    film(tmp_path / "again" / Path(names[0]).name)
    with pytest.raises(SoraError, match=rf"has two files, again/{Path(names[0]).name} and {names[0]}; move one away"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["videos", "sentences"])
def test_ids_of_msrvtt_are_text(tmp_path: Path, key: str) -> None:
    told: dict[str, list[Any]] = {"videos": [{"video_id": "video0", "split": "train"}], "sentences": []}
    told[key] = [{"video_id": ["video0"], "split": "train", "caption": "x"}]
    (tmp_path / "msrvtt.json").write_text(json.dumps(told))
    with pytest.raises(SoraError, match=rf"{key} 1: 'video_id' is \['video0'\]; it must be text"):
        read_manifest(tmp_path)


def test_msrvtt_is_read_with_all_its_sentences(tmp_path: Path, caplog: Any) -> None:
    for number in range(3):
        film(tmp_path / "videos" / "all" / f"video{number}.mp4")
    splits = ("train", "validate", "test", "test")
    told = {
        "info": {},
        "videos": [{"video_id": f"video{n}", "split": split, "category": 9} for n, split in enumerate(splits)],
        "sentences": [
            {"video_id": f"video{n}", "caption": f"text {n}{k}", "sen_id": k} for k in "ab" for n in range(4)
        ],
    }
    (tmp_path / "train_val_videodatainfo.json").write_text(json.dumps(told))
    found = open_collection(tmp_path)
    assert found.style == "msrvtt"
    assert {row.id: (row.split, row.captions) for row in found.rows} == {
        "videos/all/video0.mp4": ("train", ("text 0a", "text 0b")),
        "videos/all/video1.mp4": ("val", ("text 1a", "text 1b")),
        "videos/all/video2.mp4": ("test", ("text 2a", "text 2b")),
    }
    assert "1 of the 4 videos" in caplog.text
    (tmp_path / "train_val_videodatainfo.json").write_text('{"videos": [{"id": 1}], "sentences": []}')
    with pytest.raises(SoraError, match=r"videos 1: .* must have 'video_id' and 'split'"):
        read_manifest(tmp_path)
    (tmp_path / "train_val_videodatainfo.json").write_text("[]")
    with pytest.raises(SoraError, match="msrvtt needs a JSON"):
        read_manifest(tmp_path)
