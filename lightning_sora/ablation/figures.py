"""Figures of a report, as SVG text: curves with bands, quality against cost, intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from lightning_sora.ablation.study import Study, Trial
from lightning_sora.ablation.table import costs
from lightning_sora.ablation.verdict import Verdict

#: Okabe and Ito's palette, distinct under every common kind of colour blindness; black comes first, for the baseline.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
DASHES = ("-", "--", ":")
#: Axes of the curves: the metric that holds it, and its words; None is the step itself.
AXES: dict[str, tuple[str | None, str]] = {
    "steps": (None, "optimizer steps"),
    "tokens": ("cost/tokens", "tokens trained on"),
    "flops": ("cost/flops", "training FLOPs"),
    "seconds": ("cost/seconds", "seconds of training"),
}
INK = "#444444"


def styles(study: Study) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each arm; the baseline is black."""
    names = [study.baseline, *(arm.name for arm in study.arms if arm.name != study.baseline)]
    return {n: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]) for i, n in enumerate(names)}


def curve(trial: Trial, metric: str, axis: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A metric over steps or over a cost, at the steps where both are known."""
    values = dict(trial.history.get(metric, ()))
    name, _ = AXES[axis]
    places = {step: float(step) for step in values} if name is None else dict(trial.history.get(name, ()))
    steps = sorted(values.keys() & places.keys())
    return np.array([places[s] for s in steps]), np.array([values[s] for s in steps])


def curves(study: Study, axis: str) -> str | None:
    """Means over the seeds that the baseline has too, with 95 % bands of Student's t; None if no arm has two points."""
    figure, axes = _canvas(8.4, 3.8)
    longest = 0
    for arm, (color, dashes) in styles(study).items():
        lines = [curve(t, study.metric, axis) for t in study.compared(arm)]
        lines = [line for line in lines if len(line[0])]
        if not lines:
            continue
        length = min(len(x) for x, _ in lines)
        x = np.mean([x[:length] for x, _ in lines], axis=0)
        y = np.stack([y[:length] for _, y in lines])
        axes.plot(x, y.mean(axis=0), color=color, linestyle=dashes, label=arm, marker="o", markersize=3, linewidth=1.6)
        if len(y) > 1:
            half = stats.t.ppf(0.975, len(y) - 1) * y.std(axis=0, ddof=1) / math.sqrt(len(y))
            axes.fill_between(x, y.mean(axis=0) - half, y.mean(axis=0) + half, color=color, alpha=0.12, linewidth=0)
        longest = max(longest, length)
    if longest < 2:
        return None
    shown = [t for arm in styles(study) for t in study.compared(arm)]
    _scale(axes, [v for t in shown for _, v in t.history.get(study.metric, ())])
    axes.set_xlabel(AXES[axis][1])
    axes.set_ylabel(study.metric)
    axes.legend(frameon=False, fontsize=8, ncols=2 if len(study.arms) > 5 else 1)
    return _svg(figure)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the values span more than a factor of five."""
    finite = [v for v in values if math.isfinite(v)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > 5:
        axes.set_yscale("log")


def pareto(study: Study, verdicts: Sequence[Verdict], cost: str, words: str) -> str | None:
    """Quality against a cost, with the arms that no other arm beats in both."""
    points = {v.arm: (costs(study, v.arm)[cost], v.mean) for v in verdicts}
    known = {arm: (float(x), y) for arm, (x, y) in points.items() if x is not None and math.isfinite(y)}
    if len(known) < 2:
        return None
    figure, axes = _canvas(6.4, 3.8)
    front = pareto_front(known, study.mode)
    ordered = sorted(known[arm] for arm in front)
    axes.plot([x for x, _ in ordered], [y for _, y in ordered], color=INK, linewidth=1, alpha=0.5, zorder=1)
    looks = styles(study)
    for arm, (x, y) in known.items():
        axes.scatter(x, y, color=looks[arm][0], s=36, zorder=2, marker="D" if arm == study.baseline else "o")
    _label(axes, known)
    axes.set_xlabel(words)
    axes.set_ylabel(study.metric)
    axes.margins(0.18)
    return _svg(figure)


def pareto_front(points: Mapping[str, tuple[float, float]], mode: str) -> list[str]:
    """The arms of which no other is as good for less, or better for as much; cost first, less of it is better."""
    sign = 1 if mode == "min" else -1

    def beaten(arm: str) -> bool:
        x, y = points[arm]
        return any(
            ox <= x and sign * oy <= sign * y and (ox < x or sign * oy < sign * y)
            for other, (ox, oy) in points.items()
            if other != arm
        )

    return [arm for arm in points if not beaten(arm)]


def _label(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside the points, moved up or down where they would cover each other."""
    ys = [y for _, y in points.values()]
    height = (max(ys) - min(ys)) or 1.0
    placed: list[tuple[float, float]] = []
    xs = [x for x, _ in points.values()]
    width = (max(xs) - min(xs)) or 1.0
    for arm, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        at = y
        while any(abs(at - other) < 0.075 * height and abs(x - place) < 0.45 * width for place, other in placed):
            at += 0.075 * height
        placed.append((x, at))
        axes.annotate(
            arm, (x, y), xytext=(x + 0.03 * width, at), fontsize=8, va="center", color=INK,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.3, "linewidth": 0.6},
        )  # fmt: skip


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightning-sora"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def forest(verdict: Verdict, low: float, high: float) -> str:
    """One arm's difference and interval on the common scale of a column, with zero and what could be detected."""
    width, height = 160, 26

    def at(value: float) -> float:
        return round(6 + (width - 12) * (min(max(value, low), high) - low) / ((high - low) or 1.0), 2)

    color = {"better": "#009E73", "worse": "#D55E00"}.get(verdict.outcome, "#7F7F7F")
    parts = [f'<svg class="forest" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" ']
    parts.append(f'aria-label="difference {verdict.difference:.3g}">')
    if verdict.detectable is not None and math.isfinite(verdict.detectable):
        x = at(-verdict.detectable)
        parts.append(
            f'<rect class="mde" x="{x}" y="3" width="{at(verdict.detectable) - x:.2f}" height="{height - 6}"/>'
        )
    parts.append(f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="{height}"/>')
    if verdict.interval is not None:
        x1, x2 = at(verdict.interval.low), at(verdict.interval.high)
        parts.append(f'<line x1="{x1}" x2="{x2}" y1="13" y2="13" stroke="{color}" stroke-width="2.5"/>')
    if math.isfinite(verdict.difference):
        parts.append(f'<circle cx="{at(verdict.difference)}" cy="13" r="4.5" fill="{color}"/>')
    return "".join(parts) + "</svg>"
