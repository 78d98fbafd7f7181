"""The plan of an ablation: a base recipe, one factor, its arms, seeds, and what is equal among them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from lightning_sora.directions import Mode, chosen_mode
from lightning_sora.documents import read_yaml
from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.shipped import ABLATIONS, recipe_path
from lightning_sora.specs import canonical, is_mapping
from lightning_sora.texts import read_text

Quantity = Literal["steps", "tokens", "flops", "params", "seconds"]
Means = Literal["steps", "width", "depth"]
BASELINE_AMOUNT = "baseline"
#: What can be set to meet each quantity.
MEANS_OF: dict[str, tuple[str, ...]] = {
    "steps": ("steps",),
    "tokens": ("steps",),
    "flops": ("steps", "width", "depth"),
    "params": ("width", "depth"),
    "seconds": ("steps",),
}
MODES = ("min", "max")
_KEY = re.compile(r"[a-z_]+(\.\w+)+")
_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Budget:
    """What every arm may spend, or be.

    Attributes:
        quantity: optimizer steps, tokens trained on, training FLOPs, trained parameters, or seconds of training.
        amount: how much of it; None means as much as the baseline has by the base recipe.
        matched_by: what is set per arm to meet it: the number of steps, the width or the depth of the model.
    """

    quantity: Quantity = "steps"
    amount: float | None = None
    matched_by: Means = "steps"

    def __str__(self) -> str:
        amount = "the baseline's" if self.amount is None else f"{self.amount:,.15g}"
        by = "" if self.quantity == "steps" else f", matched by {self.matched_by}"
        return f"{amount} {self.quantity}{by}"


@dataclass(frozen=True)
class Stage:
    """A training that comes before the one that is judged and gets the arm's value instead.

    The judged recipe gets the path of the checkpoint that it leaves as the factor's value.

    Attributes:
        base: its recipe.
        factor: the key of that recipe that the arm's value is given to.
        overrides: further keys of its recipe.
    """

    base: Path
    factor: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """One ablation, as its file asks for it.

    Attributes:
        factor: dotted key of the base recipe, such as "model.dit.attention".
        arms: the factor's value by the arm's name, in order.
        metric, mode: what decides, and whether less or more of it is better; see :func:`.directions.direction`.
        overrides: keys that are set in all arms alike.
        validations: how many over a training, about evenly spaced; the last is at the last step.
        before: a training that the judged one stands on.
        text: of the file that it was read from.
    """

    name: str
    base: Path
    factor: str
    arms: Mapping[str, Any]
    baseline: str
    seeds: tuple[int, ...]
    budget: Budget
    metric: str = "val/denoising_error"
    mode: Mode = "min"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    validations: int = 4
    engine: str = "local"
    threads: int = 1
    before: Stage | None = None
    text: str = field(default="", repr=False, compare=False)

    @property
    def tested(self) -> bool:
        """Whether trials are tested after they are fitted."""
        return self.metric.startswith("test/")

    def changed(
        self, budget: Mapping[str, Any], seeds: Sequence[int] | None, overrides: Mapping[str, Any],
        *, name: str | None = None, engine: str | None = None,
    ) -> Plan:  # fmt: skip
        """The plan with what a command line says about it."""
        if name is not None and not all(c.isalnum() or c in "-_.+" for c in name):
            raise SoraError(f"--name {name!r} names folders and runs; use letters, digits, - _ . +")
        plan = replace(self, name=name or self.name, engine=engine or self.engine)
        plan = replace(plan, overrides={**self.overrides, **overrides})
        if budget:
            # The means go with the quantity that was asked for before; another quantity has its own default.
            kept = {"by": self.budget.matched_by} if self.budget.quantity in budget else {}
            plan = replace(plan, budget=read_budget({**kept, **budget}))
        if seeds is not None:
            plan = replace(plan, seeds=read_seeds(list(seeds)))
        _refuse_double(plan)
        return plan


FIELDS = {
    "ablation", "base", "factor", "arms", "baseline", "seeds", "budget", "metric", "mode", "overrides", "validations",
    "engine", "threads", "before",
}  # fmt: skip
REQUIRED = ("base", "factor", "arms", "seeds", "budget")


def read_plan(source: Path | Mapping[str, Any]) -> Plan:
    """Reads an ablation's file, that of a name which comes with the package, or what one says.

    Paths are relative to the file, or to the working directory.

    Raises:
        SoraError: not there, not YAML, or a plan that compares nothing: one line says what and how to mend it.
    """
    if isinstance(source, Mapping):
        path, content = Path("ablation"), dict(source)
        text = yaml.safe_dump(json.loads(json.dumps(content, default=str)), sort_keys=False, allow_unicode=True)
    else:
        path = recipe_path(source, ABLATIONS)
        content, text = _read_yaml(path), read_text(path)
    _known(f"{path}", content, FIELDS)
    for name in REQUIRED:
        if name not in content:
            raise SoraError(f"{path}: no `{name}`; an ablation needs {', '.join(REQUIRED)}")
    factor, arms = _factor(path, content["factor"]), _arms(path, content["arms"], content["factor"])
    baseline = str(content.get("baseline", next(iter(arms))))
    if baseline not in arms:
        raise SoraError(f"{path}: baseline {baseline!r} is no arm; arms: {', '.join(arms)}")
    metric = str(content.get("metric", Plan.metric))
    mode = content.get("mode")
    if mode not in (None, *MODES):
        raise SoraError(f"{path}: mode {mode!r} must be min (less is better) or max")
    mode = chosen_mode(metric, mode, f"`mode: min` or `mode: max` in {path}, or by --plugins and the metric's own file")
    name = str(content.get("ablation", path.stem))
    if not _NAME.fullmatch(name):
        raise SoraError(f"{path}: ablation {name!r} names folders and runs; use letters, digits, - _ . +")
    plan = Plan(
        name=name,
        base=_recipe(path, content["base"]),
        factor=factor,
        arms=arms,
        baseline=baseline,
        seeds=read_seeds(content["seeds"]),
        budget=read_budget(content["budget"]),
        metric=metric,
        mode=mode,
        overrides=_overrides(path, content.get("overrides", {})),
        validations=_at_least_one(path, "validations", content.get("validations", Plan.validations)),
        engine=str(content.get("engine", Plan.engine)),
        threads=_at_least_one(path, "threads", content.get("threads", Plan.threads)),
        before=_stage(path, content.get("before")),
        text=text,
    )
    _refuse_double(plan)
    return plan


def read_budget(content: Any) -> Budget:
    """``{steps: 400}``, ``{flops: baseline, by: width}``.

    Raises:
        SoraError: no such quantity, several, an impossible amount, or one that cannot be matched so.
    """
    quantities, means = get_args(Quantity), get_args(Means)
    if not isinstance(content, Mapping):
        raise SoraError(f"budget {content!r} must name a quantity, such as {{steps: 400}}; quantities: {quantities}")
    asked = {str(key): value for key, value in content.items() if key != "by"}
    unknown = [key for key in asked if key not in quantities]
    if unknown or len(asked) != 1:
        said = f"unknown {', '.join(unknown)}" if unknown else f"{len(asked)} quantities"
        raise SoraError(f"budget has {said}; give one of {', '.join(quantities)}, and `by` for what is set to meet it")
    ((name, amount),) = asked.items()
    quantity = cast(Quantity, name)
    by = content.get("by", MEANS_OF[quantity][0])
    if by not in means:
        raise SoraError(f"budget.by={by!r} must be one of {', '.join(means)}")
    if by not in MEANS_OF[quantity]:
        can = " or ".join(MEANS_OF[quantity])
        raise SoraError(f"budget {quantity} cannot be met by {by}; it can by {can}")
    if amount == BASELINE_AMOUNT:
        return Budget(quantity, None, by)
    if isinstance(amount, str):  # YAML reads 1e9 as text
        try:
            amount = float(amount)
        except ValueError:
            amount = 0
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
        raise SoraError(f"budget.{quantity}={content[quantity]!r} must be a positive number, or {BASELINE_AMOUNT!r}")
    if quantity in ("steps", "params") and amount != int(amount):
        raise SoraError(f"budget.{quantity}={amount!r} must be a whole number")
    return Budget(quantity, float(amount), by)


def read_seeds(content: Any) -> tuple[int, ...]:
    """Raises SoraError unless these are different whole numbers, at least one."""
    whole = isinstance(content, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in content)
    if not whole or not content:
        raise SoraError(f"seeds={content!r} must be a list of whole numbers, at least one, such as [0, 1, 2]")
    if len(set(content)) < len(content):
        raise SoraError(f"seeds={content} names a seed twice; a repeated seed is the same training again")
    if min(content) < 0:
        raise SoraError(f"seeds={content} must not be negative")
    return tuple(content)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        present = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, present) or f"{path.parent} holds {', '.join(present) or 'none'}"
        raise SoraError(f"no ablation file at {path}; {hint.strip()}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise SoraError(f"{path} must hold keys such as `base:` and `arms:`, not {type(content).__name__}")
    return content


def _known(place: str, content: Mapping[str, Any], fields: set[str]) -> None:
    for name in content:
        if name not in fields:
            hint = did_you_mean(str(name), fields)
            raise SoraError(f"{place}: no key {name!r} in an ablation; {hint}known: {', '.join(sorted(fields))}")


def _factor(path: Path, factor: Any) -> str:
    if isinstance(factor, list | dict):
        raise SoraError(
            f"{path}: factor {factor!r} names {len(factor)} keys; an ablation changes one thing: write one dotted key, "
            "and an ablation of its own for each other"
        )
    if not isinstance(factor, str) or not _KEY.fullmatch(factor):
        raise SoraError(f"{path}: factor {factor!r} must be a dotted key of the recipe, such as model.dit.attention")
    return factor


def _arms(path: Path, arms: Any, factor: Any) -> dict[str, Any]:
    if isinstance(arms, list):
        arms = [canonical(value) if is_mapping(value) else value for value in arms]
        named = {str(value): value for value in arms}
        if len(named) < len(arms):
            raise SoraError(f"{path}: arms {arms} name a value twice; an arm is a different value of {factor}")
        arms = named
    if not isinstance(arms, dict):
        raise SoraError(f"{path}: arms {arms!r} must map names to values of {factor}, or list the values")
    arms = {str(name): canonical(value) if is_mapping(value) else value for name, value in arms.items()}
    if len(arms) < 2:
        raise SoraError(f"{path}: {len(arms)} arm; a comparison needs at least two values of {factor}")
    for name, value in arms.items():
        if isinstance(value, Mapping):
            raise SoraError(
                f"{path}: arm {name!r} sets {', '.join(map(str, value))}; an arm is a value of one factor, {factor}: "
                "put what all arms share under `overrides`, and what else differs into an ablation of its own"
            )
    seen: dict[str, str] = {}
    for name, value in arms.items():
        twin = seen.setdefault(canonical(value) if isinstance(value, str) else repr(value), name)
        if twin != name:
            raise SoraError(f"{path}: arms {twin!r} and {name!r} have the same value {value!r} of {factor}; drop one")
    return arms


def _overrides(path: Path, overrides: Any) -> dict[str, Any]:
    if not isinstance(overrides, Mapping) or not all(_KEY.fullmatch(str(key)) for key in overrides):
        raise SoraError(f"{path}: overrides {overrides!r} must map dotted keys, such as model.dit.dim, to values")
    return {str(key): value for key, value in overrides.items()}


def _recipe(path: Path, base: Any) -> Path:
    named = recipe_path(str(base))
    recipe = named if named.is_absolute() else path.parent / named
    if not os.path.isfile(recipe):
        raise SoraError(f"{path}: no recipe at base {recipe}; give its path relative to this file")
    return recipe.resolve()


def _stage(path: Path, content: Any) -> Stage | None:
    if content is None:
        return None
    if not isinstance(content, Mapping) or not {"base", "factor"} <= set(content):
        raise SoraError(f"{path}: `before` needs base and factor, and may have overrides")
    _known(f"{path}: before", content, {"base", "factor", "overrides"})
    overrides = _overrides(path, content.get("overrides", {}))
    return Stage(_recipe(path, content["base"]), _factor(path, content["factor"]), overrides)


def _at_least_one(path: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SoraError(f"{path}: {name}={value!r} must be a whole number of at least 1")
    return value


def _refuse_double(plan: Plan) -> None:
    reserved = {plan.factor: "the factor", "seed_everything": "seeds"}
    if plan.budget.amount is not None and plan.budget.matched_by == "steps":
        reserved["trainer.max_steps"] = "the budget"
    for key in plan.overrides:
        if key in reserved:
            raise SoraError(
                f"{key} is set by {reserved[key]} of the ablation {plan.name!r}; do not override it as well"
            )
