"""The table of directions: against what the metrics declare of themselves, and against everything that is logged."""

import pytest

from lightning_sora import directions
from lightning_sora.directions import DIRECTIONS, READ, direction
from lightning_sora.errors import SoraError
from lightning_sora.metrics import asked  # noqa: F401  # registers the metrics
from lightning_sora.metrics.base import METRICS, Evaluated, PerVideoMetric, register_metric
from lightning_sora.testbench.evaluator import accuracy
from lightning_sora.testbench.scores import WORLD_SCORES
from lightning_sora.tracking.checkpoint import Checkpoint


@pytest.mark.parametrize("name", METRICS.list())
def test_the_table_says_what_the_metrics_declare(name: str) -> None:
    more = METRICS.builder(name).higher_is_better  # type: ignore[attr-defined]
    wanted = {True: "max", False: "min", None: None}[more]
    assert direction(f"test/{name}") == direction(name) == wanted
    # The table is there before any metric is imported, such as in a comparison of runs.
    assert wanted is None or name in (*directions.LESS, *directions.MORE)


def test_every_score_has_a_direction() -> None:
    assert accuracy.ReadingAccuracy.higher_is_better
    assert set(READ) == set(accuracy.READ)
    assert [name for name in METRICS.list() if direction(name) is None] == ["dynamic_degree"]
    assert [direction(f"test/{name}") for name in WORLD_SCORES] == ["max", "max", "min", "min", "min"]


def test_a_metric_of_ones_own_is_directed_as_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "DIRECTIONS", dict(DIRECTIONS))

    class Mine(PerVideoMetric):
        higher_is_better = False

        def score(self, video: Evaluated) -> float:
            return 0.0

    with METRICS.temporary():
        register_metric("unevenness")(Mine)
    assert (direction("val/unevenness"), direction("val/unevenness_stderr")) == ("min", None)
    directions.declare("moving_clips", "max")  # whatever it ends in
    assert (direction("val/moving_clips"), direction("val/moving_clips_real")) == ("max", None)
    directions.declare("lucidity", "max")
    with METRICS.temporary(), pytest.raises(SoraError, match="lucidity is known as a metric of which more is better"):
        register_metric("lucidity")(Mine)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("test/adherence", "max"), ("test/adherence_color", "max"), ("val/loss_t3", "min"), ("val/psnr_world", "max"),
        ("test/fvd_world", "min"), ("test/fvd_unbiased", "min"), ("test/vae_psnr", "max"), ("val/fact_all", "max"),
        ("test/identity", "max"), ("test/temporal_flickering", "max"), ("speed/tokens_per_s", "max"),
        ("cost/seconds", "min"), ("test/world-tiny/color", "max"), ("val/clip_score", "max"), ("test/bleu", "max"),
        ("train/mine", None), ("test/lossy", None), ("test/adherence_shuffled", None), ("test/clip_score_se", None),
        ("test/fvd_small_sample_bias", None), ("test/warping_error_real", None), ("test/adherence_clips", None),
        ("psnr", "max"),
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
