"""Metrics of one's own: how they are called, and what is said where one is mistaken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import Evaluated, Needs, PerVideoMetric
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.motion import TemporalFlickering

CLIPS = [torch.zeros((2, 8, 8, 3), dtype=torch.uint8)]


class Reading(PerVideoMetric):
    """Reads one thing of a clip."""

    def __init__(self, what: str, **needs: Any) -> None:
        self.what, self.needs = what, Needs(**needs)

    def score(self, video: Evaluated) -> float:
        return float(getattr(video, self.what) is not None)


@pytest.mark.parametrize(
    ("what", "declared"),
    [
        ("caption", "captions=True"),
        ("facts", "facts=True"),
        ("fps", "fps=True"),
        ("real", "pairs=True"),
        ("features", "features='dino'"),
    ],
)
def test_what_a_metric_reads_it_must_ask_for(what: str, declared: str) -> None:
    evaluation = Evaluation([Reading(what)])
    with pytest.raises(SoraError, match=rf"^Reading reads video\.{what}, .* Needs\({declared}\)"):
        evaluation.update(["a"], generated=CLIPS)


def test_what_a_metric_asks_for_it_is_given() -> None:
    given: dict[str, Any] = {"captions": ["night"], "facts": [{}], "real": CLIPS, "fps": 8}
    asked = {"caption": "captions", "facts": "facts", "real": "pairs", "fps": "fps"}
    for what, need in asked.items():
        evaluation = Evaluation([Reading(what, **{need: True})])
        assert evaluation.update(["a"], generated=CLIPS, **given) == {"Reading": {"a": 1.0}}
        assert "caption" in repr(Evaluated("a", CLIPS[0]))


def test_a_metric_that_is_not_registered_is_called_by_its_class() -> None:
    class Nothing(TemporalFlickering):
        """No number at all."""

        def score(self, video: Evaluated) -> float:
            return float("nan")

    assert (Nothing.name, Nothing().title, TemporalFlickering.name) == ("Nothing", "Nothing", "temporal_flickering")
    with pytest.raises(SoraError, match=r"^Nothing of the generated clip a is nan"):
        Evaluation([Nothing()]).update(["a"], generated=CLIPS)


def test_an_unknown_metric_may_be_ones_own() -> None:
    with pytest.raises(SoraError, match=r"unknown metric 'brightness'; .*--plugins FILE"):
        Evaluation(["brightness"])


@pytest.mark.parametrize("extractor", ["world", "spec:world"])
def test_a_spec_is_read_in_every_way_that_specs_are_written(extractor: str) -> None:
    evaluation = Evaluation(["spec:fvd", f"kvd(extractor={extractor!r})"], extractor=extractor)
    assert list(evaluation.metrics) == ["fvd", "kvd"]
    with pytest.raises(SoraError, match=r"write 'i3d\(weights=\.\.\.\)'"):
        Evaluation(["fvd"], extractor="i3d:absent.pt")
    with pytest.raises(SoraError, match=r"absent\.pth"):
        Evaluation(["lpips:absent.pth"]).load()
