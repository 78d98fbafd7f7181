"""Files behind URLs: by ranges, in any process, with errors that say where."""

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora import media
from lightning_sora.data import storage
from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources import SOURCES
from lightning_sora.data.storage import ArchiveMember, RemoteFile, open_file
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import Crop, VideoSize


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files by ranges, and counts what it sends."""

    sent: list[int] = []  # noqa: RUF012
    failing: list[int] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if self.failing:
            self.send_error(self.failing.pop())
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)
        self.sent.append(len(part))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    _Ranges.sent.clear()
    _Ranges.failing.clear()
    handler = lambda *a, **k: _Ranges(*a, directory=str(tmp_path), **k)  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


pytest.importorskip("aiohttp", reason="fsspec reads http by aiohttp")


def test_a_remote_file_is_read_by_ranges(tmp_path: Path, server: str) -> None:
    content = bytes(range(256)) * 40_000  # 10 MB
    (tmp_path / "big.bin").write_bytes(content)
    file = RemoteFile(f"{server}/big.bin")
    assert file.size == len(content)
    _Ranges.sent.clear()
    with file.open() as opened:
        opened.seek(5_000_000)
        assert opened.read(1000) == content[5_000_000:5_001_000]
    assert sum(_Ranges.sent) < 1_000_000


@pytest.mark.slow
def test_clips_of_a_remote_manifest_are_those_of_the_local_one_in_workers_too(tmp_path: Path, server: str) -> None:
    from torch.utils.data import DataLoader

    shades = (30, 90, 150, 210)
    for shade in shades:
        media.write_mp4(tmp_path / f"{shade}.mp4", torch.full((5, 32, 32, 3), shade, dtype=torch.uint8), 8.0)
    (tmp_path / "m.csv").write_text("path,text\n" + "".join(f"{s}.mp4,shade {s}\n" for s in shades))
    source = SOURCES.create("manifest", root=f"{server}/m.csv", split="train", seed=0)
    local = SOURCES.create("manifest", root=str(tmp_path / "m.csv"), split="train", seed=0)
    assert [i.id for i in source.infos] == [i.id for i in local.infos]

    clips = [s.load(0, Crop(VideoSize(5, 16, 16)), generator=torch.Generator()).video for s in (source, local)]
    assert torch.equal(*clips)
    loader = DataLoader(_Loaded(source), batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    assert all(torch.equal(video, local.load(i, Crop(VideoSize(5, 16, 16)), generator=torch.Generator()).video)
               for i, video in enumerate(loader))  # fmt: skip


class _Loaded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The clips of a source, for workers."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.infos)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.source.load(index, Crop(VideoSize(5, 16, 16)), generator=torch.Generator()).video


def test_a_member_of_a_file_reads_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "outer").write_bytes(b"head" + b"0123456789" + b"tail")
    with ArchiveMember(tmp_path / "outer", 4, 10, "inner").open() as file:
        assert file.read() == b"0123456789"
        assert file.seek(-3, 2) == 7
        assert file.read(99) == b"789"
        assert file.seek(2) == 2
        assert file.read(3) == b"234"
        assert file.seek(1, 1) == 6
        assert file.read() == b"6789"
        assert file.read() == b""


def test_what_cannot_be_reached_is_told_with_its_url(tmp_path: Path, server: str) -> None:
    with pytest.raises(FileNotFoundError):
        RemoteFile(f"{server}/nowhere.bin").open()
    with pytest.raises(SoraError, match=r"nowhere\.csv"):
        SOURCES.create("manifest", root=f"{server}/nowhere.csv", split="train", seed=0)
    with pytest.raises(SoraError, match="teleport://x"):
        RemoteFile("teleport://x/y").open()
    with pytest.raises((DecodeError, OSError), match=r"127\.0\.0\.1:1"):
        RemoteFile("http://127.0.0.1:1/x.bin").open()


@pytest.mark.parametrize("status", [403, 503])
def test_a_store_that_fails_is_asked_again_and_then_told(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    media.write_mp4(tmp_path / "a.mp4", torch.full((5, 32, 32, 3), 90, dtype=torch.uint8), 8.0)
    (tmp_path / "m.csv").write_text("path,text\na.mp4,x\n")
    source = SOURCES.create("manifest", root=f"{server}/m.csv", split="train", seed=0)
    load = lambda: source.load(0, Crop(VideoSize(5, 16, 16)), generator=torch.Generator()).video  # noqa: E731
    whole = load()
    _Ranges.failing[:] = [status]
    assert torch.equal(load(), whole)
    _Ranges.failing[:] = [status] * 50  # an address that has run out, in the middle of training
    with pytest.raises(DecodeError, match=f"{status}"):
        load()
    _Ranges.failing[:] = [status] * 50
    with pytest.raises(SoraError, match=f"m.csv.*{status}"):
        SOURCES.create("manifest", root=f"{server}/m.csv", split="train", seed=0)


def test_memory_and_local_urls_open_too(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://box/a.txt", "wb") as file:
        file.write(b"hello")
    with open_file("memory://box", "a.txt") as file:
        assert file.read() == b"hello"
    (tmp_path / "b.txt").write_bytes(b"local")
    with open_file(f"file://{tmp_path}", "b.txt") as file:
        assert file.read() == b"local"
    with open_file(tmp_path, "b.txt") as file:
        assert file.read() == b"local"
