"""What an evaluation asks for, is given and shares among its metrics."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.base import METRICS, Evaluated, Needs, PerVideoMetric, register_metric
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.seen import clip_digest
from lightning_sora.world import World
from tests.metrics.noise import RANDOM, add, clips_of, evaluation_of
from tests.metrics.toys import Angle


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
    assert not evaluation.compute().left_out  # of what they are not told
    evaluation.check_length(1, 8.0)
    world = World("simple")
    facts = [world.facts(i) for i in range(2)]
    clips = [world.render(fact, frames=9, height=32, width=32, fps=8.0) for fact in facts]
    told = [{**fact.as_dict(), "config": vars(world.config)} for fact in facts]
    evaluation.reset()
    evaluation.update(["a", "b"], generated=clips, facts=told, fps=8)
    assert set(evaluation.compute()) == set(evaluation.metrics)
    evaluation.reset()
    evaluation.update(["a", "b"], generated=[clip[:4] for clip in clips], facts=told, fps=8)
    short = evaluation.compute()
    assert set(short) == {"temporal_flickering", "motion_smoothness"}
    assert set(short.left_out) == set(evaluation.metrics) - set(short)
    assert short.left_out["adherence"] == "it needs clips that FVD (world) takes"


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
