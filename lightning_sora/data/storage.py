"""Where bytes lie: on a disk, behind a URL, inside a tar. Remote files are read by ranges, never as a whole."""

from __future__ import annotations

import errno
import io
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from lightning_sora.data.places import DecodeError, Media
from lightning_sora.errors import SoraError
from lightning_sora.names import local_path, named

#: A folder or file: a path, or a URL of any protocol of fsspec ("s3://", "https://", "gs://", "memory://").
Location = str | Path
BLOCK = 1 << 18  # bytes that a remote read fetches at least
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # addresses of IPv4 in networks of IPv6 alone (RFC 6052)
UNICAST = ipaddress.IPv6Network("2000::/3")  # all that are given out to public hosts
TRIES, PAUSE = 3, 0.2  # seconds, doubled each time
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def is_remote(location: Location) -> bool:
    """Whether a location is a URL."""
    return "://" in str(location)


def located(root: Location) -> Location:
    """Where the folder or file lies that a user names."""
    return root if is_remote(root) else local_path(root)


def join(root: Location, name: str) -> Location:
    """A file under a folder."""
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else Path(root) / name


def local_name(folder: Path, name: str) -> str:
    """How a file is called on this system that a table in ``folder`` names: Windows writes paths with backslashes, and
    a table cannot hold a name that is no text as it is (:func:`~lightning_sora.names.named`)."""
    if "\\" not in name or os.path.lexists(folder / name):
        return name
    found = named(name)
    return found if found != name and os.path.lexists(folder / found) else name.replace("\\", "/")


def open_file(root: Location, name: str) -> AbstractContextManager[BinaryIO]:
    """Opens a file under a folder for reading.

    Raises:
        FileNotFoundError: there is none.
        SoraError: the store cannot be reached.
    """
    place = join(root, name)
    return opened(place if isinstance(place, Path) else RemoteFile(str(place)))


def opened(place: Path | RemoteFile) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened, or is a pipe or device, which would be waited for.
        SoraError: the store cannot be reached.
    """
    if isinstance(place, Path) and os.path.exists(place) and not os.path.isfile(place) and not os.path.isdir(place):
        raise OSError(errno.EINVAL, "it is no regular file", str(place))
    return place.open("rb") if isinstance(place, Path) else place.open()


@dataclass(frozen=True)
class RemoteFile(Media):
    """A file behind a URL.

    Attributes:
        url: what fsspec opens.
        named_by: where the manifest lies that names it, if that is from elsewhere. Then no address of this machine or
            of a private network is requested but that one's own: neither by name, nor where a server sends on to one.
    """

    url: str
    named_by: str = ""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url

    @property
    def size(self) -> int:
        filesystem, path = self._found()
        return int(_tried(self.url, lambda: filesystem.size(path)) or 0)

    def open(self) -> BinaryIO:
        return io.BufferedReader(_Ranges(self.url, self._open))

    def _open(self) -> BinaryIO:
        filesystem, path = self._found()
        return filesystem.open(path, "rb", block_size=BLOCK, cache_type="readahead")

    def _found(self) -> tuple[Any, str]:
        # By URL, in the process that reads: file systems hold connections, which do not cross processes.
        import fsspec

        try:
            guarded = self.named_by and self.url.lower().startswith(("http://", "https://"))
            return fsspec.core.url_to_fs(self.url, **({"get_client": _public_client(self.named_by)} if guarded else {}))
        except ValueError as problem:
            raise SoraError(
                f"{self.url}: {problem}; give a path, or a URL of a protocol that fsspec knows"
            ) from problem
        except ImportError as problem:
            raise SoraError(f"{self.url} needs a package that is not installed: {problem}") from problem


@dataclass(frozen=True)
class ArchiveMember(Media):
    """A file that lies as it is inside another, such as a tar.

    Attributes:
        archive: the file that holds it.
        offset, length: where.
        member: its name in there.
    """

    archive: Path | RemoteFile
    offset: int
    length: int
    member: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def name(self) -> str:
        return str(self)

    @property
    def size(self) -> int:
        return self.length

    def open(self) -> BinaryIO:
        return io.BufferedReader(
            _Window(
                opened(self.archive),
                self.offset,
                self.length,
            )
        )


class _Ranges(io.RawIOBase):
    """A remote file whose reads are tried again, from where they stood, where a store fails in passing."""

    def __init__(self, url: str, opened: Callable[[], BinaryIO]) -> None:
        self.url, self.opened, self.place = url, opened, 0
        self.file: BinaryIO = _tried(url, opened)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place}.get(whence)
        if base is None:
            base = _tried(self.url, lambda: self.file.seek(0, io.SEEK_END))
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            if self.file.closed:
                self.file = self.opened()
            try:
                self.file.seek(self.place)
                return self.file.read(len(buffer))
            except Exception:
                self.file.close()  # its connection may be of no more use
                raise

        content = _tried(self.url, read)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.place = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.length}[whence]
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.length - self.place))
        self.file.seek(self.offset + self.place)
        content = self.file.read(count)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


class PrivateAddressError(Exception):
    """An address that a manifest from elsewhere may not have requested."""


def is_private(host: str) -> bool:
    """Whether a host is, as written, this machine or of a private network; names are looked up when they are used."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return not _is_public(name)
    except ValueError:
        return "." not in name or name.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa"))


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if isinstance(found, ipaddress.IPv6Address) and inner is None:
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        elif found not in UNICAST:  # such as ::127.0.0.1
            return False
    return (inner or found).is_global and not found.is_multicast


@lru_cache(maxsize=64)  # as one and the same client is one and the same file system
def _public_client(named_by: str) -> Callable[..., Any]:
    """What makes the client of requests for files that a manifest names: it asks at every connection."""

    async def client(**options: Any) -> Any:
        import aiohttp

        own = urlsplit(named_by)
        port = own.port or {"http": 80, "https": 443}.get(own.scheme, 0)
        found = socket.getaddrinfo(own.hostname, port) if own.hostname and own.scheme in ("http", "https") else []
        allowed = {entry[4][:2] for entry in found}

        def connect(info: Any) -> socket.socket:
            family, kind, protocol, _, address = info
            if not _is_public(address[0]) and address[:2] not in allowed:
                raise PrivateAddressError(f"it is at {address[0]}, an address of this machine or of a private network")
            return socket.socket(family=family, type=kind, proto=protocol)

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=connect), **options)

    return client


def _private_behind(problem: BaseException | None) -> PrivateAddressError | None:
    while problem is not None and not isinstance(problem, PrivateAddressError):
        problem = problem.__cause__ or problem.__context__
    return problem


def _tried(url: str, act: Callable[[], Any]) -> Any:
    """Asks a store, a few times where it fails in passing.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: it has no such file.
        DecodeError: it failed each time, by whatever error its client has.
    """
    for attempt in range(TRIES):
        try:
            return act()
        except SoraError:
            raise
        except Exception as problem:  # each store's client has errors of its own
            if (private := _private_behind(problem)) is not None:
                raise DecodeError(f"{url}: {private}") from problem
            status = getattr(problem.__cause__, "status", None)  # http calls every answer but 200 "not found"
            if isinstance(problem, MISSING) and status in (None, 404):
                raise
            reason = f"it answers {status}" if status else " ".join(str(problem).split()) or type(problem).__name__
            if attempt == TRIES - 1:
                raise DecodeError(f"{url}: cannot be read ({reason})") from problem
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("the last try returns or raises")
