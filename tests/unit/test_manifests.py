"""Manifests as the field writes them: each style from files written by its own conventions."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data.collection import Collection, open_collection
from lightning_sora.data.manifest import MANIFESTS, detect, read_manifest
from lightning_sora.data.places import DecodeError
from lightning_sora.data.quarantine import read_quarantine, write_quarantine
from lightning_sora.data.sources import SOURCES, Source
from lightning_sora.errors import SoraError
from lightning_sora.lab import check as checks
from lightning_sora.spacetime import Crop, VideoSize
from tests.unit.manifest_toys import (
    CAPTIONS,
    FPS,
    FRAMES,
    HEIGHT,
    SHADES,
    STYLES,
    WIDTH,
    cogvideox,
    open_sora_plan,
    sources,
    table,
    videofolder,
    webdataset,
    write_files,
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.mark.parametrize("name", STYLES)
def test_a_manifest_of_each_style_loads_with_its_own_pixels_and_captions(files: Path, name: str) -> None:
    style, write = STYLES[name]
    place = write(files)
    assert detect(place) == style
    seen = {}
    for source in sources(place):
        for index, info in enumerate(source.infos):
            frames = min(info.frames, 5)
            clip = source.load(index, Crop(VideoSize(frames, 16, 24)), generator=torch.Generator())
            seen[clip.caption] = round(float(clip.video.float().mean()))
            assert (info.height, info.width) == (HEIGHT, WIDTH)
            assert info.frames == (1 if clip.caption.startswith("a blue") else FRAMES)
            assert clip.video.shape == (frames, 16, 24, 3)
    assert set(seen) == set(CAPTIONS.values())
    for file, caption in CAPTIONS.items():
        assert abs(seen[caption] - SHADES[file]) <= 3  # a codec's rounding


def test_every_style_says_what_it_needs_where_columns_are_wrong(tmp_path: Path) -> None:
    for style in ("videofolder", "open_sora", "open_sora_plan", "openvid", "ltx"):
        suffix = ".json" if style in ("open_sora_plan", "ltx") else ".csv"
        place = table(tmp_path / f"{style}{suffix}", [{"film": "a.mp4", "words": "hm"}])
        with pytest.raises(SoraError) as caught:
            read_manifest(place, style)
        needs = MANIFESTS.create(style).needs
        assert "film, words" in str(caught.value)
        assert needs in str(caught.value)
    with pytest.raises(SoraError) as caught:
        read_manifest(tmp_path / "openvid.csv")
    assert all(MANIFESTS.create(name).needs in str(caught.value) for name in MANIFESTS.list())
    for style in ("cogvideox", "sat", "webdataset"):
        with pytest.raises(SoraError, match=f"{style} needs"):
            read_manifest(tmp_path, style)


def _broken(root: Path, name: str) -> Path:
    if name == "misaligned":
        cogvideox(root)
        (root / "prompts.txt").write_text("one\n")
        return root
    if name == "json":
        (root / "dataset.json").write_text('[{"media_path": "a.mp4",\n "caption" "x"}]')
        return root / "dataset.json"
    if name == "jsonl":
        (root / "m.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n{"file_name": \n')
        return root / "m.jsonl"
    if name == "twice":
        return table(root / "m.csv", [{"path": "a.mp4", "text": "x"}] * 2)
    if name == "number":
        return table(root / "m.csv", [{"path": "a.mp4", "text": "x", "height": "tall"}])
    if name == "caption":
        return table(root / "m.json", [{"path": "a.mp4", "cap": 7}])
    if name == "cut":
        return table(root / "m.json", [{"path": "a.mp4", "cap": "x", "cut": [5, 2]}])
    if name == "words":
        return table(root / "m.json", [{"path": "a.mp4", "cap": "x", "cut": ["0", "5"]}])
    if name == "crop":
        return table(root / "m.json", [{"path": "a.mp4", "cap": "x", "crop": [8, 8, 0, 4]}])
    if name == "empty":
        (root / "m.csv").write_text("path,text\n")
        return root / "m.csv"
    if name == "encoding":
        (root / "m.csv").write_bytes(b"path,text\na.mp4,caf\xe9\n")
        return root / "m.csv"
    if name == "quotes":
        (root / "m.csv").write_text('path,text\na.mp4,"open\nsub/b.mp4,x\n')
        return root / "m.csv"
    if name == "gzip":
        with tarfile.open(root / "x.tar", "w:gz") as tar:
            tar.add(root / "a.mp4", "a.mp4")
        return root / "x.tar"
    return root / "nowhere.csv"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("misaligned", ["3 lines", "1;", "line n"]),
        ("json", ["dataset.json, line 2", "not JSON"]),
        ("jsonl", ["m.jsonl, line 2", "not JSON"]),
        ("twice", ["'a.mp4'", "second time"]),
        ("number", ["row 1", "'height' is 'tall'", "positive number"]),
        ("caption", ["entry 1", "7", "must be text"]),
        ("cut", ["'cut' is [5, 2]"]),
        ("words", ["'cut' is ['0', '5']"]),
        ("crop", ["'crop' is [8, 8, 0, 4]", "[left, right, top, bottom]"]),
        ("empty", ["lists no clip"]),
        ("encoding", ["not UTF-8"]),
        ("quotes", ["m.csv", "not a table of comma-separated"]),
        ("gzip", ["x.tar", "not compressed"]),
        ("missing", ["no manifest or folder at"]),
    ],
)
def test_a_broken_manifest_is_one_clear_error(files: Path, name: str, words: list[str]) -> None:
    styles = {"twice": "open_sora", "number": "open_sora", "empty": "open_sora", "jsonl": "videofolder"}
    with pytest.raises(SoraError) as caught:
        read_manifest(_broken(files, name), styles.get(name, "auto"))
    assert all(word in str(caught.value) for word in words), caught.value


def test_cuts_of_one_file_are_clips_of_their_own(tmp_path: Path) -> None:
    video = (torch.arange(24, dtype=torch.uint8) * 10)[:, None, None, None].expand(24, 32, 32, 3).contiguous()
    media.write_mp4(tmp_path / "long.mp4", video, 8.0)
    rows = [{"path": "long.mp4", "cap": f"from {first}", "cut": [first, first + 6]} for first in (0, 12)]
    (source, *_) = sources(table(tmp_path / "a.json", rows))
    for index, info in enumerate(source.infos):
        first = int(info.caption.split()[1])
        clip = source.load(index, Crop(VideoSize(6, 32, 32)), generator=torch.Generator())
        shown = clip.video.float().mean(dim=(1, 2, 3))
        assert info.frames == 6
        assert (shown - 10.0 * torch.arange(first, first + 6)).abs().max() < 4


def test_captions_of_equal_standing_are_kept_and_sizes_that_lie_are_found(files: Path) -> None:
    place = open_sora_plan(files)
    infos = [info for source in sources(place) for info in source.infos]
    assert {info.alternatives for info in infos} == {(f"{info.caption}, again",) for info in infos}
    rows = [{"path": "a.mp4", "text": "x", "num_frames": 6, "height": 64, "width": 48, "fps": 8}]
    (source, *_) = sources(table(files / "lies.csv", rows))
    with pytest.raises(DecodeError, match=r"a\.mp4: the manifest says height 64, but it has 32"):
        source.load(0, Crop(VideoSize(5, 16, 16)), generator=torch.Generator())


def test_missing_and_quarantined_files_are_left_out_and_named(files: Path, caplog: Any) -> None:
    rows = [{"path": n, "text": "x"} for n in (*CAPTIONS, "gone.mp4")]
    place = table(files / "m.csv", rows)
    write_quarantine(files / "bad.jsonl", {"sub/b.mp4": "it flickers"})
    train, val, test = sources(place, quarantine=str(files / "bad.jsonl"))
    assert {i.id for s in (train, val, test) for i in s.infos} == {"a.mp4", "c.png"}
    assert train.failures == {"gone.mp4": "no such file", "sub/b.mp4": "quarantined: it flickers"}  # type: ignore[attr-defined]
    assert "2 of 4 clips" in caplog.text
    folder = SOURCES.create(f"folder(quarantine={str(files / 'bad.jsonl')!r})", root=str(files), split="train", seed=0)
    assert "sub/b.mp4" in folder.failures  # type: ignore[attr-defined]
    (files / "bad.jsonl").write_text('{"file": "a"}\n')
    with pytest.raises(SoraError, match="line 1"):
        read_quarantine(str(files / "bad.jsonl"))


def test_the_fingerprint_moves_with_content_and_captions(files: Path) -> None:
    def fingerprint() -> str:
        return "".join(source.fingerprint() for source in sources(files / "m.csv"))

    table(files / "m.csv", [{"path": n, "text": t} for n, t in CAPTIONS.items()])
    first = fingerprint()
    assert fingerprint() == first
    table(files / "m.csv", [{"path": n, "text": t + "!"} for n, t in CAPTIONS.items()])
    assert fingerprint() != first
    table(files / "m.csv", [{"path": n, "text": t} for n, t in CAPTIONS.items()])
    media.write_mp4(files / "a.mp4", torch.zeros((FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8), FPS)
    assert fingerprint() != first


def test_the_fingerprint_moves_with_what_an_archive_holds(files: Path) -> None:
    prints = []
    for shade in (40, 40, 90):
        media.write_mp4(files / "a.mp4", torch.full((FRAMES, HEIGHT, WIDTH, 3), shade, dtype=torch.uint8), FPS)
        prints.append("".join(source.fingerprint() for source in sources(webdataset(files))))
    assert prints[0] == prints[1] != prints[2]


def test_a_style_of_ones_own_joins_the_others(files: Path) -> None:
    from lightning_sora.data.manifest.tables import TableStyle

    with MANIFESTS.temporary():

        @MANIFESTS.register("mine")
        class Mine(TableStyle):
            needs = "mine needs 'film' and 'words'"
            file, caption = ("film",), ("words",)

        place = table(files / "m.csv", [{"film": "a.mp4", "words": "x"}])
        assert read_manifest(place)[0] == "mine"


def test_plain_folders_stay_with_the_folder_source(files: Path) -> None:
    assert open_collection(files).source == "folder"
    videofolder(files)
    assert open_collection(files).source == "folder"
    cogvideox(files)
    assert open_collection(files).source == "manifest"


def _paths(files: Path) -> dict[str, str]:
    """What may be given as a path -> the source that reads it."""
    webdataset(files)
    (files / "tars").mkdir()
    (files / "shard-000.tar").rename(files / "tars" / "shard-000.tar")
    (files / "cache").mkdir()
    (files / "cache" / "cache.json").write_text("{}")
    table(files / "m.csv", [{"path": "a.mp4", "text": "x"}])
    return {
        str(files): "folder",
        str(files / "a.mp4"): "manifest",
        str(files / "m.csv"): "manifest",
        str(files / "tars"): "manifest",
        str(files / "tars" / "shard-000.tar"): "manifest",
        str(files / "tars" / "shard-{000..000}.tar"): "manifest",
        f"file://{files}/m.csv": "manifest",
        f"file://{files}/tars/shard-000.tar": "manifest",
        str(files / "cache"): "latents",
        f"file://{files}/cache": "latents",
    }


def test_every_command_reads_a_path_by_the_same_source(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def create(spec: Any, *, root: str, **_: Any) -> Source:
        asked.append((root, str(spec)))
        raise SoraError("seen")

    expected = _paths(files)
    monkeypatch.setattr(SOURCES, "create", create)
    for path in expected:
        assert main(["data", "inspect", path]) == 2
        assert main(["caption", path, "--captioner", "facts", "--out", "x.parquet"]) == 2
    assert asked == [(path, source) for path, source in expected.items() for _ in range(2)]
    capsys.readouterr()
    monkeypatch.setattr(checks, "find_media", lambda _: create("folder", root=""))
    monkeypatch.setattr(Collection, "rows", property(lambda _: create("manifest", root="")))
    for path, source in expected.items():
        assert main(["data", "check", path]) == 2
        if source == "latents":
            assert "is a cache of latents" in capsys.readouterr().err
        else:
            assert asked.pop() == ("", source)
    for command in (["data", "inspect"], ["data", "check"], ["caption", "--captioner", "facts", "--out", "x.parquet"]):
        assert main([*command, str(files / "nowhere")]) == 2
        assert "no manifest or folder at" in capsys.readouterr().err


def test_a_source_that_cannot_read_a_path_names_the_one_that_can(files: Path) -> None:
    with pytest.raises(SoraError, match="the source 'manifest', which reads"):
        SOURCES.create("folder", root=str(files / "a.mp4"), split="train", seed=0)


def test_a_folder_and_a_file_are_manifests_too(files: Path) -> None:
    (files / "a.txt").write_text("a red clip\n")
    whole: Any = SOURCES.create("manifest", root=str(files), split="train", seed=0)
    folder = SOURCES.create("folder", root=str(files), split="train", seed=0)
    assert (whole.style, list(whole.infos)) == ("folder", list(folder.infos))
    one: Any = SOURCES.create("manifest", root=str(files / "a.mp4"), split="test", seed=0)
    assert [(info.id, info.caption) for info in one.infos] == [("a.mp4", "a red clip")]
    assert read_manifest(files, "folder(captions='none')")[1][0].captions == ()


def test_a_file_that_has_changed_is_looked_at_again(files: Path) -> None:
    path = table(files / "meta.csv", [{"path": "a.mp4", "text": "a red clip"}, {"path": "sub/b.mp4", "text": "green"}])

    def seen() -> dict[str, tuple[int, int, int]]:
        made = SOURCES.create("manifest", root=str(path), split="train", seed=0)
        return {info.id: (info.frames, info.height, info.width) for info in made.infos}

    assert seen()["a.mp4"] == (FRAMES, HEIGHT, WIDTH)
    media.write_mp4(files / "a.mp4", torch.zeros((9, 16, 16, 3), dtype=torch.uint8), FPS)
    assert seen()["a.mp4"] == (9, 16, 16)
