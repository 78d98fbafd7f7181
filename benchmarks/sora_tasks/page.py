"""The page of a run: one table of all tasks, what each asks, and what falls short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import markdown_table
from benchmarks.sora_tasks.intervals import way

WEAK = 0.9  # a ceiling of a share below which the judge is called weak


def number(value: float, unit: str) -> str:
    """A number as its unit is told."""
    if unit in ("%", "points"):
        return f"{100 * value:.0f}"
    return f"{value:.1f}"


def cell(told: Mapping[str, Any] | None, unit: str) -> str:
    """A mean, with its interval."""
    if told is None:
        return "–"
    mean, low, high = (number(told[name], unit) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


HEAD = ("group", "measure", "score", "ceiling", "floor", "of the way", "clips")


def table(result: Mapping[str, Any]) -> str:
    """The lines of one task."""
    return markdown_table(HEAD, rows_of(result["lines"]))


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """The headlines of all tasks."""
    rows = []
    for result in results:
        some = [line for line in result["lines"] if line["measure"] in result["headline"]]
        rows += [[result["name"], *row] for row in rows_of(some)]
    return markdown_table(["task", *HEAD], rows)


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """Rows of a table."""
    rows: list[list[object]] = []
    for line in lines:
        unit, told = line["unit"], {name: line[name] for name in ("score", "ceiling", "floor")}
        arrow = {"max": " ↑", "min": " ↓", "": ""}[line["better"]]
        part = "–"
        if line["better"] and all(told.values()):
            share = way(*(told[name]["mean"] for name in ("score", "ceiling", "floor")))
            part = "–" if math.isnan(share) or blind(line) else f"{100 * share:.0f} %"
        clips = told["score"]["clips"] if told["score"] else 0
        what = f"{line['measure']}, {unit}{arrow}"
        rows.append([line["group"] or "all", what, cell(told["score"], unit), cell(told["ceiling"], unit),
                     cell(told["floor"], unit), part, clips])  # fmt: skip
    return rows


def blind(line: Mapping[str, Any]) -> bool:
    """Whether the judge does not tell the ceiling from the floor: their intervals meet."""
    ceiling, floor = line["ceiling"], line["floor"]
    if not line["better"] or ceiling is None or floor is None:
        return False
    return bool(ceiling["low"] <= floor["high"]) if line["better"] == "max" else bool(floor["low"] <= ceiling["high"])


def shortcomings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a figure says little."""
    weak, unseparated, untrained = [], [], []
    for result in results:
        for line in result["lines"]:
            name = f"{result['name']}{' ' + line['group'] if line['group'] else ''}: {line['measure']}"
            ceiling = line["ceiling"]
            if line["unit"] == "%" and line["better"] and ceiling is not None and ceiling["mean"] < WEAK:
                weak.append(f"{name} ({number(ceiling['mean'], '%')} %)")
            if blind(line):
                unseparated.append(name)
        if not result["trained"]:
            untrained.append(result["name"])
    told = []
    if weak:
        told.append(
            f"True clips through the VAE are judged to less than {100 * WEAK:.0f} %, so that the score is the "
            f"judge's and the VAE's as well: {'; '.join(weak)}."
        )
    if unseparated:
        told.append(f"Ceiling and floor have intervals that meet, so that nothing is told: {'; '.join(unseparated)}.")
    if untrained:
        told.append(f"The model was not trained on what these ask of it: {', '.join(untrained)}.")
    return told


def sections(results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[str]:
    """The page's paragraphs."""
    head = "; ".join(f"{name}: {value}" for name, value in facts.items())
    told = [
        f"{head}.",
        "**Score**: what the model made. **Ceiling**: the true clips through the model's VAE, judged in the same way. "
        "**Floor**: the control, what a model that ignores what it is given would get. In brackets 95 % intervals by a "
        "bootstrap over clips (all or none of n, and no difference in any: Clopper and Pearson). **Of the way**: "
        "(score − floor) / (ceiling − floor), where the intervals of both do not meet. Arrows point to the better. A "
        "contact sheet of each task lies beside the results (given, made, truth).",
    ]
    told += ["## All tasks", summary(results)]
    for result in results:
        told += [
            f"## {result['name']}",
            f"{result['asks']} `{result['spec']}`, {result['clips']} clips, {result['seconds']:.0f} s "
            f"(sampling {result['sampling_seconds']:.0f} s). Control: {result['control']}.",
            table(result),
        ]
    short = shortcomings(results)
    return [*told, *(["## What falls short", "\n".join(f"- {line}" for line in short)] if short else [])]
