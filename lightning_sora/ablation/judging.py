"""Every arm of a study against its baseline."""

from __future__ import annotations

from lightning_sora.ablation.statistics import judge
from lightning_sora.ablation.study import Study
from lightning_sora.ablation.verdict import Verdict


def verdicts_of(study: Study, level: float = 0.95) -> list[Verdict]:
    """Every arm against the baseline, which is the first.

    Raises:
        SoraError: the baseline has no finished trial.
    """
    arms = [study.baseline, *(arm.name for arm in study.arms if arm.name != study.baseline)]
    values = {arm: study.values(arm) for arm in arms}
    scores = {
        arm: {
            t.seed: t.clip_scores[study.metric] for t in study.of(arm) if t.finished and study.metric in t.clip_scores
        }
        for arm in arms
    }
    return judge(values, study.baseline, study.mode, scores, level, clips=_clips_judged(study))


def _clips_judged(study: Study) -> int | None:
    """How many clips the metric is over, as the protocol cards say: at least, of it, its whole, or its split."""
    split = study.metric.partition("/")[0]
    cards = [t.protocol.get(split, {}).get("clips", {}) for t in study.trials if t.finished]
    own = [n for card in cards for name, n in card.items() if f"{study.metric}_".startswith(f"{name}_")]  # type: ignore[attr-defined]
    return min(own or [n for card in cards for n in card.values()], default=None)  # type: ignore[attr-defined]
