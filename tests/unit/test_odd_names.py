"""Names of files as systems hold them: no text, of any ending and case; nothing is lost without a word."""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from lightning_sora import cli, media
from lightning_sora.data import checking, decode
from lightning_sora.data.endings import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from lightning_sora.data.finding import find_media
from lightning_sora.data.places import DecodeError
from lightning_sora.data.quarantine import read_quarantine, write_quarantine
from lightning_sora.data.recaptions import read_captions
from lightning_sora.data.sources import SOURCES, Source
from lightning_sora.data.stacks import stacks_in
from lightning_sora.errors import SoraError
from lightning_sora.lit.checkpoint import read_checkpoint
from lightning_sora.metrics.extractors.pretrained import read_state_dict
from lightning_sora.models.vocabulary import Vocabulary
from lightning_sora.names import at_home, named, shown
from lightning_sora.plugins import load_plugins
from lightning_sora.redaction import RedactedStream
from lightning_sora.spacetime import Crop, VideoSize
from tests.integration.conftest import VAE

ODD = os.fsdecode(b"caf\xe9")  # Latin-1
SHOWN = "caf\\xe9"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four clips with texts in a folder, all named in Latin-1."""
    folder = tmp_path / ODD
    folder.mkdir()
    media.write_mp4(folder / "x.mp4", torch.full((9, 32, 48, 3), 90, dtype=torch.uint8), 8.0)
    for number in range(4):
        shutil.copy(folder / "x.mp4", folder / f"{ODD}{number}.mp4")
        (folder / f"{ODD}{number}.txt").write_text(f"clip {number}")
    (folder / "x.mp4").unlink()
    return folder


def made(root: Path, source: str = "folder") -> list[Source]:
    return [SOURCES.create(source, root=str(root), split=split, seed=0) for split in ("train", "val", "test")]


def test_a_name_that_is_no_text_is_shown_and_found_again() -> None:
    every = os.fsdecode(bytes(range(1, 256)))
    for name in ("a.mp4", "é 视频.mp4", ODD, every):
        told = shown(name)
        told.encode()
        assert told == name if name.isprintable() and "caf" not in name else told.isascii() or name == every
    assert (shown(ODD), named(SHOWN), named(shown("é"))) == (SHOWN, ODD, "é")
    assert shown("half \ud83d") == "half \\ud83d"
    assert named("C:\\x20") == "C:\\x20"  # that byte is text


def test_clips_of_any_name_are_found_captioned_and_read(root: Path) -> None:
    sources = made(root)
    told = {info.id: info.caption for source in sources for info in source.infos}
    assert told == {f"{SHOWN}{number}.mp4": f"clip {number}" for number in range(4)}
    for source in sources:
        source.fingerprint().encode()
        assert source.load(0, Crop(VideoSize(5, 16, 16)), generator=torch.Generator()).video.shape == (5, 16, 16, 3)


def test_tables_and_lists_name_them_as_they_are_shown(root: Path) -> None:
    rows = "".join(f"{SHOWN}{number}.mp4,row {number}\n" for number in range(4))
    (root / "metadata.csv").write_text(f"file_name,text\n{rows}")
    for source in ("folder", "manifest"):
        told = {info.id: info.caption for made_of in made(root, source) for info in made_of.infos}
        assert told == {f"{SHOWN}{number}.mp4": f"row {number}" for number in range(4)}
    write_quarantine(root / "bad.jsonl", {f"{SHOWN}0.mp4": "dark", f"{ODD}1.mp4": "light"})
    assert set(read_quarantine(str(root / "bad.jsonl"))) == {f"{SHOWN}0.mp4", f"{SHOWN}1.mp4"}
    left = [
        info.id for source in made(root, f"folder(quarantine={str(root / 'bad.jsonl')!r})") for info in source.infos
    ]
    assert set(left) == {f"{SHOWN}2.mp4", f"{SHOWN}3.mp4"}


def test_two_names_that_would_be_shown_alike_are_refused(root: Path) -> None:
    shutil.copy(root / f"{ODD}0.mp4", root / f"{SHOWN}0.mp4")
    with pytest.raises(SoraError, match="rename one of them"):
        find_media(root)


def test_an_error_is_told_as_text(root: Path) -> None:
    (root / f"{ODD}0.mp4").write_text("text")
    with pytest.raises(DecodeError) as caught:
        decode.probe(root / f"{ODD}0.mp4")
    assert f"{SHOWN}0.mp4: its data is damaged" in str(caught.value)


def test_pipes_beside_clips_are_not_waited_for(root: Path) -> None:
    for name in ("metadata.csv", "array.npy"):
        os.mkfifo(root / name)
    assert {info.caption for source in made(root) for info in source.infos} == {f"clip {n}" for n in range(4)}
    with pytest.raises(DecodeError, match="no regular file"):
        stacks_in(find_media(root))


SHAPE = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s, 8, 8, 3), }"


@pytest.mark.parametrize(
    "header", ["(" * 100, "{1: 2}", SHAPE % -9, SHAPE % 10**20, SHAPE % "'9'", SHAPE % 1e9, "\0" * 100, "{'descr'"]
)
def test_an_array_of_a_damaged_header_is_named(tmp_path: Path, header: str) -> None:
    content = header.ljust(117).encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0" + len(content).to_bytes(2, "little") + content + b"\0" * 99)
    with pytest.raises(DecodeError, match=r"a\.npy: no array that can be read"):
        stacks_in(find_media(tmp_path))


def test_an_array_that_is_an_archive_or_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"PK\x03\x04" + b"0" * 100)
    with pytest.raises(DecodeError, match=r"a\.npy: no array that can be read"):
        stacks_in(find_media(tmp_path))
    (tmp_path / "a.npy").unlink()
    for target in ("nowhere", "a.npy"):
        (tmp_path / "a.npy").symlink_to(target)
        with pytest.raises(DecodeError, match=r"a\.npy: no such file"):
            stacks_in(find_media(tmp_path))
        (tmp_path / "a.npy").unlink()


def test_a_stream_prints_what_it_can() -> None:
    class Strict:
        encoding = "ascii"
        written = ""

        def write(self, text: str) -> None:
            self.written += text.encode("ascii").decode()

    stream = Strict()
    RedactedStream(stream).write(f"{ODD} é\n")
    assert stream.written == "caf\\udce9 \\xe9\n"


def _check_here(paths: Sequence[Path], *_: object) -> Iterator[tuple[int, object]]:
    """Without processes of its own, which take long to start."""
    for place, path in enumerate(paths):
        yield place, decode.check(path) or decode.probe(path)


@pytest.mark.slow
def test_every_command_takes_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = Path(__file__).parents[2] / "recipes" / "folder_vae.yaml"
    options = [f"data.root={root}", "data.frames=5", "data.height=16", "data.width=16", "data.num_workers=0"]
    fit = ["fit", "--config", str(recipe), *(f"--{option}" for option in options), f"--model.vae={VAE}"]
    assert cli.main([*fit, "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--tracking.enabled=false"]) == 0
    assert cli.main(["data", "inspect", str(root), "--frames", "5", "--height", "16", "--width", "16"]) == 0
    assert "4 videos" in capsys.readouterr().out
    (root / f"{ODD}bad.mp4").write_text("text")
    monkeypatch.setattr(checking, "check_files", _check_here)
    assert cli.main(["data", "check", str(root), "--out", "bad.jsonl"]) == 1
    assert f"{SHOWN}bad.mp4" in capsys.readouterr().out
    (root / f"{ODD}bad.mp4").unlink()
    assert cli.main(["score", "--generated", str(root), "--metrics", "temporal_flickering", "--frames", "5"]) == 0


ENDINGS = (
    ".mxf", ".vob", ".m2ts", ".mts", ".asf", ".f4v", ".tiff", ".tif", ".avif", ".heic", ".heif", ".jfif", ".jpe",
    ".3g2", ".qt", ".apng", ".jp2", ".MP4", ".Tiff",
)  # fmt: skip


def test_what_ffmpeg_and_pillow_read_is_found_and_the_rest_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in (*ENDINGS, ".xyz", ".xyz", ".r3d", ""):
        (tmp_path / f"{len(list(tmp_path.iterdir()))}{ending}").write_bytes(b"x")
    for companion in (".hidden.xyz", "notes.md", "list.csv"):
        (tmp_path / companion).write_text("x")
    found = find_media(tmp_path)
    assert {Path(name).suffix for name in found.names} == set(ENDINGS)
    assert found.passed_over == "4 of other kinds: .xyz (2), .r3d (1), no ending (1), such as 19.xyz"
    media.write_image(tmp_path / "good.png", torch.zeros((8, 8, 3), dtype=torch.uint8))
    with caplog.at_level(logging.WARNING):
        SOURCES.create("folder", root=str(tmp_path), split="train", seed=0)
    assert found.passed_over in caplog.text
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.r3d").write_text("x")
    with pytest.raises(SoraError, match=r"no video or image of a known kind under .*; 1 of other kinds: \.r3d \(1\)"):
        SOURCES.create("folder", root=str(tmp_path / "only"), split="train", seed=0)
    for command in (
        ["data", "check"],
        ["data", "inspect"],
        ["score", "--metrics", "temporal_flickering", "--generated"],
    ):
        assert cli.main([*command, str(tmp_path / "only")]) == 2
        assert "1 of other kinds: .r3d (1)" in capsys.readouterr().err


def test_texts_and_tables_are_found_whatever_their_case(tmp_path: Path) -> None:
    for name in ("a.mp4", "B.MP4", "c.mp4", "d.mp4"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a.TXT", "B.Txt", "C.TXT", "d.txt", "D.TXT", "Metadata.CSV"):
        (tmp_path / name).write_text("x")
    found = find_media(tmp_path)
    told = {name: path.name for name, path in found.sidecars.items()}
    assert told == {"a.mp4": "a.TXT", "B.MP4": "B.Txt", "c.mp4": "C.TXT", "d.mp4": "d.txt"}
    assert [path.name for path in found.tables] == ["Metadata.CSV"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with four captioned clips, a manifest, a list and a plugin, and a working folder beside it."""
    folder = tmp_path / "home"
    (folder / "clips").mkdir(parents=True)
    for number in range(4):
        media.write_mp4(folder / "clips" / f"{number}.mp4", torch.full((9, 32, 48, 3), 60, dtype=torch.uint8), 8.0)
    (folder / "m.csv").write_text("path,text\nclips/0.mp4,x\n")
    (folder / "bad.jsonl").write_text('{"file": "0.mp4", "reason": "dark"}\n')
    (folder / "plugin.py").write_text("MARK = 1\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def test_a_path_may_begin_at_home(home: Path) -> None:
    assert (at_home("~/x"), at_home("hf:~/m"), at_home("~")) == (f"{home}/x", f"hf:{home}/m", str(home))
    for text in ("a ~/b", "~ about", "s3://~/x", "/~/x", "x~", "~nobody-of-this-name/x", ""):
        assert at_home(text) == text
    assert len(made(Path("~/clips"))) == 3
    assert SOURCES.create("manifest", root="~/m.csv", split="train", seed=0).infos[0].id == "clips/0.mp4"
    (source, *_) = made(home / "clips", "folder(quarantine='~/bad.jsonl')")
    assert "0.mp4" in source.failures  # type: ignore[attr-defined]
    assert load_plugins(["~/plugin.py"])[0].path == home / "plugin.py"
    for call in (read_captions, read_checkpoint, Vocabulary.named):
        with pytest.raises(SoraError, match=str(home)):
            call("~/none.parquet")
    with pytest.raises(SoraError, match=str(home)):
        SOURCES.create("latents", root="~/clips", split="train", seed=0)


def test_every_option_may_begin_at_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--frames", "5", "--height", "16", "--width", "16"]
    assert cli.main(["data", "inspect", "~/clips", "--out=~/shown/hist.png", *size]) == 0
    assert (home / "shown" / "hist.png").is_file()
    scoring = ["--metrics", "temporal_flickering", "--frames", "5", "--out=~/scores.json"]
    assert cli.main(["score", "--generated=~/clips", *scoring, "--plugins=~/plugin.py"]) == 0
    assert (home / "scores.json").is_file()
    for command in (
        ["sample", "--ckpt=~/none.ckpt", "--prompt", "x"],
        ["caption", "~/clips", "--captioner=~/none.ckpt", "--out", "x.parquet"],
        ["fit", "--config=~/none.yaml"],
        ["ablate", "~/none.yaml"],
    ):
        assert cli.main(command) == 2
        assert str(home / "none") in capsys.readouterr().err
    assert not list(Path().glob("~*"))


@pytest.mark.slow
def test_what_a_recipe_names_may_begin_at_home(home: Path) -> None:
    recipe = (Path(__file__).parents[2] / "recipes" / "folder_vae.yaml").read_text()
    (home / "recipe.yaml").write_text(
        recipe.replace("root: null", "root: ~/clips").replace("  mode: max", "  dirpath: ~/kept\n  mode: max")
    )
    options = ["data.frames=5", "data.height=16", "data.width=16", "data.num_workers=0", f"model.vae={VAE}"]
    options += [
        "trainer.max_steps=1",
        "trainer.limit_val_batches=0",
        "trainer.default_root_dir=~/run",
        "tracking.enabled=false",
    ]
    assert cli.main(["fit", "--config=~/recipe.yaml", *(f"--{option}" for option in options)]) == 0
    assert (home / "kept" / "last.ckpt").is_file()
    assert (home / "run" / "fit.yaml").is_file()
    assert not list(Path().rglob("*"))


def test_the_page_names_every_ending() -> None:
    page = (Path(__file__).parents[2] / "docs" / "odd_files.md").read_text()
    (listed,) = re.findall(r"Found are these endings.*?\n\n", page, re.DOTALL)
    assert set(re.findall(r"\.\w+(?=[ `\n])", listed)) == VIDEO_SUFFIXES | IMAGE_SUFFIXES


FAR = "x" * 5000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "--generated", ".", "--extractor=random", "--reference", FAR], "no reference statistics at"),
        (["sample", "--prompt", "x", "--ckpt", FAR], "no checkpoint at"),
        (["fit", "--config", FAR], "no recipe at"),
        (["fit", "--config", "recipes/world_captioner.yaml", "--ckpt_path", FAR], "no checkpoint at"),
        (["data", "cache", "--out", "c", "--config", FAR], "no recipe at"),
        (["ablate", FAR], "no ablation file at"),
        (["compare", "--uri", f"sqlite:///{FAR}"], "no mlflow store at"),
    ],
)
def test_a_path_that_no_file_can_have_is_none(
    arguments: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(recipes)
    assert cli.main(arguments) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 8 + b"{}", b"PK\x03\x04"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_that_are_none_are_told(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content)
    with pytest.raises(SoraError, match=rf"w\.{ending}"):
        read_state_dict(path, "it")
