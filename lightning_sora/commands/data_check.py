"""``lightning-sora data check FOLDER``: decode everything, name what is bad and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sora.commands.arguments import positive, whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from lightning_sora.data.decode import VideoInfo

COMMON = 4  # how many of the most frequent sizes and rates are shown


def add_parser(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="decode every file of a folder",
        description="Decodes every video and image under FOLDER to its end, reads the captions, names what is bad "
        "and why, and sums up the rest. Exit status: 0 if all is well, 1 if something is bad.",
    )
    check.add_argument("folder", metavar="FOLDER", help="searched at any depth")
    check.add_argument(
        "--out", type=Path, metavar="LIST.jsonl", help="list of the bad files, for source option quarantine"
    )
    check.add_argument("--processes", type=whole, help="side by side; default: one for each core")
    check.add_argument("--seconds", type=positive, default=120.0, help="that one file may take (default: %(default)g)")


def run(args: argparse.Namespace) -> int:
    """Checks a folder; returns 1 if anything in it is bad, else 0.

    Raises:
        SoraError: no such folder, or no videos or images in it.
    """
    from rich.console import Console

    from lightning_sora.data.captions import TABLES
    from lightning_sora.data.quarantine import write_quarantine
    from lightning_sora.data.sources.folder import find_media
    from lightning_sora.errors import SoraError

    root = Path(args.folder)
    files, tables = find_media(root)
    if not files:
        raise SoraError(f"no video or image of a known kind under {root}; name the folder that holds them")
    good: dict[str, VideoInfo] = {}
    bad: dict[str, str] = {}
    console = Console()
    for name, answer in _check_all(root, files, args):
        if isinstance(answer, str):
            bad[name] = answer
        else:
            good[name] = answer
    if args.out is not None:
        write_quarantine(args.out, bad)
    captioned, complaint = _captioned(root, files, tables)
    if complaint:
        bad[" ".join(t for t in TABLES if root / t in tables) or "captions"] = complaint
    if bad:
        console.print(_bad_table(bad))
    console.print(_summary(good, len(bad), captioned))
    return 1 if bad else 0


def _check_all(root: Path, files: Sequence[str], args: argparse.Namespace) -> Iterator[tuple[str, VideoInfo | str]]:
    """Each file with its description, or the reason why it is bad, under a progress bar."""
    import os

    from rich.console import Console
    from rich.progress import track

    from lightning_sora.data.checking import check_files

    answers = check_files([root / name for name in files], args.processes or os.cpu_count() or 1, args.seconds)
    bar = track(answers, "checking", total=len(files), console=Console(stderr=True), transient=True)
    # They come as they are done; what is printed keeps the order of names.
    yield from ((files[place], answer) for place, answer in sorted(bar, key=lambda one: one[0]))


def _captioned(root: Path, files: Sequence[str], tables: Sequence[Path]) -> tuple[int, str | None]:
    """How many files have a caption, and what is wrong with the captions."""
    from lightning_sora.data.captions import read_sidecar, read_tables
    from lightning_sora.errors import SoraError

    try:
        notes = read_tables(root, tables, set(files))
        texts = [notes[name].caption if name in notes else read_sidecar(root / name) for name in files]
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


def _summary(good: dict[str, VideoInfo], bad: int, captioned: int) -> Table:
    from collections import Counter

    from rich.table import Table

    from lightning_sora.data.decode import is_image

    films = [info for name, info in good.items() if not is_image(name)]

    def common(counts: Counter[str]) -> str:
        shown = [f"{value} ({count})" for value, count in counts.most_common(COMMON)]
        rest = len(counts) - len(shown)
        return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")

    table = Table.grid(padding=(0, 2))
    table.add_row("files", f"{len(films)} videos, {len(good) - len(films)} images, {bad} bad")
    table.add_row("captions", f"{captioned}")
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
