"""An ablation in mlflow: one run for the ablation, one per arm, and under those the runs of the seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_sora.ablation import study
from lightning_sora.ablation.plan import Plan
from lightning_sora.errors import SoraError, some
from lightning_sora.redaction import redact, redacted
from lightning_sora.sealing import read_json, seal_json
from lightning_sora.tracking import store

if TYPE_CHECKING:
    from lightning_sora.tracking.store import MlflowClient, Run

PLAN_FILE = "plan.json"
REASON = "ablation.reason"
SHOWN_DIFFERENCES = 8


@dataclass(frozen=True)
class PlannedArm:
    """One arm, set to the budget.

    Attributes:
        value: of the factor, as in the recipe.
        adjusted: what was set to meet the budget, by dotted key.
        said: the same in words.
    """

    name: str
    value: str
    steps: int
    adjusted: Mapping[str, Any]
    said: str


@dataclass(frozen=True)
class PlannedTrial:
    """One training to be done.

    Attributes:
        identity: hash of all that makes its result: recipe, code, seed.
    """

    arm: str
    seed: int
    identity: str


@dataclass(frozen=True)
class Design:
    """What must not change between two sittings of one ablation, by name.

    Attributes:
        plan: factor, metric, budget and the like.
        recipe: the baseline's resolved recipe with seed 0, by dotted key.
        data: fingerprints by split.
        code: hash by file of the package and of plugins.
    """

    plan: Mapping[str, str]
    recipe: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)

    def differences(self, other: Design) -> list[str]:
        """What ``other`` has changed, in words."""
        found = []
        for kind in ("plan", "recipe", "data", "code"):
            before, after = getattr(self, kind), getattr(other, kind)
            for key in sorted({*before, *after}):
                if before.get(key) != after.get(key):
                    values = "" if kind == "code" else f" was {before.get(key, 'unset')}, now {after.get(key, 'unset')}"
                    found.append(f"{kind} {key}{values}")
        return found


class AblationRecord:
    """Finds or begins the runs of one ablation.

    Args:
        uri: of the store, resolved.
        plan: what is run.
        design: what may not have changed since an earlier sitting.

    Raises:
        SoraError: an earlier sitting of this name had another design.
    """

    def __init__(self, uri: str, plan: Plan, design: Design) -> None:
        self.client: MlflowClient = store.connect(uri)
        self.uri, self.plan = uri, plan
        self.experiment = f"ablation-{plan.name}"
        self._experiment_id = store.experiment_id(self.client, uri, self.experiment)
        earlier = self._runs(f"tags.`{study.ROLE}` = 'ablation'")
        self.resumed = bool(earlier)
        if earlier:
            self._refuse_changes(earlier[0], design)
        run = earlier[0] if earlier else self._create(plan.name, {study.ROLE: "ablation", study.NAME: plan.name})
        self.run_id: str = run.info.run_id
        self.design = design
        self.arm_runs: dict[str, str] = {}

    def _refuse_changes(self, run: Run, design: Design) -> None:
        tag = run.data.tags.get("ablation.design")
        if tag is None:
            return
        text = self._download(run.info.run_id, "design.json")
        content = read_json(
            text.encode(errors="surrogateescape"),
            f"design.json of run {run.info.run_id}",
            "begin another ablation by --name",
        )
        found = Design(**content).differences(design)
        if found:
            raise SoraError(
                f"ablation {self.plan.name!r} was begun under other conditions, so its finished trials cannot be "
                f"compared with new ones: {some(found, SHOWN_DIFFERENCES, between='; ')}; undo the change, or begin "
                "another ablation by --name"
            )

    def begin(self, arms: Sequence[PlannedArm], trials: Sequence[PlannedTrial], file: str) -> None:
        """Writes down the plan, and begins the runs of the arms.

        Args:
            file: text of the ablation's file.
        """
        plan = self.plan
        tags = {
            study.FACTOR: plan.factor,
            study.BASELINE: plan.baseline,
            study.METRIC: plan.metric,
            study.MODE: plan.mode,
            study.BUDGET: json.dumps(self._budget()),
            "ablation.design": "design.json",
        }
        content = {
            "name": plan.name,
            "factor": plan.factor,
            "baseline": plan.baseline,
            "metric": plan.metric,
            "mode": plan.mode,
            "budget": self._budget(),
            "arms": [
                {"name": a.name, "value": a.value, "adjusted": dict(a.adjusted), "steps": a.steps, "said": a.said}
                for a in arms
            ],
            "seeds": list(plan.seeds),
            "trials": [{"arm": t.arm, "seed": t.seed, "trial": t.identity} for t in trials],
        }
        design = {kind: dict(getattr(self.design, kind)) for kind in ("plan", "recipe", "data", "code")}
        # The design last of the files, its tag last of all: a sitting that is killed before leaves nothing half said.
        self.client.log_text(self.run_id, redact(file), "ablation.yaml")
        self.client.log_text(self.run_id, seal_json(redacted(content)).decode(), PLAN_FILE)
        self.client.log_text(self.run_id, seal_json(design).decode(), "design.json")
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)
        self.client.update_run(self.run_id, status="RUNNING")
        known = {run.data.tags.get(study.ARM): run for run in self._runs(f"tags.`{study.ROLE}` = 'arm'")}
        for arm in arms:
            run = known.get(arm.name) or self._create(
                arm.name, {study.ROLE: "arm", study.ARM: arm.name, study.PARENT: self.run_id}
            )
            self.arm_runs[arm.name] = run.info.run_id
            self.client.set_tag(run.info.run_id, study.VALUE, redact(arm.value))
            adjusted = {key: redact(str(value)) for key, value in arm.adjusted.items()}
            self.client.set_tag(run.info.run_id, study.ADJUSTED, json.dumps(adjusted))
            self.client.update_run(run.info.run_id, status="RUNNING")

    def _budget(self) -> dict[str, Any]:
        budget = self.plan.budget
        amount = "baseline" if budget.amount is None else budget.amount
        return {"quantity": budget.quantity, "amount": amount, "matched_by": budget.matched_by}

    def tags_of(self, trial: PlannedTrial) -> dict[str, str]:
        """The tags of a seed's run."""
        return {
            study.PARENT: self.arm_runs[trial.arm],
            study.ROLE: "seed",
            study.NAME: self.plan.name,
            study.ABLATION_ID: self.run_id,
            study.ARM: trial.arm,
            study.SEED: str(trial.seed),
            study.TRIAL: trial.identity,
        }

    def runs_of(self, trial: PlannedTrial) -> list[Run]:
        """The runs of one trial, newest first."""
        return self._runs(f"tags.`{study.TRIAL}` = '{trial.identity}'")

    def finished(self, trial: PlannedTrial) -> bool:
        """Whether a run of the trial has ended well, with the metric that decides."""
        return any(r.info.status == "FINISHED" and self.plan.metric in r.data.metrics for r in self.runs_of(trial))

    def abandon(self, trial: PlannedTrial) -> None:
        """Closes runs of the trial that a sitting which was killed has left open."""
        for run in self.runs_of(trial):
            if run.info.status == "RUNNING":
                self.client.update_run(run.info.run_id, status="KILLED")

    def failed(self, trial: PlannedTrial, reason: str) -> None:
        """Writes down why a trial has no result; begins a run for one that died before it had one."""
        runs = self.runs_of(trial)
        open_run = runs[0] if runs and runs[0].info.status != "FINISHED" else None
        if open_run is None:
            open_run = self._create(f"{trial.arm}-seed{trial.seed}", self.tags_of(trial))
        self.client.set_tag(open_run.info.run_id, REASON, redact(reason)[:1000])
        self.client.update_run(open_run.info.run_id, status="FAILED")

    def end(self, arms_ended: Mapping[str, bool], interrupted: bool = False) -> None:
        """Closes the runs of the arms and of the ablation.

        Args:
            arms_ended: whether all trials of an arm are finished, by arm.
        """
        for arm, whole in arms_ended.items():
            self.client.update_run(self.arm_runs[arm], status="FINISHED" if whole else "FAILED")
        status = "KILLED" if interrupted else "FINISHED" if all(arms_ended.values()) else "FAILED"
        self.client.update_run(self.run_id, status=status)

    def _create(self, name: str, tags: Mapping[str, str]) -> Run:
        extra = {"mlflow.source.name": "lightning-sora"}
        return self.client.create_run(self._experiment_id, run_name=name, tags={**extra, **tags})

    def _runs(self, condition: str) -> list[Run]:
        return list(
            self.client.search_runs(
                [self._experiment_id], condition, order_by=["attributes.start_time DESC"], max_results=10_000
            )
        )

    def _download(self, run_id: str, path: str) -> str:
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text(
                encoding="utf-8", errors="surrogateescape"
            )
