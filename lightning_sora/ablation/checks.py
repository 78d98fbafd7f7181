"""What else differs between the arms of a study: a comparison is refused that an undeclared change could explain."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lightning_sora.ablation.study import Study, Trial
from lightning_sora.errors import SoraError
from lightning_sora.tracking.flatten import ELSEWHERE

#: Keys of a recipe that follow from a budget that is met by steps.
STEPS = ("trainer.max_steps", "trainer.val_check_interval")
#: Follow from the factor whatever it is.
COUNTS = ("parameters", "parameters_trained")
#: What produced the numbers, beside the recipe.
IDENTITY = ("data.fingerprint", "code.hash", "plugins.sha256", "torch")
#: Fields of a protocol card, and tags, by the keys of the recipe that explain a difference; see ``_option``.
EXPLAINED = {
    "data.fingerprint": ("data.captions", "data.caption_share", "data.source", "data.root"),
    "vae": ("model.vae",),
    "sampler": ("model.sampler",),
    "steps": ("model.steps",),
    "shift": ("model.shift",),
    "guidance": ("model.guidance",),
    "expander": ("model.expander",),
    "ema": ("model.ema_decay",),
    "dtype": ("trainer.precision",),
}
CLIPS = "clips."  # begins the fields that count the clips of a metric
SHOWN = 4


def undeclared_differences(study: Study) -> list[str]:
    """What differs between an arm and the baseline at equal seeds, but should not: one sentence each."""
    baseline = {trial.seed: trial for trial in study.of(study.baseline) if trial.finished}
    found: dict[str, None] = {}
    adjusted = {key for arm in study.arms for key in arm.adjusted}
    declared = {study.factor, *adjusted, *STEPS}
    for arm in study.arms:
        for trial in study.of(arm.name):
            other = baseline.get(trial.seed)
            if trial.finished and other is not None and trial is not other:
                found |= dict.fromkeys(_differences(trial, other, declared, study.metric))
    return list(found)


def is_declared(key: str, declared: Collection[str]) -> bool:
    """Whether a key of a recipe is one of those that may differ, or lies within one."""
    return any(key == one or key.startswith(f"{one}.") for one in declared)


def _differences(trial: Trial, other: Trial, declared: set[str], metric: str) -> Iterator[str]:
    def say(kind: str, key: str, ours: Any, theirs: Any) -> str:
        return f"{kind} {key} of arm {trial.arm!r} is {_short(ours)}, of the baseline {_short(theirs)}"

    for key in sorted({*trial.params, *other.params}):
        free = key.startswith(ELSEWHERE) or key in COUNTS
        if not free and not is_declared(key, declared) and trial.params.get(key) != other.params.get(key):
            yield say("recipe key", key, trial.params.get(key, "unset"), other.params.get(key, "unset"))
    options = set(map(_option, declared))
    # What judges is the same whatever the factor.
    for key in (*IDENTITY, f"{metric.partition('/')[0]}.data.fingerprint"):
        explained = options & set(EXPLAINED.get(key, ()))
        if trial.tags.get(key) != other.tags.get(key) and not explained:
            yield say("tag", key, trial.tags.get(key, "unset"), other.tags.get(key, "unset"))
    for split in sorted({*trial.protocol, *other.protocol}):
        ours, theirs = (dict(_fields(one.protocol.get(split, {}))) for one in (trial, other))
        for key in sorted({*ours, *theirs}):
            explained = options & set(EXPLAINED.get(key, ()))
            # How many clips could be judged by another metric is a result, not a part of the protocol.
            counted = key.startswith(CLIPS) and key != f"{CLIPS}{metric}"
            if ours.get(key) != theirs.get(key) and not explained and not counted:
                yield say(f"protocol of {split}", key, ours.get(key), theirs.get(key))


def _fields(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a protocol card by dotted names, but for the hash over all of them."""
    for name, value in card.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        elif name != "protocol_id":
            yield f"{prefix}{name}", value


def refuse_undeclared(study: Study) -> None:
    """Raises SoraError if anything but the declared factor differs; the keys are named with their values."""
    found = undeclared_differences(study)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise SoraError(
            f"these runs differ in more than {study.factor}: {'; '.join(found[:SHOWN])}{more}. A comparison would not "
            "say what made the difference: train these arms again under one recipe, data and code"
        )


def hardware_note(study: Study) -> str:
    """Said beside costs where trials ran on different machines."""
    machines = {trial.tags.get("machine", "") for trial in study.trials if trial.finished}
    return "" if len(machines) <= 1 else f"costs are of {len(machines)} kinds of machine: {', '.join(sorted(machines))}"


def refuse_incomparable(metric: str, factor: str) -> None:
    """Raises SoraError if the metric's own units change with the factor, so that arms cannot be compared by it."""
    moved: Mapping[str, tuple[str, ...]] = {
        "/loss": ("model.objective", "model.weighting", "model.vae"),
        "/denoising_error": ("model.vae",),
    }
    for word, factors in moved.items():
        if word in metric and _option(factor) in factors:
            raise SoraError(
                f"{metric} is measured in units that {factor} itself sets, so it cannot be compared between arms; "
                "judge by val/denoising_error (objectives, weightings) or test/adherence (VAEs)"
            )


def _option(key: str) -> str:
    """The key of a model's option without the group that it lies in."""
    return f"model.{key.rsplit('.', 1)[-1]}" if key.startswith("model.") else key


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
