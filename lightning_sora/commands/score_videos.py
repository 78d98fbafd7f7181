"""The videos of a folder that `score` is to look at: found, probed and refused before any network runs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lightning_sora.data import decode
from lightning_sora.data.captions import read_sidecar, read_tables
from lightning_sora.data.endings import is_image
from lightning_sora.data.finding import Found, find_media
from lightning_sora.errors import SoraError
from lightning_sora.metrics.protocol import ClipProtocol, nominal_rate

ALIKE = 1.05  # times a rate is still that rate: a GIF of 8 frames per second has 8.33, its delays being hundredths
LISTED = 5  # files named in a refusal
LOOKED_AT = (16, 16)  # pixels that a clip is scaled to when it is only asked whether it can be read


@dataclass(frozen=True)
class Video:
    """One file, and the clip to be cut from it.

    Attributes:
        id: its path in the folder.
        start: seconds.
        fps: that of the protocol, or the file's own.
        size: (height, width) of its frames.
        content: SHA-256 of the file.
        caption: empty where none is needed.
    """

    path: Path
    id: str
    start: float
    fps: float
    size: tuple[int, int]
    content: str
    caption: str


def find_videos(folder: Path, protocol: ClipProtocol, least: int, captions: bool) -> list[Video]:
    """The videos of a folder, every one of which yields a clip of the protocol.

    Raises:
        SoraError: no or too few videos, damaged or short ones, or captions missing where they are needed.
    """
    files = find_media(folder)
    names = [name for name in files.names if not is_image(name)]
    if not names:
        also = f"; {files.passed_over}" if files.passed_over else ""
        raise SoraError(f"there is no video under {folder}{also}; name the folder that holds them")
    if len(names) < least:
        raise SoraError(
            f"{folder} holds {len(names)} videos where at least {least} are needed: a distance between a handful of "
            "clips is nearly all bias; add videos, or lower --min-clips knowing that"
        )
    if len(names) < len(files.names):
        note(f"{len(files.names) - len(names)} still images under {folder} are not scored")
    if files.passed_over:
        note(f"files under {folder} are passed over: {files.passed_over}")
    texts = _captions(files, names) if captions else {}
    found: list[Video] = []
    damaged: list[str] = []
    short: list[str] = []
    for name, answer in _look_at_all(files, names, protocol, texts):
        if isinstance(answer, Video):
            found.append(answer)
        elif isinstance(answer, _Short):
            short.append(f"{name} ({answer})")
        else:
            damaged.append(f"{name} ({answer})")
    if damaged:
        raise SoraError(
            f"{len(damaged)} of {len(names)} videos under {folder} cannot be read: {_some(damaged)}; repair or remove "
            f"them; `lightning-sora data check {folder}` looks at all"
        )
    if short:
        rate = f" at {protocol.fps:g} fps" if protocol.fps else ""
        raise SoraError(
            f"{len(short)} of {len(names)} videos under {folder} are shorter than {protocol.frames} frames{rate}: "
            f"{_some(short)}; lower --frames, or remove them"
        )
    copies = len(found) - len({video.content for video in found})
    if copies:
        note(f"{copies} of {len(found)} videos under {folder} are copies of others, and count as often as they occur")
    return found


def common_rate(sides: Mapping[bool, Sequence[Video]]) -> float:
    """The one rate at which all videos of all sides (real and generated) were recorded: that of most real ones.

    Raises:
        SoraError: they have several: the same number of frames is then another length of time.
    """
    rates = {real: Counter(nominal_rate(video.fps) for video in videos) for real, videos in sides.items()}
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
    return rates[max(rates)].most_common(1)[0][0]  # of the real ones, where there are some


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


def _captions(files: Found, names: Sequence[str]) -> dict[str, str]:
    folder, notes = files.root, read_tables(files.root, files.tables, files.names)
    found = {n: notes[n].captions if n in notes else read_sidecar(files.sidecars.get(n)) for n in names}
    texts = {name: captions[0] if captions else "" for name, captions in found.items()}
    bare = [name for name, text in texts.items() if not text]
    if bare:
        raise SoraError(
            f"clip_score needs a caption for every generated video, and {len(bare)} of {len(names)} under {folder} "
            f"have none: {_some(bare)}; add metadata.csv with the columns file_name and text, or a .txt beside each"
        )
    return texts


class _Short(str):
    """How long a video is that is too short."""


def _look_at_all(
    files: Found, names: Sequence[str], protocol: ClipProtocol, texts: Mapping[str, str]
) -> Iterator[tuple[str, Video | str]]:
    """Each file's clip, or why it has none, under a progress bar."""

    def look(name: str) -> Video | str:
        path = files.path(name)
        try:
            info = decode.probe(path)
            rate = protocol.fps or info.fps
            # What is shown in the last moment lasts until the end of the video.
            if int(info.duration * rate + 1e-6) < protocol.frames:
                return _Short(f"{info.frames} frames at {info.fps:.4g} fps")
            start = max(0.0, (info.duration - protocol.frames / rate) / 2) if protocol.offset == "center" else 0.0
            # Headers lie: what can be read is known when it was read. All of it, since what is damaged after the
            # clip says that the file is not what its maker wrote.
            decode.read_clip(path, start, protocol.frames, rate, size=LOOKED_AT)
            if reason := decode.check(path):
                return reason
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except decode.DecodeError as problem:
            return str(problem).removeprefix(f"{path}: ")
        return Video(path, name, start, rate, (info.height, info.width), content, texts.get(name, ""))

    # Threads will do: decoding runs outside the interpreter's lock.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        answers = pool.map(look, names)
        yield from zip(names, tqdm(answers, f"looking at {files.root.name}", len(names), leave=False), strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def note(text: str) -> None:
    """What the user should know beside the result, on stderr."""
    sys.stderr.write(f"{text}\n")


def _some(items: Sequence[str]) -> str:
    more = len(items) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {more} more" if more > 0 else "")
