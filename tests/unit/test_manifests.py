"""Manifests as the field writes them: each style from files written by its own conventions."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data.manifest import MANIFESTS, detect, is_plain_folder, read_manifest
from lightning_sora.data.places import DecodeError
from lightning_sora.data.quarantine import read_quarantine, write_quarantine
from lightning_sora.data.sources import SOURCES, Source
from lightning_sora.errors import SoraError

FRAMES, HEIGHT, WIDTH, FPS = 6, 32, 48, 8.0
CAPTIONS = {"a.mp4": "a red clip", "sub/b.mp4": "a green clip, with a comma", "c.png": "a blue picture"}
SHADES = {"a.mp4": 40, "sub/b.mp4": 120, "c.png": 200}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two videos and an image, each of one grey, that tells them apart."""
    for name, shade in SHADES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        frames = 1 if name.endswith("png") else FRAMES
        video = torch.full((frames, HEIGHT, WIDTH, 3), shade, dtype=torch.uint8)
        if frames == 1:
            media.write_image(path, video[0])
        else:
            media.write_mp4(path, video, FPS)
    return tmp_path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def videofolder(root: Path, suffix: str = ".csv") -> Path:
    table(root / f"metadata{suffix}", [{"file_name": n, "text": t} for n, t in CAPTIONS.items()])
    return root / f"metadata{suffix}"


def open_sora(root: Path, suffix: str = ".csv") -> Path:
    rows = [
        {"path": n, "text": t, "num_frames": 1 if n == "c.png" else FRAMES, "height": HEIGHT, "width": WIDTH,
         "aspect_ratio": HEIGHT / WIDTH, "resolution": HEIGHT * WIDTH, "fps": FPS, "aes": 5.1}
        for n, t in CAPTIONS.items()
    ]  # fmt: skip
    return table(root / f"meta{suffix}", rows)


def open_sora_plan(root: Path) -> Path:
    rows = [
        {"path": n, "cap": [t, f"{t}, again"], "resolution": {"height": HEIGHT, "width": WIDTH}, "fps": FPS,
         "num_frames": 1 if n == "c.png" else FRAMES, "aesthetic": 5}
        for n, t in CAPTIONS.items()
    ]  # fmt: skip
    (root / "lists").mkdir()
    table(root / "lists" / "anno.json", rows)
    (root / "data.txt").write_text(f"{root},{root / 'lists' / 'anno.json'}\n")
    return root / "data.txt"


def fastvideo(root: Path) -> Path:
    return table(root / "videos2caption.json", [{"path": n, "cap": t} for n, t in CAPTIONS.items()])


def cogvideox(root: Path) -> Path:
    (root / "videos.txt").write_text("".join(f"{n}\n" for n in CAPTIONS))
    (root / "prompts.txt").write_text("".join(f"{t}\n" for t in CAPTIONS.values()))
    return root


def sat(root: Path) -> Path:
    (root / "videos").mkdir()
    (root / "labels").mkdir()
    for name, text in CAPTIONS.items():
        flat = Path(name).name
        (root / name).rename(root / "videos" / flat)
        (root / "labels" / flat).with_suffix(".txt").write_text(text)
    return root


def webdataset(root: Path) -> Path:
    with tarfile.open(root / "shard-000.tar", "w") as tar:
        for number, (name, text) in enumerate(CAPTIONS.items()):
            key = f"{number:06d}"
            tar.add(root / name, f"{key}{Path(name).suffix}")
            for ending, content in ((".txt", text), (".json", json.dumps({"fps": FPS, "caption": f"{text}, long"}))):
                info = tarfile.TarInfo(key + ending)
                info.size = len(content.encode())
                tar.addfile(info, io.BytesIO(content.encode()))
    return root / "shard-000.tar"


def openvid(root: Path) -> Path:
    rows = [{"video": n, "caption": t, "aesthetic score": 4.2, "fps": FPS, "seconds": 1.0} for n, t in CAPTIONS.items()]
    return table(root / "OpenVid.csv", rows)


def ltx(root: Path) -> Path:
    return table(root / "dataset.json", [{"media_path": n, "caption": t} for n, t in CAPTIONS.items()])


STYLES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "videofolder csv": ("videofolder", videofolder),
    "videofolder jsonl": ("videofolder", lambda root: videofolder(root, ".jsonl")),
    "videofolder parquet": ("videofolder", lambda root: videofolder(root, ".parquet")),
    "open_sora csv": ("open_sora", open_sora),
    "open_sora parquet": ("open_sora", lambda root: open_sora(root, ".parquet")),
    "open_sora_plan": ("open_sora_plan", open_sora_plan),
    "fastvideo": ("open_sora_plan", fastvideo),
    "cogvideox": ("cogvideox", cogvideox),
    "sat": ("sat", sat),
    "webdataset": ("webdataset", webdataset),
    "openvid": ("openvid", openvid),
    "ltx": ("ltx", ltx),
}


def sources(place: Path, **options: Any) -> list[Source]:
    spec = f"manifest({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else "manifest"
    return [SOURCES.create(spec, root=str(place), split=split, seed=0) for split in ("train", "val", "test")]


@pytest.mark.parametrize("name", STYLES)
def test_a_manifest_of_each_style_loads_with_its_own_pixels_and_captions(files: Path, name: str) -> None:
    style, write = STYLES[name]
    place = write(files)
    assert detect(place) == style
    seen = {}
    for source in sources(place):
        for index, info in enumerate(source.infos):
            frames = min(info.frames, 5)
            clip = source.load(index, frames, 16, 24, generator=torch.Generator(), fps=None)
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
        clip = source.load(index, 6, 32, 32, generator=torch.Generator(), fps=None)
        shown = clip.video.float().mean(dim=(1, 2, 3))
        assert info.frames == 6
        assert (shown - 10.0 * torch.arange(first, first + 6)).abs().max() < 4


def test_a_crop_is_all_that_is_seen_of_a_file(tmp_path: Path) -> None:
    column = torch.arange(48, dtype=torch.uint8) * 5
    video = column[None, None, :, None].expand(6, 32, 48, 3).clone()
    video[:, 16:] = 250  # below
    media.write_mp4(tmp_path / "a.mp4", video, FPS)
    row = {"path": "a.mp4", "cap": "x", "resolution": {"height": 32, "width": 48}, "num_frames": 6, "fps": FPS}
    (source, *_) = sources(table(tmp_path / "a.json", [{**row, "crop": [8, 32, 0, 16]}]))
    assert (source.infos[0].height, source.infos[0].width) == (16, 24)
    clip = source.load(0, 5, 16, 24, generator=torch.Generator(), fps=None)
    shown = clip.video.float().mean(dim=(0, 1, 3))
    assert (shown - 5.0 * torch.arange(8, 32)).abs().max() < 12  # a codec's rounding
    half = source.load(0, 5, 8, 12, generator=torch.Generator(), fps=None).video.float()
    assert (half.mean(dim=(0, 1, 3)) - (5.0 * torch.arange(8, 32)).reshape(12, 2).mean(dim=1)).abs().max() < 12
    assert half[:, :7].max() < 200  # nothing of what lies below
    row |= {"crop": [8, 64, 0, 16]}
    (source, *_) = sources(table(tmp_path / "b.json", [row]))
    with pytest.raises(DecodeError, match=r"its crop ends at 64, 16, but the picture has 48 x 32"):
        source.load(0, 5, 16, 24, generator=torch.Generator(), fps=None)


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
        source.load(0, 5, 16, 16, generator=torch.Generator(), fps=None)
    (source, *_) = sources(table(files / "rounds.csv", [{**row, "fps": FPS + 0.02}]))
    assert source.load(0, 5, 16, 16, generator=torch.Generator(), fps=None).video.shape[0] == 5


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
    shown = source.load(0, 9, 16, 16, generator=torch.Generator(), fps=None).video.float().mean(dim=(1, 2, 3))
    assert shown.max() - shown.min() < 30


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


def test_captions_of_equal_standing_are_kept_and_sizes_that_lie_are_found(files: Path) -> None:
    place = open_sora_plan(files)
    infos = [info for source in sources(place) for info in source.infos]
    assert {info.alternatives for info in infos} == {(f"{info.caption}, again",) for info in infos}
    rows = [{"path": "a.mp4", "text": "x", "num_frames": 6, "height": 64, "width": 48, "fps": 8}]
    (source, *_) = sources(table(files / "lies.csv", rows))
    with pytest.raises(DecodeError, match=r"a\.mp4: the manifest says height 64, but it has 32"):
        source.load(0, 5, 16, 16, generator=torch.Generator(), fps=None)


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
    assert is_plain_folder(str(files))
    videofolder(files)
    assert is_plain_folder(str(files))
    cogvideox(files)
    assert not is_plain_folder(str(files))
