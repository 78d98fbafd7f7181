"""The table of directions: against what the metrics declare of themselves, and against everything that is logged."""

import inspect
from importlib import import_module

import pytest
from lightning_sora.metrics.scoring import METRICS
from torchmetrics import Metric

from lightning_sora.directions import READ, direction
from lightning_sora.errors import SoraError
from lightning_sora.metrics.evaluator import accuracy
from lightning_sora.metrics.world_scores import WORLD_SCORES
from lightning_sora.tracking.checkpoint import Checkpoint

#: Scores by the class that makes them.
MADE_BY = {
    "FrechetVideoDistance": {"fvd", "rfvd"}, "KernelVideoDistance": {"kvd"}, "JEDi": {"jedi"},
    "VideoCLIPScore": {"clip_score"}, "PromptAdherence": {"adherence"}, "LPIPS": {"lpips"},
    "ReconstructionQuality": {"psnr", "ssim"}, "SubjectConsistency": {"subject_consistency"},
    "BackgroundConsistency": {"background_consistency"}, "CLIPTemporalConsistency": {"clip_temporal_consistency"},
    "TemporalFlickering": {"temporal_flickering"}, "MotionSmoothness": {"motion_smoothness"},
    "WarpingError": {"warping_error"}, "FrameFID": {"fid"},
}  # fmt: skip


def metric_classes() -> dict[str, type[Metric]]:
    rooms = ("distances", "clip_score", "adherence", "perceptual", "reconstruction", "consistency")
    modules = [import_module(f"lightning_sora.metrics.{room}") for room in rooms]
    found = {name: one for module in modules for name, one in inspect.getmembers(module, inspect.isclass)}
    return {name: one for name, one in found.items() if issubclass(one, Metric) and name in MADE_BY}


@pytest.mark.parametrize("name", sorted(metric_classes()))
def test_the_table_says_what_the_metrics_declare(name: str) -> None:
    wanted = "max" if metric_classes()[name].higher_is_better else "min"
    assert {direction(f"test/{score}") for score in MADE_BY[name]} == {wanted}


def test_every_score_has_a_direction() -> None:
    assert accuracy.ReadingAccuracy.higher_is_better
    assert set(READ) == set(accuracy.READ)
    assert {direction(f"test/{name}") for name in (*METRICS, *WORLD_SCORES)} == {"min", "max"}
    means = [name for name, measure in METRICS.items() if not measure.distance]
    assert {direction(f"test/{name}") for name in means} == {"max"}  # as `score` says above their table
    assert [direction(f"test/{name}") for name in WORLD_SCORES] == ["max", "max", "min", "min", "min"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("test/adherence", "max"), ("test/adherence_color", "max"), ("val/loss_t3", "min"), ("val/psnr_world", "max"),
        ("test/fvd_world", "min"), ("test/fvd_unbiased", "min"), ("test/vae_psnr", "max"), ("val/fact_all", "max"),
        ("test/identity", "max"), ("test/temporal_flickering", "max"), ("speed/tokens_per_s", "max"),
        ("cost/seconds", "min"), ("test/world-tiny/color", "max"), ("val/clip_score", "max"), ("test/bleu", "max"),
        ("train/mine", None), ("test/lossy", None), ("test/adherence_shuffled", None), ("test/clip_score_se", None),
        ("test/fvd_floor", None), ("test/warping_error_real", None), ("test/adherence_clips", None), ("psnr", "max"),
    ],
)  # fmt: skip
def test_directions_by_logged_name(name: str, wanted: str | None) -> None:
    assert direction(name) == wanted


def test_the_best_checkpoint_is_of_the_metrics_own_direction() -> None:
    assert (Checkpoint(monitor="val/psnr").mode, Checkpoint().mode) == ("max", "min")
    assert Checkpoint(monitor="val/mine", mode="max").mode == "max"
    for options, said in (({"monitor": "val/psnr", "mode": "min"}, "but more is"), ({"monitor": "val/mine"}, "known")):
        with pytest.raises(SoraError, match=said):
            Checkpoint(**options)  # type: ignore[arg-type]
