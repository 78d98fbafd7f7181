"""What a data set holds, and what a size plan would make of it, before a frame is trained on."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.data.collection import open_collection
from lightning_sora.data.plan import BatchPlan
from lightning_sora.data.records import SPLITS
from lightning_sora.data.sizes import SIZES, Limits, SizePolicy
from lightning_sora.data.sources import ClipInfo, Source, create_source
from lightning_sora.errors import SoraError
from lightning_sora.plugins import load_packages
from lightning_sora.shown import Shown
from lightning_sora.spacetime import Crop, PatchSize
from lightning_sora.writing import check_file, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.table import Table

SHOWN = 12  # grids, reasons
LOOKED_AT = 1024  # clips of which what a manifest tells is compared with the file, spread over each split


@dataclass(frozen=True)
class Inspected(Shown):
    """What a data set holds, and what a size plan would make of it.

    Attributes:
        source: what reads it, in words.
        infos: what is known of each clip, by split.
        absent: why a split is not there, by split.
        unreadable: how many clips are left out as unreadable or quarantined.
        passed_over: files of unknown kinds in words; empty if there are none.
        sizes: spec of the size policy.
        plan: of training; None where ``problem`` says why there is none.
        looked_at: of how many clips the files were compared with what the source tells.
        refused: why a clip cannot be read as planned, by its id.
        problem: why a training would end at once; empty if it would not.
    """

    source: str
    infos: Mapping[str, Sequence[ClipInfo]]
    absent: Mapping[str, str]
    unreadable: int
    passed_over: str
    sizes: str
    plan: BatchPlan | None
    looked_at: int
    refused: Mapping[str, str]
    problem: str

    def tables(self) -> Iterator[RenderableType]:
        from rich.text import Text

        for split, reason in self.absent.items():
            yield Text(f"{split}: {reason}")
        yield self._summary()
        if self.plan is not None:
            yield from _plan_tables(self.plan, self.sizes)
        if self.refused and not self.problem:
            yield self._refused()

    def _summary(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        clips = list({info.id: info for some in self.infos.values() for info in some}.values())
        films = [info for info in clips if info.frames > 1]
        table = Table.grid(padding=(0, 2))
        table.add_row("read as", self.source)
        told = f", {self.unreadable} left out as unreadable or quarantined" if self.unreadable else ""
        table.add_row("clips", f"{len(films)} videos, {len(clips) - len(films)} images{told}")
        if self.passed_over:
            table.add_row("passed over", Text(self.passed_over))
        table.add_row("splits", ", ".join(f"{split} {len(some)}" for split, some in self.infos.items()))
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

    def _refused(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        title = f"{len(self.refused)} of {self.looked_at} clips that were looked at cannot be read as planned"
        table = Table("clip", "reason", title=title, title_justify="left")
        for name, reason in list(self.refused.items())[:SHOWN]:
            table.add_row(Text(name, overflow="fold"), Text(reason, overflow="fold"))
        return table

    def figure(self) -> Figure:
        """Histograms of durations, rates, sizes, captions and tokens.

        Raises:
            SoraError: there is no plan; ``problem`` says why.
        """
        if self.plan is None:
            raise SoraError(self.problem)
        return _figure([info for some in self.infos.values() for info in some], self.plan)

    def save_figure(self, path: str | Path) -> Path:
        """Writes the histograms as a picture of the kind that ``path`` ends as."""
        out = Path(path)
        with whole(out) as partial:
            self.figure().savefig(partial, dpi=110, format=out.suffix[1:].lower())
        return out

    def _repr_html_(self) -> str:
        if self.plan is None:
            return super()._repr_html_()
        picture = io.BytesIO()
        self.figure().savefig(picture, dpi=80, format="png")
        shown = base64.b64encode(picture.getvalue()).decode()
        return f"{super()._repr_html_()}<img alt='histograms' src='data:image/png;base64,{shown}'>"


def inspect_data(
    path: str | Path | None = None,
    *,
    source: str | None = None,
    sizes: str = "bucketed",
    patch: Sequence[int] = (4, 16, 16),
    frames: int = 17,
    height: int = 64,
    width: int = 64,
    fps: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Inspected:
    """Counts what a data set holds, and what a size plan would use of it; nothing is decoded.

    Args:
        path: folder, manifest, tar, URL or cache of latents; None for a source that needs none.
        source: spec of the source; None for that which reads ``path``.
        sizes: spec of the size policy to try.
        patch: pixels per token: frames, height, width.
        frames, height, width: the size of the largest clips, in pixels.
        fps: frames per second to resample to; None for each clip's own.
        batch_size: clips of that size per batch.
        seed: of the source.

    Raises:
        SoraError: neither path nor source, no such data, or a size policy that cannot be.

    Example:
        >>> import lightning_sora as ls
        >>> found = ls.inspect_data(source="world(level='tiny', clips=64)", frames=9, height=32, width=32)
        >>> {split: len(infos) for split, infos in found.infos.items()}, found.problem
        ({'train': 64, 'val': 256, 'test': 256}, '')
    """
    load_packages("source")
    policy = SIZES.create(sizes, Limits(frames, height, width, PatchSize.of(patch), batch_size))
    spec, root = source_of(path, source, "inspect"), None if path is None else str(path)
    sources = {"train": create_source(spec, "train", seed, root)}
    absent = {}
    for split in SPLITS[1:]:
        try:
            sources[split] = create_source(spec, split, seed, root)
        except SoraError as reason:  # as of a cache that holds no test
            absent[split] = str(reason)
    train = sources["train"]
    plan, problem, looked, refused = None, "", 0, dict[str, str]()
    try:
        plan = BatchPlan(train.infos, policy, fps=fps, seed=seed, order=lambda epoch: train.order(seed, epoch))
        looked, refused, problem = _unreadable(sources, policy, fps)
    except SoraError as impossible:
        problem = str(impossible)
    return Inspected(
        source=f"{spec.partition('(')[0]} {getattr(train, 'style', '')}",
        infos={split: one.infos for split, one in sources.items()},
        absent=absent,
        unreadable=len(getattr(train, "failures", {})),
        passed_over=getattr(train, "passed_over", ""),
        sizes=sizes,
        plan=plan,
        looked_at=looked,
        refused=refused,
        problem=problem,
    )


def source_of(path: str | Path | None, source: str | None, purpose: str) -> str:
    """The spec of the source that reads a path, unless one is named.

    Raises:
        SoraError: neither is given, or nothing is there.
    """
    if source is None and path is None:
        raise SoraError(f"nothing to {purpose}; give PATH, or --source SPEC")
    return source or open_collection(str(path)).source


def check_picture(out: Path) -> None:
    """Refuses a path that no picture of histograms can be written to, before the work.

    Raises:
        SoraError: an ending of no kind of picture, or a place that cannot be written.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.filetypes
    if out.suffix[1:].lower() not in known:
        raise SoraError(f"--out {out} must end as a kind of picture does: .{', .'.join(sorted(known))}")
    check_file("--out", out)


def _spread(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}, median {values[len(values) // 2]:.4g}"


def _plan_tables(plan: BatchPlan, sizes: str) -> list[Table]:
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


def _unreadable(
    sources: Mapping[str, Source], policy: SizePolicy, fps: float | None
) -> tuple[int, dict[str, str], str]:
    """The clips that a training would leave out as it reads them, because their files are not what the source tells.

    Returns:
        how many were looked at; clip -> why it cannot be read; and, where these are all of a split, which ends a
        training, what that is told by.
    """
    reasons: dict[str, str] = {}
    count, patch = 0, policy.limits.patch
    for split, source in sources.items():
        grids = {index: policy.grid(info, fps) for index, info in enumerate(source.infos)}
        crops = {i: Crop(grid.size(patch), fps) for i, grid in grids.items() if not isinstance(grid, str)}
        looked = list(crops)[:: max(1, -(-len(crops) // LOOKED_AT))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = pool.map(source.refusal, looked, [crops[index] for index in looked])
            found = {
                source.infos[i].id: reason for i, reason in zip(looked, answers, strict=True) if reason is not None
            }
        reasons |= found
        count += len(looked)
        if found and len(found) == len(crops):
            name, reason = next(iter(found.items()))
            told = f"none of {len(found)} clips of split {split!r} can be read as planned, the first: {name}: {reason}"
            return count, reasons, told
    return count, reasons, ""


def _figure(infos: Sequence[ClipInfo], plan: BatchPlan) -> Figure:
    from matplotlib.figure import Figure

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
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3)
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
    return figure
