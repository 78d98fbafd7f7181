"""What an evaluation asks for, shares and says: against formulas, and whatever the order, the batches and the names."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import METRICS, Evaluated, Needs, PerVideoMetric, register_metric
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.frechet import Moments
from lightning_sora.metrics.kernel import jedi_distance
from lightning_sora.metrics.reference import ReferenceStatistics
from lightning_sora.metrics.results import Results
from lightning_sora.metrics.seen import clip_digest
from lightning_sora.world import World
from tests.metrics.toys import Angle

RANDOM = "random(width=4, side=16)"
CUT = {"clip": {"frames": 4, "fps": None, "resampled": False, "offset": "first"}}


def clips_of(count: int, seed: int, sides: Sequence[int] = (16, 20, 24)) -> list[Tensor]:
    """Noise in clips of mixed sizes, each of its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        top = int(torch.randint(100, 256, (), generator=generator))
        side = sides[index % len(sides)]
        found.append(torch.randint(0, top, (4, side, side, 3), generator=generator, dtype=torch.uint8))
    return found


def evaluation_of(*metrics: Any, **options: Any) -> Evaluation:
    return Evaluation(metrics, **{"extractor": RANDOM, **options})


def add(
    evaluation: Evaluation, clips: Sequence[Tensor], side: str, prefix: str = "", batch: int = 5, backward: bool = False
) -> None:
    order = list(range(len(clips)))[:: -1 if backward else 1]
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        evaluation.update([f"{prefix}{index:03d}" for index in some], **{side: [clips[index] for index in some]})


def scored(*metrics: str, counts: tuple[int, int] = (24, 20), **options: Any) -> Results:
    evaluation = evaluation_of(*metrics, **options)
    add(evaluation, clips_of(counts[0], 0), "real", "r")
    add(evaluation, clips_of(counts[1], 1), "generated", "g")
    return evaluation.compute()


@pytest.fixture
def scratch() -> Iterator[None]:
    with METRICS.temporary(), EXTRACTORS.temporary():
        yield


# What is asked for.


def test_metrics_are_known_by_name() -> None:
    assert list(evaluation_of("fvd", "kvd").metrics) == ["fvd", "kvd"]
    with pytest.raises(SoraError, match="unknown metric 'fdv'; did you mean 'fvd'"):
        evaluation_of("fvd", "fdv")
    with pytest.raises(SoraError, match=r"no metric is asked for; choose some of: .*clip_score.*fid, fvd"):
        evaluation_of()
    with pytest.raises(SoraError, match="the metric fvd_random is asked for more than once; name it once"):
        evaluation_of("fvd", "kvd", "fvd")
    with pytest.raises(SoraError, match="psnr is asked for more than once"):
        evaluation_of("psnr", "psnr")


def test_metrics_of_one_name_are_called_by_their_extractors() -> None:
    evaluation = evaluation_of("fvd", "fvd(extractor='world')", "kvd")
    assert list(evaluation.metrics) == ["fvd_random", "fvd_world", "kvd"]
    assert [one.needs.features for one in evaluation.metrics.values()] == [RANDOM, "world", RANDOM]
    assert evaluation.distances == ["fvd_random", "fvd_world", "kvd"]


def test_metrics_that_are_made_already_are_taken_too(scratch: None) -> None:
    @register_metric("redness")
    class Redness(PerVideoMetric):
        """The mean of red, in [0, 1]."""

        def score(self, video: Evaluated) -> float:
            return float(video.clip[..., 0].double().mean() / 255)

    evaluation = Evaluation([Redness(), "temporal_flickering"])
    clip = clips_of(1, 0)[0]
    assert evaluation.update(["a"], generated=[clip])["redness"] == {"a": float(clip[..., 0].double().mean() / 255)}
    assert evaluation.compute().card.fields["metrics"]["redness"] == {"definition": "The mean of red, in [0, 1]."}


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        (["fvd"], {"extractor": None}, r"fvd needs an extractor: write fvd\(extractor="),
        (["fvd"], {"extractor": "randm"}, "did you mean 'random'"),
        (["clip_score"], {}, "clip_score needs a model"),
        (["fvd(size=3)"], {}, "metric 'fvd' does not accept 'size'"),
        (["lpips"], {}, "metric 'lpips' needs 'weights'"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_loaded(
    metrics: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SoraError, match=message):
        evaluation_of(*metrics, **options)


def test_clips_that_are_too_short_are_told_before_any_is_made() -> None:
    with pytest.raises(SoraError, match="motion_smoothness needs clips of at least 3 frames"):
        evaluation_of("motion_smoothness").check_length(2, None)
    with pytest.raises(SoraError, match="temporal_flickering needs clips of at least 2 frames"):
        evaluation_of("temporal_flickering").check_length(1, None)
    evaluation_of("temporal_flickering", "fvd").check_length(2, None)
    evaluation = evaluation_of("motion_smoothness")
    evaluation.update(["a", "b"], generated=[clip[:2] for clip in clips_of(2, 0)])
    with pytest.raises(SoraError, match=r"motion_smoothness could judge none of the clips .*at least 3 frames"):
        evaluation.compute()
    evaluation.update(["c"], generated=clips_of(1, 0))  # those among longer ones are left out
    assert evaluation.compute()["motion_smoothness"].clips == 1


def test_an_option_of_a_metric_comes_before_that_of_the_evaluation() -> None:
    evaluation = evaluation_of("fvd(extractor='random(width=8)')", "kvd")
    assert evaluation.metrics["fvd"].needs.features == "random(width=8)"
    assert evaluation_of("subject_consistency").metrics["subject_consistency"].needs.features == "dino"


# What is given.


def test_what_a_metric_lacks_is_one_error() -> None:
    clips, ids = clips_of(2, 0), ["a", "b"]
    for spec, lacking in (
        ("clip_score(model='world')", "captions"),
        ("adherence", "facts and the frames per second"),
        ("psnr", "the real clips of the same ids"),
        ("world_warping_error", "facts and the frames per second and the real clips of the same ids"),
    ):
        evaluation = Evaluation([spec])
        (name,) = evaluation.metrics
        (side,) = evaluation.metrics[name].sides
        with pytest.raises(SoraError, match=f"{name} needs {lacking} of the {side} clips, which are not told"):
            evaluation.update(ids, **{side: clips})


def test_what_is_given_must_be_one_of_each() -> None:
    evaluation, clips = evaluation_of("temporal_flickering"), clips_of(2, 0)
    for given in (
        {"generated": clips[:1]}, {"generated": clips, "captions": ["one"]}, {"generated": clips, "fps": [8.0]},
        {"generated": clips, "facts": []}, {"generated": clips, "real": clips[:1]},
    ):  # fmt: skip
        with pytest.raises(SoraError, match=r"2 ids are given with . of .*; give one for each"):
            evaluation.update(["a", "b"], **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["real", "generated", "reconstructed"])
@pytest.mark.parametrize(
    ("clip", "told"),
    [
        (torch.zeros(4, 8, 8, 3), r"torch.float32 \(4, 8, 8, 3\)"),
        (torch.zeros((3, 4, 8, 8), dtype=torch.uint8), r"torch.uint8 \(3, 4, 8, 8\)"),
        (torch.zeros((8, 8, 3), dtype=torch.uint8), r"torch.uint8 \(8, 8, 3\)"),
    ],
)
def test_clips_are_display_values(side: str, clip: Any, told: str) -> None:
    evaluation = evaluation_of("temporal_flickering")
    with pytest.raises(SoraError, match=f"a {side} clip of {told} cannot be scored; give display values"):
        evaluation.update(["a"], **{side: [clip]})
    assert "generated" not in evaluation.card().fields["clips"]


def test_sides_have_ids_of_their_own() -> None:
    real, made = clips_of(16, 0), clips_of(16, 1)
    together, apart = evaluation_of("kvd", "jedi"), evaluation_of("kvd", "jedi")
    together.update([str(i) for i in range(16)], real=real, generated=made)
    add(apart, real, "real", "r")
    add(apart, made, "generated", "g")
    one, other = together.compute(), apart.compute()
    assert one.card.id == other.card.id
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-9)
    together.update(["3"], real=real[3:4])
    with pytest.raises(SoraError, match="1 of 17 real clips were given more than once"):
        together.compute()


def test_mean_scores_refuse_clips_given_twice() -> None:
    evaluation = evaluation_of("temporal_flickering")
    for _ in range(2):
        evaluation.update(["a"], generated=clips_of(1, 0))
    with pytest.raises(SoraError, match="1 of 2 clips were given more than once"):
        evaluation.compute()


def test_a_side_that_no_metric_looks_at_is_not_counted() -> None:
    evaluation = evaluation_of("temporal_flickering")
    evaluation.update(["a"], generated=clips_of(1, 0), reconstructed=clips_of(1, 0))
    assert evaluation.compute().card.fields["clips"] == {"generated": 1}


# What is shared.


class Counting(Angle):
    """Counts how often it is made, and how many clips and captions it looks at."""

    made: ClassVar[int] = 0
    seen: ClassVar[list[int]] = []
    texts: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1

    def features(self, clips: Tensor) -> Tensor:
        self.seen.extend(clips[:, 0, 0, 0, 0].int().tolist())
        return super().features(clips)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.texts.extend(texts)
        return super().embed_texts(texts)


def test_networks_are_loaded_once_and_look_at_each_clip_once(scratch: None) -> None:
    EXTRACTORS.register("counting")(Counting)
    metrics = ["fvd", "kvd", "jedi", "fid", "subject_consistency(extractor='counting')",
               "background_consistency(extractor='counting')", "clip_score"]  # fmt: skip
    evaluation = Evaluation(metrics, extractor="counting", clip_model="counting")
    assert Counting.made == 0
    real, made = ([torch.full((2, 4, 4, 3), first + i, dtype=torch.uint8) for i in range(8)] for first in (0, 100))
    for batch in (slice(0, 3), slice(3, 8)):
        ids = [str(i) for i in range(8)][batch]
        evaluation.update(ids, real=real[batch], generated=made[batch], captions=ids)
    assert Counting.made == 1
    # Of each side: a clip as a whole, and both of its frames by themselves.
    values = [*range(8), *range(100, 108)]
    assert sorted(Counting.seen) == sorted(3 * values)
    assert sorted(Counting.texts) == [str(i) for i in range(8)]
    results = evaluation.compute()
    assert set(results.card.fields["extractors"]) == {"counting"}
    assert {card["extractor"] for card in results.card.fields["metrics"].values()} == {"counting"}


def test_metrics_share_what_they_work_out_of_a_clip(scratch: None) -> None:
    made: list[str] = []

    class Shared(PerVideoMetric):
        """Of what is worked out once."""

        def score(self, video: Evaluated) -> float:
            return video.once("work", lambda: made.append(video.id) or 1.0)  # type: ignore[func-returns-value]

    for name in ("one", "other"):
        register_metric(name)(type(name, (Shared,), {"__doc__": "Of it."}))
    evaluation = Evaluation(["one", "other"])
    found = evaluation.update(["a", "b"], generated=clips_of(2, 0))
    assert made == ["a", "b"]
    assert found["one"] == found["other"] == {"a": 1.0, "b": 1.0}


def test_a_metric_is_given_what_it_asks_for(scratch: None) -> None:
    given: list[Evaluated] = []

    @register_metric("nosy")
    class Nosy(PerVideoMetric):
        """It keeps what it is given."""

        needs = Needs(captions=True, facts=True, fps=True, pairs=True, features=RANDOM, per="frame")

        def score(self, video: Evaluated) -> float:
            given.append(video)
            return 0.0

    real, made = clips_of(2, 0), clips_of(2, 1)
    facts = [{"number": 0}, {"number": 1}]
    evaluation = Evaluation(["nosy"])
    evaluation.update(["a", "b"], real=real, generated=made, captions=["x", "y"], facts=facts, fps=[8, 24.0])
    assert [(v.id, v.caption, v.facts, v.fps) for v in given] == [("a", "x", facts[0], 8.0), ("b", "y", facts[1], 24.0)]
    network = EXTRACTORS.create(RANDOM)
    for video, clip, other in zip(given, made, real, strict=True):
        assert torch.equal(video.clip, clip)
        assert video.real is not None
        assert torch.equal(video.real, other)
        assert video.content == clip_digest(clip)
        torch.testing.assert_close(video.features, network([frame[None] for frame in clip]))


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


# By seconds.


def test_an_extractor_that_goes_by_seconds_is_told_the_rate() -> None:
    evaluation = evaluation_of("fvd", extractor="world")
    evaluation.load()
    with pytest.raises(SoraError, match=r"at 16 fps .* at least 17"):
        evaluation.check_length(16, 16.0)
    evaluation.check_length(17, 16.0)
    evaluation.check_length(3, None)  # which only the clips will tell
    with pytest.raises(SoraError, match="tell the frames per second"):
        evaluation.update(["a"], generated=[torch.zeros((17, 32, 32, 3), dtype=torch.uint8)])
    features = {}
    for fps, every in ((8.0, 2), (16.0, 1)):
        clip = torch.arange(33, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)[::every]
        evaluation = evaluation_of("kvd", extractor="world")
        evaluation.update(["one"], real=[clip], fps=fps)
        features[fps] = evaluation.metrics["kvd"].state.features("real")  # type: ignore[attr-defined]
    torch.testing.assert_close(features[8.0], features[16.0])


# What nobody named.


def test_metrics_by_default_are_those_that_need_no_more_than_is_given() -> None:
    made = set(Evaluation.default(["generated"]).metrics)
    assert made >= {"temporal_flickering", "motion_smoothness", "adherence", "identity"}
    assert not made & {"fvd", "kvd", "rfvd", "clip_score", "world_warping_error", "lpips", "subject_consistency"}
    assert set(Evaluation.default(["generated"], extractor=RANDOM).metrics) == made | {"fvd", "kvd"}
    assert set(Evaluation.default(["generated"], clip_model="world").metrics) == made | {"clip_score"}
    reconstructed = set(Evaluation.default(["reconstructed"], extractor=RANDOM).metrics)
    assert reconstructed == {"rfvd", "world_warping_error"}


def test_metrics_by_default_leave_out_what_clips_are_not_fit_for() -> None:
    evaluation = Evaluation.default(["generated"])
    assert set(evaluation.update(["a", "b"], generated=clips_of(2, 0))) == {"temporal_flickering", "motion_smoothness"}
    assert set(evaluation.compute()) == {"temporal_flickering", "motion_smoothness"}
    evaluation.check_length(1, 8.0)
    world = World("simple")
    facts = [world.facts(i) for i in range(2)]
    clips = [world.render(fact, frames=9, height=32, width=32, fps=8.0) for fact in facts]
    told = [{**fact.as_dict(), "config": vars(world.config)} for fact in facts]
    evaluation.reset()
    evaluation.update(["a", "b"], generated=clips, facts=told, fps=8)
    assert set(evaluation.compute()) == set(evaluation.metrics)


def test_videos_of_prompts_are_scored_by_what_needs_nothing_else(scratch: None) -> None:
    EXTRACTORS.register("counting")(Counting)
    Counting.made = 0
    evaluation = Evaluation(["fvd", "temporal_flickering", "clip_score", "adherence", "psnr"], extractor=RANDOM,
                            clip_model="counting")  # fmt: skip
    evaluation.load()
    add_all = {"generated": clips_of(2, 0), "captions": ["10", "20"]}
    beside = evaluation.of_prompts()
    assert beside is not None
    assert list(beside.metrics) == ["temporal_flickering", "clip_score"]
    assert set(beside.update(["a", "b"], **add_all)) == {"temporal_flickering", "clip_score"}  # type: ignore[arg-type]
    assert Counting.made == 1
    assert beside.compute()["clip_score"].clips == 2
    assert not evaluation.card().fields["clips"]  # the one's clips are not the other's
    assert evaluation_of("fvd").of_prompts() is None
