"""``data inspect``: what a data set holds, and what a size plan would make of it, before a frame is trained on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_sora.data.plan import BatchPlan
    from lightning_sora.data.sizes import SizePolicy
    from lightning_sora.data.sources import ClipInfo, Source

SPLITS = ("train", "val", "test")
SHOWN = 12  # grids, reasons
LOOKED_AT = 1024  # clips of which what a manifest tells is compared with the file, spread over each split


def add_parser(actions: Any) -> None:
    parser = actions.add_parser(
        "inspect",
        help="count what a data set holds, and what a size plan would use of it",
        description="Prints counts, durations, sizes, rates and lengths of captions, the buckets or sequences that a "
        "size plan would make, and what it would leave out; writes a picture of histograms.",
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder, manifest, tar, URL or cache of latents")
    parser.add_argument("--source", help="spec of the source; default: that which reads PATH")
    parser.add_argument("--seed", type=int, default=0, help="of the source (default: %(default)s)")
    parser.add_argument("--sizes", default="bucketed", help="size policy to try (default: %(default)s)")
    parser.add_argument("--patch", default="4,16,16", help="pixels per token (default: %(default)s)")
    parser.add_argument("--frames", type=whole, default=17, help="of the longest clips (default: %(default)s)")
    parser.add_argument("--height", type=whole, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--width", type=whole, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--fps", type=positive, help="frames per second to resample to; default: each clip's own")
    parser.add_argument("--batch-size", type=whole, default=8, help="clips of that size (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/inspect.png"), help="picture (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Prints the tables and writes the picture; returns 0.

    Raises:
        SoraError: no such data, or a plan that cannot be.
    """
    from rich.console import Console

    from lightning_sora.data.plan import BatchPlan
    from lightning_sora.data.sizes import SIZES, Limits
    from lightning_sora.data.sources import SOURCES
    from lightning_sora.data.sources.which import source_of
    from lightning_sora.plugins import load_packages, load_plugins
    from lightning_sora.spacetime import PatchSize

    if args.path is None and args.source is None:
        raise SoraError("nothing to inspect; give PATH, or --source SPEC")
    try:
        patch = PatchSize.of([int(n) for n in args.patch.split(",")])
    except ValueError:
        raise SoraError(f"--patch {args.patch!r} must be three whole numbers, as 4,16,16") from None
    _check_out(args.out)
    load_packages()
    load_plugins(args.plugins)
    policy = SIZES.create(args.sizes, Limits(args.frames, args.height, args.width, patch, args.batch_size))
    spec = args.source or source_of(args.path)
    console = Console()
    train = SOURCES.create(spec, root=args.path, split="train", seed=args.seed)
    sources = {"train": train}
    for split in SPLITS[1:]:
        try:
            sources[split] = SOURCES.create(spec, root=args.path, split=split, seed=args.seed)
        except SoraError as problem:  # as of a cache that holds no test
            console.print(f"{split}: {problem}", markup=False)
    infos = {split: source.infos for split, source in sources.items()}
    failures = getattr(train, "failures", {})
    kind = f"{spec.partition('(')[0]} {getattr(train, 'style', '')}"
    console.print(_summary(infos, kind, len(failures), getattr(train, "passed_over", "")))
    plan = BatchPlan(
        train.infos, policy, fps=args.fps, seed=args.seed, order=lambda epoch: train.order(args.seed, epoch)
    )
    for table in _plan_tables(plan, args.sizes):
        console.print(table)
    if (refused := _refused(sources, policy, args.fps)) is not None:
        console.print(refused)
    _picture([info for some in infos.values() for info in some], plan, args.out)
    console.print(f"histograms: {args.out}")
    return 0


def _check_out(out: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    from lightning_sora.writing import check_file

    known = FigureCanvasBase.filetypes
    if out.suffix[1:].lower() not in known:
        raise SoraError(f"--out {out} must end as a kind of picture does: .{', .'.join(sorted(known))}")
    check_file("--out", out)


def _summary(infos: dict[str, Sequence[ClipInfo]], source: str, unreadable: int, passed_over: str) -> Any:
    from collections import Counter

    from rich.table import Table
    from rich.text import Text

    clips = list({info.id: info for some in infos.values() for info in some}.values())
    films = [info for info in clips if info.frames > 1]
    table = Table.grid(padding=(0, 2))
    table.add_row("read as", source)
    told = f", {unreadable} left out as unreadable or quarantined" if unreadable else ""
    table.add_row("clips", f"{len(films)} videos, {len(clips) - len(films)} images{told}")
    if passed_over:
        table.add_row("passed over", Text(passed_over))
    table.add_row("splits", ", ".join(f"{split} {len(some)}" for split, some in infos.items()))
    if films:
        seconds = sorted(info.frames / info.fps for info in films)
        table.add_row("duration", f"{_spread(seconds)} s, {sum(seconds) / 60:.1f} min in all")
        table.add_row("frames", _spread(sorted(float(info.frames) for info in films)))
        rates = Counter(f"{info.fps:.4g}" for info in films).most_common(4)
        table.add_row("rates", ", ".join(f"{rate} ({count})" for rate, count in rates))
    sizes = Counter(f"{info.width}x{info.height}" for info in clips).most_common(6)
    table.add_row("sizes", ", ".join(f"{size} ({count})" for size, count in sizes))
    texts = [text for info in clips for text in (info.caption, *info.alternatives) if text]
    if texts:
        words = sorted(float(len(text.split())) for text in texts)
        table.add_row("captions", f"{len(texts)}, of {_spread(words)} words")
    table.add_row("without caption", str(sum(not info.caption for info in clips)))
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}, median {values[len(values) // 2]:.4g}"


def _plan_tables(plan: BatchPlan, sizes: str) -> list[Any]:
    from collections import Counter

    from rich.table import Table

    patch, usage, batches = plan.policy.limits.patch, plan.usage, plan.epoch(0)
    use = sum(batch.tokens for batch in batches) / max(1, sum(batch.budget for batch in batches))
    longest = sum(len(batch.grids) * max(grid.tokens for grid in batch.grids) for batch in batches)
    shown = sum(grid.size(patch)[0] for batch in batches for grid in batch.grids)
    there = sum(
        min(plan.policy.limits.frames, plan.policy.limits.frames_of(plan.infos[i], plan.fps))
        for batch in batches
        for i in batch.clips
    )
    summary = Table.grid(padding=(0, 2))
    summary.add_row("size plan", sizes)
    summary.add_row("batches", f"{len(batches)} of up to {plan.policy.budget:,} tokens, {use:.1%} of which are used")
    summary.add_row("padding spared", f"{1 - sum(batch.tokens for batch in batches) / max(1, longest):.1%}")
    summary.add_row("frames lost", f"{1 - shown / max(1, there):.1%} of those that the recipe's length would show")
    drawn = Counter(grid for batch in batches for grid in batch.grids)  # by chance, where the plan keeps shares
    title = "sizes of train, first epoch"
    grids = Table("frames", "height", "width", "tokens", "clips", title=title, title_justify="left")
    for grid, count in sorted(drawn.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]:
        grids.add_row(*map(str, grid.size(patch)), str(grid.tokens), str(count))
    if len(drawn) > SHOWN:
        rest = sum(drawn.values()) - sum(count for _, count in drawn.most_common(SHOWN))
        grids.add_row("...", "", "", f"{len(drawn) - SHOWN} more", str(rest))
    if unkept := plan.unkept(0):
        summary.add_row("not kept", f"{unkept} clips of the first epoch, by the shares of the plan; others of the next")
    tables = [summary, grids]
    if usage.dropped:
        dropped = Table("left out", "clips", "such as", title=f"{usage.dropped_clips} of {usage.clips} left out")
        for reason, ids in usage.dropped.items():
            dropped.add_row(reason, str(len(ids)), ids[0])
        tables.append(dropped)
    return tables


def _refused(sources: dict[str, Source], policy: SizePolicy, fps: float | None) -> Any:
    """The clips that a training would leave out as it reads them, because their files are not what the source tells.

    Raises:
        SoraError: these are all of a split, which ends a training.
    """
    import os
    from concurrent.futures import ThreadPoolExecutor

    from rich.table import Table
    from rich.text import Text

    from lightning_sora.spacetime import Crop

    reasons: dict[str, str] = {}
    count = 0
    for split, source in sources.items():
        grids = {index: policy.grid(info, fps) for index, info in enumerate(source.infos)}
        patch = policy.limits.patch
        crops = {i: Crop(grid.size(patch), fps) for i, grid in grids.items() if not isinstance(grid, str)}
        looked = list(crops)[:: max(1, -(-len(crops) // LOOKED_AT))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = pool.map(source.refusal, looked, [crops[index] for index in looked])
            found = {
                source.infos[i].id: reason for i, reason in zip(looked, answers, strict=True) if reason is not None
            }
        if found and len(found) == len(crops):
            name, reason = next(iter(found.items()))
            raise SoraError(
                f"none of {len(found)} clips of split {split!r} can be read as planned, the first: {name}: {reason}"
            )
        reasons |= found
        count += len(looked)
    if not reasons:
        return None
    title = f"{len(reasons)} of {count} clips that were looked at cannot be read as planned"
    table = Table("clip", "reason", title=title, title_justify="left")
    for name, reason in list(reasons.items())[:SHOWN]:
        table.add_row(Text(name, overflow="fold"), Text(reason, overflow="fold"))
    return table


def _picture(infos: Sequence[ClipInfo], plan: BatchPlan, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from lightning_sora.writing import whole

    films = [info for info in infos if info.frames > 1]
    patch = plan.policy.limits.patch
    panels = [
        ("duration (s)", [info.frames / info.fps for info in films]),
        ("frames per second", [info.fps for info in films]),
        ("side (pixels), geometric mean", [(info.height * info.width) ** 0.5 for info in infos]),
        ("aspect (width / height)", [info.width / info.height for info in infos]),
        ("words per caption", [float(len(info.caption.split())) for info in infos if info.caption]),
        ("tokens per clip, as planned", [float(g.tokens) for g, n in plan.usage.grids.items() for _ in range(n)]),
    ]
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6), constrained_layout=True)
    for axis, (title, values) in zip(axes.flat, panels, strict=True):
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        if values:
            low, high = min(values), max(values)
            if all(float(value).is_integer() for value in values) and high - low < 40:
                bins: Any = [edge - 0.5 for edge in range(int(low), int(high) + 2)]
            else:
                bins = min(30, max(5, len(set(values))))
            counts, *_ = axis.hist(values, bins=bins, color="#3b6ea5")
            if max(counts) > 100 * min(count for count in counts if count):
                axis.set_yscale("log")  # a few clips beside thousands would not be seen
            axis.set_ylabel("clips", fontsize=8)
        else:
            axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
    figure.suptitle(f"{len(infos)} clips; patches of {patch.frames}x{patch.height}x{patch.width}", fontsize=11)
    with whole(out) as partial:
        figure.savefig(partial, dpi=110, format=out.suffix[1:].lower())
    pyplot.close(figure)
