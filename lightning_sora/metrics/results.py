"""What an evaluation found: a score of each metric, with the protocol, for programs, terminals and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_sora.metrics.base import Score, VideoMetric
from lightning_sora.metrics.protocol import ProtocolCard
from lightning_sora.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS = {
    "value": "value",
    "unbiased": "without the bias of few clips",
    "interval": "  95 % interval",
    "stderr": "  standard error",
    "infinity": "extrapolated to endless clips",
    "small_sample_bias": "same-size floor: value if equal",
    "real_vs_real": "real against real, without bias",
    "real_vs_real_interval": "  95 % interval",
}


class Results(Shown, dict[str, Score]):
    """What an evaluation found, by metric.

    Attributes:
        card: the protocol: numbers of equal ``card.id`` compare.
        clips: scores of single clips, by metric and id, of those that this process saw.
        titles: what each metric is called in tables.
        higher_is_better: of each metric; None where neither is.
        left_out: metrics that could judge none of the clips, and why, of an evaluation that leaves out such.
        before: values of an earlier evaluation under the same protocol, to be set beside these.

    Example:
        >>> import torch, lightning_sora as ls
        >>> evaluation = ls.Evaluation(["temporal_flickering"])
        >>> still = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
        >>> _ = evaluation.update(["0"], generated=[still])
        >>> evaluation.compute().as_dict()
        {'temporal_flickering': {'value': 1.0, 'clips': 1}}
    """

    def __init__(
        self,
        scores: Mapping[str, Score],
        card: ProtocolCard,
        clips: Mapping[str, Mapping[str, float]],
        metrics: Mapping[str, VideoMetric],
    ) -> None:
        super().__init__(scores)
        self.card, self.clips = card, clips
        self.titles = {name: metrics[name].title for name in scores}
        self.higher_is_better = {name: metrics[name].higher_is_better for name in scores}
        self.left_out: Mapping[str, str] = {}
        self.before: Mapping[str, float] = {}
        self._sets = {name for name in scores if metrics[name].needs.real}

    def compares_sets(self, name: str) -> bool:
        """Whether a metric is a distance between sets of clips, rather than a mean over clips."""
        return name in self._sets

    def as_dict(self) -> dict[str, dict[str, float]]:
        """All figures as plain numbers."""
        return {name: score.as_dict() for name, score in self.items()}

    def record(self) -> dict[str, Any]:
        """All of it as plain values, as ``score --out`` writes it."""
        scores = {name: {"title": self.titles[name], **score.as_dict()} for name, score in self.items()}
        clips = {name: dict(values) for name, values in self.clips.items()}
        return {"protocol_id": self.card.id, "protocol": dict(self.card.fields), "scores": scores, "clips": clips}

    def tables(self) -> Iterable[RenderableType]:
        from rich.table import Column, Table
        from rich.text import Text

        for said, headings, rows in _parts(self):
            yield "\n".join(said)
            table = Table(*(Column(Text(heading)) for heading in headings))
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            yield table
        for name, before in self.before.items():
            value = self[name].value
            yield f"{self.titles[name]}: {value:.5g}, was {before:.5g} ({value - before:+.4g})"
        yield f"protocol {self.card.id}: scores of equal ids compare"
        grid = Table.grid(padding=(0, 2))
        for name, value in self.card.fields.items():
            grid.add_row(f"  {name}", Text(_told(value), overflow="fold"), style="dim")
        yield grid


def _parts(results: Results) -> list[tuple[list[str], list[str], list[list[str]]]]:
    """Of each table: what is said above it, its headings, its rows."""
    parts = []
    clips = results.card.fields["clips"]
    sets = {name: score for name, score in results.items() if results.compares_sets(name)}
    if sets:
        made = " and ".join(f"{clips[side]} {side}" for side in ("generated", "reconstructed") if side in clips)
        said = [f"distances of {made} from {clips['real']} real clips; less is closer"]
        cells = [_cells(score) for score in sets.values()]
        rows = [
            [told, *(one.get(row, "") for one in cells)] for row, told in ROWS.items() if any(row in c for c in cells)
        ]
        parts.append((said, ["", *(results.titles[name] for name in sets)], rows))
    means = {name: score for name, score in results.items() if name not in sets}
    if means:
        said = ["means over clips, ± standard error; ↑ more is better, ↓ less"]
        still = [results.titles[name] for name in ("temporal_flickering", "motion_smoothness") if name in means]
        said += [f"a clip that stands still has 1 in {' and '.join(still)}"] if still else []
        rows = []
        for name, score in means.items():
            figures = score.figures
            real = _with_error(figures["real"], figures.get("real_stderr")) if "real" in figures else ""
            chance = f"{figures['shuffled']:.4f}" if "shuffled" in figures else ""
            arrow = {True: " ↑", False: " ↓", None: ""}[results.higher_is_better.get(name)]
            rows.append(
                [results.titles[name] + arrow, _with_error(score.value, score.stderr), real, chance, str(score.clips)]
            )
        headings = ["", "value", "real", "chance", "clips"]
        kept = [i for i, heading in enumerate(headings) if i < 2 or any(row[i] for row in rows)]
        parts.append((said, [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]))
    return parts


def _cells(score: Score) -> dict[str, str]:
    values = score.as_dict()
    cells = {name: f"{values[name]:.4g}" for name in ROWS if name in values}
    if "low" in values:
        cells["interval"] = f"{values['low']:.4g} to {values['high']:.4g}"
    if "real_vs_real" in values:
        cells["real_vs_real_interval"] = f"{values['real_vs_real_low']:.4g} to {values['real_vs_real_high']:.4g}"
    return cells


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.2g}" if error is not None else "")


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_told(v)}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
