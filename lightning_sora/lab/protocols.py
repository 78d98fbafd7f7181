"""The field's evaluation protocols by name: which clips of a data set are cut how, and how many are compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_sora import randomness
from lightning_sora.data import decode
from lightning_sora.data.manifest import ClipRow, read_manifest
from lightning_sora.data.places import DecodeError
from lightning_sora.data.records import SPLITS
from lightning_sora.data.sources.base import ClipInfo
from lightning_sora.data.sources.listed import media_of
from lightning_sora.data.storage import located
from lightning_sora.data.window import misfit, read_window
from lightning_sora.documents import read_yaml
from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.lab.score_videos import Video, note
from lightning_sora.names import local_path
from lightning_sora.spacetime import Crop, VideoSize

FOLDER = Path(__file__).parents[1] / "protocols"
SEED = 0  # of the choice of videos and first frames
PARTS = {"title", "data", "clip", "clips", "how", "sources"}


@dataclass(frozen=True)
class Protocol:
    """What an evaluation on a data set fixes.

    Attributes:
        style: spec of the manifest style by which the data set is read.
        splits: those whose videos count; videos of no split count as of train.
        videos: how many the published data set has in these splits; None where that is not known.
        frames, stride: of a clip: every ``stride``-th frame of a video, from a drawn one on.
        height, width: of a clip, in pixels: scaled to cover it and cut in the middle.
        clips: how many of each side are compared, one of each video. Where a data set has fewer, all are.
        how, sources: sentences on the data, and where all of this is from.

    Example:
        >>> from lightning_sora.lab.protocols import load_protocol
        >>> ucf = load_protocol("ucf101")
        >>> ucf.frames, ucf.stride, ucf.height, ucf.width, ucf.clips
        (16, 3, 256, 256, 2048)
    """

    name: str
    title: str
    style: str
    splits: tuple[str, ...]
    videos: int | None
    frames: int
    stride: int
    height: int
    width: int
    clips: int
    how: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """For a card: all that moves a score; the data are told by their own digest."""
        return {
            "name": self.name, "stride": self.stride, "height": self.height, "width": self.width, "clips": self.clips,
            "splits": list(self.splits), "start": f"drawn, seed {SEED}", "crop": "center",
        }  # fmt: skip


@dataclass(frozen=True)
class ProtocolClip(Video):
    """A clip of a data set, as a protocol cuts it."""

    row: ClipRow = field(repr=False)
    info: ClipInfo = field(repr=False)
    crop: Crop

    def read(self) -> Tensor:
        """The clip, uint8 [frames height width 3].

        Raises:
            DecodeError: it cannot be read any more.
        """
        generator = randomness.generator(SEED, "protocol", self.id)
        return read_window(media_of(self.row), self.info, self.crop, generator=generator, centred=True)


def protocol_names() -> list[str]:
    """Returns the names of those that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_protocol(asked: str | Path) -> Protocol:
    """Reads a protocol.

    Args:
        asked: a name of :func:`protocol_names`, or the path of a YAML file of the same parts.

    Raises:
        SoraError: none is called so, or the file lacks a part, has another, or a number that cannot be.
    """
    path = local_path(asked)
    if not path.suffix and not {"/", os.sep} & set(str(asked)):
        path = FOLDER / f"{path.name}.yaml"
        if not os.path.isfile(path):
            hint = did_you_mean(str(asked), protocol_names(), repr)
            raise SoraError(f"no protocol is called {str(asked)!r}; {hint}known are {', '.join(protocol_names())}")
    told = read_yaml(path)
    if not isinstance(told, Mapping) or set(told) != PARTS:
        raise SoraError(f"{path}: a protocol has the parts {', '.join(sorted(PARTS))}, each once and no other")
    data, clip = (
        _part(path, told, "data", ("style", "splits", "videos")),
        _part(path, told, "clip", ("frames", "stride", "height", "width")),
    )
    numbers = {**clip, "clips": told["clips"], **({} if data["videos"] is None else {"videos": data["videos"]})}
    if wrong := next((name for name, value in numbers.items() if type(value) is not int or value < 1), None):
        raise SoraError(f"{path}: {wrong} is {numbers[wrong]!r}; it must be a whole number of at least 1")
    for name in ("how", "sources"):
        if not isinstance(told[name], list) or not all(isinstance(line, str) for line in told[name]):
            raise SoraError(f"{path}: {name} is {told[name]!r}; it must be a list of sentences")
    splits = data["splits"]
    if not isinstance(splits, list) or not splits or not all(one in SPLITS for one in splits):
        raise SoraError(f"{path}: splits is {data['splits']!r}; it must be a list of some of {', '.join(SPLITS)}")
    return Protocol(
        path.stem, str(told["title"]), str(data["style"]), tuple(data["splits"]), data["videos"], **clip,
        clips=told["clips"], how=tuple(told["how"]), sources=tuple(told["sources"]),
    )  # fmt: skip


def _part(path: Path, told: Mapping[str, Any], name: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    part = told[name]
    if not isinstance(part, Mapping) or set(part) != set(keys):
        raise SoraError(f"{path}: {name} has the parts {', '.join(keys)}, each once and no other")
    return part


def real_clips(protocol: Protocol, root: str | Path) -> list[ProtocolClip]:
    """Chooses the clips of a data set: of each video at most one, in an order that a hash of ids gives.

    Args:
        root: of the data set, as its style reads it.

    Returns:
        ``protocol.clips`` of them, or as many as there are videos that are long enough.

    Raises:
        SoraError: no such data set, videos of no such split, or one that cannot be read.
    """
    _, rows = read_manifest(located(root), protocol.style)
    there = [row for row in rows if (row.split or "train") in protocol.splits]
    if not there:
        splits = sorted({row.split or "train" for row in rows})
        raise SoraError(
            f"{root} has {len(rows):,} videos of {', '.join(splits)}, and the protocol {protocol.name} takes those of "
            f"{', '.join(protocol.splits)}; give the folder that holds these"
        )
    if part := next((row for row in there if row.start_frame or row.crop is not None), None):
        raise SoraError(
            f"{root}: {part.id} is a part of a video, and a protocol takes whole ones; give a style that lists these"
        )
    if protocol.videos is not None and len(there) != protocol.videos:
        note(f"{root} has {len(there):,} videos, and the data set of {protocol.name} has {protocol.videos:,}")
    found: list[ProtocolClip] = []
    size, short = VideoSize(protocol.frames, protocol.height, protocol.width), 0
    for row in sorted(there, key=lambda row: hashlib.blake2b(row.id.encode(), digest_size=16).digest()):
        if len(found) == protocol.clips:
            break
        true = decode.probe(media_of(row))
        info = ClipInfo(row.id, true.frames, true.height, true.width, true.fps)
        crop = Crop(size, fps=true.fps / protocol.stride)
        if misfit(info, crop) is not None:
            short += 1
            continue
        found.append(
            ProtocolClip(
                Path(str(media_of(row))), row.id, 0.0, protocol.frames, crop.fps, (size.height, size.width), "",
                next(iter(row.captions), ""), False, row, info, crop,
            )
        )  # fmt: skip
    if short:
        span = (protocol.frames - 1) * protocol.stride + 1
        note(f"{short:,} videos under {root} are shorter than {span} frames and were passed over")
    if not found:
        raise DecodeError(f"{root}: no video is long enough for {protocol.frames} frames, every {protocol.stride}th")
    if len(found) < protocol.clips:
        note(f"{root} has {len(found):,} clips where {protocol.name} takes {protocol.clips:,}: each is taken once")
    return found


def check_asked(protocol: Protocol, frames: int, fps: float | None, offset: str) -> None:
    """Raises SoraError for flags that say otherwise than the protocol."""
    if frames != protocol.frames or fps is not None or offset != "first":
        raise SoraError(
            f"the protocol {protocol.name} takes {protocol.frames} frames as they are recorded; leave out --fps and "
            f"--offset, and give --frames {protocol.frames}"
        )


def check_generated(protocol: Protocol, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuses generated videos that are not as the protocol has them.

    Args:
        sizes: (height, width) by id.

    Raises:
        SoraError: another number of videos, or another size.
    """
    if len(sizes) != protocol.clips:
        raise SoraError(
            f"there are {len(sizes):,} generated videos, and the protocol {protocol.name} takes {protocol.clips:,}; a "
            "distance moves with their number: make as many"
        )
    wanted = (protocol.height, protocol.width)
    if other := next((name for name, size in sizes.items() if size != wanted), None):
        raise SoraError(
            f"{other} is {sizes[other][0]}x{sizes[other][1]} (height x width), and clips of the protocol "
            f"{protocol.name} are {wanted[0]}x{wanted[1]}; make them so, or scale them"
        )
