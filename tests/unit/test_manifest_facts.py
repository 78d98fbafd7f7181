"""What manifests say that is odd, or not so: crops, rates, cuts, archives, lists; and `data check` on them."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data import decode
from lightning_sora.data.collection import open_collection
from lightning_sora.data.manifest import read_manifest
from lightning_sora.data.places import DecodeError
from lightning_sora.data.quarantine import read_quarantine, write_quarantine
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import Crop, VideoSize
from tests.unit.manifest_toys import (
    CAPTIONS,
    FPS,
    FRAMES,
    HEIGHT,
    WIDTH,
    cogvideox,
    sources,
    table,
    webdataset,
    write_files,
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def test_a_crop_is_all_that_is_seen_of_a_file(tmp_path: Path) -> None:
    column = torch.arange(48, dtype=torch.uint8) * 5
    video = column[None, None, :, None].expand(6, 32, 48, 3).clone()
    video[:, 16:] = 250  # below
    media.write_mp4(tmp_path / "a.mp4", video, FPS)
    row = {"path": "a.mp4", "cap": "x", "resolution": {"height": 32, "width": 48}, "num_frames": 6, "fps": FPS}
    (source, *_) = sources(table(tmp_path / "a.json", [{**row, "crop": [8, 32, 0, 16]}]))
    assert (source.infos[0].height, source.infos[0].width) == (16, 24)
    clip = source.load(0, Crop(VideoSize(5, 16, 24)), generator=torch.Generator())
    shown = clip.video.float().mean(dim=(0, 1, 3))
    assert (shown - 5.0 * torch.arange(8, 32)).abs().max() < 12  # a codec's rounding
    half = source.load(0, Crop(VideoSize(5, 8, 12)), generator=torch.Generator()).video.float()
    assert (half.mean(dim=(0, 1, 3)) - (5.0 * torch.arange(8, 32)).reshape(12, 2).mean(dim=1)).abs().max() < 12
    assert half[:, :7].max() < 200  # nothing of what lies below
    row |= {"crop": [8, 64, 0, 16]}
    (source, *_) = sources(table(tmp_path / "b.json", [row]))
    with pytest.raises(DecodeError, match=r"its crop ends at 64, 16, but the picture has 48 x 32"):
        source.load(0, Crop(VideoSize(5, 16, 24)), generator=torch.Generator())


@pytest.mark.parametrize("told", [0, "inf", "nan", ""])
def test_stills_need_no_rate_and_films_do(files: Path, told: Any) -> None:
    rows = [{"path": "c.png", "text": "x", "num_frames": 1, "height": HEIGHT, "width": WIDTH, "fps": told}]
    (source, *_) = sources(table(files / "m.csv", rows))
    assert (source.infos[0].frames, source.infos[0].fps) == (1, 1.0)
    film = table(files / "n.csv", [{**rows[0], "path": "a.mp4", "num_frames": FRAMES}])
    if told in (0, "inf"):
        with pytest.raises(SoraError, match="'fps' is"):
            sources(film)
    else:
        assert sources(film)[0].infos[0].fps == FPS


def test_a_rate_that_lies_is_found(files: Path) -> None:
    row = {"path": "a.mp4", "text": "x", "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    (source, *_) = sources(table(files / "lies.csv", [{**row, "fps": 2 * FPS}]))
    with pytest.raises(DecodeError, match="the manifest says fps 16, but it has 8"):
        source.load(0, Crop(VideoSize(5, 16, 16)), generator=torch.Generator())
    (source, *_) = sources(table(files / "rounds.csv", [{**row, "fps": FPS + 0.02}]))
    assert source.load(0, Crop(VideoSize(5, 16, 16)), generator=torch.Generator()).video.shape[0] == 5


@pytest.mark.slow
def test_data_check_reads_manifests_archives_and_urls(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = webdataset(files)
    assert main(["data", "check", str(tar)]) == 0
    assert "2 videos, 1 images, 0 bad" in capsys.readouterr().out
    assert main(["data", "check", f"file://{tar}"]) == 0
    assert "captions  3" in capsys.readouterr().out
    (files / "broken.mp4").write_bytes((files / "a.mp4").read_bytes()[:700])
    sizes = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "fps": FPS}
    rows = [
        {"path": "a.mp4", "text": "x", **sizes},
        {"path": "sub/b.mp4", "text": "x", **sizes, "height": 64},
        {"path": "broken.mp4", "text": "", **sizes},
        {"path": "gone.mp4", "text": "x", **sizes},
    ]
    listed = files / "bad.jsonl"
    assert main(["data", "check", str(table(files / "m.csv", rows)), "--out", str(listed)]) == 1
    assert "captions  3" in capsys.readouterr().out
    reasons = read_quarantine(str(listed))
    assert reasons["sub/b.mp4"] == "the manifest says height 64, but it has 32"
    assert reasons["gone.mp4"] == "no such file"
    assert set(reasons) == {"sub/b.mp4", "broken.mp4", "gone.mp4"}
    kept = sources(files / "m.csv", quarantine=str(listed))
    assert {info.id for source in kept for info in source.infos} == {"a.mp4"}


def test_late_cuts_begin_where_they_should_under_a_rounded_rate(tmp_path: Path) -> None:
    """Told as 24.5 frames per second, a cut at frame 660 of 23.976 would begin fourteen frames early."""
    shade = (torch.arange(700) // 10 % 2 * 200).to(torch.uint8)  # the shade changes every ten frames
    media.write_mp4(tmp_path / "a.mp4", shade[:, None, None, None].expand(700, 16, 16, 3).contiguous(), 24000 / 1001)
    row = {"path": "a.mp4", "cap": "x", "fps": 24.5, "num_frames": 700}
    (source, *_) = sources(table(tmp_path / "a.json", [{**row, "cut": [660, 669]}]))
    shown = source.load(0, Crop(VideoSize(9, 16, 16)), generator=torch.Generator()).video.float().mean(dim=(1, 2, 3))
    assert shown.max() - shown.min() < 30


def test_links_in_a_tar_are_what_they_link_to(files: Path) -> None:
    (files / "sub").mkdir(exist_ok=True)
    os.link(files / "a.mp4", files / "sub" / "copy.mp4")
    (files / "sub" / "link.mp4").symlink_to("../a.mp4")
    (files / "sub" / "away.mp4").symlink_to("/etc/hostname")
    with tarfile.open(files / "t.TAR", "w") as tar:
        for name in ("sub/link.mp4", "sub/away.mp4", "a.mp4", "sub/copy.mp4"):
            tar.add(files / name, name)
    style, rows = read_manifest(files / "t.TAR")
    assert (style, sorted(row.id for row in rows)) == ("webdataset", ["a", "sub/copy", "sub/link"])
    assert {row.place.open().read() for row in rows} == {(files / "a.mp4").read_bytes()}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.csv", "a.tar", "a.json", "a.jsonl", "a.parquet", "data.txt"])
def test_a_folder_may_be_called_as_a_table_is(files: Path, name: str) -> None:
    (files / name).mkdir()
    assert open_collection(files / name).source == "folder"
    with pytest.raises(SoraError, match=r"of no known style: .*folder needs videos or images"):
        read_manifest(files / name)
    with tarfile.open(files / name / "1.TAR", "w") as tar:
        tar.add(files / "a.mp4", "k.mp4")
    assert open_collection(files / name).source == "manifest"
    assert read_manifest(files / name)[0] == "webdataset"


def test_the_film_of_a_tar_is_not_its_thumbnail_and_odd_names_are_told(files: Path) -> None:
    with tarfile.open(files / "t.tar", "w") as tar:
        tar.add(files / "c.png", "000000.png")
        tar.add(files / "a.mp4", "000000.mp4")
    assert sources(files / "t.tar")[0].infos[0].frames == FRAMES
    with tarfile.open(files / "odd.tar", "w") as tar:
        tar.add(files / "a.mp4", "scene1.5.mp4")
    with pytest.raises(SoraError, match=r"'scene1\.5\.mp4'.*rename"):
        sources(files / "odd.tar")


def test_texts_may_hold_what_other_texts_break_lines_at(files: Path) -> None:
    (files / "m.jsonl").write_text(json.dumps({"path": "a.mp4", "text": "one\u2028two\x0cthree"}, ensure_ascii=False))
    assert sources(files / "m.jsonl")[0].infos[0].caption == "one two three"
    cogvideox(files)
    (files / "prompts.txt").write_text("a\u2028b\nc\nd\n")
    assert len(read_manifest(files)[1]) == 3


def test_first_frames_listed_beside_films_are_no_clips(files: Path) -> None:
    cogvideox(files)
    (files / "images.txt").write_text("c.png\n" * 3)
    assert [row.id for row in read_manifest(files)[1]] == list(CAPTIONS)


def test_lists_of_several_roots_may_hold_equal_names(files: Path) -> None:
    rows = [{"path": "b.mp4", "cap": "x"}]
    table(files / "one.json", rows)
    media.write_mp4(files / "b.mp4", torch.zeros((FRAMES, 16, 16, 3), dtype=torch.uint8), FPS)
    (files / "data.txt").write_text(f"{files},one.json\n{files / 'sub'},one.json\n")
    _, found = read_manifest(files / "data.txt")
    assert [row.id for row in found] == [f"{files}/b.mp4", f"{files / 'sub'}/b.mp4"]


def test_a_quarantined_file_takes_its_cuts_along_and_strangers_are_named(tmp_path: Path, caplog: Any) -> None:
    media.write_mp4(tmp_path / "a.mp4", torch.zeros((20, 16, 16, 3), dtype=torch.uint8), FPS)
    media.write_mp4(tmp_path / "b.mp4", torch.zeros((20, 16, 16, 3), dtype=torch.uint8), FPS)
    rows = [{"path": f"{n}.mp4", "cap": "x", "cut": [k, k + 8]} for n in "ab" for k in (0, 8)]
    write_quarantine(tmp_path / "bad.jsonl", {"a.mp4": "it flickers", "z.mp4": "it is gone"})
    kept = sources(table(tmp_path / "m.json", rows), quarantine=str(tmp_path / "bad.jsonl"))
    assert {info.id for source in kept for info in source.infos} == {"b.mp4#0", "b.mp4#8"}
    assert "1 entries" in caplog.text
    assert "'z.mp4'" in caplog.text


INSPECTED = ["--patch", "1,16,16", "--height", "32", "--width", "48", "--sizes", "fixed"]
SPLITS = ("train", "train", "train", "val", "test")


@pytest.mark.parametrize("sizes", [("num_frames", "height", "width", "fps"), ("num_frames",)])
@pytest.mark.parametrize("told", [FRAMES + 1, FRAMES + 20])
def test_what_still_fits_of_a_clip_that_is_told_too_long_is_read(
    files: Path, sizes: tuple[str, ...], told: int, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = {"num_frames": told, "height": HEIGHT, "width": WIDTH, "fps": FPS}
    rows = [{"path": name, "text": "x", **{size: truth[size] for size in sizes}} for name in ("a.mp4", "sub/b.mp4")]
    place = table(files / "long.csv", rows)
    (source, *_) = sources(place)
    whole = source.load(0, Crop(VideoSize(FRAMES, HEIGHT, WIDTH)), generator=torch.Generator())
    assert torch.equal(whole.video, decode.read_clip(files / source.infos[0].id, 0.0, FRAMES))
    assert source.refusal(0, Crop(VideoSize(FRAMES, HEIGHT, WIDTH))) is None
    lie = f"the manifest says frames {told}, but it has {FRAMES}"
    assert lie in (source.refusal(0, Crop(VideoSize(FRAMES + 1, HEIGHT, WIDTH))) or "")
    with pytest.raises(DecodeError, match=lie):
        source.load(0, Crop(VideoSize(FRAMES + 1, HEIGHT, WIDTH)), generator=torch.Generator())
    inspect = ["data", "inspect", str(place), *INSPECTED, "--out", str(files / "out.png")]
    assert main([*inspect, "--frames", str(FRAMES)]) == 0
    assert "cannot be read" not in capsys.readouterr().out
    if len(sizes) > 1:  # where the file was not looked at
        assert main([*inspect, "--frames", str(FRAMES + 1)]) == 2
        assert f"clips of split 'train' can be read as planned, the first: a.mp4: {lie}" in capsys.readouterr().err


@pytest.mark.slow
def test_inspect_names_what_a_training_would_leave_out(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        shutil.copy(files / "a.mp4", files / f"more{number}.mp4")
    names = ("a.mp4", "sub/b.mp4", *(f"more{number}.mp4" for number in range(3)))
    truth = {"text": "x", "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "fps": FPS}
    rows = [{"path": name, **truth, "split": split} for name, split in zip(names, SPLITS, strict=True)]
    rows[1]["height"] = 2 * HEIGHT
    place = table(files / "m.csv", rows)
    mixture = f"mixture(sources={{'one': {f'manifest(root={str(place)!r})'!r}}})"
    for given in ([str(place)], ["--source", mixture]):
        assert main(["data", "inspect", *given, *INSPECTED, "--out", str(files / "out.png"), "--frames", "5"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "1 of 5 clips that were looked at cannot be read as planned" in shown
        assert f"the manifest says height {2 * HEIGHT}, but it has {HEIGHT}" in shown
