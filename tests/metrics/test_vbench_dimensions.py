"""Dimensions of VBench that are metrics here, against the suite's definitions written out frame by frame in NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sora.metrics.base import Evaluated
from lightning_sora.metrics.clip_score import CLIPScore
from lightning_sora.metrics.motion import BackgroundConsistency, DynamicDegree, SubjectConsistency, TemporalFlickering
from lightning_sora.metrics.temporal import motion_smoothness
from tests.metrics.toys import Angle, scored

#: torchmetrics', of a side without clips; in an evaluation it is not heard.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")

FRAMES = (2, 7, 16)


def films(seed: int = 0) -> list[Tensor]:
    """Clips of several lengths and of every value."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n, 20, 30, 3), generator=generator, dtype=torch.uint8) for n in FRAMES]


def of_suite_flicker(clip: np.ndarray) -> float:
    """(255 - mean over pairs of the mean absolute difference) / 255."""
    pairs = [np.abs(clip[t].astype(float) - clip[t + 1].astype(float)).mean() for t in range(len(clip) - 1)]
    return (255.0 - np.mean(pairs)) / 255.0


def of_suite_consistency(features: np.ndarray) -> float:
    """Half the cosine to the frame before and half that to the first, none below zero, from the second frame on."""
    total = 0.0
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for t in range(1, len(unit)):
        total += (max(0.0, float(unit[t] @ unit[t - 1])) + max(0.0, float(unit[t] @ unit[0]))) / 2
    return total / (len(unit) - 1)


def of_suite_smoothness(clip: np.ndarray, between: Any) -> float:
    """Every second frame from its neighbours, as uint8, against itself."""
    errors = []
    kept = clip[::2]
    for i in range(len(kept) - 1):
        made = np.clip(np.round(between(kept[i].astype(float), kept[i + 1].astype(float))), 0, 255).astype(np.uint8)
        errors.append(np.abs(made.astype(int) - clip[2 * i + 1].astype(int)).mean())
    return (255.0 - np.mean(errors)) / 255.0


def of_suite_dynamic(flows: Sequence[np.ndarray], frames: int, height: int, width: int, fps: float) -> bool:
    """Whether round(4 n / 16) pairs of n frames have a mean of their largest 5 % above the threshold."""
    threshold = max(1.0, 8.0 / fps) * 6.0 * min(height, width) / 256.0
    needed, count = round(4 * (frames / 16.0)), 0
    for u, v in flows:
        speed = np.sort(-np.sqrt(u**2 + v**2).flatten())
        if np.mean(np.abs(speed[: int(height * width * 0.05)])) > threshold:
            count += 1
        if count >= needed:
            return True
    return False


def test_temporal_flickering_is_the_suites() -> None:
    clips = films()
    wanted = np.mean([of_suite_flicker(clip.numpy()) for clip in clips])
    assert scored(TemporalFlickering(), clips).value == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("metric", [SubjectConsistency, BackgroundConsistency])
def test_consistency_is_the_suites_of_each_video(metric: Any) -> None:
    """The suite then averages over frames (in one process, and in the background always); here over videos."""
    clips = films(1)
    degrees = [np.deg2rad(clip[:, 0, 0, 0].numpy().astype(float)) for clip in clips]  # as the network has it
    wanted = np.mean([of_suite_consistency(np.stack([np.cos(a), np.sin(a)], axis=1)) for a in degrees])
    assert scored(metric(), clips, Angle()).value == pytest.approx(wanted, abs=1e-9)


def test_smoothness_is_the_suites_by_the_interpolator_that_is_given() -> None:
    for clip in films(2)[1:]:
        odd = clip[: len(clip) - 1 + len(clip) % 2]
        for share in (0.5, 0.25):
            found = motion_smoothness(odd, lambda a, b, s=share: (1 - s) * a.double() + s * b.double())
            wanted = of_suite_smoothness(odd.numpy(), lambda a, b, s=share: (1 - s) * a + s * b)
            assert float(found) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("fps", [4.0, 6.0, 8.0, 12.0, 24.0, 30.0])
def test_dynamic_degree_is_the_suites_at_every_rate(fps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(int(fps))
    answers = []
    for trial in range(60):
        frames = int(generator.integers(8, 40))
        stride = max(1, round(fps / 8))
        sampled = len(range(0, frames, stride))
        if sampled < 3:
            continue
        scale = generator.uniform(0.2, 3.0)
        flows = (
            generator.normal(size=(sampled - 1, 2, 64, 96)) * scale * generator.uniform(0, 1, (sampled - 1, 1, 1, 1))
        )
        metric = DynamicDegree("nowhere", compat="vbench")
        monkeypatch.setattr(metric, "flow_of", lambda clip, f=flows: torch.from_numpy(f))
        clip = torch.zeros(frames, 64, 96, 3, dtype=torch.uint8)
        found = metric.score(Evaluated(str(trial), clip, fps))
        answers.append(found)
        assert bool(found) == of_suite_dynamic(list(flows), sampled, 64, 96, fps)
    assert 0.1 < np.mean(answers) < 0.9  # both answers were asked for


def test_text_alignment_is_the_mean_cosine_of_frames_and_text() -> None:
    """As the suite's overall consistency is of a video's features, by another network."""
    clips = [torch.full((5, 4, 4, 3), grey, dtype=torch.uint8) for grey in (10, 50, 90)]
    captions = ["10", "20", "30"]
    wanted = np.mean(
        [100 * np.cos(np.deg2rad(grey - float(text))) for grey, text in zip((10, 50, 90), captions, strict=True)]
    )
    metric = CLIPScore(model="nowhere")
    assert scored(metric, clips, Angle(), caption=captions).value == pytest.approx(wanted, abs=1e-6)
