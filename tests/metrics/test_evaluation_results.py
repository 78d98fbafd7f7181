"""What an evaluation says: against formulas, and whatever the order, the batches and the names."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import METRICS, Evaluated, PerVideoMetric
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.frechet import Moments
from lightning_sora.metrics.kernel import jedi_distance
from lightning_sora.metrics.reference import ReferenceStatistics
from lightning_sora.metrics.results import Results
from tests.metrics.noise import CUT, RANDOM, add, clips_of, evaluation_of, scored
from tests.metrics.toys import Angle

# What is said.


def test_a_distance_has_an_interval_and_floors() -> None:
    found = scored("fvd", "kvd", "jedi", counts=(96, 80)).as_dict()
    shared = {"value", "unbiased", "stderr", "low", "high", "clips",
              "real_vs_real", "real_vs_real_low", "real_vs_real_high"}  # fmt: skip
    assert set(found["fvd"]) >= shared | {"infinity", "small_sample_bias"}
    assert set(found["kvd"]) >= shared
    assert set(found["jedi"]) >= shared
    for figures in found.values():
        assert figures["low"] < figures["unbiased"] < figures["high"]
        assert figures["real_vs_real_low"] < figures["real_vs_real"] < figures["real_vs_real_high"]
        assert figures["clips"] == 80
    assert found["kvd"]["value"] == found["kvd"]["unbiased"]
    assert found["jedi"]["unbiased"] < found["jedi"]["value"]  # its form is biased upward


def test_jedi_is_the_distance_of_all_clips() -> None:
    first, second = clips_of(24, 0), clips_of(20, 1)
    network = EXTRACTORS.create(RANDOM)
    wanted = jedi_distance(Moments.of(network(first)), Moments.of(network(second)))
    assert scored("jedi")["jedi"].value == pytest.approx(float(wanted))


def test_a_set_is_at_no_distance_from_itself_and_noise_is() -> None:
    def against(made: list[Tensor]) -> Results:
        evaluation = evaluation_of("fvd", "kvd", "jedi")
        add(evaluation, clips_of(24, 0), "real")
        add(evaluation, made, "generated")
        return evaluation.compute()

    same, noisy = against(clips_of(24, 0)), against([255 - clip for clip in clips_of(24, 0)])
    for name in ("fvd", "kvd", "jedi"):
        low, high = same[name].low, same[name].high
        assert low is not None
        assert high is not None
        # Of all pairs of a set with itself those of a clip with itself are the closest: below zero, as the formula is.
        assert same[name].value < 0 if name == "kvd" else low - 1e-9 <= 0 <= high + 1e-9
        assert noisy[name].value > same[name].value
        assert (noisy[name].low or 0) > 0


def test_neither_the_order_nor_the_batches_matter() -> None:
    def run(batch: int, backward: bool) -> Results:
        evaluation = evaluation_of("fvd", "kvd", "jedi", "temporal_flickering")
        for side, clips in (("real", clips_of(16, 0)), ("generated", clips_of(18, 1))):
            add(evaluation, clips, side, side, batch, backward)
        return evaluation.compute()

    one, other = run(3, False), run(16, True)
    assert one.card.id == other.card.id
    assert one.clips == other.clips
    for name, score in one.items():
        assert score.as_dict() == pytest.approx(other[name].as_dict(), rel=1e-6, abs=1e-7)


def test_no_name_changes_a_kernel_distance() -> None:
    def run(real_name: str, made_name: str, backward: bool = False) -> Results:
        evaluation = evaluation_of("kvd")
        for side, clips, name in (
            ("real", clips_of(17, 0), real_name),
            ("generated", [*clips_of(15, 1), clips_of(1, 1)[0]], made_name),
        ):
            order = list(range(len(clips)))[:: -1 if backward else 1]
            evaluation.update([name.format(i) for i in order], **{side: [clips[i] for i in order]})
        return evaluation.compute()

    one = run("{}", "{}")
    assert METRICS.create("kvd", extractor=RANDOM).card()["definition"].endswith("all pairs")
    for other in (run("r{}", "g{}"), run("{:03d}.mp4", "{:03d}.mp4", backward=True)):
        assert other["kvd"].as_dict() == pytest.approx(one["kvd"].as_dict(), rel=1e-9)
        assert other.card.id == one.card.id


def test_means_over_clips_stand_beside_the_real_ones() -> None:
    still = [clip[:1].expand(4, -1, -1, -1).contiguous() for clip in clips_of(3, 1)]
    evaluation = Evaluation(["temporal_flickering", "motion_smoothness"])
    add(evaluation, clips_of(4, 0), "real")
    add(evaluation, still, "generated")
    found = evaluation.compute()
    flickering = found["temporal_flickering"]
    assert (flickering.value, flickering.stderr, flickering.clips) == (1, 0, 3)
    assert set(flickering.figures) == {"real", "real_stderr"}
    assert found["motion_smoothness"].value == 1
    assert found["motion_smoothness"].figures["real"] < 0.9
    assert found.clips["temporal_flickering"] == {"000": 1, "001": 1, "002": 1}
    assert found.card.fields["clips"] == {"real": 4, "generated": 3}
    assert "extractors" not in found.card.fields


def test_a_single_clip_has_a_mean_without_an_error() -> None:
    evaluation = Evaluation(["temporal_flickering"])
    add(evaluation, clips_of(1, 0), "generated")
    found = evaluation.compute()
    assert set(found["temporal_flickering"].as_dict()) == {"value", "clips"}
    assert found.card.fields["clips"] == {"generated": 1}
    assert found.card.fields["sizes"] == {"generated": ["4x16x16"]}


def test_values_are_logged_by_their_names() -> None:
    score = scored("kvd")["kvd"]
    logged = score.logged("kvd")
    assert logged["kvd"] == score.value
    assert logged["kvd_low"] == score.low
    assert logged["kvd_real_vs_real"] == score.figures["real_vs_real"]
    assert not any("clips" in name for name in logged)


def test_only_the_published_metric_has_its_name() -> None:
    class I3D(Angle):
        title = "FVD"

        def describe(self) -> dict[str, Any]:
            return {"name": "i3d"}

    evaluation = evaluation_of("fvd", "kvd", "jedi")
    evaluation.load()
    titles = [metric.title for metric in evaluation.metrics.values()]
    assert titles == ["random-FD (not FVD)", "random MMD (not KVD)", "random MMD as in JEDi"]
    for metric in evaluation.metrics.values():
        metric.network = I3D()
    assert [metric.title for metric in evaluation.metrics.values()] == ["FVD", "KVD", "i3d MMD as in JEDi"]


def test_a_metric_that_nobody_registered_is_called_by_its_class() -> None:
    class Redness(PerVideoMetric):
        def score(self, video: Evaluated) -> float:
            return float(video.clip[..., 0].double().mean())

    evaluation = Evaluation([Redness()])
    evaluation.update(["0"], generated=[torch.zeros(2, 4, 4, 3, dtype=torch.uint8)])
    assert evaluation.compute().titles == {"Redness": "Redness"}


def test_results_are_plain_values_for_files_and_tables() -> None:
    found = scored("kvd", "temporal_flickering")
    record = json.loads(json.dumps(found.record()))
    assert record["protocol_id"] == found.card.id
    assert record["scores"]["kvd"] == {"title": "random MMD (not KVD)", **found["kvd"].as_dict()}
    assert record["clips"]["temporal_flickering"].keys() == {f"g{i:03d}" for i in range(20)}
    assert (found.compares_sets("kvd"), found.compares_sets("temporal_flickering")) == (True, False)
    assert found.higher_is_better == {"kvd": False, "temporal_flickering": True}
    told = str(found)
    for part in ("24 real clips", "random MMD (not KVD)", "temporal flickering ↑", found.card.id):
        assert part in told


def test_after_a_reset_networks_stay_and_clips_are_gone() -> None:
    evaluation = evaluation_of("kvd", "temporal_flickering")
    for seed in (3, 0):
        evaluation.reset()
        add(evaluation, clips_of(24, seed), "real", "r")
        add(evaluation, clips_of(20, seed + 1), "generated", "g")
    network, found = evaluation.metrics["kvd"].network, evaluation.compute()
    assert network is evaluation.metrics["kvd"].network
    wanted = scored("kvd", "temporal_flickering")
    assert (found.card.id, found.as_dict(), found.clips) == (wanted.card.id, wanted.as_dict(), wanted.clips)


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 16])
def test_few_clips_have_a_distance_however_they_fall_into_groups(count: int) -> None:
    evaluation = evaluation_of("fvd", "kvd", "jedi")
    real, made = clips_of(count, 0, sides=(16,)), clips_of(count, 1, sides=(16,))
    for attempt in range(40):
        evaluation.reset()
        add(evaluation, real, "real", f"{attempt}r", batch=16)
        add(evaluation, made, "generated", f"{attempt}g", batch=16)
        assert all(math.isfinite(v) for figures in evaluation.compute().as_dict().values() for v in figures.values())


# The protocol.


def test_the_card_tells_real_sets_and_counts_apart_but_not_names() -> None:
    def card(real: Sequence[Tensor], prefix: str, backward: bool = False, **options: Any) -> Any:
        evaluation = evaluation_of("fvd", protocol=CUT, **options)
        add(evaluation, real, "real", prefix, 7, backward)
        add(evaluation, clips_of(16, 1), "generated", prefix, 3, backward)
        return evaluation.card()

    real = clips_of(16, 0)
    one = card(real, "a/")
    assert card([clip.clone() for clip in real], "other/b", backward=True).id == one.id
    other = card([*real[:-1], 255 - real[-1]], "a/")
    assert set(one.differences(other)) == {"real"}
    assert set(one.differences(card(real[:15], "a/"))) == {"real", "clips.real"}
    assert set(one.differences(card(real, "a/", extractor="random(width=4, side=16, seed=1)"))) == {
        "extractors.random.seed", "extractors.random.weights",
    }  # fmt: skip
    assert one.fields["clips"] == {"real": 16, "generated": 16}
    assert one.fields["clip"] == CUT["clip"]
    assert one.fields["sizes"] == {"generated": ["4x16x16", "4x20x20", "4x24x24"]}
    assert one.fields["metrics"]["fvd"] == {**METRICS.create("fvd", extractor=RANDOM).card(), "extractor": "random"}
    assert one.fields["extractors"]["random"]["verified"] is False
    pairs = [evaluation_of("psnr") for _ in range(2)]
    for evaluation, originals in zip(pairs, (real, [*real[:-1], 255 - real[-1]]), strict=True):
        evaluation.update([str(i) for i in range(16)], generated=real, real=originals)
    assert set(pairs[0].card().differences(pairs[1].card())) == {"real"}


def test_the_card_tells_rates_and_extractors_of_one_part_apart() -> None:
    evaluation = evaluation_of("fvd", "kvd(extractor='random(width=4, side=16, seed=1)')", "fid(extractor='world')")
    evaluation.update(["a", "b"], generated=clips_of(2, 0), fps=[8, 29.97])
    fields = evaluation.card().fields
    assert fields["sizes"]["generated"] == ["4x16x16 at 8 fps", "4x20x20 at 29.97 fps"]
    labels = {name: card["extractor"] for name, card in fields["metrics"].items()}
    assert labels == {"fvd": "random", "kvd": "random 2", "fid": "world"}
    assert fields["extractors"]["random 2"]["seed"] == 1


# References.


def test_a_reference_must_fit_what_is_asked() -> None:
    evaluation = evaluation_of("fvd")
    add(evaluation, clips_of(16, 0), "real")
    kept = evaluation.statistics(CUT)
    with pytest.raises(SoraError, match="kvd needs the features of every real clip"):
        evaluation_of("fvd", "kvd", reference=kept)
    with pytest.raises(SoraError, match="no metric asked for needs --reference"):
        evaluation_of("temporal_flickering", reference=kept)
    with pytest.raises(SoraError, match=r"extractor\.seed: 0 against 1|seed: 0 against 1"):
        evaluation_of("fvd", extractor="random(width=4, side=16, seed=1)", reference=kept).load()
    with pytest.raises(SoraError, match="give real clips and one"):
        evaluation_of("kvd").statistics({})


def test_a_reference_gives_the_scores_of_the_real_side() -> None:
    evaluation = evaluation_of("fvd", "jedi")
    add(evaluation, clips_of(24, 0), "real", "r")
    kept = evaluation.statistics(CUT)
    add(evaluation, clips_of(20, 1), "generated", "g")
    by_clips = evaluation.compute()
    again = evaluation_of("fvd", "jedi", reference=kept)
    add(again, clips_of(20, 1), "generated", "g")
    by_reference = again.compute()
    assert by_reference.as_dict() == {name: pytest.approx(v) for name, v in by_clips.as_dict().items()}
    assert by_reference.card.id == by_clips.card.id


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    evaluation = evaluation_of("fvd")
    add(evaluation, clips_of(16, 0), "real")
    path = evaluation.statistics(CUT).save(tmp_path, "reference")
    assert ReferenceStatistics.load(path).digest == evaluation.statistics(CUT).digest
