"""Manifests from elsewhere: what their rows may not have read or requested."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data import storage
from lightning_sora.data.manifest import read_manifest
from lightning_sora.data.places import DecodeError
from lightning_sora.data.sources import SOURCES
from lightning_sora.data.storage import RemoteFile, is_private
from lightning_sora.errors import SoraError

pytest.importorskip("aiohttp", reason="fsspec reads http by aiohttp")


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves files, sends on from /away/... to its `target`, and notes what was asked for."""

    asked: list[str] = []  # noqa: RUF012
    target = ""

    def do_GET(self) -> None:
        self._noted(super().do_GET)

    def do_HEAD(self) -> None:
        self._noted(super().do_HEAD)

    def _noted(self, answer: Any) -> None:
        self.asked.append(self.path)
        if not self.path.startswith("/away/"):
            answer()
            return
        self.send_response(302)
        self.send_header("Location", self.target + self.path.removeprefix("/away"))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    _Files.asked.clear()
    handler = lambda *a, **k: _Files(*a, directory=str(tmp_path), **k)  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "a.mp4"
    media.write_mp4(path, torch.full((5, 32, 32, 3), 90, dtype=torch.uint8), 8.0)
    (tmp_path / "secret.mp4").write_bytes(path.read_bytes())
    return path


def manifest(clip: Path, *files: str, name: str = "m.jsonl") -> Path:
    path = clip.parent / name
    path.write_text("".join(json.dumps({"path": file, "text": "x"}) + "\n" for file in files))
    return path


def out_of_reach(clip: Path) -> list[str]:
    return [
        "/etc/passwd", str(clip.parent.parent / "secret.mp4"), "../secret.mp4", "%2e%2e/secret.mp4",
        "x/../../secret.mp4", "..\\secret.mp4", f"file://{clip.parent.parent}/secret.mp4", f"local://{clip.parent.parent}/secret.mp4",
        "simplecache::file:///etc/passwd", "zip://x::file:///etc/passwd.zip", "memory://x/y.mp4", "s3://bucket/y.mp4",
        "http://127.0.0.1:1/y.mp4", "HTTP://localhost/y.mp4", "http://[::1]/y.mp4", "http://[::ffff:127.0.0.1]/y.mp4",
        "http://169.254.169.254/latest/meta-data", "http://10.1.2.3/y", "https://192.168.0.1/y", "http://0.0.0.0/y",
        "http://intranet/y.mp4", "http://metadata.google.internal/y", "ftp://example.org/y.mp4", "http://[::1/y.mp4",
    ]  # fmt: skip


def test_rows_of_a_manifest_from_elsewhere_stay_in_its_folder(clip: Path, server: str) -> None:
    for file in out_of_reach(clip):
        manifest(clip, "a.mp4", file)
        with pytest.raises(SoraError, match=r"the manifest in .*/set names .*confined=False"):
            read_manifest(f"{server}/set/m.jsonl")
    assert not [path for path in _Files.asked if "m.jsonl" not in path]
    manifest(
        clip, "a.mp4", "sub/b.mp4", f"{server}/set/c.mp4", "https://example.org/d.mp4", "http://93.184.216.34/e.mp4"
    )
    assert len(read_manifest(f"{server}/set/m.jsonl")[1]) == 5


def test_rows_of_a_local_manifest_may_name_any_file_unless_they_are_confined(clip: Path, server: str) -> None:
    link = clip.parent / "link.mp4"
    link.symlink_to(clip.parent.parent / "secret.mp4")
    for file in (*out_of_reach(clip), "link.mp4"):
        if "%" in file:  # which is no more than a name here
            continue
        place = manifest(clip, "a.mp4", file)
        assert len(read_manifest(place)[1]) == 2
        with pytest.raises(SoraError, match=r"the manifest in .*/set names "):
            read_manifest(place, confined=True)
    place = manifest(clip, "a.mp4", str(clip), f"file://{clip}")
    with pytest.raises(SoraError, match="is neither in it nor at a public address"):
        read_manifest(place, confined=True)
    place = manifest(clip, "a.mp4", str(clip))
    assert len(read_manifest(place, confined=True)[1]) == 2
    with pytest.raises(SoraError, match="names /etc/passwd"):
        SOURCES.create("manifest(confined=True)", root=str(manifest(clip, "/etc/passwd")), split="train", seed=0)
    manifest(clip, "a.mp4", str(clip.parent.parent / "secret.mp4"))
    free = SOURCES.create("manifest(confined=False)", root=f"{server}/set/m.jsonl", split="train", seed=0)
    assert len(free.infos) == 2


def test_every_command_that_takes_a_path_is_confined(
    clip: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(clip, "a.mp4", "/etc/passwd")
    for command in (["data", "inspect"], ["data", "check"]):
        assert main([*command, f"{server}/set/m.jsonl"]) == 2
        assert "names /etc/passwd, which is a file of this machine" in capsys.readouterr().err


def test_lists_that_a_list_names_are_rows_too(clip: Path, server: str) -> None:
    (clip.parent.parent / "other.json").write_text('[{"path": "a.mp4", "cap": "x"}]')
    (clip.parent / "list.json").write_text('[{"path": "a.mp4", "cap": "x"}]')
    for line in (f".,{clip.parent.parent}/other.json", ".,../other.json", f"{clip.parent.parent},list.json"):
        (clip.parent / "data.txt").write_text(line)
        for place, confined in ((f"{server}/set/data.txt", None), (clip.parent / "data.txt", True)):
            with pytest.raises(SoraError, match=r"the manifest in .*/set names "):
                read_manifest(place, confined=confined)
    (clip.parent / "data.txt").write_text(".,list.json")
    assert len(read_manifest(f"{server}/set/data.txt")[1]) == 1


def test_no_private_address_is_requested_by_whatever_name_or_detour(
    clip: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are judged where they are connected to: after the look-up, and after a server sends on."""
    port = server.rpartition(":")[2]
    true = socket.getaddrinfo
    looked_up = lambda host, *a, **k: true("127.0.0.1" if host == "films.example.org" else host, *a, **k)  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    for host in ("films.example.org", "127.0.0.1"):
        with pytest.raises(DecodeError, match="an address of this machine or of a private network"):
            RemoteFile(f"http://{host}:{port}/set/a.mp4", named_by="http://8.8.8.8/set").open()
    assert not _Files.asked
    assert RemoteFile(f"{server}/set/a.mp4", named_by=f"{server}/set").open().read() == clip.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as second:
        threading.Thread(target=second.serve_forever, args=(0.01,), daemon=True).start()
        _Files.target = f"http://127.0.0.1:{second.server_port}"
        _Files.asked.clear()
        manifest(clip, "../away/secret.mp4")
        with pytest.raises(DecodeError, match="an address of this machine or of a private network"):
            RemoteFile(f"{server}/away/secret.mp4", named_by=f"{server}/set").open()
        assert set(_Files.asked) == {"/away/secret.mp4"}  # of the first alone
        second.shutdown()


def test_what_is_private() -> None:
    for host in ("127.0.0.1", "::1", "[::1]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
                 "fd00::1", "fe80::1%eth0", "::ffff:10.0.0.1", "2002:7f00:1::", "0.0.0.0", "224.0.0.1", "localhost",
                 "a.localhost", "printer.local", "host", "x.internal.", "LOCALHOST", "0x7f000001", "2130706433",
                 "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1"):  # fmt: skip
        assert is_private(host), host
    for host in ("example.org", "8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "storage.googleapis.com", "a.b.c"):
        assert not is_private(host), host
