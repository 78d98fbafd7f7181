"""Checks of video files: everything is decoded to its end, and what is bad is named with its reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sora.data.captions import TABLES
from lightning_sora.data.checking import check_files
from lightning_sora.data.collection import open_collection
from lightning_sora.data.decode import VideoInfo
from lightning_sora.data.endings import is_image
from lightning_sora.data.finding import find_media
from lightning_sora.data.manifest import ClipRow
from lightning_sora.data.manifest.folder import Folder
from lightning_sora.data.places import MediaPath
from lightning_sora.data.quarantine import write_quarantine
from lightning_sora.data.sources.listed import disagreement, media_of
from lightning_sora.errors import SoraError, some
from lightning_sora.plugins import load_packages
from lightning_sora.shown import Shown

if TYPE_CHECKING:
    from rich.table import Table

COMMON = 4  # how many of the most frequent sizes and rates are shown


@dataclass(frozen=True)
class Checked(Shown):
    """What came of decoding every file of a collection.

    Attributes:
        good: what each clip is, by its name.
        unfit: why a clip cannot be used, by its name.
        misread: what is wrong with the captions, by the name of their tables; empty if nothing is.
        stills: names of the clips that are images.
        captioned: how many clips have a caption.
        passed_over: files of unknown kinds in words; empty if there are none.
    """

    good: Mapping[str, VideoInfo]
    unfit: Mapping[str, str]
    misread: Mapping[str, str]
    stills: Set[str]
    captioned: int
    passed_over: str

    @property
    def bad(self) -> dict[str, str]:
        """All that is wrong, by the name of a clip or table."""
        return {**self.unfit, **self.misread}

    def write_quarantine(self, path: str | Path) -> None:
        """Writes the list of the unfit clips, which the option ``quarantine`` of a source leaves out."""
        write_quarantine(Path(path), self.unfit)

    def tables(self) -> Iterator[Table]:
        if self.bad:
            yield self._reasons()
        yield self._summary()

    def _reasons(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table("file", "reason", title=f"bad: {len(self.bad)}", title_justify="left")
        for name, reason in self.bad.items():
            # Text, so that brackets in names are no markup.
            table.add_row(Text(name, overflow="fold"), Text(reason, overflow="fold"))
        return table

    def _summary(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        films = [info for name, info in self.good.items() if name not in self.stills]
        table = Table.grid(padding=(0, 2))
        table.add_row("files", f"{len(films)} videos, {len(self.good) - len(films)} images, {len(self.bad)} bad")
        if self.passed_over:
            table.add_row("passed over", Text(self.passed_over))
        table.add_row("captions", f"{self.captioned}")
        if films:
            lengths = sorted(info.frames for info in films)
            minutes, seconds = divmod(sum(info.duration for info in films), 60)
            middle = lengths[len(lengths) // 2]
            table.add_row("duration", f"{minutes:.0f} min {seconds:.1f} s in all")
            table.add_row("frames", f"{lengths[0]} to {lengths[-1]}, median {middle}, {sum(lengths):,} in all")
            table.add_row("rates", _common(f"{info.fps:.6g}" for info in films) + " frames per second")
        if self.good:
            table.add_row("sizes", _common(f"{info.width}x{info.height}" for info in self.good.values()))
        return table


def check_data(
    path: str | Path, *, style: str = "auto", processes: int | None = None, seconds: float = 120.0
) -> Checked:
    """Decodes every video and image of a collection to its end, reads the captions, and compares with what a manifest
    tells; a bar shows progress.

    Args:
        path: folder, searched at any depth; one file; manifest, tar or URL.
        style: of a manifest; "auto" finds out.
        processes: side by side; None for one per core. A file that kills its decoder costs one process alone.
        seconds: that one file may take.

    Raises:
        SoraError: nothing there, no videos or images in it, or a cache of latents.

    Example:
        >>> import tempfile, torch, lightning_sora as ls
        >>> file = ls.save_video(f"{tempfile.mkdtemp()}/grey.mp4", torch.full((5, 32, 32, 3), 128, dtype=torch.uint8))
        >>> checked = ls.check_data(file, processes=1)
        >>> checked.good["grey.mp4"].frames, checked.bad
        (5, {})
    """
    load_packages("source")
    found = open_collection(path, style)
    if found.source == "latents":
        raise SoraError(f"{path} is a cache of latents, each verified when it is read; check the clips instead")
    misread: dict[str, str] = {}
    passed_over = ""
    if found.source == "folder":
        files = find_media(Path(found.place))
        passed_over = files.passed_over
        try:
            rows = Folder().rows(files)
        except SoraError as problem:
            rows = Folder("none").rows(files)  # refuses a folder without videos
            name = " ".join(t for t in TABLES if files.root / t in files.tables) or "captions"
            misread = {name: str(problem)}
    else:
        rows = list(found.rows)
    good: dict[str, VideoInfo] = {}
    unfit: dict[str, str] = {}
    for row, answer in _answers(rows, processes or os.cpu_count() or 1, seconds):
        lie = None if isinstance(answer, str) else disagreement(row, answer)
        if isinstance(answer, str) or lie:
            unfit[row.id] = lie or str(answer)
        else:
            good[row.id] = answer
    stills = {row.id for row in rows if is_image(media_of(row))}
    return Checked(good, unfit, misread, stills, sum(bool(row.captions) for row in rows), passed_over)


def _answers(rows: Sequence[ClipRow], processes: int, seconds: float) -> Iterator[tuple[ClipRow, VideoInfo | str]]:
    """Each clip with its description, or the reason why it is bad, in the order of rows, under a progress bar."""
    from rich.console import Console
    from rich.progress import track

    clips = [(row, media_of(row)) for row in rows]
    places: list[MediaPath] = list(dict.fromkeys(place for _, place in clips))  # several may be cuts of one file
    answers = check_files(places, processes, seconds)
    # They come as they are done; what is told keeps the order of names.
    bar = track(answers, "checking", total=len(places), console=Console(stderr=True), transient=True)
    found = {places[number]: answer for number, answer in bar}
    for row, place in clips:
        yield row, found[place]


def _common(values: Iterator[str]) -> str:
    counts = Counter(values)
    return some((f"{value} ({count})" for value, count in counts.most_common()), COMMON)
