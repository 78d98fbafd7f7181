from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import av
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from lightning_sora import cli, media
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.data.sources import SOURCES, DecodeError
from lightning_sora.data.sources.folder import FolderSource
from lightning_sora.errors import SoraError
from lightning_sora.lab.inspect import inspect_data
from lightning_sora.spacetime import Crop, VideoSize


def clip(path: Path, frames: int = 8, height: int = 32, width: int = 48, level: int = 100, fps: float = 10) -> Path:
    video = torch.full((frames, height, width, 3), level, dtype=torch.uint8)
    video[..., 0] = (torch.arange(frames) * 20)[:, None, None]  # red tells the frame
    video[:, :, :, 2] = torch.linspace(0, 255, width).round().to(torch.uint8)  # blue tells the column
    media.write_mp4(path, video, fps)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips and ten stills; copy it before changing it."""
    root = tmp_path_factory.mktemp("made")
    clip(root / "0.mp4")
    for number in range(1, 40):
        shutil.copy(root / "0.mp4", root / f"{number}.mp4")
    for number in range(10):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(root / f"still {number}.png")
    return root


def key(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def ids(root: Path, split: str, **options: object) -> set[str]:
    return {info.id for info in FolderSource(root=str(root), split=split, **options).infos}


def test_splits_are_disjoint_complete_and_hold_clips_of_either_kind(made: Path) -> None:
    parts = {split: ids(made, split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 50
    for split in ("val", "test"):
        assert sum(name.endswith("mp4") for name in parts[split]) == 2
        assert sum(name.endswith("png") for name in parts[split]) == 1
    assert len(ids(made, "val", held_out=0.2)) == 10


def test_fast_colours_are_swscale_s_default_and_part_of_the_fingerprint(made: Path) -> None:
    exact, fast = (FolderSource(root=str(made), **options) for options in ({}, {"colours": "fast"}))
    index = next(index for index, info in enumerate(exact.infos) if info.id.endswith("mp4"))
    videos = [source.load(index, Crop(VideoSize(1, 32, 48)), generator=key()).video for source in (exact, fast)]
    shown = next(info for info in exact.infos[index : index + 1])
    with av.open(str(made / shown.id)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    first = int(videos[0][0, ..., 0].float().mean() / 20 + 0.5)
    assert torch.equal(videos[1][0], torch.from_numpy(frames[first]))
    assert not torch.equal(videos[0], videos[1])
    scaled = [source.load(index, Crop(VideoSize(1, 16, 24)), generator=key()).video for source in (exact, fast)]
    assert torch.equal(*scaled)
    assert exact.fingerprint() != fast.fingerprint()
    with pytest.raises(SoraError, match="colours='quick' must be one of exact, fast"):
        FolderSource(root=str(made), colours="quick")


def test_brief_clips_never_stand_alone_in_a_split_where_longer_ones_exist(tmp_path: Path) -> None:
    clip(tmp_path / "brief 0.mp4", frames=3)
    clip(tmp_path / "long 0.mp4", frames=20)
    for kind in ("brief", "long"):
        for number in range(1, 9 if kind == "brief" else 3):
            shutil.copy(tmp_path / f"{kind} 0.mp4", tmp_path / f"{kind} {number}.mp4")
    for split in ("train", "val", "test"):
        assert any(name.startswith("long") for name in ids(tmp_path, split))


def test_splits_depend_neither_on_place_nor_seed_nor_much_on_other_files(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    assert ids(made, "val") == ids(tmp_path / "copy", "val", seed=7)
    (tmp_path / "copy" / min(ids(made, "train"))).unlink()
    assert ids(made, "val") == ids(tmp_path / "copy", "val")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_clips_to_divide_are_shared_with_a_warning(
    tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(count):
        clip(tmp_path / f"{number}.mp4")
    for split in ("train", "val", "test"):
        assert len(ids(tmp_path, split)) == count
    assert "nothing is held out" in caplog.text


def test_three_clips_give_each_split_one(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    clip(tmp_path / "b.mp4")
    Image.new("RGB", (9, 9)).save(tmp_path / "c.png")
    assert [len(ids(tmp_path, split)) for split in ("train", "val", "test")] == [1, 1, 1]


def test_folders_name_splits_and_a_missing_one_comes_out_of_train(tmp_path: Path) -> None:
    for name in ("train/a", "train/deep/b", "train/c", "train/d", "validation/e"):
        clip(tmp_path / f"{name}.mp4")
    assert ids(tmp_path, "val") == {"validation/e.mp4"}
    (test,) = ids(tmp_path, "test")
    train = ids(tmp_path, "train")
    assert test.startswith("train/")
    assert len(train) == 3
    assert test not in train


def table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_a_folder_for_another_source_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    clip(tmp_path / "a.mp4")
    with tarfile.open(tmp_path / "tars" / "00000.tar", "w") as tar:
        tar.add(tmp_path / "a.mp4", "a.mp4")
    with pytest.raises(SoraError, match=r"tars holds no video or image by itself, .*set data\.source=manifest"):
        FolderSource(root=str(tmp_path / "tars"))


def test_a_spec_may_say_its_root_wherever_a_source_is_named(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    spec = f"folder(root='{tmp_path}')"
    data = SpacetimeDataModule(spec, frames=5, height=16, width=16, patch=(1, 8, 8), batch_size=1)
    assert [info.id for info in data.source("train").infos] == ["a.mp4"]
    found = inspect_data(source=spec, sizes="fixed", frames=5, height=16, width=16, patch=(1, 8, 8))
    assert [info.id for info in found.infos["train"]] == ["a.mp4"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["text", "caption"])
def test_tables_give_captions_and_splits(tmp_path: Path, kind: str, column: str) -> None:
    for name in "abc":
        clip(tmp_path / "in" / f"{name}.mp4")
    rows = [
        {"file_name": f"{name}.mp4", column: f"clip, {name} é", "split": split, "score": 1}
        for name, split in (("a", "train"), ("b", "validation"), ("c", "test"))
    ]
    table(tmp_path / "in" / f"metadata.{kind}", rows)
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        (info,) = FolderSource(root=str(tmp_path), split=split).infos
        assert (info.id, info.caption, info.split) == (f"in/{name}.mp4", f"clip, {name} é", split)


def test_sidecars_caption_what_the_tables_leave_out(tmp_path: Path) -> None:
    for name in "abc":
        clip(tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text(f"sidecar\n{name} ")
    table(tmp_path / "metadata.csv", [{"file_name": "a.mp4", "text": "table a"}])

    def captions(option: str) -> dict[str, str]:
        splits = ("train", "val", "test")
        infos = [i for s in splits for i in FolderSource(root=str(tmp_path), split=s, captions=option).infos]
        return {info.id[0]: info.caption for info in infos}

    assert captions("auto") == {"a": "table a", "b": "sidecar b", "c": "sidecar c"}
    assert captions("metadata") == {"a": "table a", "b": "", "c": ""}
    assert captions("sidecar") == {"a": "sidecar a", "b": "sidecar b", "c": "sidecar c"}
    assert captions("none") == {"a": "", "b": "", "c": ""}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.csv",
            "file,text\na.mp4,x\n",
            "columns are file, text; needed are 'file_name' and 'text' or 'caption'",
        ),
        ("metadata.csv", "file_name,text\na.mp4,one, two\n", "put captions with commas in quotes"),
        ("metadata.csv", "file_name,text\nb.mp4,x\n", "row 1: 'b.mp4' is not among the videos"),
        ("metadata.csv", "file_name,text\nb/../a.mp4,x\na.mp4,y\n", "row 2: 'a.mp4' is listed a second time"),
        ("metadata.csv", "file_name,text\n../a.mp4,x\n", "row 1: '../a.mp4' lies outside of"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": 3}', "'text' is 3; it must be text"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "label": "x"}', "columns are file_name, label"),
        ("metadata.jsonl", '\n{"file_name": ', "line 2: not JSON"),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": "x", "split": "dev"}',
            "'split' is 'dev'; it must be one of",
        ),
        ("metadata.parquet", "no parquet", "not a Parquet file"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_wrong_captions_are_refused_with_place_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    clip(tmp_path / "a.mp4")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SoraError, match=message):
        FolderSource(root=str(tmp_path))


def test_a_parquet_table_with_wrong_columns_names_those_it_has(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    table(tmp_path / "metadata.parquet", [{"video": "a.mp4", "caption": "x"}])
    with pytest.raises(SoraError, match="columns are video, caption; needed are 'file_name'"):
        FolderSource(root=str(tmp_path))


def test_bad_files_are_counted_and_told_or_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip(tmp_path / "good.mp4")
    (tmp_path / "text.mp4").write_text("text")
    (tmp_path / "empty.webm").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        source = FolderSource(root=str(tmp_path))
    assert [info.id for info in source.infos] == ["good.mp4"]
    assert set(source.failures) == {"text.mp4", "empty.webm"}
    assert "2 of 3 clips" in caplog.text
    assert "empty.webm (the file is empty)" in caplog.text
    with pytest.raises(DecodeError, match=r"empty\.webm: the file is empty"):
        FolderSource(root=str(tmp_path), on_error="raise")
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(SoraError, match="no usable video or image in"):
        FolderSource(root=str(tmp_path))


def test_links_are_followed_once_and_hidden_files_passed_over(tmp_path: Path) -> None:
    clip(tmp_path / "elsewhere" / "a.mp4")
    clip(tmp_path / "root" / ".hidden" / "b.mp4")
    shutil.copy(tmp_path / "elsewhere" / "a.mp4", tmp_path / "root" / "._c.mp4")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert ids(tmp_path / "root", "train") == {"linked/a.mp4"}


def test_a_file_that_is_mended_is_seen_anew(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("text")
    assert FolderSource(root=str(tmp_path)).failures
    clip(tmp_path / "b.mp4")
    assert not FolderSource(root=str(tmp_path)).failures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "needs a root"),
        ({"root": "/no/such/folder"}, "is not a folder"),
        ({"split": "dev"}, "split='dev' must be one of train, val, test"),
        ({"captions": "all"}, "captions='all'"),
        ({"captions": "metadata"}, r"there is no metadata\.csv"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"held_out": 0.7}, "held_out=0.7"),
    ],
)
def test_impossible_options_are_refused(made: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(SoraError, match=message):
        FolderSource(**{"root": str(made), **options})  # type: ignore[arg-type]


def test_the_registry_builds_it_and_workers_can_carry_it(made: Path) -> None:
    source = SOURCES.create("folder(held_out=0.1)", root=str(made), split="val", seed=3)
    carried = pickle.loads(pickle.dumps(source))
    one, other = (s.load(0, Crop(VideoSize(4, 16, 16)), generator=key()) for s in (source, carried))
    assert torch.equal(one.video, other.video)
    assert source.fingerprint() == carried.fingerprint()


def test_windows_have_the_asked_size_start_anywhere_they_fit_and_follow_the_key(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=12)
    source = FolderSource(root=str(tmp_path))
    starts, columns = set(), set()
    for number in range(60):
        clip_read = source.load(0, Crop(VideoSize(9, 24, 24)), generator=key(number))
        assert clip_read.video.shape == (9, 24, 24, 3)
        assert clip_read.video.dtype == torch.uint8
        assert clip_read.fps == 10
        reds = (clip_read.video[..., 0].float().mean((1, 2)) / 20).round().int().tolist()
        assert reds == list(range(reds[0], reds[0] + 9))
        starts.add(reds[0])
        columns.add(int(clip_read.video[0, :, 0, 2].float().mean() // 16))
        again = source.load(0, Crop(VideoSize(9, 24, 24)), generator=key(number))
        assert torch.equal(clip_read.video, again.video)
    assert starts == {0, 1, 2, 3}
    assert len(columns) >= 4


def test_a_rate_stretches_the_window_over_the_time_it_means(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=12)
    source = FolderSource(root=str(tmp_path))
    half = source.load(0, Crop(VideoSize(6, 32, 48), 5), generator=key())
    reds = (half.video[..., 0].float().mean((1, 2)) / 20).round().int().tolist()
    assert half.fps == 5
    assert reds in ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11])
    with pytest.raises(DecodeError, match="7 frames at 5 per second do not fit into its 12 at 10"):
        source.load(0, Crop(VideoSize(7, 32, 48), 5), generator=key())


def test_evaluation_cuts_the_middle(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    source = FolderSource(root=str(tmp_path), split="test")
    blue = source.load(0, Crop(VideoSize(1, 32, 24)), generator=key()).video[0, :, :, 2].float().mean(0)
    assert blue.mean() == pytest.approx(127.5, abs=3)
    assert blue[0] == pytest.approx(255 * 12 / 47, abs=8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (8, 8), (31, 17), (10, 100)])
def test_any_size_is_covered_by_videos_and_stills(tmp_path: Path, height: int, width: int) -> None:
    clip(tmp_path / "a.mp4", height=30, width=50)
    Image.new("RGB", (37, 53), (9, 9, 9)).save(tmp_path / "b.png")
    source = FolderSource(root=str(tmp_path))
    for index in range(2):
        video = source.load(index, Crop(VideoSize(1, height, width), 8), generator=key()).video
        assert video.shape == (1, height, width, 3)
    assert video.unique().tolist() == [9]


def test_the_fingerprint_is_of_content_and_captions_not_of_place_or_time(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy", copy_function=shutil.copyfile)
    fingerprint = FolderSource(root=str(made)).fingerprint()
    assert FolderSource(root=str(tmp_path / "copy"), seed=5).fingerprint() == fingerprint
    changed = tmp_path / "copy" / FolderSource(root=str(made)).infos[0].id
    changed.with_suffix(".txt").write_text("a caption")
    captioned = FolderSource(root=str(tmp_path / "copy")).fingerprint()
    clip(changed, level=101)
    assert len({fingerprint, captioned, FolderSource(root=str(tmp_path / "copy")).fingerprint()}) == 3


@pytest.mark.slow
def test_data_check_names_bad_files_and_tells_by_its_status(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    clip(tmp_path / "good.mp4")
    (tmp_path / "good.txt").write_text("a caption")
    assert cli.main(["data", "check", str(tmp_path)]) == 0
    assert "1 videos, 0 images, 0 bad" in capsys.readouterr().out
    (tmp_path / "[red]bad.mp4").write_text("text")
    (tmp_path / "metadata.csv").write_text("file_name,text\nmissing.mp4,x\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "[red]bad.mp4" in shown
    assert "missing.mp4" in shown
    assert cli.main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "no manifest or folder at" in capsys.readouterr().err


def test_a_folder_of_real_clips_loads_in_every_split() -> None:
    root = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_SORA_TEST_DATA does not name the folder of real clips")
    total = 0
    for split in ("train", "val", "test"):
        source = FolderSource(root=str(Path(root) / "clips"), split=split)
        for index, info in enumerate(source.infos):
            total += 1
            frames = min(9, info.frames)
            if info.id != "corrupted.mp4":
                read = source.load(index, Crop(VideoSize(frames, 32, 32)), generator=key())
                assert read.video.shape == (frames, 32, 32, 3)
                assert read.caption == info.caption
    assert total == 13
