"""What an ablation has found so far, apart from where it is kept: the nouns that reading, judging and showing share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sora.directions import Mode
from lightning_sora.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

#: The tags that tie runs together in mlflow. Ablation, arm and seed runs are nested by ``mlflow.parentRunId``.
ROLE = "ablation.role"  # "ablation", "arm" or "seed"
NAME = "ablation.name"
ABLATION_ID = "ablation.id"
FACTOR = "ablation.factor"
BASELINE = "ablation.baseline"
METRIC = "ablation.metric"
MODE = "ablation.mode"
BUDGET = "ablation.budget"  # JSON: {"quantity": ..., "amount": ..., "matched_by": ...}
ARM = "ablation.arm"
VALUE = "ablation.value"
ADJUSTED = "ablation.adjusted"  # JSON: what the solver set to match this arm, by dotted key
SEED = "ablation.seed"
TRIAL = "ablation.trial"
PARENT = "mlflow.parentRunId"

#: Artifacts of a seed run: what a metric's value means, one JSON object per split ("val", "test").
PROTOCOL = "protocol/{split}.json"
#: Cumulative costs, logged at the steps of every validation.
COSTS = ("cost/tokens", "cost/flops", "cost/seconds")


@dataclass(frozen=True)
class Trial:
    """One training of one arm with one seed.

    Attributes:
        status: mlflow's: FINISHED, FAILED, KILLED or RUNNING.
        metrics: the last value of each.
        history: every value of each, as (step, value) in order of steps.
        clip_scores: metric -> clip id -> value, of the last validation.
        params: the resolved recipe by dotted names.
        artifacts: folder of the run's artifacts, where they are on this machine.
        reason: why it failed, where it did.
    """

    arm: str
    seed: int
    run_id: str
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    clip_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    artifacts: Path | None = None
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"


@dataclass(frozen=True)
class Arm:
    """One value of the factor.

    Attributes:
        value: the spec, as in the recipe.
        adjusted: what was set to match the budget, by dotted key.
        said: how it was matched, in words.
    """

    name: str
    value: str
    adjusted: Mapping[str, str] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Study(Shown):
    """Arms and trials of one ablation, or of plain runs that are compared; shown as the metric by arm and seed.

    Attributes:
        factor: dotted key of the one thing that differs, such as ``model.dit.attention``.
        baseline: name of the arm that the others are compared to.
        metric: what decides, such as ``val/denoising_error``.
        mode: whether less of it is better, or more.
        budget: what is equal among arms, in words.
        run_id: of the ablation's own run; None for plain runs.
        unmet: (arm, seed) pairs that were planned and have no trial yet.
        uri: of the mlflow store that it was read from.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.ablation.study import Arm, Trial
        >>> arms = (Arm("full", "full"), Arm("time", "temporal"))
        >>> trials = (Trial("full", 0, "run", "FINISHED", {"val/loss": 0.5}), Trial("time", 0, "other", "FAILED"))
        >>> study = ls.Study("toy", "model.dit.attention", "full", "val/loss", "min", "2 steps", arms, trials)
        >>> study.values("full"), study.complete
        ({0: 0.5}, False)
    """

    name: str
    factor: str
    baseline: str
    metric: str
    mode: Mode
    budget: str
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    run_id: str | None = None
    unmet: tuple[tuple[str, int], ...] = ()
    uri: str = ""

    def of(self, arm: str) -> tuple[Trial, ...]:
        """The trials of one arm, by seed."""
        return tuple(sorted((t for t in self.trials if t.arm == arm), key=lambda t: t.seed))

    def compared(self, arm: str) -> tuple[Trial, ...]:
        """The finished trials of an arm with a seed that the baseline has a value of too: what means are over."""
        shared = self.values(arm).keys() & self.values(self.baseline).keys()
        return tuple(t for t in self.of(arm) if t.finished and t.seed in shared)

    def values(self, arm: str, metric: str | None = None) -> dict[int, float]:
        """The last value of a metric by seed, of finished trials that have it."""
        name = metric or self.metric
        return {t.seed: t.metrics[name] for t in self.of(arm) if t.finished and name in t.metrics}

    @property
    def complete(self) -> bool:
        """Whether every trial that was planned has ended well, with the metric that decides."""
        return not self.unmet and all(t.finished and self.metric in t.metrics for t in self.trials)

    def tables(self) -> Iterable[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        seeds = sorted({t.seed for t in self.trials} | {seed for _, seed in self.unmet})
        title = f"{self.name}: {self.metric} by {self.factor}; budget: {self.budget}"
        table = Table("arm", *(f"seed {seed}" for seed in seeds), title=Text(title))
        for arm in self.arms:
            cells = {t.seed: f"{t.metrics.get(self.metric, float('nan')):.5g}" for t in self.of(arm.name) if t.finished}
            cells = {t.seed: t.status for t in self.of(arm.name)} | cells
            table.add_row(Text(arm.name), *(cells.get(seed, "not run yet") for seed in seeds))
        yield table
