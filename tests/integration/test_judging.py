"""Tests of generative models: what is judged, resumed, refused, and recorded as the protocol."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from lightning_sora.cli import main
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks import ClipScores, Evaluate
from lightning_sora.lit.clip_cache import ClipCache
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.testbench.evaluator.reading import load_evaluator
from lightning_sora.testbench.lit_evaluator import LitEvaluator
from tests.integration.conftest import make_dit, make_vae

RECIPES = Path(__file__).parents[2] / "recipes"


def data(clips: int = 20, **changes: Any) -> SpacetimeDataModule:
    source = f"world(level='tiny', clips=8, heldout_clips={clips})"
    size = {"frames": 9, "height": 16, "width": 16, "fps": 8.0, "batch_size": 8}
    return SpacetimeDataModule(source, **{**size, **changes})


def scores_of(trainer: pl.Trainer, module: pl.LightningModule, **changes: Any) -> dict[str, float]:
    (found,) = trainer.test(module, data(**changes), verbose=False)
    return dict(found)


JUDGED = {"extractor": "world", "clip_model": "world"}


def test_a_test_gives_the_full_card(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    found = scores_of(make_trainer(callbacks=[ClipScores(), Evaluate(**JUDGED)]), make_dit(), clips=64)
    facts = ("color", "count", "shape", "size", "motion", "camera")
    assert {f"test/adherence_{fact}{end}" for fact in facts for end in ("", "_shuffled")} <= set(found)
    distances = (
        "fvd",
        "fvd_low",
        "fvd_high",
        "fvd_unbiased",
        "fvd_small_sample_bias",
        "fvd_real_vs_real",
        "rfvd",
        "kvd",
    )
    assert {f"test/{name}" for name in distances} <= set(found)
    assert {"test/clip_score", "test/clip_score_shuffled", "test/temporal_flickering", "test/identity"} <= set(found)
    protocol = json.loads((tmp_path / "protocol/test.json").read_text())
    how = protocol["evaluation"]
    assert how["extractors"]["world"]["weights"] == f"sha256:{load_evaluator().digest}"
    assert {name for name, card in how["metrics"].items() if card.get("extractor") == "world"} >= {"fvd", "adherence"}
    assert how["clips"] == {"real": 64, "generated": 64, "reconstructed": 64}
    kept = json.loads((tmp_path / "evaluation/test.json").read_text())
    assert kept["protocol"] == how
    assert kept["scores"]["fvd"]["value"] == pytest.approx(found["test/fvd"], rel=1e-6)
    assert len(protocol["protocol_id"]) == 12
    assert protocol["data"] == data(clips=64).fingerprint("test")
    clips = json.loads((tmp_path / "clips/test.json").read_text())["scores"]
    assert len(clips["test/adherence"]) == 64
    assert sum(clips["test/adherence"].values()) / 64 == pytest.approx(found["test/adherence"], abs=1e-6)


def test_batches_change_no_score(make_trainer: Callable[..., pl.Trainer]) -> None:
    by_eight = scores_of(make_trainer(callbacks=[Evaluate(**JUDGED)]), make_dit())
    by_five = scores_of(make_trainer(callbacks=[Evaluate(**JUDGED)]), make_dit(), batch_size=5)
    assert "test/clip_score_shuffled" in by_eight
    for name in by_eight.keys() - {n for n in by_eight if "loss" in n}:
        assert by_five[name] == pytest.approx(by_eight[name], rel=2e-3, abs=2e-3), name


def test_an_interrupted_test_goes_on(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores_of(make_trainer(callbacks=[Evaluate(**JUDGED)]), make_dit())
    assert not list((tmp_path / "generated").rglob("*.npy")), "a finished test leaves no clips behind"

    module = make_dit()
    sample, calls = module.sample, []

    def interrupted(captions: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(captions))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(captions, *args, **options)

    monkeypatch.setattr(module, "sample", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_trainer(callbacks=[Evaluate(**JUDGED)]).test(module, data(), verbose=False)
    assert len(list((tmp_path / "generated").rglob("*.npy"))) == 8

    again = make_dit()
    sample, counted = again.sample, []
    monkeypatch.setattr(again, "sample", lambda c, *a, **o: (counted.append(len(c)), sample(c, *a, **o))[1])
    resumed = scores_of(make_trainer(callbacks=[Evaluate(**JUDGED)]), again)
    assert counted == [8, 4], "the first eight clips were kept"
    assert resumed == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_clips_of_another_model_or_protocol_are_not_taken_up(tmp_path: Path) -> None:
    net, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    folders = {
        ClipCache(tmp_path, net, {"steps": 4}).folder,
        ClipCache(tmp_path, net, {"steps": 5}).folder,
        ClipCache(tmp_path, other, {"steps": 4}).folder,
    }
    assert len(folders) == 3
    cache = ClipCache(tmp_path, net, {})
    video = torch.randint(0, 255, (3, 4, 4, 3), dtype=torch.uint8)
    assert cache.get("a/b:c") is None
    cache.put("a/b:c", video)
    assert torch.equal(cache.get("a/b:c"), video)
    cache.clear()
    assert cache.get("a/b:c") is None


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"extractor": "world"}, {"clips": 8}, "at least 16 clips"),
        ({"extractor": "world"}, {"frames": 13, "fps": 16.0}, "13 frames at 16 fps .* at least 17"),
        ({"clip_model": "world"}, {"frames": 5}, "5 frames are given to FVD .world., which takes at least 9"),
        ({"extractor": "random"}, {"clips": 15}, "between 15 clips is all bias"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_generated(
    options: dict, changes: dict, message: str, make_trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_dit()
    monkeypatch.setattr(module, "sample", lambda *a, **o: pytest.fail("generated"))
    with pytest.raises(SoraError, match=message):
        make_trainer(callbacks=[Evaluate(**options)]).test(module, data(**changes), verbose=False)


def test_a_test_says_which_metrics_its_clips_are_too_short_for(
    make_trainer: Callable[..., pl.Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    found = scores_of(make_trainer(), make_dit(), clips=2, frames=5)
    assert "test/temporal_flickering" in found
    assert "test/adherence" not in found
    (line,) = (one for one in caplog.messages if "no clip of this test has a score" in one)
    assert "adherence, depth_error, identity" in line
    assert line.endswith(": it needs clips that FVD (world) takes")


def test_validation_scores_the_prompts_that_the_gallery_shows(make_trainer: Callable[..., pl.Trainer]) -> None:
    module = make_dit(prompts=["a big red cube moves right", "a small green cone moves left"])
    trainer = make_trainer(limit_val_batches=1, max_steps=2, val_check_interval=1, callbacks=[Evaluate(**JUDGED)])
    counted: list[int] = []
    sample = module.sample

    def count(captions: Any, *args: Any, **options: Any) -> Any:
        counted.append(len(captions))
        return sample(captions, *args, **options)

    module.sample = count  # type: ignore[method-assign]
    from lightning_sora.lit.callbacks import Gallery

    trainer.callbacks.append(Gallery())  # type: ignore[attr-defined]
    trainer.fit(module, data(batch_size=8))
    assert -100 <= trainer.callback_metrics["val/clip_score"] <= 100
    assert 0 <= trainer.callback_metrics["val/temporal_flickering"] <= 1
    assert counted
    assert set(counted) == {2}
    assert len(counted) <= 2, "made once per validation, for the scores and the gallery"


def test_a_vae_is_judged_by_distance_and_by_warping_along_the_exact_flow(
    make_trainer: Callable[..., pl.Trainer],
) -> None:
    found = scores_of(make_trainer(callbacks=[Evaluate(extractor="world")]), make_vae())
    assert {"test/psnr", "test/ssim", "test/rfvd", "test/rfvd_low", "test/rfvd_small_sample_bias"} <= set(found)
    assert found["test/rfvd"] > found["test/rfvd_small_sample_bias"]  # an untrained VAE
    assert found["test/world_warping_error_real"] > 0
    assert "test/world_warping_error" in found


def test_distances_see_clips_at_their_own_rate() -> None:
    """The same motions filmed at twice the rate: the same moments are looked at, and the same distance is found."""
    found: dict[str, list[float]] = {}
    for frames, fps in ((17, 8.0), (33, 16.0)):
        source = data(frames=frames, fps=fps)
        source.setup("test")
        evaluation = Evaluation(["fvd", "rfvd", "kvd(paired=True)"], extractor="world")
        for batch in source.test_dataloader():
            made = [255 - clip for clip in batch.videos()]
            evaluation.update(batch.ids, real=batch.videos(), generated=made, reconstructed=made, fps=batch.fps)
        scores = evaluation.compute()
        found[str(fps)] = [scores[name].value for name in ("fvd", "rfvd", "kvd")]
        assert scores.card.fields["sizes"]["generated"] == [f"{frames}x16x16 at {fps:g} fps"]
        assert "8 per second" in scores.card.fields["extractors"]["world"]["clip"]
    assert found["16.0"] == pytest.approx(found["8.0"], rel=1e-5)


def test_a_vae_refuses_clips_that_its_extractor_cannot_take(make_trainer: Callable[..., pl.Trainer]) -> None:
    with pytest.raises(SoraError, match=r"13 frames at 16 fps .* at least 17"):
        make_trainer(callbacks=[Evaluate(extractor="world")]).test(make_vae(), data(frames=13, fps=16.0))


def test_the_evaluator_trains_and_ships_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    small = [
        f"--config={RECIPES}/world_evaluator.yaml",
        "--data.source=worlds(levels=('tiny','medium'), clips=8, heldout_clips=8)",
        "--data.batch_size=4",
        "--model.dim=32",
        "--trainer.max_steps=3",
        "--trainer.val_check_interval=3",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    assert main(["fit", *small]) == 0
    assert main(["test", *small, "--ckpt_path=last"]) == 0
    shipped = tmp_path / "outputs/world_evaluator/world_evaluator.safetensors"
    evaluator = load_evaluator(str(shipped))
    assert {"tiny/color", "medium/count"} <= set(evaluator.record["accuracy"])
    module = LitEvaluator.load(tmp_path / "outputs/world_evaluator/checkpoints/last.ckpt")
    kept = load_file(shipped)
    assert all(torch.equal(kept[name], value) for name, value in module.network.state_dict().items())


def test_the_evaluator_refuses_clips_of_another_size(make_trainer: Callable[..., pl.Trainer]) -> None:
    with pytest.raises(SoraError, match="17x64x64 at 8 frames per second"):
        make_trainer().fit(LitEvaluator(levels=("train",), patch=(4, 8, 8)), data(patch=(4, 8, 8)))


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_evaluator_refuses_levels_that_it_does_not_tell_apart(
    command: str, make_trainer: Callable[..., pl.Trainer]
) -> None:
    plain = data(frames=17, height=64, width=64, patch=(4, 16, 16))
    trainer = make_trainer(limit_val_batches=1, max_steps=1)
    with pytest.raises(SoraError, match=r"names of clips to read begin with heldout; .* or model\.levels to"):
        getattr(trainer, command)(LitEvaluator(dim=8, embedding=8), plain)
    assert trainer.global_step == 0
