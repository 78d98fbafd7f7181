"""Scores over time against closed forms, their means over clips, and RAFT's plumbing."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_small

from lightning_sora.errors import SoraError
from lightning_sora.metrics import motion
from lightning_sora.metrics.base import METRICS
from lightning_sora.metrics.clip_means import ClipMeans
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.motion import (
    BackgroundConsistency,
    CLIPTemporalConsistency,
    DynamicDegree,
    MotionSmoothness,
    SubjectConsistency,
    TemporalFlickering,
    WarpingError,
)
from lightning_sora.metrics.temporal import (
    NoValidPixel,
    dynamic_degree,
    flow_stride,
    frame_consistency,
    load_raft,
    motion_smoothness,
    raft_flow,
    temporal_cosine,
    temporal_flickering,
    warping_error,
)
from tests.metrics.toys import Angle, scored

#: torchmetrics', of a side or a process without clips; in an evaluation it is not heard.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")


def constant(*values: int, size: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *size, 3).contiguous()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def rotating(degrees: float, frames: int) -> Tensor:
    angle = torch.arange(frames, dtype=torch.float64) * math.radians(degrees)
    return 3 * torch.stack((angle.cos(), angle.sin()), dim=1)


# Flicker and smoothness.


@pytest.mark.parametrize(
    ("values", "score"),
    [((7, 7, 7), 1.0), ((0, 255, 0), 0.0), ((10, 15, 20, 25), 1 - 5 / 255), ((9, 4), 1 - 5 / 255)],
)
def test_flicker_is_the_step_of_a_ramp(values: tuple[int, ...], score: float) -> None:
    found = temporal_flickering(constant(*values))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(score, abs=1e-12)


def test_the_average_of_neighbours_is_right_on_a_ramp() -> None:
    assert float(motion_smoothness(constant(0, 10, 20, 30, 40))) == 1


def test_the_last_frame_of_an_even_number_has_no_neighbour_and_is_left_out() -> None:
    assert float(motion_smoothness(constant(0, 10, 20, 255))) == 1


def test_smoothness_is_the_error_of_the_interpolator() -> None:
    clip = constant(0, 10, 20, 30, 40)
    assert float(motion_smoothness(clip, lambda before, after: before)) == pytest.approx(1 - 10 / 255, abs=1e-12)
    # 0.4 above is no error once it is rounded, as VBench's frames are.
    assert float(motion_smoothness(clip, lambda a, b: (a.double() + b.double()) / 2 + 0.4)) == 1
    with pytest.raises(SoraError, match="keep the shape"):
        motion_smoothness(clip, lambda before, after: before[:1])


@pytest.mark.parametrize("score", [temporal_flickering, motion_smoothness])
def test_one_frame_has_no_score(score: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(SoraError, match="1 frames has no"):
        score(constant(3))


# Features.


def test_a_planar_rotation_has_the_cosine_of_its_angle() -> None:
    assert float(temporal_cosine(rotating(20, 7))) == pytest.approx(math.cos(math.radians(20)), abs=1e-12)


def test_consistency_is_half_to_the_last_frame_and_half_to_the_first() -> None:
    """Beyond 90 degrees the cosine to the first frame counts as 0."""
    to_first = [max(0.0, math.cos(math.radians(40 * t))) for t in range(1, 6)]
    wanted = (math.cos(math.radians(40)) + sum(to_first) / 5) / 2
    assert float(frame_consistency(rotating(40, 6))) == pytest.approx(wanted, abs=1e-12)
    assert float(frame_consistency(rotating(0, 6))) == pytest.approx(1, abs=1e-12)
    assert float(frame_consistency(rotating(180, 2))) == 0


# Dynamic degree.


def moving(frames: int, moving_pairs: int, speed: float, size: tuple[int, int] = (64, 128)) -> Tensor:
    flow = torch.zeros(frames - 1, 2, *size)
    flow[:moving_pairs, 0] = speed
    return flow


@pytest.mark.parametrize(("pairs", "dynamic"), [(3, 0), (4, 1), (15, 1)])
def test_a_quarter_of_the_frames_must_move(pairs: int, dynamic: int) -> None:
    """16 frames: round(4 * 16 / 16) = 4 pairs; the threshold at 64 x 128 is 6 * 64 / 256 = 1.5 pixels."""
    assert float(dynamic_degree(moving(16, pairs, 1.6), 8, 64, 128)) == dynamic
    assert float(dynamic_degree(moving(16, pairs, 1.5), 8, 64, 128)) == 0


def test_the_fastest_twentieth_of_the_pixels_decides() -> None:
    flow = torch.zeros(1, 2, 20, 20)
    flow[0, 1, 0] = 100  # one row of twenty
    assert float(dynamic_degree(flow, 8, 256, 256)) == 1
    flow[0, 1, 0, ::2] = 0
    assert float(dynamic_degree(flow * 0.1, 8, 256, 256)) == 0  # a mean of 5 pixels


def test_two_still_frames_are_dynamic_for_vbench_alone() -> None:
    still = moving(2, 0, 0.0)
    assert float(dynamic_degree(still, 8, 64, 128)) == 0
    assert float(dynamic_degree(still, 8, 64, 128, compat="vbench")) == 1
    with pytest.raises(SoraError, match="compat='other'"):
        dynamic_degree(still, 8, 64, 128, compat="other")


def test_flow_must_be_between_frames_an_eighth_of_a_second_apart() -> None:
    assert [flow_stride(fps) for fps in (2, 8, 11, 16, 24, 30)] == [1, 1, 1, 2, 3, 4]
    with pytest.raises(SoraError, match="one of every 3 frames"):
        dynamic_degree(moving(16, 4, 9), 24, 64, 128)
    with pytest.raises(SoraError, match="must be positive"):
        flow_stride(0)


# Warping.


def shifting(frames: int, right: int, down: int, size: int = 24) -> tuple[Tensor, Tensor]:
    """A texture that moves by whole pixels, and its exact flow."""
    texture = noise(size, size)
    clip = torch.stack([texture.roll((t * down, t * right), dims=(0, 1)) for t in range(frames)])
    flow = torch.tensor([float(right), float(down)]).view(1, 2, 1, 1).expand(frames - 1, 2, size, size).contiguous()
    return clip, flow


def test_a_static_clip_has_no_warping_error() -> None:
    clip = noise(16, 16)[None].expand(4, -1, -1, -1).contiguous()
    flow = torch.zeros(3, 2, 16, 16)
    assert float(warping_error(clip, flow)) == pytest.approx(0, abs=1e-20)
    assert float(warping_error(clip, flow, flow)) == pytest.approx(0, abs=1e-20)


def test_exact_flow_of_a_translation_has_no_error_where_it_stays_in_the_frame() -> None:
    """What wraps around the edge is not valid, so no band of the frame has to be cut away."""
    clip, flow = shifting(4, 3, -2)
    assert float(warping_error(clip, flow)) == pytest.approx(0, abs=1e-20)
    assert float(warping_error(clip, flow, -flow)) == pytest.approx(0, abs=1e-20)
    assert float(warping_error(clip, -flow)) > 0.05


def test_independent_noise_has_twice_its_variance() -> None:
    """Per channel, in [0, 1]: E(a - b)^2 = 2 sigma^2 (sigma 10 / 255, and 1/12 of a squared level by rounding)."""
    generator = torch.Generator().manual_seed(1)
    clip = (128 + 10 * torch.randn(6, 96, 96, 3, generator=generator)).round().to(torch.uint8)
    wanted = 2 * (100 + 1 / 12) / 255**2
    assert float(warping_error(clip, torch.zeros(5, 2, 96, 96))) == pytest.approx(wanted, rel=0.02)


def test_pixels_where_the_flows_disagree_do_not_count() -> None:
    """At rest, |F + B|^2 > 0.01 |B|^2 + 0.5 is out: 0.72 pixels back is out, 0.70 is in."""
    clip = noise(16, 16)[None].expand(2, -1, -1, -1).contiguous()
    clip[1, :8] = 255 - clip[1, :8]
    ahead, back = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16)
    back[0, 0, :8] = 0.72
    assert float(warping_error(clip, ahead, back)) == pytest.approx(0, abs=1e-20)
    back[0, 0, :8] = 0.70
    assert float(warping_error(clip, ahead, back)) > 0.1


def test_motion_boundaries_do_not_count() -> None:
    """Between columns 7 and 8 the flow jumps; the pixel before the jump is out, and holds the only error."""
    clip = constant(0, 0, size=(16, 16))
    clip[0, :, 7] = 255
    flow = torch.zeros(1, 2, 16, 16)
    assert float(warping_error(clip, flow)) == pytest.approx(1 / 16)
    flow[0, 1, :, 8:] = 0.1
    assert float(warping_error(clip, flow)) == pytest.approx(0, abs=1e-20)


def test_a_clip_that_leaves_the_frame_has_no_error_and_a_pair_that_does_is_left_out() -> None:
    clip = constant(0, 0, 51, size=(8, 8))
    flow = torch.full((2, 2, 8, 8), 99.0)
    with pytest.raises(NoValidPixel, match="2 pairs"):
        warping_error(clip, flow)
    flow[1] = 0
    assert float(warping_error(clip, flow)) == pytest.approx(0.04)
    with pytest.raises(SoraError, match="must be"):
        warping_error(clip, flow[:1])


# RAFT.


class Shift(nn.Module):
    """Stands for RAFT: checks what it is given and answers with the mean of the second frame as flow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, before: Tensor, after: Tensor, num_flow_updates: int) -> list[Tensor]:
        assert before.abs().max() <= 1
        self.sizes.append(tuple(before.shape))
        answer = after.mean(dim=1, keepdim=True).expand(-1, 2, -1, -1)
        return [torch.full_like(answer, math.nan), answer]


def test_raft_gets_padded_frames_in_its_range_and_its_flow_is_cropped() -> None:
    clip = noise(7, 130, 40)
    network = Shift()
    flow = raft_flow(clip, network)
    assert network.sizes == [(4, 3, 136, 128), (2, 3, 136, 128)]
    torch.testing.assert_close(flow[:, 0], 2 * clip[1:].float().mean(dim=-1) / 255 - 1)


def test_raft_runs_from_a_local_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    path = tmp_path / "mine.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    with caplog.at_level(logging.WARNING):
        network = load_raft(path)
    assert "not torchvision's raft_small_C_T_V2-01064c6d.pth" in caplog.text
    assert not network.training
    flow = raft_flow(noise(3, 24, 36), network, updates=2)
    assert flow.shape == (2, 2, 24, 36)
    assert flow.isfinite().all()


def test_raft_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=r"raft_large_C_T_SKHT_V2-ff5fadd5\.pth.*raft_small_C_T_V2-01064c6d\.pth"):
        load_raft(tmp_path / "absent.pth")
    named = tmp_path / "raft_small_C_T_V2-01064c6d.pth"
    torch.save({"weight": torch.zeros(1)}, named)
    with pytest.raises(SoraError, match="download is damaged"):
        load_raft(named)
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, other)
    with pytest.raises(SoraError, match="not those of torchvision's RAFT"):
        load_raft(other)
    other.write_bytes(b"nothing")
    with pytest.raises(SoraError, match="state_dict"):
        load_raft(other)


# Means over clips.


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # meant: some have seen no clip
def test_means_and_standard_errors_do_not_depend_on_who_saw_which_clip() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0, -3.0], dtype=torch.float64)
    parts = [ClipMeans(["a", "b"]) for _ in range(3)]
    parts[0].update({"a": values[:3], "b": values[:1]})
    parts[1].update({"a": values[3:]})
    whole = parts[2]  # of a process without clips
    for part in parts[:2]:
        whole.merge_state(part)
    found = whole.compute()
    assert float(found["a"]) == pytest.approx(float(values.mean()))
    assert float(found["a_se"]) == pytest.approx(float(values.std() / math.sqrt(5)))
    assert float(found["b"]) == 1
    assert "b_se" not in found


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # meant: some have seen no clip
def test_no_clips_have_no_mean() -> None:
    assert ClipMeans(["a"]).compute() == {}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # meant: some have seen no clip
def test_clips_added_after_a_result_count_in_the_next() -> None:
    metric = ClipMeans(["a"])
    metric.add({"a": torch.tensor([1.0])})
    assert float(metric.compute()["a"]) == 1
    metric.add({"a": torch.tensor([3.0])})
    assert float(metric.compute()["a"]) == 2
    metric.reset()
    assert metric.compute() == {}


def test_scores_must_be_known_and_finite() -> None:
    metric = ClipMeans(["a"])
    with pytest.raises(SoraError, match=r"unknown scores \['b'\]"):
        metric.add({"b": torch.ones(1)})
    with pytest.raises(SoraError, match=r"clips \[1\]"):
        metric.add({"a": torch.tensor([0.0, math.nan])})
    with pytest.raises(SoraError, match="names of scores"):
        ClipMeans(["a", "a"])


# Of clips.


@pytest.mark.parametrize("kind", [SubjectConsistency, BackgroundConsistency, CLIPTemporalConsistency])
def test_consistency_of_clips_of_several_sizes(kind: type) -> None:
    found = scored(kind(), [constant(0, 60), constant(5, 5, 5, size=(8, 3))], Angle())
    assert found.value == pytest.approx((0.5 + 1) / 2, abs=1e-6)
    assert (found.clips, found.stderr) == (2, pytest.approx(0.25, abs=1e-6))


@pytest.mark.parametrize(
    ("kind", "extractor"),
    [
        (SubjectConsistency, "dino"),
        (BackgroundConsistency, "clip(antialias=False)"),
        (CLIPTemporalConsistency, "clip"),
    ],
)
def test_consistency_is_on_the_features_that_are_published_for_it(kind: type, extractor: str) -> None:
    assert (kind().needs.features, kind().needs.per, kind().needs.min_frames) == (extractor, "frame", 2)
    assert kind(extractor="videomae").needs.features == "videomae"
    EXTRACTORS.builder(extractor.split("(")[0])


def test_flicker_smoothness_and_dynamics_of_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [constant(0, 10, 20, 30, 40), constant(0, 0, 0, size=(9, 9))]
    assert scored(TemporalFlickering(), clips).value == pytest.approx(1 - 5 / 255)
    assert scored(MotionSmoothness(), clips).value == 1
    seen: list[int] = []

    def brightness(clip: Tensor, network: nn.Module) -> Tensor:
        seen.append(len(clip))
        return (clip[1:].float() - clip[:-1].float()).permute(0, 3, 1, 2)[:, :2]

    def dynamic(**options: str) -> DynamicDegree:
        return DynamicDegree("raft.pth", **options)

    monkeypatch.setattr(motion, "load_raft", lambda weights: Shift())
    monkeypatch.setattr(motion, "raft_flow", brightness)
    found = scored(dynamic(), clips, fps=[16.0, 8.0])
    assert seen == [3, 3]
    assert (found.value, found.clips) == (0.5, 2)
    assert scored(dynamic(compat="vbench"), [constant(0, 0)], fps=[8.0]).value == 1
    assert dynamic().needs.fps
    with pytest.raises(SoraError, match="give at least 6 frames"):
        scored(dynamic(), clips[:1], fps=[40.0])


def test_clips_that_cannot_be_followed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, flow = shifting(3, 2, 1)

    def metric(flow_of: Callable[[Tensor], Tensor]) -> WarpingError:
        monkeypatch.setattr(motion, "raft_flow", lambda given, network: flow_of(given))
        return WarpingError("raft.pth")

    monkeypatch.setattr(motion, "load_raft", lambda weights: Shift())
    exact = metric(lambda given: flow if torch.equal(given, clip) else -flow)
    assert scored(exact, [clip]).value == pytest.approx(0, abs=1e-20)
    some = metric(lambda given: flow * (99 if given[0, 0, 0, 0] == 1 else 0))
    found = scored(some, [constant(1, 1, 1, size=(24, 24)), constant(0, 51, 0, size=(24, 24))])
    assert found.value == pytest.approx(0.04)
    assert found.figures["scored"] == 0.5
    assert found.clips == 1


def test_metrics_of_flow_read_raft_from_a_file_and_tell_which(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = raft_small(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    clip = noise(1, 24, 36).expand(3, -1, -1, -1).contiguous()
    metric = METRICS.create(f"dynamic_degree(weights={str(tmp_path / 'mine.pth')!r})")
    wanted = dynamic_degree(raft_flow(clip, network), 8, 24, 36)
    assert scored(metric, [clip], fps=[8.0]).value == float(wanted)
    other = METRICS.create(f"warping_error(weights={str(tmp_path / 'mine.pth')!r})")
    assert metric.card()["flow"] == other.card()["flow"]
    assert metric.card()["flow"].startswith("RAFT of torchvision, sha256:")
