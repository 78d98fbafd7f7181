"""An ablation as one HTML page that needs nothing else: verdicts, curves, costs, samples, protocols."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lightning_sora.ablation import figures
from lightning_sora.ablation.study import Study, Trial
from lightning_sora.ablation.table import costs, notes, number
from lightning_sora.ablation.verdict import Verdict
from lightning_sora.sealing import read_json, write_whole

#: Base64 of all videos together; more would make the page slow to open.
VIDEO_LIMIT = 12_000_000
PARETO = {"flops": "training FLOPs", "seconds": "seconds of training", "parameters": "trained parameters"}
TEMPLATES = "templates"


@dataclass(frozen=True)
class Sample:
    """One video of one arm."""

    arm: str
    source: str


@dataclass(frozen=True)
class Samples:
    """The same prompts and noise in every arm.

    Attributes:
        said: what they are, or why there are none.
        rows: (prompt, one sample per arm).
    """

    said: str
    rows: tuple[tuple[str, tuple[Sample, ...]], ...] = ()


def write_report(study: Study, verdicts: Sequence[Verdict], folder: Path) -> Path:
    """Writes ``index.html``.

    Args:
        folder: made where missing.

    Returns:
        the path of the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = environment.from_string(_template("report.html"))
    low, high = _range(verdicts)
    plots = {axis: figures.curves(study, axis) for axis in figures.AXES}
    fronts = {cost: figures.pareto(study, verdicts, cost, words) for cost, words in PARETO.items()}
    page = template.render(
        study=study,
        verdicts=verdicts,
        values={arm.name: arm for arm in study.arms},
        summary=summary(study, verdicts),
        facts=facts(study),
        notes=notes(study, verdicts),
        forests={v.arm: Markup(figures.forest(v, low, high)) for v in verdicts if v.outcome != "baseline"},
        curves={axis: Markup(svg) for axis, svg in plots.items() if svg is not None},
        axis_words={axis: words for axis, (_, words) in figures.AXES.items()},
        fronts={cost: Markup(svg) for cost, svg in fronts.items() if svg is not None},
        front_words=PARETO,
        costs={arm.name: costs(study, arm.name) for arm in study.arms},
        colors={arm: style[0] for arm, style in figures.styles(study).items()},
        samples=samples(study),
        cards=_cards(study),
        differences=recipe_differences(study),
        style=Markup(_template("report.css")),
        script=Markup(_template("report.js")),
    )
    path = folder / "index.html"
    write_whole(path, page.encode())
    return path


def summary(study: Study, verdicts: Sequence[Verdict]) -> str:
    """The verdicts in one sentence."""
    judged = [v for v in verdicts if v.outcome != "baseline"]
    named = {o: [v.arm for v in judged if v.outcome == o] for o in ("better", "worse", "inconclusive")}
    parts = []
    for outcome, words in (("better", "better than"), ("worse", "worse than")):
        if named[outcome]:
            verb = "is" if len(named[outcome]) == 1 else "are"
            parts.append(f"{_and(named[outcome])} {verb} {words} {study.baseline}")
    if named["inconclusive"]:
        verb = "remains" if len(named["inconclusive"]) == 1 else "remain"
        parts.append(f"{_and(named['inconclusive'])} {verb} inconclusive")
    return f"By {study.metric}, {'; '.join(parts)}." if parts else f"Only {study.baseline} has been run."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _range(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """The common scale of the intervals, around zero; wide intervals of a few arms are cut."""
    ends = [0.0]
    for v in verdicts:
        if v.outcome != "baseline" and math.isfinite(v.difference):
            ends.append(v.difference)
            if v.interval is not None:
                ends += [v.interval.low, v.interval.high]
    finite = [e for e in ends if math.isfinite(e)]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def facts(study: Study) -> dict[str, str]:
    finished = [t for t in study.trials if t.finished]
    seeds = sorted({t.seed for t in study.trials})

    def of(tag: str) -> str:
        return ", ".join(sorted({t.tags[tag] for t in finished if tag in t.tags})) or "not recorded"

    commit = of("git.commit")[:12] + (" with changes" if "true" in of("git.dirty") else "")
    return {
        "factor": study.factor,
        "baseline": study.baseline,
        "decided by": f"{study.metric} ({'less' if study.mode == 'min' else 'more'} is better)",
        "budget": study.budget,
        "seeds": ", ".join(map(str, seeds)) or "none",
        "trainings": f"{len(finished)} finished of {len(study.trials) + len(study.unmet)}",
        "data": of("data.fingerprint"),
        "code": f"{commit}; package {of('code.hash')}",
        "machine": of("machine"),
        "torch": of("torch"),
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def recipe_differences(study: Study) -> dict[str, dict[str, tuple[str, str]]]:
    """arm -> key -> (baseline's value, the arm's), of the first seed that both have."""
    found = {}
    for arm in study.arms:
        pair = _pair(study, arm.name)
        if arm.name == study.baseline or pair is None:
            continue
        ours, theirs = pair
        keys = sorted({*ours.params, *theirs.params})
        hidden = ("tracking.", "trainer.default_root_dir")
        found[arm.name] = {
            key: (theirs.params.get(key, "unset"), ours.params.get(key, "unset"))
            for key in keys
            if ours.params.get(key) != theirs.params.get(key) and not key.startswith(hidden)
        }
    return found


def _pair(study: Study, arm: str) -> tuple[Trial, Trial] | None:
    baseline = {t.seed: t for t in study.of(study.baseline) if t.finished}
    for trial in study.of(arm):
        if trial.finished and trial.seed in baseline:
            return trial, baseline[trial.seed]
    return None


def _cards(study: Study) -> dict[str, Mapping[str, object]]:
    for trial in study.of(study.baseline):
        if trial.finished and trial.protocol:
            return {split: trial.protocol[split] for split in sorted(trial.protocol)}
    return {}


def samples(study: Study) -> Samples:
    """The last samples of every arm, of the first seed that most arms have them of, the baseline before all."""
    folders: dict[int, dict[str, Path]] = {}
    for trial in study.trials:
        folder = _last_samples(trial)
        if trial.finished and folder is not None:
            folders.setdefault(trial.seed, {})[trial.arm] = folder
    if not folders:
        return Samples("No samples are on this machine: the base recipe makes none, or they are in another store.")
    seed = min(folders, key=lambda s: (study.baseline not in folders[s], -len(folders[s]), s))
    names = [arm.name for arm in study.arms if arm.name in folders[seed]]
    first = folders[seed][names[0]]
    listed = first / "samples.json"
    captions = (
        read_json(listed.read_bytes(), listed, "restore it from a copy, or delete it")["captions"]
        if listed.is_file()
        else []
    )
    rows, size, left_out = [], 0, 0
    for index in range(len(list(first.glob("[0-9]*.mp4")))):
        files = [folders[seed][arm] / f"{index:02d}.mp4" for arm in names]
        content = [base64.b64encode(file.read_bytes()).decode() if file.is_file() else "" for file in files]
        if size + sum(map(len, content)) > VIDEO_LIMIT:
            left_out += 1
            continue
        size += sum(map(len, content))
        cells = [Sample(arm, f"data:video/mp4;base64,{c}" if c else "") for arm, c in zip(names, content, strict=True)]
        rows.append((captions[index] if index < len(captions) else f"sample {index}", tuple(cells)))
    said = f"Seed {seed}, {first.name.replace('_', ' ')}: every arm starts from the same noise for the same prompt."
    absent = [arm.name for arm in study.arms if arm.name not in folders[seed]]
    if absent:
        said += f" Of this seed there are no samples of {_and(absent)}."
    if left_out:
        said += f" {left_out} further prompts are left out, to keep this page small."
    return Samples(said, tuple(rows))


def _last_samples(trial: Trial) -> Path | None:
    root = trial.artifacts / "samples" if trial.artifacts is not None else None
    if root is None or not root.is_dir():
        return None
    steps = sorted(p for p in root.iterdir() if p.is_dir() and any(p.glob("[0-9]*.mp4")))
    tested = [p for p in steps if p.name == "test"]
    found = tested or steps
    return found[-1] if found else None


def _template(name: str) -> str:
    return resources.files("lightning_sora.ablation").joinpath(TEMPLATES, name).read_text(encoding="utf-8")
