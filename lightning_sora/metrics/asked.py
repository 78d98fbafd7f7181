"""Which metrics an evaluation is asked for: by their specs, or by what there is to go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning_sora.errors import SoraError
from lightning_sora.metrics import clip_score, fidelity, motion, set_metrics  # noqa: F401  # register
from lightning_sora.metrics.base import METRICS, Side, VideoMetric
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.specs import Spec

#: What may be given for all metrics at once: their option, by the evaluation's.
SHARED = {"extractor": "extractor", "model": "clip_model"}


def create_metric(spec: str, *, extractor: str | None = None, clip_model: str | None = None) -> VideoMetric:
    """A metric from its spec; options that it leaves out and that are given for all are filled in.

    Raises:
        SoraError: unknown metric, or an option that it does not accept.
    """
    asked = METRICS.resolve(spec)
    accepted, shared = METRICS.options(asked.name), {"extractor": extractor, "clip_model": clip_model}
    filled = {
        option: shared[given]
        for option, given in SHARED.items()
        if option in accepted and accepted[option].default is None and shared[given] is not None
    }
    return METRICS.create(Spec(asked.name, {**filled, **asked.options}))


def default_metrics(extractor: str | None, clip_model: str | None, of: Sequence[Side]) -> list[str]:
    """The metrics that are taken where none are named: all that ask for no network that is not given.

    Args:
        of: whose clips there will be.
    """
    given = {"extractor": extractor, "model": clip_model}
    found = []
    for name in METRICS.list():
        kind = METRICS.builder(name)
        automatic, options = getattr(kind, "automatic", ""), METRICS.options(name)
        lacking = [option for option, value in given.items() if option in options and value is None]
        if automatic and not lacking and getattr(kind, "of", "") in of:
            found.append(automatic)
    return found


def named(metrics: Sequence[VideoMetric]) -> dict[str, VideoMetric]:
    """Names for results: a metric's own; where one is asked for twice, with its extractor's."""
    times = Counter(metric.name for metric in metrics)
    found: dict[str, VideoMetric] = {}
    for metric in metrics:
        name = metric.name
        if times[metric.name] > 1 and metric.needs.features is not None:
            name = f"{name}_{EXTRACTORS.resolve(metric.needs.features).name}"
        if name in found:
            raise SoraError(f"the metric {name} is asked for more than once; name it once")
        found[name] = metric
    return found
