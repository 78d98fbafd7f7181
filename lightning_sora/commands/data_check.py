"""``lightning-sora data check PATH``: decode everything, name what is bad and why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError
from lightning_sora.names import local_path, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from lightning_sora.data.decode import VideoInfo
    from lightning_sora.data.finding import Found
    from lightning_sora.data.manifest import ClipRow
    from lightning_sora.data.places import MediaPath

COMMON = 4  # how many of the most frequent sizes and rates are shown


@dataclass(frozen=True)
class Listing:
    """What is to be checked.

    Attributes:
        clips: name, as quarantine lists have it -> where it lies.
        captioned: how many have a caption.
        complaint: (table, what is wrong with the captions), if anything is.
        told: name -> row, of a manifest that tells sizes.
        passed_over: files of unknown kinds in words; empty if there are none.
    """

    clips: Mapping[str, MediaPath]
    captioned: int
    complaint: tuple[str, str] | None = None
    told: Mapping[str, ClipRow] = field(default_factory=dict)
    passed_over: str = ""


def add_parser(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="decode every file of a folder or manifest",
        description="Decodes every video and image to its end, reads the captions, compares with what a manifest "
        "tells, names what is bad and why, and sums up the rest. Exit status: 0 if all is well, 1 if something is bad.",
    )
    check.add_argument("path", metavar="PATH", help="folder, searched at any depth; manifest, tar or URL")
    check.add_argument("--style", default="auto", help="of a manifest; default: found out")
    check.add_argument(
        "--out", type=Path, metavar="LIST.jsonl", help="list of the bad files, for source option quarantine"
    )
    check.add_argument("--processes", type=whole, help="side by side; default: one for each core")
    check.add_argument("--seconds", type=positive, default=120.0, help="that one file may take (default: %(default)g)")
    check.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Checks a folder or the clips of a manifest; returns 1 if anything is bad, else 0.

    Raises:
        SoraError: nothing there, or no videos or images in it.
    """
    from rich.console import Console

    from lightning_sora.data.quarantine import write_quarantine
    from lightning_sora.data.sources.which import source_of
    from lightning_sora.plugins import load_packages, load_plugins
    from lightning_sora.writing import check_file

    if args.out is not None:
        check_file("--out", args.out)
    load_packages()
    load_plugins(args.plugins)
    kind = source_of(args.path) if args.style == "auto" else "manifest"
    if kind == "latents":
        raise SoraError(f"{args.path} is a cache of latents, each verified when it is read; check the clips instead")
    listing = _folder(local_path(args.path)) if kind == "folder" else _manifest(args.path, args.style)
    good: dict[str, VideoInfo] = {}
    bad: dict[str, str] = {}
    console = Console()
    for name, answer in _check_all(listing, args):
        if isinstance(answer, str):
            bad[name] = answer
        else:
            good[name] = answer
    reasons = dict(bad)
    if listing.complaint is not None:
        bad[listing.complaint[0]] = listing.complaint[1]
    if bad:
        console.print(_bad_table(bad))
    console.print(_summary(good, len(bad), listing))
    if args.out is not None:  # last: what was found is told whatever becomes of it
        write_quarantine(args.out, reasons)
    return 1 if bad else 0


def _folder(root: Path) -> Listing:
    from lightning_sora.data.captions import TABLES
    from lightning_sora.data.finding import find_media

    found = find_media(root)
    if not found.names:
        also = f"; {found.passed_over}" if found.passed_over else ""
        raise SoraError(
            f"no video or image of a known kind under {shown(str(root))}{also}; name the folder that holds them"
        )
    captioned, complaint = _captioned(found)
    name = " ".join(t for t in TABLES if root / t in found.tables) or "captions"
    clips = {clip_id: found.path(clip_id) for clip_id in found.names}
    return Listing(clips, captioned, None if complaint is None else (name, complaint), passed_over=found.passed_over)


def _manifest(place: str, style: str) -> Listing:
    from lightning_sora.data.manifest import read_manifest
    from lightning_sora.data.sources.manifest import media_of

    _, rows = read_manifest(place, style)
    clips = {row.id: media_of(row) for row in rows}
    return Listing(clips, sum(bool(row.captions) for row in rows), told={row.id: row for row in rows})


def _check_all(listing: Listing, args: argparse.Namespace) -> Iterator[tuple[str, VideoInfo | str]]:
    """Each clip with its description, or the reason why it is bad, under a progress bar."""
    import os

    from rich.console import Console
    from rich.progress import track

    from lightning_sora.data.checking import check_files
    from lightning_sora.data.sources.manifest import disagreement

    names: dict[MediaPath, list[str]] = {}
    for name, place in listing.clips.items():  # several clips may be cuts of one file
        names.setdefault(place, []).append(name)
    places = list(names)
    answers = check_files(places, args.processes or os.cpu_count() or 1, args.seconds)
    bar = track(answers, "checking", total=len(places), console=Console(stderr=True), transient=True)
    # They come as they are done; what is printed keeps the order of names.
    found = {name: answer for number, answer in bar for name in names[places[number]]}
    for name in listing.clips:
        answer = found[name]
        row = listing.told.get(name)
        lie = None if row is None or isinstance(answer, str) else disagreement(row, answer)
        yield name, lie or answer


def _captioned(found: Found) -> tuple[int, str | None]:
    """How many files have a caption, and what is wrong with the captions."""
    from lightning_sora.data.captions import read_sidecar, read_tables

    try:
        notes = read_tables(found.root, found.tables, found.names)
        texts = [
            notes[name].captions if name in notes else read_sidecar(found.sidecars.get(name)) for name in found.names
        ]
    except SoraError as problem:
        return 0, str(problem)
    return sum(bool(text) for text in texts), None


def _bad_table(bad: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "reason", title=f"bad: {len(bad)}", title_justify="left")
    for name, reason in bad.items():
        # Text, so that brackets in names are no markup.
        table.add_row(Text(name, overflow="fold"), Text(reason, overflow="fold"))
    return table


def _summary(good: dict[str, VideoInfo], bad: int, listing: Listing) -> Table:
    from collections import Counter

    from rich.table import Table
    from rich.text import Text

    from lightning_sora.data.endings import is_image

    films = [info for name, info in good.items() if not is_image(listing.clips[name])]

    def common(counts: Counter[str]) -> str:
        shown = [f"{value} ({count})" for value, count in counts.most_common(COMMON)]
        rest = len(counts) - len(shown)
        return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")

    table = Table.grid(padding=(0, 2))
    table.add_row("files", f"{len(films)} videos, {len(good) - len(films)} images, {bad} bad")
    if listing.passed_over:
        table.add_row("passed over", Text(listing.passed_over))
    table.add_row("captions", f"{listing.captioned}")
    if films:
        lengths = sorted(info.frames for info in films)
        minutes, seconds = divmod(sum(info.duration for info in films), 60)
        middle = lengths[len(lengths) // 2]
        table.add_row("duration", f"{minutes:.0f} min {seconds:.1f} s in all")
        table.add_row("frames", f"{lengths[0]} to {lengths[-1]}, median {middle}, {sum(lengths):,} in all")
        table.add_row("rates", common(Counter(f"{info.fps:.6g}" for info in films)) + " frames per second")
    if good:
        table.add_row("sizes", common(Counter(f"{info.width}x{info.height}" for info in good.values())))
    return table
