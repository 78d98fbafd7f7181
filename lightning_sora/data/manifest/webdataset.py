"""WebDataset tars, addressed by offset: indexed once by their headers, never unpacked."""

from __future__ import annotations

import math
import os
import re
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_sora.data.endings import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct
from lightning_sora.data.records import Record, number, rate, split_of, texts
from lightning_sora.data.storage import ArchiveMember, Location, RemoteFile, is_remote, opened
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.texts import decoded, parsed_json

STILLS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
MEDIA = STILLS | {suffix[1:] for suffix in VIDEO_SUFFIXES}
CAPTIONS = ("txt", "text", "caption", "cap", "prompt")
#: Keys of a member's JSON that may hold the caption.
CAPTION_KEYS = ("caption", "text", "cap", "prompt", "long_caption", "short_caption")
SHARDS = 1 << 20  # that a pattern names at most
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@MANIFESTS.register("webdataset")
class WebDataset(ManifestStyle):
    """``{key}.mp4`` or ``.jpg``, ``{key}.txt`` and ``{key}.json`` side by side in tars."""

    needs = (
        "webdataset needs a .tar, a folder of them, or a pattern such as shards-{000..099}.tar; in it KEY.mp4 (or "
        "another ending of videos and images) with KEY.txt or a KEY.json that has 'caption' or 'text'"
    )

    def matches(self, place: Location) -> bool:
        return bool(shards_of(place))

    def read(self, place: Location) -> list[ClipRow]:
        shards = shards_of(place)
        if not shards:
            raise SoraError(f"{place}: {self.needs}")
        many = len(shards) > 1
        return distinct(place, [row for shard in shards for row in _rows(shard, many)])


def shards_of(place: Location) -> list[Location]:
    """The tars that a path, folder, pattern or URL names, in order."""
    text = str(place)
    if braces := RANGE.search(text):
        first, last = braces.groups()
        pairs = RANGE.findall(text)
        endless = any(len(end) > 12 for pair in pairs for end in pair)
        if endless or math.prod(max(0, int(b) - int(a) + 1) for a, b in pairs) > SHARDS:
            raise SoraError(f"{place} names more than {SHARDS:,} tars; write the numbers of those that are there")
        names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        return [shard for name in names for shard in shards_of(text[: braces.start()] + name + text[braces.end() :])]
    if not is_remote(place) and os.path.isdir(place):
        return sorted(path for path in Path(place).glob("*") if path.name.lower().endswith(".tar"))
    return [place] if text.lower().endswith(".tar") else []


def _rows(shard: Location, many: bool) -> list[ClipRow]:
    state = None if is_remote(shard) else Path(shard).stat().st_mtime_ns if os.path.isfile(shard) else None
    groups: dict[str, dict[str, ArchiveMember]] = {}
    odd: list[str] = []
    for member in _members(str(shard), state):
        folder, _, name = member.member.rpartition("/")
        key, _, ending = name.partition(".")
        if ending.rpartition(".")[2].lower() in MEDIA and ending.lower() not in MEDIA:
            odd.append(member.member)
        groups.setdefault(f"{folder}/{key}" if folder else key, {})[ending.lower()] = member
    if odd:
        raise SoraError(
            f"{shard}: the name {odd[0]!r} and {len(odd) - 1} others have dots before the ending, and by WebDataset's "
            "rule all after the first dot is the ending; rename them"
        )
    rows = []
    for key, parts in groups.items():
        # A film before a still: that is its thumbnail.
        film = next((parts[ending] for ending in sorted(parts, key=_is_still) if ending in MEDIA), None)
        if film is None:
            continue
        rows.append(_row(shard, f"{Path(str(shard)).stem}/{key}" if many else key, film, parts))
    return rows


def _is_still(ending: str) -> bool:
    return ending in STILLS


def _row(shard: Location, name: str, film: ArchiveMember, parts: dict[str, ArchiveMember]) -> ClipRow:
    where = f"{shard}, {shown(name)}"
    found: list[Any] = [_text(parts[ending], where) for ending in CAPTIONS if ending in parts]
    told: Record = {}
    if "json" in parts:
        told = parsed_json(_text(parts["json"], where), f"{where}.json")
        if not isinstance(told, dict):
            raise SoraError(f"{where}.json must hold an object in braces")
        found += [told[key] for key in CAPTION_KEYS if key in told]
    captions = tuple(dict.fromkeys(text for one in found for text in texts(one, where)))
    frames = number(told, "num_frames", where)
    return ClipRow(
        id=shown(name),
        place=film,
        captions=captions,
        frames=frames,
        height=number(told, "height", where),
        width=number(told, "width", where),
        fps=rate(told, "fps", where, frames),
        split=split_of(told, where),
        extra={key: value for key, value in told.items() if key not in CAPTION_KEYS},
    )


def _text(member: ArchiveMember, where: str) -> str:
    with member.open() as file:
        return decoded(file.read(), f"{where}: {shown(member.member)}")


@lru_cache(maxsize=4096)
def _members(shard: str, state: int | None) -> tuple[ArchiveMember, ...]:
    """Every file of a tar, by a walk over its headers; the contents are jumped over."""
    archive: Path | RemoteFile = RemoteFile(shard) if is_remote(shard) else Path(shard)
    try:
        with opened(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            entries = list(tar)
    except (tarfile.TarError, OSError, EOFError) as problem:
        raise SoraError(
            f"{shard}: not a tar that can be read ({problem}); it must be plain, not compressed, as offsets into it "
            "are kept"
        ) from problem
    files = {os.path.normpath(info.name): info for info in entries if info.isreg()}
    found = [(info, _meant(info, files)) for info in entries]
    return tuple(ArchiveMember(archive, at.offset_data, at.size, info.name) for info, at in found if at is not None)


def _meant(info: tarfile.TarInfo, files: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The file that an entry is, or links to: a tar holds copies of one file as links."""
    if info.islnk() or info.issym():
        beside = os.path.dirname(info.name) if info.issym() else ""
        return files.get(os.path.normpath(os.path.join(beside, info.linkname)))
    return info if info.isreg() else None
