"""A study as a table: in the terminal, for machines, for papers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_sora.ablation.study import Study
from lightning_sora.ablation.verdict import Interval, Verdict

#: Costs by their column, and the metric or parameter that holds them.
COSTS = {
    "parameters": "parameters_trained",
    "flops": "cost/flops",
    "tokens_per_s": "speed/tokens_per_s",
    "peak_memory_gib": "system/peak_memory_gib",
    "seconds": "cost/seconds",
}
COLORS = {"better": "bold green", "worse": "bold red", "inconclusive": "yellow", "baseline": "dim"}


def costs(study: Study, arm: str) -> dict[str, float | None]:
    """The mean cost of an arm's trials that are compared to the baseline, by column of :data:`COSTS`."""
    found: dict[str, float | None] = {}
    for column, name in COSTS.items():
        values = []
        for trial in study.compared(arm):
            value = trial.metrics.get(name, trial.params.get(name))
            if value is not None:
                values.append(float(value))
        found[column] = fmean(values) if values else None
    return found


def rows(study: Study, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """One flat row per arm, in full precision."""
    values = {arm.name: arm.value for arm in study.arms}
    found = []
    for v in verdicts:
        found.append(
            {
                "arm": v.arm,
                study.factor: values.get(v.arm, ""),
                study.metric: v.mean,
                "baseline_mean": v.baseline_mean,
                "difference": v.difference,
                **_flat("interval", v.interval),
                **_flat("clip_interval", v.clip_interval),
                "p_value": v.p_value,
                "adjusted_p": v.adjusted_p,
                "detectable": v.detectable,
                "verdict": v.outcome,
                "scope": v.scope,
                "seeds": v.seeds,
                **costs(study, v.arm),
                "note": v.note,
            }
        )
    return found


def _flat(name: str, interval: Interval | None) -> dict[str, Any]:
    parts = ("low", "high", "level")
    return {f"{name}_{part}": None if interval is None else getattr(interval, part) for part in parts}


def as_csv(study: Study, verdicts: Sequence[Verdict]) -> str:
    """Comma-separated values with a header."""
    table = rows(study, verdicts)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def as_json(study: Study, verdicts: Sequence[Verdict]) -> str:
    """One object: what was compared, the rows, every trial's value, and what is missing."""
    content = {
        "name": study.name,
        "factor": study.factor,
        "baseline": study.baseline,
        "metric": study.metric,
        "mode": study.mode,
        "budget": study.budget,
        "arms": rows(study, verdicts),
        "trials": [
            {"arm": t.arm, "seed": t.seed, "run_id": t.run_id, "status": t.status, "value": t.metrics.get(study.metric)}
            for t in study.trials
        ],
        "missing": [list(pair) for pair in study.unmet],
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(study: Study, verdicts: Sequence[Verdict]) -> str:
    """A table for a paper or a README, with what a reader must know beneath."""
    header = ("arm", f"`{study.factor}`", *_headings(study, verdicts))
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for arm, v in _paired(study, verdicts):
        cells = (v.arm, f"`{arm}`", *_cells(study, v, levels=len(_levels(verdicts)) > 1))
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n\n" + "".join(f"- {note}\n" for note in notes(study, verdicts))


#: Columns of the terminal's first table; the others stand in a second one beneath, so that both fit.
FIRST = ("difference", "verdict", "seeds")


def as_table(study: Study, verdicts: Sequence[Verdict]) -> RenderableType:
    """For a terminal of 80 columns: who is better and by how much, then certainty and cost, then notes."""
    better = "less" if study.mode == "min" else "more"
    title = Text(f"{study.name}: {study.factor}, by {study.metric} ({better} is better)")
    heads = ["mean", *_headings(study, verdicts)[1:]]  # of what the title names
    first = [0, *(i for i, head in enumerate(heads) if head.startswith(FIRST))]
    tables = [
        Table("arm", *(heads[i] for i in shown), title=title if shown is first else None, box=box.SIMPLE_HEAD,
              title_justify="left", pad_edge=False)
        for shown in (first, [i for i in range(len(heads)) if i not in first])
    ]  # fmt: skip
    for _, v in _paired(study, verdicts):
        cells = _cells(study, v, levels=len(_levels(verdicts)) > 1)
        styled = [Text(cell, style=COLORS[v.outcome] if cell == v.outcome else "") for cell in cells]
        tables[0].add_row(Text(v.arm), *(styled[i] for i in first))
        tables[1].add_row(Text(v.arm), *(cell for i, cell in enumerate(styled) if i not in first))
    return Group(*tables, Text("\n".join(notes(study, verdicts)), style="italic"))


def _paired(study: Study, verdicts: Sequence[Verdict]) -> list[tuple[str, Verdict]]:
    values = {arm.name: arm.value for arm in study.arms}
    return [(values.get(v.arm, ""), v) for v in verdicts]


def _headings(study: Study, verdicts: Sequence[Verdict]) -> list[str]:
    levels = _levels(verdicts) or {"95%"}
    short = study.metric.split("/")[-1]
    told = " ".join(levels) if len(levels) == 1 else "at the level said"
    return [
        short, f"difference [{told}]", "adjusted p", "detectable", "verdict", "seeds", "params", "FLOPs",
        "tokens/s", "GiB", "s",
    ]  # fmt: skip


def _levels(verdicts: Sequence[Verdict]) -> set[str]:
    """Holm's procedure widens the intervals of some arms more than of others."""
    return {f"{v.interval.level:.0%}" for v in verdicts if v.interval is not None}


def _cells(study: Study, v: Verdict, *, levels: bool = False) -> list[str]:
    spent = costs(study, v.arm)
    difference = "–"
    if v.outcome != "baseline":
        difference = number(v.difference, sign=True)
        if v.interval is not None:
            difference += f" [{number(v.interval.low, sign=True)}, {number(v.interval.high, sign=True)}]"
            difference += f" {v.interval.level:.0%}" if levels else ""
    return [
        number(v.mean), difference, number(v.adjusted_p), number(v.detectable), v.outcome, str(v.seeds),
        number(spent["parameters"], large=True), number(spent["flops"], large=True),
        number(spent["tokens_per_s"], large=True), number(spent["peak_memory_gib"]), number(spent["seconds"]),
    ]  # fmt: skip


def number(value: float | None, sign: bool = False, large: bool = False) -> str:
    """Three significant digits, and a dash for nothing."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if large:
        for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}"
    return f"{value:+.3g}" if sign else f"{value:.4g}"


def notes(study: Study, verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader must know beneath the table."""
    found = [f"budget: {study.budget}; differences are arm minus {study.baseline}, paired by seed"]
    if any(v.scope == "over seeds" for v in verdicts):
        found.append(
            "intervals are of Student's t over seeds, widened for the number of arms (Holm); detectable is the true "
            "difference found 4 times in 5"
        )
    found += [f"{v.arm}: {v.note}" for v in verdicts if v.note]
    for trial in study.trials:
        if not trial.finished:
            found.append(f"{trial.arm}, seed {trial.seed}: {trial.status}{f', {trial.reason}' if trial.reason else ''}")
    if study.unmet:
        found.append("not run yet: " + ", ".join(f"{arm}/seed{seed}" for arm, seed in study.unmet))
    return found
