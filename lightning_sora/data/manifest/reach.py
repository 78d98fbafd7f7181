"""How far a manifest may reach: anywhere, or no further than its own folder and public addresses."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from lightning_sora.data.frame_folder import FrameFolder
from lightning_sora.data.storage import ArchiveMember, Location, RemoteFile, is_private, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

#: Protocols by which a manifest from elsewhere may name files outside of its folder: those that take along neither
#: files nor credentials of this machine.
OPEN = ("http", "https")
#: Protocols of this machine's own files.
OWN = ("file", "local")


@dataclass(frozen=True)
class Reach:
    """What a manifest may name.

    Attributes:
        root: the folder, or its URL, that its files must lie in, but for those at public addresses; None for any file.
    """

    root: Location | None = None

    @classmethod
    def of(cls, place: Location, confined: bool | None) -> Reach:
        """That of the manifest at a place.

        Args:
            confined: whether it may not reach further than its own folder; None where it comes from elsewhere: a URL.
        """
        elsewhere = is_remote(place) and urlsplit(str(place)).scheme.lower() not in OWN
        if not (elsewhere if confined is None else confined):
            return cls()
        if not is_remote(place) and os.path.isdir(place):
            return cls(place)
        path = str(place).partition("?")[0] if is_remote(place) else str(place)
        return cls(path.rpartition("/")[0] or ".")

    def allow(
        self, place: Location | RemoteFile | ArchiveMember | FrameFolder
    ) -> Location | RemoteFile | ArchiveMember | FrameFolder:
        """The place, to be read with no more than is allowed.

        Raises:
            SoraError: it is out of reach.
        """
        if self.root is None:
            return place
        if isinstance(place, ArchiveMember):
            self.allow(str(place.archive))
            return place
        if isinstance(place, FrameFolder):
            self.allow(place.folder)
            return place
        if is_remote(str(place)):
            return self._url(str(place))
        if is_remote(self.root):
            raise self._refusal(place, "is a file of this machine")
        base = os.path.realpath(self.root).rstrip("/") + "/"
        if not os.path.realpath(str(place)).startswith(base):
            raise self._refusal(place, "lies outside of it")
        return place

    def _url(self, url: str) -> RemoteFile:
        try:
            asked, own = urlsplit(url), urlsplit(str(self.root))
            host = asked.hostname or ""
        except ValueError as problem:
            raise self._refusal(url, f"is no URL ({problem})") from problem
        if "::" in url or ".." in unquote(asked.path).replace("\\", "/").split("/"):
            raise self._refusal(url, "reaches out of it")
        path, base = (posixpath.normpath(unquote(part.path) or "/") for part in (asked, own))
        inside = path == base or path.startswith(base.rstrip("/") + "/")
        if is_remote(str(self.root)) and (asked.scheme, asked.netloc) == (own.scheme, own.netloc) and inside:
            return RemoteFile(url, named_by=str(self.root))
        if asked.scheme.lower() not in OPEN:
            raise self._refusal(url, "is neither in it nor at a public address")
        if is_private(host):
            raise self._refusal(url, "is at an address of this machine or of a private network")
        return RemoteFile(url, named_by=str(self.root))

    def _refusal(self, place: object, reason: str) -> SoraError:
        return SoraError(
            f"the manifest in {shown(str(self.root))} names {shown(str(place))}, which {reason}; if you trust it, say "
            'data.source="manifest(confined=False)", or copy it here'
        )
