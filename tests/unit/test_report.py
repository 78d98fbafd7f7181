"""The report: one file that needs nothing else, with every arm, verdict and number in it."""

import csv
import io
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lightning_sora import media
from lightning_sora.ablation.figures import curve, curves, pareto_front
from lightning_sora.ablation.report import recipe_differences, samples, summary, write_report
from lightning_sora.ablation.statistics import judge
from lightning_sora.ablation.study import Arm, Study, Trial
from lightning_sora.ablation.table import as_csv, as_table, costs, number

METRIC = "val/denoising_error"


def trial(arm: str, seed: int, value: float, **changes: object) -> Trial:
    steps = (10, 20)
    history = {METRIC: tuple((s, value * 20 / s) for s in steps)}
    history |= {f"cost/{c}": tuple((s, s * 1e6) for s in steps) for c in ("tokens", "flops", "seconds")}
    made = Trial(
        arm, seed, f"{arm}{seed}", "FINISHED",
        metrics={METRIC: value, "cost/flops": 2e7 * (1 + len(arm)), "cost/seconds": 3.0}, history=history,
        clip_scores={METRIC: {f"c{i}": value + 0.01 * i for i in range(4)}},
        params={"model.attention": arm, "model.dim": "96", "parameters_trained": "1200"},
        tags={"machine": "a machine", "git.commit": "abcdef0123456789"},
        protocol={"val": {"noise": "fixed per clip", "seed": seed}},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def study(values: dict[str, list[float]]) -> Study:
    arms = tuple(Arm(name, name, said="by steps") for name in values)
    trials = tuple(trial(arm, s, v) for arm, some in values.items() for s, v in enumerate(some))
    return Study("toy", "model.attention", next(iter(values)), METRIC, "min", "10 steps", arms, trials)


GOOD = {"full": [1.0, 1.1, 1.2], "time": [0.8, 0.91, 1.0], "window": [1.01, 1.09, 1.21]}


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(made: Study, folder: Path) -> Page:
    arms = [arm.name for arm in made.arms]
    verdicts = judge({arm: made.values(arm) for arm in arms}, made.baseline, made.mode)
    return Page(write_report(made, verdicts, folder))


def test_the_page_needs_nothing_else_and_names_every_arm(tmp_path: Path) -> None:
    page = page_of(study(GOOD), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    assert all(link.startswith(("data:", "#")) for link in page.links)
    for word in (*GOOD, "better", "inconclusive", "fixed per clip", "a machine", "abcdef012345"):
        assert word in page.text
    assert number(-0.1967, sign=True) in page.text
    assert page.tags.count("svg") >= 2 + 4 + 3  # intervals, curves over four axes, fronts over three costs


def test_the_summary_is_in_words() -> None:
    made = study(GOOD)
    verdicts = judge({arm: made.values(arm) for arm in GOOD}, "full", "min")
    assert summary(made, verdicts) == f"By {METRIC}, time is better than full; window remains inconclusive."


def test_what_users_wrote_is_escaped(tmp_path: Path) -> None:
    made = study(GOOD)
    evil = "<script>alert(1)</script>"
    made = replace(made, arms=(*made.arms[:-1], replace(made.arms[-1], value=evil)))
    text = write_report(made, judge({a: made.values(a) for a in GOOD}, "full", "min"), tmp_path).read_text()
    assert evil not in text
    assert "&lt;script&gt;" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"full": [1.0]},
        {"full": [1.0], "time": [0.9]},
        {"full": [1.0, 1.1], "time": [0.9, math.nan]},
        {"full": [1e-7, 2e-7], "time": [1e9, 2e9]},
        {f"arm{i}": [1.0 + i, 1.2 + i * 1.1] for i in range(12)},
        {"full": [1.0, 1.0], "time": [1.0, 1.0]},
    ],
)
def test_odd_studies_make_a_page(values: dict[str, list[float]], tmp_path: Path) -> None:
    page = page_of(study(values), tmp_path)
    assert all(arm in page.text for arm in values)


def test_without_costs_or_history_there_are_no_curves(tmp_path: Path) -> None:
    made = study(GOOD)
    bare = replace(made, trials=tuple(replace(t, history={}, metrics={METRIC: t.metrics[METRIC]}) for t in made.trials))
    page = page_of(bare, tmp_path)
    assert "Curves" not in page.text
    assert "better" in page.text


def test_failed_and_missing_trials_are_listed(tmp_path: Path) -> None:
    made = study(GOOD)
    failed = replace(made.trials[-1], status="FAILED", reason="out of memory")
    page = page_of(replace(made, trials=(*made.trials[:-1], failed), unmet=(("window", 7),)), tmp_path)
    assert "out of memory" in page.text
    assert "window/seed7" in page.text


def test_curves_join_metric_and_cost_by_step() -> None:
    made = trial("full", 0, 1.0)
    x, y = curve(made, METRIC, "flops")
    assert x.tolist() == [1e7, 2e7]
    assert y.tolist() == [2.0, 1.0]
    assert curve(made, METRIC, "steps")[0].tolist() == [10, 20]


def test_the_front_holds_what_nothing_beats() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 3.0), "c": (3.0, 4.0), "d": (2.0, 3.5), "e": (4.0, 1.0)}
    assert pareto_front(points, "min") == ["a", "b", "e"]
    assert pareto_front(points, "max") == ["a"]


def test_costs_curves_and_means_are_over_the_seeds_that_the_baseline_has() -> None:
    """A seed that only one side has may be dearer or better; no column may hold it while the difference does not."""
    made = study({"full": [1.0, 1.1], "time": [0.8, 0.91, 77.0]})
    dear = replace(made.trials[-1], metrics={**made.trials[-1].metrics, "cost/seconds": 1e6})
    made = replace(made, trials=(*made.trials[:-1], dear))
    assert [t.seed for t in made.compared("time")] == [0, 1]
    assert costs(made, "time")["seconds"] == 3.0
    without = replace(made, trials=made.trials[:-1])
    assert curves(made, "steps") == curves(without, "steps")
    verdicts = judge({a: made.values(a) for a in ("full", "time")}, "full", "min")
    _, row = csv.DictReader(io.StringIO(as_csv(made, verdicts)))
    assert float(row[METRIC]) - float(row["baseline_mean"]) == pytest.approx(float(row["difference"]))


def test_samples_are_of_a_seed_that_the_baseline_has(tmp_path: Path) -> None:
    trials = []
    for t in study({"full": [1.0, 1.1], "time": [0.8, 0.9], "window": [1.0, 1.0]}).trials:
        if (t.arm, t.seed) not in (("full", 0), ("window", 1)):
            media.write_mp4(
                tmp_path / t.run_id / "samples/test/00.mp4", torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 8.0
            )
            t = replace(t, artifacts=tmp_path / t.run_id)
        trials.append(t)
    found = samples(replace(study(GOOD), trials=tuple(trials)))
    assert [cell.arm for cell in found.rows[0][1]] == ["full", "time"]
    assert "there are no samples of window" in found.said


def test_samples_are_embedded_side_by_side_with_their_prompts(tmp_path: Path) -> None:
    made = study(GOOD)
    trials = []
    for t in made.trials:
        folder = tmp_path / t.run_id / "samples" / "step_000020"
        for index in range(2):
            media.write_mp4(folder / f"{index:02d}.mp4", torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 8.0)
        (folder / "samples.json").write_text('{"captions": ["a <b>red</b> cube", "ein grüner Würfel"]}')
        trials.append(replace(t, artifacts=tmp_path / t.run_id))
    found = samples(replace(made, trials=tuple(trials)))
    assert [prompt for prompt, _ in found.rows] == ["a <b>red</b> cube", "ein grüner Würfel"]
    assert [cell.arm for cell in found.rows[0][1]] == ["full", "time", "window"]
    page = page_of(replace(made, trials=tuple(trials)), tmp_path / "report")
    assert page.tags.count("video") == 6
    assert "b" not in page.tags


def test_recipes_differ_by_the_factor() -> None:
    assert recipe_differences(study(GOOD)) == {
        "time": {"model.attention": ("full", "time")},
        "window": {"model.attention": ("full", "window")},
    }


def test_the_table_fits_a_terminal_of_80_columns_with_every_interval_on_one_line() -> None:
    made = study(GOOD | {"tile": [1.31, 1.29, 1.41]})
    verdicts = judge({arm.name: made.values(arm.name) for arm in made.arms}, made.baseline, made.mode)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(as_table(made, verdicts))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for v in verdicts[1:]:
        assert v.interval is not None
        first, second = [line for line in lines if line.split()[:1] == [v.arm]]
        ends = f"[{number(v.interval.low, sign=True)}, {number(v.interval.high, sign=True)}]"
        assert f"{number(v.difference, sign=True)} {ends}" in first
        assert v.outcome in first
        assert str(number(v.detectable)) in second
