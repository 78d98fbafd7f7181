"""From an ablation's plan to trials: recipes resolved, arms measured and matched, undeclared differences refused."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_sora.ablation.checks import STEPS, is_declared
from lightning_sora.ablation.matching import DEPTH, HEADS, MLP, WIDTH, Cost, Match, match, total, validation_interval
from lightning_sora.ablation.plan import Plan, Stage
from lightning_sora.ablation.record import Design, PlannedArm, PlannedTrial
from lightning_sora.data.plan import PlanSampler
from lightning_sora.errors import SoraError
from lightning_sora.lit.module import LitModule, count_parameters
from lightning_sora.recipe.recipe import Recipe, as_text
from lightning_sora.spacetime import SpacetimeBatch
from lightning_sora.specs import SPEC
from lightning_sora.tracking import provenance

TYPICAL = 24  # batches that stand for an epoch of mixed sizes
CALIBRATION_STEPS, CALIBRATION_WARMUP, CALIBRATION_ROUNDS = 12, 4, 2


@dataclass(frozen=True)
class Training:
    """One call of `fit` within a trial.

    Attributes:
        folder: its ``default_root_dir``.
    """

    recipe: Recipe
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def steps(self) -> int:
        return int(self.recipe["trainer.max_steps"])


@dataclass(frozen=True)
class TrialRecipes:
    """A planned trial with what it runs: the training that is judged, last, and what comes before it."""

    planned: PlannedTrial
    trainings: tuple[Training, ...]


class Planner:
    """Turns a plan into arms and trials.

    Args:
        plan: what is asked for.
        folder: of all local files of the ablation.

    Raises:
        SoraError: anything that would keep the ablation from meaning what it says.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self._base = Recipe.load(plan.base, {**plan.overrides, "seed_everything": 0})
        self._refuse_wired_seeds()
        _refuse_other_ends(plan.base, self._base)
        self.matches: dict[str, Match] = {}
        self._resolved: dict[str, Recipe] = {}
        self._typical: dict[str, list[SpacetimeBatch]] = {}

    def _refuse_wired_seeds(self) -> None:
        if self.plan.factor.split(".")[-1] in ("seed", "seed_everything", "source_seed"):
            raise SoraError(
                f"factor {self.plan.factor} is a seed; arms differ in something else, and repeat over seeds"
            )

    # Recipes.
    def recipe(self, arm: str, seed: int, adjusted: Mapping[str, Any], steps: int | None = None) -> Recipe:
        """The judged training of one arm and seed; what a stage before leaves is named by its path."""
        keys: dict[str, Any] = {**self.plan.overrides, self.plan.factor: self.plan.arms[arm], **adjusted}
        if self.plan.before is not None:
            keys[self.plan.factor] = str(self._before_folder(arm, seed) / "checkpoints" / "last.ckpt")
        keys |= self._seeds(self._base, seed)
        if steps is not None:
            interval = validation_interval(steps, self.plan.validations)
            keys |= {"trainer.max_steps": steps, "trainer.val_check_interval": interval}
            keys |= {"trainer.check_val_every_n_epoch": None}
        return Recipe.load(self.plan.base, keys)

    def _before(self, stage: Stage, arm: str, seed: int) -> Training:
        base = Recipe.load(stage.base, stage.overrides)
        _refuse_other_ends(stage.base, base)
        keys = {**stage.overrides, stage.factor: self.plan.arms[arm], **self._seeds(base, seed)}
        return Training(Recipe.load(stage.base, keys), self._before_folder(arm, seed))

    @staticmethod
    def _seeds(recipe: Recipe, seed: int) -> dict[str, int]:
        """Every seed of a recipe but that of the data's content, which all trials share."""
        keys = {"seed_everything": seed}
        for section in ("model", "data"):
            if "seed" in recipe.options(section):
                keys[f"{section}.seed"] = seed
        return keys

    def trial_folder(self, arm: str, seed: int) -> Path:
        """Where a trial's files are; arms may be named by specs, which file systems do not like."""
        plain = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in arm)
        name = plain if plain == arm else f"{plain[:60]}-{hashlib.blake2b(arm.encode(), digest_size=3).hexdigest()}"
        return self.folder / name / f"seed{seed}"

    def _before_folder(self, arm: str, seed: int) -> Path:
        return self.trial_folder(arm, seed) / "before"

    # Measuring.
    def module(self, recipe: Recipe) -> tuple[LitModule, Any]:
        """The model and the data of a recipe, made to fit each other."""
        model, data = recipe.build()
        if self.plan.tested:
            model.awaited.settle("test")
        return model, data

    def _batches(self, recipe: Recipe) -> list[SpacetimeBatch]:
        """Typical batches of a recipe's training: the first; or some, evenly over an epoch, where sizes are mixed."""
        key = json.dumps(recipe["data"], sort_keys=True, default=str)
        if key not in self._typical:
            loader = recipe.build_data().loader("train")
            planned = loader.sampler.plan.epoch(0) if isinstance(loader.sampler, PlanSampler) else []
            if len({batch.grids for batch in planned}) <= 1:
                self._typical[key] = [next(iter(loader))]
            else:
                self._typical[key] = [loader.dataset[planned[place]] for place in evenly(len(planned), TYPICAL)]
        return self._typical[key]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of what training, validation and test read."""
        data = self._base.build_data()
        splits = ("train", "val", "test") if self.plan.tested else ("train", "val")
        return {split: data.fingerprint(split) for split in splits} if hasattr(data, "fingerprint") else {}

    def cost(self, arm: str, adjusted: Mapping[str, Any]) -> Cost:
        """What one arm's model is and what a step costs it.

        Args:
            adjusted: options of the model by dotted key; the solver tries many, so the recipe is resolved once per arm.
        """
        if arm not in self._resolved:
            value = self.plan.arms[arm] if self.plan.before is None else f"{SPEC}{self.plan.arms[arm]}"
            self._resolved[arm] = Recipe.load(self.plan.base, {**self.plan.overrides, self.plan.factor: value})
        recipe = self._resolved[arm].adjusted(adjusted)
        model, _ = self.module(recipe)
        trainer = self._base["trainer"]
        per_step = int(trainer.get("accumulate_grad_batches") or 1) * _processes(trainer)
        batches = self._batches(recipe if self.plan.factor.startswith("data.") else self._base)
        flops = sum(model.training_flops(batch) for batch in batches) // len(batches)
        tokens = sum(model.training_tokens(batch) for batch in batches) // len(batches)
        return Cost(count_parameters(model), flops * per_step, tokens * per_step)

    def seconds(self) -> dict[str, float]:
        """Seconds per optimizer step of each arm, by short trainings in turns; medians, the warm-up left out."""
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # what devices there are, again and again
        taken: dict[str, list[float]] = {arm: [] for arm in self.plan.arms}
        for _ in range(CALIBRATION_ROUNDS):
            for arm in self.plan.arms:
                model, data = self.module(
                    Recipe.load(self.plan.base, {**self.plan.overrides, self.plan.factor: self.plan.arms[arm]})
                )
                watch = _StepWatch()
                trainer = pl.Trainer(
                    max_steps=CALIBRATION_STEPS,
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    limit_val_batches=0,
                    num_sanity_val_steps=0,
                    use_distributed_sampler=False,
                    accelerator=self._base["trainer"].get("accelerator") or "auto",
                    devices=1,
                    precision=self._base["trainer"].get("precision"),
                    callbacks=[watch],
                )
                trainer.fit(model, datamodule=data)
                taken[arm] += watch.seconds[CALIBRATION_WARMUP:]
        return {arm: statistics.median(seconds) for arm, seconds in taken.items()}

    # Arms and trials.
    def arms(self, seconds: Mapping[str, float] | None = None) -> list[PlannedArm]:
        """Every arm, set to the budget.

        Args:
            seconds: per step, of an earlier sitting of this ablation; measured where they are needed and None.

        Raises:
            SoraError: an arm that cannot be built, or cannot be brought to the budget.
        """
        plan, budget = self.plan, self.plan.budget
        if budget.quantity == "seconds" and seconds is None:
            seconds = self.seconds()
        self.seconds_per_step = dict(seconds or {})
        steps = int(self._base["trainer.max_steps"])

        def measure(arm: str, adjusted: Mapping[str, Any]) -> Cost:
            cost = self.cost(arm, adjusted)
            return Cost(cost.parameters, cost.flops, cost.tokens, self.seconds_per_step.get(arm))

        costs = {arm: measure(arm, {}) for arm in plan.arms}  # every arm is built once, before anything is trained
        goal = budget.amount or total(budget, costs[plan.baseline], steps)
        if goal <= 0:
            raise SoraError(
                f"budget.{budget.quantity}: the baseline's is {goal:g}, because trainer.max_steps={steps} in "
                f"{plan.base.name}; give an amount"
            )
        sizes: dict[str, Any] = {}
        for key in (WIDTH, DEPTH, HEADS, MLP):
            with suppress(KeyError):  # of another model
                sizes[key] = self._base[key]
        arms = []
        for arm in plan.arms:
            one = costs[arm]
            self.matches[arm] = match(
                arm,
                budget,
                goal,
                sizes,
                steps,
                lambda adjusted, arm=arm, one=one: measure(arm, adjusted) if adjusted else one,  # type: ignore[misc]
                plan.validations,
            )
            found = self.matches[arm]
            arms.append(PlannedArm(arm, as_text(plan.arms[arm]), found.steps, found.adjusted, found.said))
        return arms

    def trials(self, arms: Sequence[PlannedArm], code: Mapping[str, str]) -> Iterator[TrialRecipes]:
        """Every arm with every seed, seeds first, so that an interrupted ablation has whole sets of arms.

        Raises:
            SoraError: an arm that differs in something that the ablation does not declare.
        """
        for seed in self.plan.seeds:
            recipes = {arm.name: self.recipe(arm.name, seed, arm.adjusted, arm.steps) for arm in arms}
            for arm in arms:
                self._refuse_undeclared(arm, recipes[arm.name], recipes[self.plan.baseline])
                trainings = [Training(recipes[arm.name], self.trial_folder(arm.name, seed))]
                if self.plan.before is not None:
                    trainings.insert(0, self._before(self.plan.before, arm.name, seed))
                content = [training.recipe.identity() for training in trainings]
                text = json.dumps([content, dict(code), seed], sort_keys=True, default=str)
                identity = hashlib.sha256(text.encode()).hexdigest()[:16]
                yield TrialRecipes(PlannedTrial(arm.name, seed, identity), tuple(trainings))

    def _refuse_undeclared(self, arm: PlannedArm, recipe: Recipe, baseline: Recipe) -> None:
        declared = {self.plan.factor, *arm.adjusted, *STEPS}
        ours, theirs = recipe.identity(), baseline.identity()
        for key in sorted({*ours, *theirs}):
            adjusted_baseline = key in {k for m in self.matches.values() for k in m.adjusted}
            if ours.get(key) != theirs.get(key) and not is_declared(key, declared) and not adjusted_baseline:
                raise SoraError(
                    f"arm {arm.name!r} also differs in {key} ({ours.get(key)!r}, baseline {theirs.get(key)!r}), which "
                    f"the ablation does not declare: only {self.plan.factor} may; remove what ties {key} to it"
                )

    def design(self) -> Design:
        """What a later sitting must find unchanged."""
        plan = self.plan
        words = {
            "factor": plan.factor,
            "baseline": plan.baseline,
            "metric": plan.metric,
            "mode": plan.mode,
            "budget": str(plan.budget),
            "torch": str(torch.__version__),
        }
        recipe = self._base.identity()
        if plan.before is not None:
            before = Recipe.load(plan.before.base, {**plan.before.overrides, "seed_everything": 0})
            recipe |= {f"before.{key}": value for key, value in before.identity().items()}
        return Design(words, recipe, self.fingerprints, code_hashes())


class _StepWatch(pl.Callback):
    """Seconds from the end of one batch to the end of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        self._since = now


def evenly(of: int, most: int) -> list[int]:
    """Places of as many as ``most`` of some things, even over all of them; of fewer things, all."""
    count = min(most, of)
    return [k * of // count for k in range(count)]


def _refuse_other_ends(base: Path, recipe: Recipe) -> None:
    """Refuses a recipe that ends trainings by something else than their steps."""
    for limit in ("max_epochs", "max_time"):
        value = recipe["trainer"].get(limit)
        if value not in (None, -1):
            raise SoraError(
                f"{base.name}: trainer.{limit}={value} may end a training before the steps of its budget; set "
                f"`trainer.{limit}: null` in overrides"
            )


def code_hashes() -> dict[str, str]:
    """The hash of every file of the package, and of every plugin."""
    from lightning_sora import plugins

    found = dict(provenance.code_hashes())
    found |= {f"plugin {name}": plugin.sha256 for name, plugin in plugins.loaded().items()}
    return found


def _processes(trainer: Mapping[str, Any]) -> int:
    devices: Any = trainer.get("devices")
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return count * int(trainer.get("num_nodes") or 1)
