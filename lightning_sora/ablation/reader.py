"""From a store to a study: an ablation by its name, or plain runs that differ in one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lightning_sora.ablation import study as tags
from lightning_sora.ablation.record import PLAN_FILE, REASON
from lightning_sora.ablation.runs import AT_ONCE, RunData, RunReader, open_reader
from lightning_sora.ablation.study import Arm, Study, Trial
from lightning_sora.directions import Mode, chosen_mode, direction
from lightning_sora.errors import SoraError, did_you_mean

#: Keys of a recipe that say which repetition it is, or where it runs: never the factor of plain runs.
NOT_FACTORS = (
    "tracking.",
    "checkpoint.",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "ckpt_path",
    "vars.",
)
COUNTS = ("parameters", "parameters_trained")
SPLITS = ("val", "test")
MODE_FLAG = "--mode min or --mode max"


def read_study(
    uri: str, what: Sequence[str] = (), *, metric: str | None = None, mode: Mode | None = None,
    baseline: str | None = None, reader: RunReader | None = None,
) -> Study:  # fmt: skip
    """The study of an ablation (its name or run; the newest if nothing is named), or of several plain runs.

    Args:
        uri: of the store, resolved.
        what: an ablation's name or run id; or names or ids of plain runs.
        metric, mode, baseline: instead of those of the ablation.

    Raises:
        SoraError: nothing of that name, plain runs that differ in nothing or in more than one thing, or a mode that
            contradicts the metric's own or is not known.
    """
    reader = reader or open_reader(uri)
    if len(what) <= 1:
        ablation = _ablation(reader, what[0] if what else None)
        if ablation is not None:
            return _chosen(_of_ablation(reader, ablation), uri, metric, mode, baseline)
    return _chosen(_of_runs(reader, what, metric, mode), uri, metric, mode, baseline)


def _ablation(reader: RunReader, what: str | None) -> RunData | None:
    if what is None:
        newest = reader.tagged({tags.ROLE: "ablation"})
        if not newest:
            raise SoraError("no ablation in this store; run `lightning-sora ablate FILE`, or name runs to compare")
        return newest[0]
    runs = reader.named([what])[what]
    named = [run for run in runs if run.tags.get(tags.ROLE) == "ablation"]
    named = named or reader.tagged({tags.ROLE: "ablation", tags.NAME: what})
    if named:
        return named[0]
    if runs:
        raise SoraError(f"{what!r} is one run; name an ablation, or at least two runs")
    known = sorted({run.tags[tags.NAME] for run in reader.tagged({tags.ROLE: "ablation"})})
    hint = did_you_mean(what, known)
    raise SoraError(f"no ablation and no run {what!r} in this store; {hint}ablations: {', '.join(known) or 'none'}")


def _of_ablation(reader: RunReader, ablation: RunData) -> Study:
    plan = reader.json(ablation, PLAN_FILE)
    if plan is None:
        raise SoraError(
            f"ablation {ablation.name!r} has not begun: it has no {PLAN_FILE}; run `lightning-sora ablate` again"
        )
    identities = {trial["trial"]: (trial["arm"], int(trial["seed"])) for trial in plan["trials"]}
    candidates: dict[str, RunData] = {}
    for run in reader.tagged({tags.ABLATION_ID: ablation.run_id, tags.ROLE: "seed"}):  # newest first
        identity = run.tags.get(tags.TRIAL, "")
        known = candidates.get(identity)
        if identity in identities and (known is None or (run.status == "FINISHED") > (known.status == "FINISHED")):
            candidates[identity] = run
    runs = reader.full([run.run_id for run in candidates.values()])
    trials = _trials(reader, [(run, *identities[run.tags[tags.TRIAL]]) for run in runs])
    done = {(trial.arm, trial.seed) for trial in trials}
    budget = plan["budget"]
    arms = tuple(
        Arm(a["name"], str(a["value"]), {k: str(v) for k, v in a["adjusted"].items()}, a.get("said", ""))
        for a in plan["arms"]
    )
    return Study(
        name=plan["name"],
        factor=plan["factor"],
        baseline=plan["baseline"],
        metric=plan["metric"],
        mode=direction(plan["metric"]) or plan["mode"],
        budget=_budget(budget),
        arms=arms,
        trials=tuple(sorted(trials, key=lambda t: (t.arm, t.seed))),
        run_id=ablation.run_id,
        unmet=tuple(pair for pair in identities.values() if pair not in done),
    )


def _budget(budget: Mapping[str, Any]) -> str:
    amount = budget["amount"]
    amount = "the baseline's" if amount == "baseline" else f"{amount:,.15g}"
    by = "" if budget["quantity"] == "steps" else f", matched by {budget['matched_by']}"
    return f"{amount} {budget['quantity']}{by}"


def _trials(reader: RunReader, runs: Sequence[tuple[RunData, str, int]]) -> list[Trial]:
    """The trials of runs with their arms and seeds; the files of several are read at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda one: _trial(reader, *one), runs))


def _trial(reader: RunReader, run: RunData, arm: str, seed: int) -> Trial:
    clips: dict[str, Mapping[str, float]] = {}
    protocol = {}
    for split in SPLITS:
        scores = reader.json(run, f"clips/{split}.json")
        clips |= scores["scores"] if scores else {}
        card = reader.json(run, tags.PROTOCOL.format(split=split))
        if card:
            protocol[split] = card
    return Trial(
        arm=arm,
        seed=seed,
        run_id=run.run_id,
        status=run.status,
        metrics=run.metrics,
        history=run.history,
        clip_scores=clips,
        params=run.params,
        tags=run.tags,
        protocol=protocol,
        artifacts=reader.folder(run),
        reason=run.tags.get(REASON, ""),
    )


def _of_runs(reader: RunReader, what: Sequence[str], metric: str | None, mode: Mode | None) -> Study:
    found: list[RunData] = []
    for name, runs in reader.named(what).items():
        if not runs:
            raise SoraError(f"no run {name!r} in this store; give its id or its name, as the mlflow pages show it")
        if len(runs) > 1:
            raise SoraError(f"{len(runs)} runs are named {name!r}; give the id of one, such as {runs[0].run_id}")
        found.append(runs[0])
    full = reader.full([run.run_id for run in found])
    factor = _factor(full)
    baseline = full[0].params.get(factor, "unset")
    values = list(dict.fromkeys(run.params.get(factor, "unset") for run in full))
    trials = _trials(
        reader, [(run, run.params.get(factor, "unset"), int(run.params.get("seed_everything", 0))) for run in full]
    )
    times = Counter((trial.arm, trial.seed) for trial in trials)
    twice = [pair for pair, number in times.items() if number > 1]
    if twice:
        arm, seed = sorted(twice)[0]
        raise SoraError(f"two runs have {factor}={arm} and seed {seed}; name one of them")
    common = set.intersection(*({m for m in t.metrics if m.startswith(("val/", "test/"))} for t in trials))
    if metric is not None:
        _refuse_unlogged(trials, metric)
    elif not common:
        raise SoraError("these runs have no validation or test metric in common; there is nothing to compare")
    else:
        usual = ("test/adherence", "val/denoising_error", "val/loss", "val/psnr")
        directed = sorted(common, key=lambda name: (direction(name) is None, name))
        metric = next((name for name in usual if name in common), directed[0])
    return Study(
        name="runs",
        factor=factor,
        baseline=baseline,
        metric=metric,
        mode=chosen_mode(metric, mode, MODE_FLAG),
        budget="as each run's recipe says",
        arms=tuple(Arm(value, value) for value in values),
        trials=tuple(trials),
    )


def _factor(runs: Sequence[RunData]) -> str:
    """The one key in which plain runs differ.

    Raises:
        SoraError: none, or several, which are named with their values.
    """
    keys = sorted({key for run in runs for key in run.params})
    differing = [
        key
        for key in keys
        if len({run.params.get(key, "unset") for run in runs}) > 1
        and not key.startswith(NOT_FACTORS)
        and key not in COUNTS
        and key.split(".")[-1] not in ("seed", "seed_everything")
    ]
    if not differing:
        raise SoraError("these runs differ in nothing but their seeds; there are no arms to compare")
    if len(differing) > 1:
        shown = "; ".join(
            f"{k}: {', '.join(dict.fromkeys(r.params.get(k, 'unset') for r in runs))}" for k in differing[:6]
        )
        raise SoraError(
            f"these runs differ in {len(differing)} things ({shown}{' ...' if len(differing) > 6 else ''}), so that no "
            "difference of theirs has one cause; compare runs that differ in one"
        )
    return differing[0]


def _chosen(study: Study, uri: str, metric: str | None, mode: Mode | None, baseline: str | None) -> Study:
    from dataclasses import replace

    names = [arm.name for arm in study.arms]
    if baseline is not None and baseline not in names:
        raise SoraError(f"--baseline {baseline!r} is no arm; arms: {', '.join(names)}")
    if metric is not None:
        _refuse_unlogged(study.trials, metric)
    planned = study.mode if metric in (None, study.metric) else None
    metric = metric or study.metric
    mode = chosen_mode(metric, mode or planned, MODE_FLAG)
    return replace(study, uri=uri, metric=metric, mode=mode, baseline=baseline or study.baseline)


def _refuse_unlogged(trials: Sequence[Trial], metric: str) -> None:
    logged = sorted({name for trial in trials for name in trial.metrics})
    if metric not in logged:
        hint = did_you_mean(metric, logged)
        shown = [name for name in logged if name.startswith(("val/", "test/"))]
        raise SoraError(f"no metric {metric!r} in these runs; {hint}logged: {', '.join(shown)}")
