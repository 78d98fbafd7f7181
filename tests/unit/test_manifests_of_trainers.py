"""What trainers write that is odd, or would change the training: refused in one line each."""

import json
from pathlib import Path

import pytest

from lightning_sora.data.collection import open_collection
from lightning_sora.data.manifest import read_manifest
from lightning_sora.errors import SoraError
from tests.unit.manifest_toys import CAPTIONS, diffsynth, sources, table, write_files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def test_a_folder_of_diffsynth_is_a_manifest_and_not_a_plain_folder(files: Path) -> None:
    found = open_collection(diffsynth(files))
    assert (found.source, found.style) == ("manifest", "diffsynth")
    assert {row.id: row.captions for row in found.rows} == {name: (text,) for name, text in CAPTIONS.items()}


def test_columns_of_any_name_are_read_where_they_are_named(files: Path) -> None:
    place = table(files / "d.json", [{"video_file": n, "short_prompt": t, "x": 1} for n, t in CAPTIONS.items()])
    _, rows = read_manifest(place, "table(file='video_file', caption='short_prompt')")
    assert [(row.id, *row.captions) for row in rows] == list(CAPTIONS.items())
    assert rows[0].extra == {"x": 1}
    spec = "table(file='video_file', caption='short_prompt')"
    assert sum(len(source.infos) for source in sources(place, style=spec)) == len(CAPTIONS)
    with pytest.raises(SoraError, match="table needs its columns named"):
        read_manifest(place, "table")
    with pytest.raises(SoraError, match="name both columns"):
        read_manifest(place, "table(file='video_file')")
    with pytest.raises(SoraError, match="the columns are video_file, short_prompt, x"):
        read_manifest(place, "table(file='film', caption='short_prompt')")


def test_captions_of_one_folder_are_several_and_only_those_listed(files: Path) -> None:
    (files / "a.txt").write_text("of the text beside it, which captions.json puts out of force")
    (files / "captions.json").write_text(json.dumps({"a.mp4": ["one", "two"]}))
    found = open_collection(files)
    assert found.style == "diffusion_pipe"
    assert {row.id: row.captions for row in found.rows} == {"a.mp4": ("one", "two"), "c.png": ()}
    (files / "d.toml").write_text(f'caption_prefix = "a film of "\n[[directory]]\npath = "{files}"\n')
    assert read_manifest(files / "d.toml")[1][0].captions == ("a film of one", "a film of two")


def _toml(root: Path, text: str) -> Path:
    (root / "d.toml").write_text(text.replace("HERE", str(root)))
    return root / "d.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[directory]]\npath = "HERE"\nnum_repeats = 5\n', ["[[directory]] 1", "num_repeats=5", "mixture"]),
        ('num_repeats = 5\n[[directory]]\npath = "HERE"\n', ["[[directory]] 1", "num_repeats=5"]),
        ('[[directory]]\npath = "HERE"\nmask_path = "HERE/masks"\n', ["mask_path="]),
        ('shuffle_tags = true\n[[directory]]\npath = "HERE"\n', ["shuffle_tags=True"]),
        ('[[directory]]\npath = "HERE/gone"\n', ["gone", "is not a folder"]),
        (
            '[general]\ncaption_extension = ".cap"\n[[datasets]]\nvideo_directory = "HERE"\n',
            ["caption_extension='.cap'"],
        ),
        ('[[datasets]]\nvideo_directory = "HERE"\ncontrol_directory = "HERE"\n', ["control_directory="]),
        ('[[datasets]]\nvideo_directory = "HERE"\n[[datasets]]\nbatch_size = 1\n', ["[[datasets]] 2", "musubi needs"]),
        ('general = 1\n[[datasets]]\nvideo_directory = "HERE"\n', ["general=1 must be a table"]),
        ('general = "x"\n[[directory]]\npath = "HERE"\n', ["general='x' must be a table"]),
        ("[[datasets\n", ["not TOML"]),
        ("[model]\nx = 1\n", ["manifest of no known style", "diffusion_pipe needs"]),
    ],
)
def test_what_a_toml_asks_for_beyond_its_files_is_refused(files: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SoraError) as caught:
        read_manifest(_toml(files, text))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("metadata.csv", {"video": "a.mp4", "prompt": "x", "control_video": "c.png"}, "'control_video' names a second"),
        ("metadata.csv", {"video": "", "prompt": "x"}, "the file is ''; it must be a path"),
        ("m.json", {"file_path": "a.mp4", "text": "x", "type": "audio"}, "'type' is 'audio'"),
        ("m.json", {"file_path": "a.mp4", "text": "x", "control_file_path": "c.png"}, "names a second file"),
        ("m.jsonl", {"video_path": "a.mp4", "caption": "x", "control_path_0": "c.png"}, "'control_path_0' names"),
        ("m.jsonl", {"video_path": "sub", "caption": "x"}, "sub is a folder of frames"),
    ],
)
def test_rows_of_trainers_that_cannot_be_followed(files: Path, name: str, row: dict[str, str], words: str) -> None:
    with pytest.raises(SoraError, match=words):
        read_manifest(table(files / name, [row]))


def test_a_captions_file_that_names_no_file_there(files: Path) -> None:
    (files / "captions.json").write_text(json.dumps({"a.mp4": ["y"], "gone.mp4": ["x"]}))
    with pytest.raises(SoraError, match=r"'gone\.mp4' is not among the files beside it"):
        read_manifest(files)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"a": ["x"]}', '{"a.mp4": "x"}', '{"../a.mp4": ["x"]}', "\x00", "1"]
)
def test_a_captions_file_of_another_kind_leaves_a_folder_a_plain_one(files: Path, text: str) -> None:
    before = read_manifest(files)
    (files / "captions.json").write_text(text)
    assert read_manifest(files) == before
    assert before[0] == "folder"


def test_a_captions_file_that_is_no_json_is_refused_where_it_is_asked_for(files: Path) -> None:
    (files / "captions.json").write_text("{")
    with pytest.raises(SoraError, match=r"captions\.json, line 1: not JSON"):
        read_manifest(files, "diffusion_pipe")


def test_folders_and_lists_that_a_confined_toml_names_stay_in_its_own(files: Path) -> None:
    (files / "lists").mkdir()
    table(files / "m.jsonl", [{"video_path": "a.mp4", "caption": "x"}])
    for text in (
        f'[[directory]]\npath = "{files}"\n',
        '[[directory]]\npath = ".."\n',
        '[[datasets]]\nvideo_jsonl_file = "../m.jsonl"\n',
    ):
        place = _toml(files / "lists", text)
        assert read_manifest(place)[1]
        with pytest.raises(SoraError, match="lies outside of it"):
            read_manifest(place, confined=True)
