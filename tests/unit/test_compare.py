"""compare: reading a store in two ways, refusing what cannot be compared, tables that say what the runs say."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from lightning_sora.ablation import table
from lightning_sora.ablation.checks import refuse_incomparable, refuse_undeclared, undeclared_differences
from lightning_sora.ablation.judging import verdicts_of
from lightning_sora.ablation.reader import read_study
from lightning_sora.ablation.runs import ClientReader, SqliteReader, open_reader
from lightning_sora.ablation.study import Study
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.comparing import compare
from lightning_sora.sealing import seal_json
from lightning_sora.tracking import store

# A study of many runs is written for these.
pytestmark = pytest.mark.slow

METRIC = "val/denoising_error"
#: arm -> seed -> value; None is a trial that failed, a missing seed one that was not run.
VALUES: dict[str, dict[int, float | None]] = {
    "full": {0: 1.00, 1: 1.10, 2: 1.25},
    "time": {0: 0.80, 1: 0.91, 2: 1.04},
    "window": {0: 1.01, 1: 1.09, 2: None},
    "linear": {0: 1.30},
}


class Store:
    """An ablation written through mlflow's own client."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client: MlflowClient = store.connect(self.uri)
        self.experiment = store.experiment_id(self.client, self.uri, "ablation-toy")
        arms = [{"name": arm, "value": f"{arm}()", "adjusted": {}, "said": "by steps"} for arm in VALUES]
        trials = [{"arm": arm, "seed": s, "trial": f"{arm}{s}"} for arm in VALUES for s in range(3)]
        self.ablation = self.run("toy", {"ablation.role": "ablation", "ablation.name": "toy"})
        plan = {"name": "toy", "factor": "model.attention", "baseline": "full", "metric": METRIC, "mode": "min"}
        plan |= {"budget": {"quantity": "steps", "amount": 10.0, "matched_by": "steps"}, "arms": arms, "trials": trials}
        self.client.log_text(self.ablation, json.dumps(plan), "plan.json")
        self.runs = {(a, s): self.trial(a, s, v) for a, seeds in VALUES.items() for s, v in seeds.items()}
        # Run again after a failure: only the newer one counts.
        self.trial("full", 0, None)

    def run(self, name: str, tags: dict[str, str], status: str = "FINISHED") -> str:
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        self.client.update_run(run.info.run_id, status=status)
        return run.info.run_id

    def trial(self, arm: str, seed: int, value: float | None) -> str:
        tags = {"ablation.role": "seed", "ablation.id": self.ablation, "ablation.trial": f"{arm}{seed}"}
        tags |= {"data.fingerprint": "d", "val.data.fingerprint": "v", "code.hash": "c", "torch": "2"}
        if value is None:
            tags["ablation.reason"] = "it broke"
        run = self.run(f"{arm}-seed{seed}", tags, "FINISHED" if value is not None else "FAILED")
        params = {
            "model.attention": f"{arm}()",
            "model.dim": "96",
            "model.seed": str(seed),
            "seed_everything": str(seed),
        }
        metrics = []
        if value is not None:
            for step, factor in ((5, 2.0), (10, 1.0)):
                metrics += [Metric(METRIC, value * factor, 0, step), Metric("cost/flops", 1e9 * step, 0, step)]
            scores = {METRIC: {f"clip{i}": value + 0.1 * i for i in (-1, 0, 1)}}
            self.client.log_text(run, json.dumps({"step": 10, "scores": scores}), "clips/val.json")
            self.client.log_text(run, json.dumps({"split": "val", "seed": seed, "noise": "fixed"}), "protocol/val.json")
        self.client.log_batch(run, metrics, [Param(k, v) for k, v in params.items()], [RunTag("x", "y")])
        return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def study(kept: Store) -> Study:
    return read_study(kept.uri, ["toy"])


def test_a_sqlite_store_is_read_directly_and_both_ways_agree(kept: Store) -> None:
    direct, api = open_reader(kept.uri), ClientReader(kept.uri)
    assert isinstance(direct, SqliteReader)
    assert read_study(kept.uri, ["toy"], reader=direct) == read_study(kept.uri, ["toy"], reader=api)
    ids = list(kept.runs.values())[:2]
    assert direct.full(ids) == api.full(ids)


def test_scores_of_clips_that_are_damaged_are_refused(kept: Store) -> None:
    run = kept.run("damaged", {})
    text = seal_json({"step": 10, "scores": {METRIC: {"clip0": 1.25}}}).decode()
    kept.client.log_text(run, text, "clips/val.json")
    kept.client.log_text(run, text.replace("1.25", "1.35"), "clips/test.json")
    for reader in (open_reader(kept.uri), ClientReader(kept.uri)):
        (found,) = reader.full([run])
        assert reader.json(found, "clips/val.json") == {"step": 10, "scores": {METRIC: {"clip0": 1.25}}}
        with pytest.raises(SoraError, match=rf"clips/test.json of run {run} is damaged"):
            reader.json(found, "clips/test.json")


def test_a_study_holds_finished_failed_and_missing_trials(study: Study) -> None:
    assert study.values("full") == {0: 1.00, 1: 1.10, 2: 1.25}
    assert study.values("window") == {0: 1.01, 1: 1.09}
    failed = [t for t in study.trials if not t.finished]
    assert [(t.arm, t.seed, t.reason) for t in failed] == [("window", 2, "it broke")]
    assert set(study.unmet) == {("linear", 1), ("linear", 2)}
    trial = study.of("time")[0]
    assert trial.history[METRIC] == ((5, 1.6), (10, 0.8))
    assert trial.clip_scores[METRIC]["clip1"] == pytest.approx(0.9)


def test_the_newest_ablation_is_the_default(kept: Store) -> None:
    assert read_study(kept.uri).name == "toy"
    assert read_study(kept.uri, [kept.ablation]).name == "toy"


def test_plain_runs_are_arms_by_what_differs(kept: Store) -> None:
    ids = [kept.runs[a, s] for a in ("full", "time") for s in (0, 1)]
    found = read_study(kept.uri, ids)
    assert (found.factor, found.baseline, found.metric) == ("model.attention", "full()", METRIC)
    assert found.values("time()") == {0: 0.80, 1: 0.91}
    assert read_study(kept.uri, ["time-seed0", "linear-seed0"]).baseline == "time()"


def test_plain_runs_that_differ_in_two_things_are_refused(kept: Store) -> None:
    other = kept.trial("other", 0, 1.0)
    kept.client.delete_run(other)
    wide = kept.run("wide", {})
    kept.client.log_batch(wide, [Metric(METRIC, 1.0, 0, 1)], [Param("model.attention", "x"), Param("model.dim", "8")])
    with pytest.raises(SoraError, match="differ in 2 things"):
        read_study(kept.uri, [kept.runs["full", 0], wide])
    with pytest.raises(SoraError, match="nothing but their seeds"):
        read_study(kept.uri, [kept.runs["full", 0], kept.runs["full", 1]])


@pytest.mark.parametrize(
    ("what", "said"), [(["tooy"], "did you mean toy"), (["full-seed1"], "is one run"), (["a", "b"], "no run 'a'")]
)
def test_unknown_names_are_refused(kept: Store, what: list[str], said: str) -> None:
    with pytest.raises(SoraError, match=said):
        read_study(kept.uri, what)


def changed(study: Study, **changes: Any) -> Study:
    """The study with the first trial of the arm `time` changed."""
    trials = [replace(t, **changes) if (t.arm, t.seed) == ("time", 0) else t for t in study.trials]
    return replace(study, trials=tuple(trials))


def test_a_study_is_judged_by_its_own_metric(study: Study) -> None:
    with pytest.raises(SoraError, match="give its name to have others read"):
        compare(study, metric="val/loss")


def test_arms_that_differ_in_the_factor_alone_are_compared(study: Study) -> None:
    assert undeclared_differences(study) == []


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("params", "model.dim", "128"),
        ("params", "data.source", "other"),
        ("tags", "data.fingerprint", "e"),
        ("tags", "val.data.fingerprint", "e"),
        ("tags", "code.hash", "edited"),
        ("tags", "torch", "3"),
    ],
)
def test_an_undeclared_change_is_refused_and_named(study: Study, kind: str, key: str, value: str) -> None:
    trial = study.of("time")[0]
    other = changed(study, **{kind: {**getattr(trial, kind), key: value}})
    with pytest.raises(SoraError, match=f"{key} of arm 'time' is {value}"):
        refuse_undeclared(other)


def test_another_protocol_is_refused_unless_the_factor_explains_it(study: Study) -> None:
    other = changed(study, protocol={"val": {"split": "val", "seed": 0, "noise": "fixed", "sampler": "heun"}})
    with pytest.raises(SoraError, match="protocol of val sampler"):
        refuse_undeclared(other)
    judged = {"split": "val", "seed": 0, "noise": "fixed", "extractor": {"name": "i3d", "weights": "sha256:00"}}
    with pytest.raises(SoraError, match=r"protocol of val extractor\.weights of arm 'time' is sha256:00"):
        refuse_undeclared(changed(study, protocol={"val": judged}))
    retold = {**study.of("time")[0].tags, "data.fingerprint": "e"}
    taught = replace(changed(study, tags=retold), factor="data.source")
    params = tuple(replace(t, params={}) for t in taught.trials)
    refuse_undeclared(replace(taught, trials=params))
    judged_by_others = replace(changed(study, tags={**retold, "val.data.fingerprint": "e"}), factor="data.source")
    with pytest.raises(SoraError, match=r"tag val\.data\.fingerprint"):
        refuse_undeclared(
            replace(judged_by_others, trials=tuple(replace(t, params={}) for t in judged_by_others.trials))
        )
    refuse_undeclared(replace(other, factor="model.sampler", trials=tuple(replace(t, params={}) for t in other.trials)))


def test_what_the_solver_set_is_declared(study: Study) -> None:
    trial = study.of("time")[0]
    wider = changed(study, params={**trial.params, "model.mlp_ratio": "3.1"})
    assert undeclared_differences(wider)
    arms = tuple(replace(a, adjusted={"model.mlp_ratio": "3.1"}) if a.name == "time" else a for a in wider.arms)
    assert undeclared_differences(replace(wider, arms=arms)) == []


def test_a_metric_in_units_of_the_factor_is_refused() -> None:
    refuse_incomparable("val/loss", "model.attention")
    refuse_incomparable("val/denoising_error", "model.objective")
    for metric, factor in (("val/loss", "model.objective"), ("val/loss_t1", "model.weighting")):
        with pytest.raises(SoraError, match="val/denoising_error"):
            refuse_incomparable(metric, factor)
    with pytest.raises(SoraError, match="test/adherence"):
        refuse_incomparable("val/denoising_error_t0", "model.vae")


def test_verdicts_of_a_study(study: Study) -> None:
    verdicts = {v.arm: v for v in verdicts_of(study)}
    assert list(verdicts) == ["full", "time", "window", "linear"]
    assert verdicts["time"].outcome == "better"
    assert verdicts["time"].difference == pytest.approx(-0.2)
    assert verdicts["linear"].scope == "within seed"


def test_runs_of_an_ablation_are_judged_as_the_ablation_is(kept: Store, study: Study) -> None:
    finished = [t.run_id for t in study.trials if t.finished]
    baseline_first = sorted(finished, key=lambda run: run not in {t.run_id for t in study.of("full")})
    plain = {v.arm: v for v in verdicts_of(read_study(kept.uri, baseline_first))}
    for verdict in verdicts_of(study):
        assert replace(plain[f"{verdict.arm}()"], arm=verdict.arm) == verdict


def test_a_stored_plan_of_the_wrong_direction_is_judged_by_the_metrics_own(kept: Store) -> None:
    """As ablations without a mode were once written: less of everything was better."""
    old = kept.run("old", {"ablation.role": "ablation", "ablation.name": "old"})
    plan: dict[str, Any] = {
        "name": "old",
        "factor": "model.attention",
        "baseline": "full",
        "metric": "test/adherence",
        "mode": "min",
    }
    plan |= {"budget": {"quantity": "steps", "amount": 10.0, "matched_by": "steps"}}
    plan |= {"arms": [{"name": "full", "value": "full()", "adjusted": {}}], "trials": []}
    kept.client.log_text(old, json.dumps(plan), "plan.json")
    assert read_study(kept.uri, ["old"]).mode == "max"
    kept.client.delete_run(old)


def test_a_notebook_gets_verdicts_that_show_themselves(kept: Store, study: Study, tmp_path: Path) -> None:
    found = compare("toy", uri=kept.uri)
    assert list(found) == verdicts_of(study)
    assert found.of("time").outcome == "better"
    assert list(compare(study)) == list(found)
    assert "time" in str(found)
    assert str(found).count("\n") > len(found)
    assert "<pre" in found._repr_html_()
    assert "seed 1" in str(found.study)
    assert not found.study.complete
    assert compare(study).report(tmp_path / "page").read_text().startswith("<!doctype html>")
    with pytest.raises(SoraError, match="between 0 and 1"):
        compare(study, level=95)


def test_tables_for_machines_are_complete(study: Study) -> None:
    verdicts = verdicts_of(study)
    rows = list(csv.DictReader(io.StringIO(table.as_csv(study, verdicts))))
    assert [r["arm"] for r in rows] == ["full", "time", "window", "linear"]
    assert float(rows[1]["difference"]) == verdicts[1].difference
    content = json.loads(table.as_json(study, verdicts))
    assert content["arms"][1]["interval_low"] == verdicts[1].interval.low  # type: ignore[union-attr]
    assert content["missing"] == [["linear", 1], ["linear", 2]]
    markdown = table.as_markdown(study, verdicts)
    assert "| time | `time()` |" in markdown
    assert "window, seed 2: FAILED, it broke" in markdown
    arms = tuple(replace(arm, value=f"{arm.value}\n| x") for arm in study.arms)
    odd = table.as_markdown(replace(study, arms=arms), verdicts)
    assert "| time | `time() \\| x` |" in odd


def test_a_mode_is_the_metrics_own_or_asked_for(kept: Store) -> None:
    runs = [kept.trial(f"own{i}", 0, 1.0 + i) for i in range(2)]
    for run in runs:
        kept.client.log_batch(run, [Metric("test/adherence", 0.5, 0, 1), Metric("val/mine", 1.0, 0, 1)], [])
    assert read_study(kept.uri, runs).mode == "max"
    assert read_study(kept.uri, runs, metric=METRIC).mode == "min"
    assert read_study(kept.uri, runs, metric="val/mine", mode="max").mode == "max"
    with pytest.raises(SoraError, match="whether less or more of val/mine"):
        read_study(kept.uri, runs, metric="val/mine")
    with pytest.raises(SoraError, match="but more is"):
        read_study(kept.uri, runs, mode="min")
    for run in runs:
        kept.client.delete_run(run)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--baseline", "fulll"], "is no arm"),
        (["--metric", "val/denoising"], "did you mean val/denoising_error"),
        (["--level", "1.5"], "between 0 and 1"),
        (["--open", "--no-report"], "drop one"),
    ],
)
def test_mistakes_are_told_in_one_line(
    kept: Store, arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "toy", "--uri", kept.uri, *arguments]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_empty_place_says_what_to_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 2
    assert "lightning-sora ablate" in capfd.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()
