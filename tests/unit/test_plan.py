"""The plan of an ablation: what is refused, in one line, before anything is trained."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_sora as ls
from lightning_sora import directions
from lightning_sora.ablation.plan import Budget, read_budget, read_plan
from lightning_sora.cli import main
from lightning_sora.errors import SoraError

GOOD: dict[str, Any] = {
    "base": "base.yaml",
    "factor": "model.attention",
    "arms": {"full": "full", "time": "temporal"},
    "seeds": [0, 1],
    "budget": {"steps": 10},
}


def plan_file(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text("model: {}")
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


WAVINESS = """import lightning_sora as ls

@ls.register_metric("waviness")
class Waviness(ls.PerVideoMetric):
    higher_is_better = True
    def score(self, video):
        return 0.0
"""


def test_a_plan_is_read_with_its_defaults(tmp_path: Path) -> None:
    plan = read_plan(plan_file(tmp_path))
    assert (plan.name, plan.baseline, plan.seeds, plan.mode) == ("plan", "full", (0, 1), "min")
    assert plan.budget == Budget("steps", 10.0, "steps")
    assert not plan.tested
    assert read_plan(plan_file(tmp_path, metric="test/adherence", mode="max")).tested
    assert read_plan(plan_file(tmp_path, metric="test/adherence")).mode == "max"
    assert read_plan(plan_file(tmp_path, metric="test/mine", mode="max")).mode == "max"


def test_arms_may_be_listed(tmp_path: Path) -> None:
    assert read_plan(plan_file(tmp_path, arms=["full", "temporal"])).arms == {"full": "full", "temporal": "temporal"}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"arm": 1}, "did you mean arms"),
    "one arm": ({"arms": {"full": "full"}}, "at least two"),
    "equal arms": ({"arms": {"a": "full", "b": "full"}}, "same value"),
    "no seeds": ({"seeds": []}, "at least one"),
    "a seed twice": ({"seeds": [1, 1]}, "twice"),
    "negative seed": ({"seeds": [-1]}, "negative"),
    "two factors": ({"factor": ["model.attention", "model.dim"]}, "changes one thing"),
    "two factors in an arm": ({"arms": {"a": {"model.attention": "full", "model.dim": 8}, "b": "full"}}, "one factor"),
    "a factor that is no key": ({"factor": "attention"}, "dotted key"),
    "no factor": ({"factor": None}, "no `factor`"),
    "unknown baseline": ({"baseline": "none"}, "no arm"),
    "no such base": ({"base": "gone.yaml"}, "no recipe at base"),
    "unknown quantity": ({"budget": {"joules": 3}}, "unknown joules"),
    "two quantities": ({"budget": {"steps": 3, "tokens": 3}}, "2 quantities"),
    "impossible budget": ({"budget": {"steps": -3}}, "positive"),
    "half a step": ({"budget": {"steps": 2.5}}, "whole number"),
    "endless budget": ({"budget": {"flops": float("inf")}}, "positive"),
    "a budget of words": ({"budget": {"flops": "many"}}, "positive"),
    "steps met by width": ({"budget": {"steps": 10, "by": "width"}}, "cannot be met by width"),
    "params met by steps": ({"budget": {"params": 10, "by": "steps"}}, "cannot be met by steps"),
    "unknown means": ({"budget": {"flops": 10, "by": "hope"}}, "one of steps, width, depth"),
    "the factor overridden": ({"overrides": {"model.attention": "full"}}, "the factor"),
    "steps overridden": ({"overrides": {"trainer.max_steps": 3}}, "the budget"),
    "mode": ({"mode": "best"}, "min"),
    "a mode against the metric": ({"metric": "test/adherence", "mode": "min"}, "but more is"),
    "a metric of no known direction": ({"metric": "test/mine"}, "less or more of test/mine"),
    "validations": ({"validations": 0}, "at least 1"),
    "a name that is a path": ({"ablation": "a/b"}, "letters"),
    "a stage without a factor": ({"before": {"base": "base.yaml"}}, "needs base and factor"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_plan_gives_one_clear_error(mistake: str, tmp_path: Path) -> None:
    changes, said = MISTAKES[mistake]
    with pytest.raises(SoraError, match=said) as refusal:
        read_plan(plan_file(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    plan_file(tmp_path)
    with pytest.raises(SoraError, match=r"did you mean plan\.yaml"):
        read_plan(tmp_path / "plam.yaml")


def test_the_command_line_changes_budget_seeds_and_keys(tmp_path: Path) -> None:
    plan = read_plan(plan_file(tmp_path, budget={"flops": "1e9", "by": "width"}))
    assert plan.budget == Budget("flops", 1e9, "width")
    assert plan.changed({"flops": 5}, [3], {"model.dim": "8"}).budget == Budget("flops", 5.0, "width")
    changed = plan.changed({"steps": 5}, [3], {"model.dim": "8"})
    assert (changed.budget, changed.seeds, changed.overrides) == (
        Budget("steps", 5.0, "steps"),
        (3,),
        {"model.dim": "8"},
    )
    with pytest.raises(SoraError, match="the factor"):
        plan.changed({}, None, {"model.attention": "full"})


def test_an_amount_may_be_the_baselines() -> None:
    assert read_budget({"flops": "baseline"}) == Budget("flops", None, "steps")


def test_a_metric_of_ones_own_says_what_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(directions, "DIRECTIONS", dict(directions.DIRECTIONS))
    monkeypatch.chdir(tmp_path)
    plan = {"base": "nowhere.yaml", "factor": "model.dit.dim", "arms": [96, 192], "seeds": [0], "budget": {"steps": 1}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**plan, "metric": "test/waviness"}))
    with pytest.raises(SoraError, match=r"test/waviness is better is not known; .* by --plugins"):
        ls.ablate("plan.yaml")
    for name, ablate in (
        ("command.py", lambda: main(["ablate", "plan.yaml", "--plugins", "command.py"])),
        ("call.py", lambda: ls.ablate("plan.yaml", plugins=["call.py"])),
    ):
        directions.DIRECTIONS.pop("waviness", None)
        (tmp_path / name).write_text(WAVINESS)
        with ls.METRICS.temporary(), contextlib.suppress(SoraError):
            ablate()
        assert directions.direction("test/waviness") == "max"
    assert "nowhere.yaml" in capfd.readouterr().err
