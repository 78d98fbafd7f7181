"""The videos of a folder that `score` is to look at: found, probed and refused before any network runs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lightning_sora.data import decode
from lightning_sora.data.captions import read_sidecar, read_tables
from lightning_sora.data.endings import is_image
from lightning_sora.data.finding import Found, find_media
from lightning_sora.data.stacks import ARRAY, NumberedImages, Stack, digest_of, stacks_in
from lightning_sora.errors import SoraError, some
from lightning_sora.metrics.protocol import ClipProtocol, nominal_rate
from lightning_sora.names import shown

ALIKE = 1.05  # times a rate is still that rate: a GIF of 8 frames per second has 8.33, its delays being hundredths
LISTED = 5  # files named in a refusal
LOOKED_AT = (16, 16)  # pixels that a clip is scaled to when it is only asked whether it can be read


@dataclass(frozen=True)
class Video:
    """One file or stack of pictures, and the clip to be cut from it.

    Attributes:
        id: its path in the folder.
        start: seconds; of a stack, frames.
        frames: of the clip.
        fps: that of the protocol, or the file's own; None where it tells none.
        size: (height, width) of its frames.
        content: SHA-256 of the file, or of the pictures of a stack.
        caption: empty where none is needed.
        whole: whether the clip is all of it, frame by frame.
    """

    place: Path | Stack
    id: str
    start: float
    frames: int
    fps: float | None
    size: tuple[int, int]
    content: str
    caption: str
    whole: bool

    def read(self) -> Tensor:
        """The clip, uint8 [frames height width 3].

        Raises:
            DecodeError: it cannot be read any more.
        """
        if isinstance(self.place, Path):
            return decode.read_clip(self.place, self.start, self.frames, self.fps)
        return self.place.read(int(self.start), self.frames)


def find_videos(folder: Path, protocol: ClipProtocol, least: int, captions: bool, images: bool = False) -> list[Video]:
    """The videos of a folder, every one of which yields a clip of the protocol: files, folders of images that are
    numbered as frames, and arrays.

    Args:
        images: take every still image too, and by itself, as a clip of one frame.

    Raises:
        SoraError: no or too few videos, damaged or short ones, or captions missing where they are needed.
    """
    found = find_media(folder)
    try:
        stacks = [stack for stack in stacks_in(found) if not (images and isinstance(stack, NumberedImages))]
    except decode.DecodeError as problem:
        raise SoraError(f"{problem}; write such an array, or remove the file") from problem
    places: dict[str, Path | Stack] = {
        name: found.path(name) for name in found.names if images or not is_image(name)
    } | {stack.id: stack for stack in stacks}
    others = {name: path for name, path in found.others.items() if not path.lower().endswith(ARRAY)}
    strange = replace(found, others=others).passed_over
    if not places:
        also = f"; {strange}" if strange else ""
        raise SoraError(
            f"there is no video under {folder}, nor a folder of numbered images or an array (.npy){also}; name the "
            "folder that holds them"
        )
    if len(places) < least:
        what = "videos and images" if images else "videos"
        raise SoraError(
            f"{folder} holds {len(places)} {what} where at least {least} are needed: a distance between a handful of "
            "clips is nearly all bias; add some, or lower --min-clips knowing that"
        )
    stills = sum(map(is_image, found.names)) - sum(len(s.files) for s in stacks if isinstance(s, NumberedImages))
    if stills and not images:
        note(f"{stills} still images under {folder} are not scored")
    if strange:
        note(f"files under {folder} are passed over: {strange}")
    if stacks and protocol.fps is not None:
        note(f"{len(stacks)} folders of frames and arrays under {folder} are taken to be at {protocol.fps:g} fps")
    texts = _captions(found, places) if captions else {}
    videos: list[Video] = []
    damaged: list[str] = []
    short: list[str] = []
    for name, answer in _look_at_all(folder, places, protocol, texts):
        if isinstance(answer, Video):
            videos.append(answer)
        elif isinstance(answer, _Short):
            short.append(f"{name} ({answer})")
        else:
            damaged.append(f"{name} ({answer})")
    if damaged:
        raise SoraError(
            f"{len(damaged)} of {len(places)} videos under {folder} cannot be read: {some(damaged, LISTED)}; repair or "
            f"remove them; `lightning-sora data check {folder}` looks at all"
        )
    if short:
        rate = f" at {protocol.fps:g} fps" if protocol.fps else ""
        raise SoraError(
            f"{len(short)} of {len(places)} videos under {folder} are shorter than {protocol.frames} frames{rate}: "
            f"{some(short, LISTED)}; lower --frames, or remove them"
        )
    copies = len(videos) - len({video.content for video in videos})
    if copies:
        note(f"{copies} of {len(videos)} videos under {folder} are copies of others, and count as often as they occur")
    return videos


def common_rate(sides: Mapping[bool, Sequence[Video]]) -> float | None:
    """The one rate at which all videos of all sides (real and generated) were recorded: that of most real ones. None if
    none tells a rate; those that do not are taken to be at that of the others.

    Raises:
        SoraError: they have several: the same number of frames is then another length of time.
    """
    rates = {
        real: Counter(nominal_rate(video.fps) for video in videos if video.fps is not None)
        for real, videos in sides.items()
    }
    rates = {real: counts for real, counts in rates.items() if counts}
    silent = sum(video.fps is None and video.frames > 1 for videos in sides.values() for video in videos)
    if not rates:
        if silent:
            note("folders of frames and arrays tell no frame rate, and the protocol has none; --fps tells it")
        return None
    different = sorted({rate for counts in rates.values() for rate in counts})
    if different[-1] > ALIKE * different[0]:
        told = "; ".join(
            f"{'real' if real else 'generated'} videos: "
            + ", ".join(f"{count} at {rate:g}" for rate, count in sorted(counts.items())[:LISTED])
            + (" ..." if len(counts) > LISTED else "")
            for real, counts in rates.items()
        )
        raise SoraError(
            f"the videos have several frame rates ({told} fps), so that as many frames are not as many seconds; give "
            f"--fps {different[0]:g} to resample all to one rate"
        )
    common = rates[max(rates)].most_common(1)[0][0]  # of the real ones, where there are some
    if silent:
        note(f"{silent} folders of frames and arrays tell no rate and are taken to be at {common:g} fps, as the others")
    return common


def note_sizes(sides: Mapping[bool, Sequence[Video]]) -> None:
    """Says where real and generated videos differ in size, which a distance sees as blur or as another shape."""
    sizes = {real: Counter(video.size for video in videos).most_common() for real, videos in sides.items()}
    if len(sizes) == 2 and {size for size, _ in sizes[True]} != {size for size, _ in sizes[False]}:
        told = [
            ", ".join(f"{height}x{width}" for (height, width), _ in sizes[real][:LISTED])
            + (" ..." if len(sizes[real]) > LISTED else "")
            for real in (True, False)
        ]
        note(
            f"note: real videos are {told[0]}, generated ones {told[1]} (height x width): each is resized to the "
            "extractor, and the difference counts in a distance"
        )


def _captions(found: Found, names: Collection[str]) -> dict[str, str]:
    notes = read_tables(found.root, found.tables, [*found.names, *names])
    texts = {}
    for name in names:
        beside = found.root / f"{name.removesuffix(ARRAY)}.txt"
        sidecar = found.sidecars.get(name) if name in found.names else beside if beside.is_file() else None
        texts[name] = next(iter(notes[name].captions if name in notes else read_sidecar(sidecar)), "")
    bare = [name for name, text in texts.items() if not text]
    if bare:
        raise SoraError(
            f"clip_score needs a caption for every generated video, and {len(bare)} of {len(names)} under {found.root} "
            f"have none: {some(bare, LISTED)}; add metadata.csv with the columns file_name and text, or a .txt beside "
            "each"
        )
    return texts


class _Short(str):
    """How long a video is that is too short."""


def _look_at_all(
    folder: Path, places: Mapping[str, Path | Stack], protocol: ClipProtocol, texts: Mapping[str, str]
) -> Iterator[tuple[str, Video | str]]:
    """The clip of each, or why it has none, under a progress bar."""

    def look(name: str) -> Video | str:
        place, text = places[name], texts.get(name, "")
        try:
            if not isinstance(place, Path):
                return _look_at_stack(place, protocol, text)
            return _look_at_file(place, name, protocol, text)
        except decode.DecodeError as problem:
            return str(problem).removeprefix(shown(f"{place if isinstance(place, Path) else name}: "))

    # Threads will do: decoding runs outside the interpreter's lock.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        answers = tqdm(pool.map(look, places), f"looking at {shown(folder.name)}", len(places), leave=False)
        yield from zip(places, answers, strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _look_at_file(path: Path, name: str, protocol: ClipProtocol, caption: str) -> Video | str:
    info = decode.probe(path)
    start, frames, rate, whole = 0.0, 1, None, True
    if not is_image(path):
        frames, rate = protocol.frames, protocol.fps or info.fps
        # What is shown in the last moment lasts until the end of the video.
        if int(info.duration * rate + 1e-6) < frames:
            return _Short(f"{info.frames} frames at {info.fps:.4g} fps")
        whole = abs(rate - info.fps) < 1e-6 and int(info.duration * rate + 1e-6) == frames
        start = max(0.0, (info.duration - frames / rate) / 2) if protocol.offset == "center" else 0.0
        # Headers lie: what can be read is known when it was read. All of it, since what is damaged after the
        # clip says that the file is not what its maker wrote.
        decode.read_clip(path, start, frames, rate, size=LOOKED_AT)
    if reason := decode.check(path):
        return reason
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return Video(path, name, start, frames, rate, (info.height, info.width), content, caption, whole)


def _look_at_stack(stack: Stack, protocol: ClipProtocol, caption: str) -> Video | str:
    frames, height, width = stack.size()
    if frames < protocol.frames:
        return _Short(f"{frames} frames")
    start = (frames - protocol.frames) // 2 if protocol.offset == "center" else 0
    content = digest_of(stack)
    whole = frames == protocol.frames  # its frames are never resampled
    return Video(stack, stack.id, start, protocol.frames, protocol.fps, (height, width), content, caption, whole)


def note(text: str) -> None:
    """What the user should know beside the result, on stderr."""
    sys.stderr.write(f"{text}\n")
