"""Tables and texts as other programs write them: the sources "folder" and "manifest" read the same out of them."""

import codecs
import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from lightning_sora import media
from lightning_sora.data.finding import find_media
from lightning_sora.data.manifest import read_manifest
from lightning_sora.data.quarantine import read_quarantine
from lightning_sora.data.sources import SOURCES
from lightning_sora.errors import SoraError
from lightning_sora.lab.sampling import read_prompts
from lightning_sora.models.vocabulary import Vocabulary

FILES = ("a.mp4", "sub/b.mp4")
MARKS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    media.write_mp4(folder / FILES[0], torch.full((6, 32, 48, 3), 90, dtype=torch.uint8), 8.0)
    shutil.copy(folder / FILES[0], folder / FILES[1])
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), newline="")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(source: str, root: Path) -> dict[str, tuple[str, ...]]:
    """What a source says of every clip, whatever its split."""
    splits = [SOURCES.create(source, root=str(root), split=split, seed=0) for split in ("train", "val", "test")]
    return {info.id: (info.caption, *info.alternatives) for source in splits for info in source.infos}


ROWS: dict[str, list[dict[str, Any]]] = {
    "backslashes": [{"file_name": "a.mp4", "text": "one"}, {"file_name": "sub\\b.mp4", "text": "two"}],
    "dots and slashes": [{"file_name": "./a.mp4", "text": "one"}, {"file_name": "sub/../sub//b.mp4", "text": "two"}],
    "absolute": [{"file_name": "ROOT/a.mp4", "text": "one"}, {"file_name": "ROOT/sub/b.mp4", "text": "two"}],
    "prompt": [{"file_name": "a.mp4", "prompt": "one"}, {"file_name": "sub/b.mp4", "prompt": "two"}],
    "marks": [{"file_name": "a.mp4", "text": "\ufeffone"}, {"file_name": "sub/b.mp4", "text": " two\n"}],
}
EXPECTED = {"a.mp4": ("one",), "sub/b.mp4": ("two",)}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", ROWS)
def test_folder_and_manifest_agree(root: Path, kind: str, suffix: str) -> None:
    rows = [{key: value.replace("ROOT", str(root)) for key, value in row.items()} for row in ROWS[kind]]
    write(root / f"metadata{suffix}", rows)
    assert told("folder", root) == EXPECTED
    assert told("manifest", root) == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("nothing", [None, "", [], float("nan")])
def test_a_cell_that_says_nothing_is_no_caption(root: Path, suffix: str, nothing: Any) -> None:
    if suffix == ".parquet" and nothing == []:
        pytest.skip("a column has one type")
    rows = [{"file_name": "a.mp4", "text": nothing, "split": None}, {"file_name": "sub/b.mp4", "text": nothing}]
    write(root / f"metadata{suffix}", rows)
    for source in ("folder", "manifest"):
        assert told(source, root) == {"a.mp4": ("",), "sub/b.mp4": ("",)}


def test_a_list_of_captions_is_of_equal_standing_in_both(root: Path) -> None:
    write(root / "metadata.jsonl", [{"file_name": name, "caption": ["one", None, " two "]} for name in FILES])
    for source in ("folder", "manifest"):
        assert told(source, root) == dict.fromkeys(FILES, ("one", "two"))


@pytest.mark.parametrize("value", [7, {"a": 1}, ["x", 3], "half \ud83d"])
def test_what_is_no_caption_is_refused_by_both(root: Path, value: Any) -> None:
    write(root / "metadata.jsonl", [{"file_name": "a.mp4", "text": value}])
    for source in ("folder", "manifest"):
        with pytest.raises(SoraError, match=r"metadata\.jsonl, row 1: 'text' is .*(it must be text|half a character)"):
            told(source, root)


def test_a_file_whose_name_has_a_backslash_is_found_as_it_is(root: Path) -> None:
    shutil.copy(root / "a.mp4", root / "odd\\name.mp4")
    write(root / "metadata.csv", [{"file_name": name, "text": "x"} for name in (*FILES, "odd\\name.mp4")])
    assert told("folder", root) == told("manifest", root) == dict.fromkeys((*FILES, "odd\\name.mp4"), ("x",))


def test_a_row_of_the_folder_s_table_may_not_reach_out_of_it(root: Path) -> None:
    for name in (str(root.parent / "c.mp4"), "../c.mp4", "sub/../../c.mp4", "..\\c.mp4"):
        write(root / "metadata.csv", [{"file_name": name, "text": "x"}])
        with pytest.raises(SoraError, match=r"row 1: .* lies outside of .*data\.source=manifest"):
            told("folder", root)


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "dataset.json", "videos.txt", "a.txt", "data.txt"])
def test_a_byte_order_mark_is_part_of_no_name_and_no_caption(root: Path, name: str, encoding: str) -> None:
    (root / "sub" / "b.mp4").unlink()
    contents = {
        "metadata.csv": "file_name,text\na.mp4,one\n",
        "metadata.jsonl": '{"file_name": "a.mp4", "text": "one"}\n',
        "dataset.json": '[{"media_path": "a.mp4", "caption": "one"}]',
        "videos.txt": "a.mp4\n",
        "a.txt": "one\n",
        "data.txt": ".,list.json\n",
    }
    others = {"videos.txt": ("prompts.txt", "one\n"), "data.txt": ("list.json", '[{"path": "a.mp4", "cap": "one"}]')}
    for file, text in ((name, contents[name]), others.get(name, ())) if name in others else ((name, contents[name]),):
        (root / file).write_bytes(MARKS[encoding] + text.encode(encoding))
    sources = {"a.txt": ("folder",), "metadata.csv": ("folder", "manifest"), "metadata.jsonl": ("folder", "manifest")}
    for source in sources.get(name, ("manifest",)):
        assert told(source, root) == {"a.mp4": ("one",)}


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    for encoding, mark in MARKS.items():
        (tmp_path / "prompts.txt").write_bytes(mark + "a cat\n\ufeffein Hündchen\n".encode(encoding))
        assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "ein Hündchen"]
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(SoraError, match=r"prompts\.txt: not UTF-8 text"):
        read_prompts(tmp_path / "prompts.txt")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "none", tmp_path / ("x" * 5000)):
        with pytest.raises(SoraError, match="no such file"):
            read_prompts(place)


def test_a_byte_order_mark_is_no_part_of_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(codecs.BOM_UTF8 + b"cat\ndog\n")
    assert tuple(Vocabulary.named(str(tmp_path / "words.txt")).words) == ("cat", "dog")


def test_a_byte_order_mark_is_no_part_of_a_quarantine_list(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"file": "a.mp4", "reason": "dark"}\n')
    assert read_quarantine(str(tmp_path / "bad.jsonl")) == {"a.mp4": "dark"}


DEEP = "[" * 200_000 + "]" * 200_000
HOSTILE = {
    "deep json": ("list.json", f'[{{"path": "a.mp4", "cap": {DEEP}}}]', "nested too deeply"),
    "deep jsonl": ("metadata.jsonl", f'{{"file_name": "a.mp4", "text": {DEEP}}}\n', "line 1: .*nested too deeply"),
    "deep objects": ("dataset.json", '{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
    "endless number": ("list.json", f'[{{"path": "a.mp4", "cap": "x", "fps": {"9" * 5000}}}]', "cannot be read"),
    "large number": (
        "list.json",
        f'[{{"path": "a.mp4", "cap": "x", "num_frames": {"9" * 400}}}]',
        "'num_frames' is .*positive number",
    ),
    "endless cut": ("list.json", '[{"path": "a.mp4", "cap": "x", "cut": [0, 1e999]}]', "'cut' is"),
    "endless crop": ("list.json", '[{"path": "a.mp4", "cap": "x", "crop": [0, 1e999, 0, 1e999]}]', "'crop' is"),
    "no name": ("list.json", '[{"path": null, "cap": "x"}]', "the file is None; it must be a path"),
    "long header": ("m.csv", f"path,{'x' * 200_000}\na.mp4,y\n", "not a table of comma-separated"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_is_one_short_error(root: Path, kind: str) -> None:
    name, content, reason = HOSTILE[kind]
    (root / name).write_text(content)
    with pytest.raises(SoraError, match=reason) as caught:
        read_manifest(root / name)
    assert len(str(caught.value)) < 600
    if name.startswith("metadata"):
        with pytest.raises(SoraError, match=reason):
            told("folder", root)


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 2500, "nul\0.mp4", f"{'y' * 300}.mp4"])
@pytest.mark.parametrize("sizes", [{}, {"num_frames": 6, "height": 32, "width": 48, "fps": 8}])
def test_a_name_that_no_file_can_have_is_left_out_and_named(root: Path, name: str, sizes: dict[str, int]) -> None:
    rows = [{"path": "a.mp4", "text": "x", **sizes}, {"path": name, "text": "x", **sizes}]
    source = SOURCES.create("manifest", root=str(write(root / "m.jsonl", rows)), split="train", seed=0)
    assert [info.id for info in source.infos] == ["a.mp4"]
    assert source.failures == {name: "no such file"}  # type: ignore[attr-defined]


def test_a_root_that_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    for source in ("folder", "manifest"):
        with pytest.raises(SoraError, match=r"is not a folder|no manifest or folder"):
            SOURCES.create(source, root=str(tmp_path / ("x" * 5000)), split="train", seed=0)
    with pytest.raises(SoraError, match="is not a folder"):
        find_media(tmp_path / "nowhere")


def columns(count: int) -> str:
    names = ",".join(f"x{number}" for number in range(count))
    return f"{names}\n{names}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path;text\na.mp4;x\n", "columns are path;text, with semicolons between them where commas must stand"),
        ("path\ttext\na.mp4\tx\n", "with tabs between them"),
        (columns(20_000), "x11 and 19,988 more"),
        (f"{'x' * 60_000},y\n1,2\n", "xxx"),
    ],
)
def test_a_table_of_other_columns_is_told_in_one_short_line(root: Path, content: str, words: str) -> None:
    (root / "metadata.csv").write_text(content)
    for read in (lambda: read_manifest(root / "metadata.csv"), lambda: told("folder", root)):
        with pytest.raises(SoraError) as caught:
            read()
        assert words in str(caught.value)
        assert len(str(caught.value)) < 2500


def test_a_row_that_lacks_a_cell_is_named(root: Path) -> None:
    (root / "m.jsonl").write_text('{"path": "a.mp4", "text": "x"}\n{"path": "sub/b.mp4"}\n')
    with pytest.raises(SoraError, match="row 2: the columns are path;"):
        read_manifest(root / "m.jsonl")


def test_a_header_of_several_lines_or_after_empty_ones_is_a_header(root: Path) -> None:
    for header in ("\n\r\npath,text", '"of\nmany",path,text'):
        first = "1," if "many" in header else ""
        (root / "m.csv").write_text(f"{header}\n{first}a.mp4,x\n")
        style, rows = read_manifest(root / "m.csv")
        assert (style, [(row.id, row.captions) for row in rows]) == ("open_sora", [("a.mp4", ("x",))])


@pytest.mark.parametrize("column", ["num_frames", "height", "width"])
@pytest.mark.parametrize("value", [0.3, 1e300, 2.0**63])
def test_a_number_that_no_video_has_is_refused(root: Path, column: str, value: float) -> None:
    sizes = {"num_frames": 6, "height": 32, "width": 48, "fps": 8.0, column: value}
    write(root / "m.jsonl", [{"path": "a.mp4", "text": "x", **sizes}])
    with pytest.raises(SoraError, match=f"row 1: '{column}' is .*from 1 to"):
        read_manifest(root / "m.jsonl")


def test_metadata_that_nobody_reads_is_named(root: Path) -> None:
    (root / "metadata.csv").symlink_to("nowhere.csv")
    for name in ("metadata.tsv", "Metadata.JSON", "notes.json"):
        (root / name).write_text("")
    (root / "sub" / "metadata.jsonl").write_text('{"file_name": "b.mp4", "text": "x"}\n')
    found = find_media(root)
    assert sorted(found.others) == ["Metadata.JSON", "metadata.csv", "metadata.tsv"]
    assert [table.name for table in found.tables] == ["metadata.jsonl"]


@pytest.mark.parametrize("name", ["m.csv", "m.tar", "m.json", "m.parquet"])
def test_a_pipe_is_not_waited_for(root: Path, name: str) -> None:
    os.mkfifo(root / name)
    with pytest.raises(SoraError, match="no regular file"):
        read_manifest(root / name)


@pytest.mark.parametrize(
    "pattern", ["x-{000..999999999999}.tar", f"x-{{0..{'9' * 5000}}}.tar", "{0..9999}/{0..9999}.tar"]
)
def test_a_pattern_of_endless_tars_is_refused_at_once(root: Path, pattern: str) -> None:
    with pytest.raises(SoraError, match="names more than 1,048,576 tars"):
        read_manifest(root / pattern)


@pytest.mark.parametrize("source", ["folder", "manifest"])
def test_a_clip_that_goes_while_it_is_looked_at_is_named(root: Path, source: str) -> None:
    write(root / "metadata.csv", [{"file_name": name, "text": "x"} for name in FILES])
    made = SOURCES.create(source, root=str(root), split="train", seed=0)
    (root / FILES[1]).unlink()
    with pytest.raises(SoraError, match=r"sub/b\.mp4 cannot be read any more \(No such file"):
        made.fingerprint()
