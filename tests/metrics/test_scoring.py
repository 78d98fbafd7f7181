"""What each score needs, how it is called, and what its record says."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lightning_sora.metrics.scoring import METRICS, Scorer, check_metrics, content_ids
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.frechet import Moments
from lightning_sora.metrics.kernel import jedi_distance
from lightning_sora.metrics.protocol import ClipProtocol
from lightning_sora.metrics.reference import ReferenceStatistics

RANDOM = "random(width=4, side=16)"
SHORT = ClipProtocol(frames=4)


def clips_of(count: int, seed: int, sides: Sequence[int] = (16, 20, 24)) -> list[Tensor]:
    """Noise in clips of mixed sizes, each of its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        top = int(torch.randint(100, 256, (), generator=generator))
        side = sides[index % len(sides)]
        found.append(torch.randint(0, top, (4, side, side, 3), generator=generator, dtype=torch.uint8))
    return found


def loaded(*metrics: str, **options: Any) -> Scorer:
    scorer = Scorer(metrics, SHORT, **{"extractor": RANDOM, **options})
    scorer.load()
    return scorer


def add(scorer: Scorer, clips: Sequence[Tensor], real: bool, prefix: str = "", batch: int = 5) -> None:
    ids = [f"{prefix}{index:03d}" for index in range(len(clips))]
    for first in range(0, len(clips), batch):
        some = slice(first, first + batch)
        scorer.add(clips[some], ids[some], real=real, contents=[f"bytes of {name}" for name in ids[some]])


def scored(*metrics: str, counts: tuple[int, int] = (24, 20), **options: Any) -> Any:
    scorer = loaded(*metrics, **options)
    add(scorer, clips_of(counts[0], 0), real=True, prefix="r")
    add(scorer, clips_of(counts[1], 1), real=False, prefix="g")
    return scorer.result()


def test_metrics_are_known_by_name() -> None:
    assert check_metrics(["fvd", "kvd", "fvd"]) == ["fvd", "kvd"]
    with pytest.raises(SoraError, match="unknown metric fdv; did you mean fvd"):
        check_metrics(["fvd", "fdv"])
    with pytest.raises(SoraError, match=r"unknown metric \(none\); known: fvd, fid, kvd"):
        check_metrics([])


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        (["fvd"], {"extractor": None}, "fvd needs --extractor"),
        (["fvd"], {"extractor": "randm"}, "did you mean 'random'"),
        (["clip_score"], {}, "clip_score needs --clip-model"),
        (["motion_smoothness"], {"protocol": ClipProtocol(frames=2)}, "at least 3 frames"),
        (["temporal_flickering"], {"protocol": ClipProtocol(frames=1)}, "at least 2 frames"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_loaded(
    metrics: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SoraError, match=message):
        Scorer(metrics, **{"protocol": SHORT, "extractor": RANDOM, **options})


def test_a_reference_must_fit_what_is_asked() -> None:
    scorer = loaded("fvd")
    add(scorer, clips_of(16, 0), real=True)
    kept = scorer.statistics()
    with pytest.raises(SoraError, match="kvd needs the features of every real clip"):
        loaded("fvd", "kvd", reference=kept)
    with pytest.raises(SoraError, match="no metric asked for needs --reference"):
        loaded("temporal_flickering", reference=kept)
    with pytest.raises(SoraError, match=r"clip\.offset: 'first' against 'center'"):
        Scorer(["fvd"], ClipProtocol(frames=4, offset="center"), RANDOM, reference=kept)
    with pytest.raises(SoraError, match=r"extractor\.seed: 0 against 1"):
        loaded("fvd", extractor="random(width=4, side=16, seed=1)", reference=kept)
    with pytest.raises(SoraError, match="give --real and one"):
        loaded("kvd").statistics()


def test_a_distance_has_an_interval_and_floors() -> None:
    values = scored("fvd", "kvd", "jedi", counts=(96, 80)).values
    shared = {"value", "unbiased", "stderr", "low", "high", "halves", "halves_low", "halves_high"}
    assert set(values["fvd"]) >= shared | {"infinity", "bias"}
    assert set(values["kvd"]) >= shared
    assert set(values["jedi"]) >= shared
    for figures in values.values():
        assert figures["low"] < figures["unbiased"] < figures["high"]
        assert figures["halves_low"] < figures["halves"] < figures["halves_high"]
    assert values["kvd"]["value"] == values["kvd"]["unbiased"]
    assert values["jedi"]["unbiased"] < values["jedi"]["value"]  # its form is biased upward


def test_jedi_is_the_distance_of_all_clips() -> None:
    scorer = loaded("jedi")
    assert scorer.network is not None
    first, second = clips_of(24, 0), clips_of(20, 1)
    add(scorer, first, real=True, prefix="r")
    add(scorer, second, real=False, prefix="g")
    wanted = jedi_distance(Moments.of(scorer.network(first)), Moments.of(scorer.network(second)))
    assert scorer.result().values["jedi"]["value"] == pytest.approx(float(wanted))


def test_a_set_is_at_no_distance_from_itself_and_noise_is() -> None:
    def against(made: list[Tensor]) -> Any:
        scorer = loaded("fvd", "kvd", "jedi")
        add(scorer, clips_of(24, 0), real=True)
        add(scorer, made, real=False)
        return scorer.result().values

    same, noisy = against(clips_of(24, 0)), against([255 - clip for clip in clips_of(24, 0)])
    for name in ("fvd", "kvd", "jedi"):
        # Of all pairs of a set with itself those of a clip with itself are the closest: below zero, as the formula is.
        assert same[name]["value"] < 0 if name == "kvd" else same[name]["low"] - 1e-9 <= 0 <= same[name]["high"] + 1e-9
        assert noisy[name]["value"] > same[name]["value"]
        assert noisy[name]["low"] > 0


def test_neither_the_order_nor_the_batches_matter() -> None:
    def run(batch: int, backward: bool) -> Any:
        scorer = loaded("fvd", "kvd", "jedi", "temporal_flickering")
        for real, clips in ((True, clips_of(16, 0)), (False, clips_of(18, 1))):
            order = list(range(len(clips)))[:: -1 if backward else 1]
            for first in range(0, len(order), batch):
                some = order[first : first + batch]
                ids = [f"{real}{index}" for index in some]
                scorer.add([clips[index] for index in some], ids, real=real, contents=ids)
        return scorer.result()

    one, other = run(3, False), run(16, True)
    assert one.card.id == other.card.id
    assert one.clips == other.clips
    for name, values in one.values.items():
        assert values == pytest.approx(other.values[name], rel=1e-6, abs=1e-7)


def test_no_name_changes_a_kernel_distance() -> None:
    def run(real_name: str, made_name: str, backward: bool = False) -> Any:
        scorer = loaded("kvd")
        for real, clips, name in (
            (True, clips_of(17, 0), real_name),
            (False, [*clips_of(15, 1), clips_of(1, 1)[0]], made_name),
        ):
            order = list(range(len(clips)))[:: -1 if backward else 1]
            contents = [str(clips[i].sum().item()) for i in order]
            ids = [name.format(i) for i in order]
            scorer.add([clips[i] for i in order], ids, real=real, contents=contents)
        return scorer.result()

    one = run("{}", "{}")
    assert METRICS["kvd"].definition.endswith("all pairs")
    for other in (run("r{}", "g{}"), run("{:03d}.mp4", "{:03d}.mp4", backward=True)):
        assert other.values["kvd"] == pytest.approx(one.values["kvd"], rel=1e-9)
        assert other.card.id == one.card.id


def test_means_over_clips_stand_beside_the_real_ones() -> None:
    still = [clip[:1].expand(4, -1, -1, -1).contiguous() for clip in clips_of(3, 1)]
    scorer = Scorer(["temporal_flickering", "motion_smoothness"], SHORT)
    scorer.load()
    assert scorer.network is None
    add(scorer, clips_of(4, 0), real=True)
    add(scorer, still, real=False)
    found = scorer.result()
    assert found.values["temporal_flickering"] == pytest.approx(
        {"value": 1, "stderr": 0, "real": found.values["temporal_flickering"]["real"],
         "real_stderr": found.values["temporal_flickering"]["real_stderr"]}
    )  # fmt: skip
    assert found.values["motion_smoothness"]["value"] == 1
    assert found.values["motion_smoothness"]["real"] < 0.9
    assert found.clips["temporal_flickering"] == {"000": 1, "001": 1, "002": 1}
    assert found.card.fields["clips"] == {"generated": 3}


def test_a_single_clip_has_a_mean_without_an_error() -> None:
    scorer = Scorer(["temporal_flickering"], SHORT)
    scorer.load()
    add(scorer, clips_of(1, 0), real=False)
    assert set(scorer.result().values["temporal_flickering"]) == {"value"}


def test_a_reference_gives_the_scores_of_the_real_side() -> None:
    scorer = loaded("fvd", "jedi")
    add(scorer, clips_of(24, 0), real=True, prefix="r")
    kept = scorer.statistics()
    add(scorer, clips_of(20, 1), real=False, prefix="g")
    by_clips = scorer.result()
    again = loaded("fvd", "jedi", reference=kept)
    add(again, clips_of(20, 1), real=False, prefix="g")
    by_reference = again.result()
    assert by_reference.values == {name: pytest.approx(v) for name, v in by_clips.values.items()}
    assert by_reference.card.id == by_clips.card.id


def test_the_card_tells_real_sets_and_counts_apart_but_not_names() -> None:
    contents = [f"bytes {index}" for index in range(16)]
    scorer = loaded("fvd")
    counts = {"real": 16, "generated": 16}
    fields = scorer.fields(counts, contents)
    assert fields == scorer.fields(counts, contents[::-1])
    assert fields["real"] != scorer.fields(counts, [*contents[:-1], "other"])["real"]
    assert fields["clips"] == counts
    assert fields["clip"] == {"frames": 4, "fps": None, "resampled": False, "offset": "first"}
    assert fields["metrics"] == {"fvd": METRICS["fvd"].definition}
    assert fields["extractor"]["verified"] is False
    assert content_ids(contents).tolist() == sorted(content_ids(contents[::-1]).tolist())


def test_only_the_published_metric_has_its_name() -> None:
    class I3D(torch.nn.Module):
        title = "FVD"

        def describe(self) -> dict[str, Any]:
            return {"name": "i3d"}

    scorer = loaded("fvd", "kvd", "jedi")
    assert [scorer._title(name) for name in scorer.metrics] == [
        "random-FD (not FVD)", "random MMD (not KVD)", "random MMD as in JEDi",
    ]  # fmt: skip
    scorer.network = I3D()  # type: ignore[assignment]
    assert [scorer._title(name) for name in scorer.metrics] == ["FVD", "KVD", "i3d MMD as in JEDi"]


def test_statistics_survive_a_file(tmp_path: Any) -> None:
    scorer = loaded("fvd")
    add(scorer, clips_of(16, 0), real=True)
    path = scorer.statistics().save(tmp_path, "reference")
    assert ReferenceStatistics.load(path).digest == scorer.statistics().digest


def test_an_extractor_that_goes_by_seconds_is_told_the_rate() -> None:
    with pytest.raises(SoraError, match=r"at 16 fps .* at least 17"):
        Scorer(["fvd"], ClipProtocol(16, fps=16.0), extractor="world").load()
    with pytest.raises(SoraError, match="tell the frames per second"):
        Scorer(["fvd"], ClipProtocol(17), extractor="world").load()
    features = {}
    for fps, every in ((8.0, 2), (16.0, 1)):
        protocol = ClipProtocol(32 // every + 1, fps=fps)
        clip = torch.arange(33, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)[::every]
        scorer = Scorer(["kvd"], protocol, extractor="world")
        scorer.load()
        scorer.add([clip], ["one"], real=True)
        features[fps] = scorer._sets["kvd"].features("real")
    torch.testing.assert_close(features[8.0], features[16.0])


@pytest.mark.parametrize("count", [8, 16])
def test_few_clips_have_a_distance_however_they_fall_into_groups(count: int) -> None:
    for attempt in range(40):
        scorer = loaded("fvd", "kvd", "jedi")
        add(scorer, clips_of(count, 0, sides=(16,)), real=True, prefix=f"{attempt}r", batch=16)
        add(scorer, clips_of(count, 1, sides=(16,)), real=False, prefix=f"{attempt}g", batch=16)
        assert all(math.isfinite(value) for figures in scorer.result().values.values() for value in figures.values())
