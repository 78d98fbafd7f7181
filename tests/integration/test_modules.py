"""LitModules: averages, resumption under another recipe, losses that repeat, adversarial training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.lit import LitDiT, LitVAE
from lightning_sora.lit.callbacks import Evaluate, Progress
from lightning_sora.lit.ema import ExponentialMovingAverage
from lightning_sora.models import memory_estimate
from tests.integration.conftest import VAE, make_data, make_dit, make_vae


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def test_two_runs_of_one_seed_have_equal_losses(make_trainer: Callable[..., pl.Trainer]) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(len(runs))  # the global generator has no say
        losses = Losses()
        make_trainer(callbacks=[losses], max_steps=6).fit(make_dit(), make_data())
        runs.append(losses.values)
    assert len(runs[0]) == 6
    assert runs[0] == runs[1]


def test_latents_that_are_kept_change_no_loss(make_trainer: Callable[..., pl.Trainer]) -> None:
    runs, encoded = [], []
    for limit in (0, 1 << 20):
        dit, losses = make_dit(), Losses()
        dit._latents.limit = limit
        encode = dit.model.vae.encode_latent
        dit.model.vae.encode_latent = lambda video, encode=encode: encoded.append(len(video)) or encode(video)  # type: ignore
        make_trainer(callbacks=[losses], max_steps=6).fit(dit, make_data())
        runs.append(losses.values)
    assert runs[0] == runs[1]
    assert encoded == [1] * 24 + [1] * 8  # eight clips, each by itself


def test_listeners_hear_the_share_of_a_training_and_of_a_test(
    make_trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(Progress, "listeners", [shares.append])
    trainer = make_trainer(callbacks=[Progress()], enable_progress_bar=True, max_steps=4)
    vae = make_vae()
    trainer.fit(vae, make_data())
    assert shares == [0.25, 0.5, 0.75, 1.0]
    shares.clear()
    trainer.test(vae, make_data(batch_size=1), verbose=False)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_the_average_follows_its_recurrence_and_gives_the_weights_back() -> None:
    net = torch.nn.Linear(3, 2)
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    net.register_parameter("frozen", frozen)
    ema = ExponentialMovingAverage(0.9)
    expected = net.weight.detach().clone()
    for n in range(5):
        with torch.no_grad():
            net.weight += 1
        ema.update(net)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = net.weight.detach().clone() if n == 0 else decay * expected + (1 - decay) * net.weight.detach()
    raw = net.weight.detach().clone()
    assert "frozen" not in ema.shadow

    def fail_inside() -> None:
        with ema.applied(net):
            torch.testing.assert_close(net.weight.detach(), expected)
            raise RuntimeError("in the middle of an evaluation")

    with pytest.raises(RuntimeError, match="middle"):
        fail_inside()
    assert torch.equal(net.weight, raw)


def test_resuming_takes_the_options_of_the_recipe_and_refuses_another_optimizer(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_dit(optimizer="adamw(lr=1e-3, weight_decay=0.5)"), make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = make_trainer(max_steps=3)
    resumed.fit(
        make_dit(optimizer="adamw(lr=5e-4, weight_decay=0.25)", schedule="cosine(warmup=0)"),
        make_data(),
        ckpt_path=tmp_path / "a.ckpt",
        weights_only=True,
    )
    (optimizer,) = resumed.optimizers
    assert [group["initial_lr"] for group in optimizer.param_groups] == [5e-4, 5e-4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    assert int(next(iter(optimizer.state.values()))["step"]) == 3
    with pytest.raises(SoraError, match="trained by 'adamw'"):
        make_trainer(max_steps=3).fit(
            make_dit(optimizer="muon(lr=1e-2)"), make_data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


def test_adversarial_training_spends_its_steps_on_the_vae(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    module = make_vae(adversarial_weight=0.1, adversarial_start=2, discriminator_dim=4)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer = make_trainer(max_steps=5)
    trainer.fit(module, make_data())
    assert trainer.global_step == 5
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("vae.") for n in moved)
    assert any(n.startswith("loss.discriminator.") for n in moved)
    assert "train/adaptive_weight" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "gan.ckpt")
    assert LitVAE.load(tmp_path / "gan.ckpt").vae.fingerprint()


def test_latents_of_a_trained_vae_have_about_unit_variance(make_trainer: Callable[..., pl.Trainer]) -> None:
    module = make_vae(ema_decay=None)
    make_trainer(max_steps=12).fit(module, make_data(clips=16))
    (batch, *_) = list(make_data(clips=16, batch_size=16).loader("train"))
    latent = module.vae.encode_latent(module.videos(batch))
    # The scale is measured while the weights still move: about one, not exactly.
    assert latent.std().item() == pytest.approx(1.0, abs=0.35)


def test_a_training_begins_with_the_weights_of_another(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    first = make_dit("identity", patch_size=(4, 8, 8), seed=1)
    trainer = make_trainer(max_steps=3)
    trainer.fit(first, make_data())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    average = LitDiT.load(tmp_path / "first.ckpt").model
    average.save(tmp_path / "first")
    for start in ("first.ckpt", "first"):
        second = make_dit("identity", patch_size=(4, 8, 8), seed=2, init_from=str(tmp_path / start))
        assert second.model.fingerprint() == average.fingerprint() == second.lineage()["init_from.hash"]
    trainer = make_trainer(max_steps=1)
    trainer.fit(second, make_data(clips=16))  # of other data, which a resumed training refuses
    assert second.model.fingerprint() != average.fingerprint()
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    (tmp_path / "first" / "config.json").unlink()  # no longer needed
    assert LitDiT.load(tmp_path / "second.ckpt").model.config is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "eps"}, r"objective is Velocity\(\) \(here Noise\(\)\); give vae"),
        ({"dim": 64}, r"dit\.\S+ is \(\d+.*\) \(here \(.*\)\).* and \d+ more; give vae, text, dit"),
        ({"text": "bytes(dim=8, depth=0, num_heads=1)"}, r"text\.\S+ is \(.*\) \(here missing\)"),
    ],
)
def test_weights_of_another_kind_are_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    make_dit("identity", patch_size=(4, 8, 8)).model.save(tmp_path / "first")
    with pytest.raises(SoraError, match=told):
        make_dit("identity", patch_size=(4, 8, 8), init_from=str(tmp_path / "first"), **options)


def test_a_dit_on_pixels_needs_no_vae(make_trainer: Callable[..., pl.Trainer]) -> None:
    module = make_dit("identity", patch_size=(4, 8, 8))
    make_trainer(max_steps=2).fit(module, make_data())
    (video,) = module.sample(["a red cube"])
    assert video.shape == (5, 16, 16, 3)
    assert video.dtype == torch.uint8


def test_validation_is_the_same_whenever_it_is_asked(make_trainer: Callable[..., pl.Trainer]) -> None:
    module = make_dit()
    results = [
        make_trainer(limit_val_batches=1.0).validate(module, make_data(batch_size=size), verbose=False)[0]
        for size in (4, 4, 2)
    ]
    assert results[0] == results[1]
    assert results[0] == pytest.approx(results[2], rel=1e-5)
    assert {"val/loss", "val/loss_t0", "val/loss_t3"} <= set(results[0])
    assert "val/loss_5x16x16" not in results[0]  # of the only size: val/loss under another name


def test_a_dit_refuses_the_checkpoint_of_a_vae(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_vae(), make_data())
    trainer.save_checkpoint(tmp_path / "vae.ckpt")
    with pytest.raises(SoraError, match="holds a LitVAE, not a LitDiT"):
        LitDiT.load(tmp_path / "vae.ckpt")
    assert make_dit(str(tmp_path / "vae.ckpt")).vae_spec == VAE


class Louder:
    """An expander whose work is seen."""

    def expand(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        return [f"{prompt.upper()} {seed}" for prompt in prompts]


def test_a_prediction_is_sampled_from_expanded_captions_as_a_test_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_dit(seed=3)
    module.expander = Louder()
    (batch, *_) = list(make_data().loader("test"))
    asked: list[tuple[str, ...]] = []
    sample = module.sample
    monkeypatch.setattr(
        module, "sample", lambda prompts, *a, **k: asked.append(tuple(prompts)) or sample(prompts, *a, **k)
    )
    predicted, tested = module.predict_step(batch, 0), module.generate(batch)
    assert asked == [tuple(f"{caption.upper()} 3" for caption in batch.captions)] * 2
    assert (
        [clip.shape for clip in predicted]
        == [clip.shape for clip in tested]
        == [video.shape for video in batch.videos()]
    )


ABSENT: dict[str, Any] = {"extractor": "i3d(weights='absent.pt')"}


@pytest.mark.parametrize(
    ("make", "absent"),
    [(make_vae, {}), (make_dit, {"expander": "absent/last.ckpt"})],
)
def test_a_fit_does_without_what_only_a_test_needs_and_says_so(
    make: Callable[..., pl.LightningModule],
    absent: dict[str, Any],
    make_trainer: Callable[..., pl.Trainer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = make(**absent)
    trainer = make_trainer(max_steps=1, limit_val_batches=1.0, callbacks=[Evaluate(**ABSENT)])
    trainer.fit(module, make_data())
    assert trainer.global_step == 1
    for name in ("absent.pt", "absent/last.ckpt")[: 1 + len(absent)]:
        assert any(name in line and "will need it" in line for line in caplog.messages)
    with pytest.raises(WeightsMissing, match=r"absent\.pt|absent/last"):
        make_trainer(callbacks=[Evaluate(**ABSENT)]).test(module, make_data(), verbose=False)
    if "expander" in absent:
        with pytest.raises(WeightsMissing, match="absent/last"):
            make_trainer().predict(module, make_data())
    with pytest.raises(SoraError, match="i3f"):
        make_trainer(callbacks=[Evaluate(extractor="i3f(weights='absent.pt')")]).fit(make(), make_data())


def test_a_validation_scores_its_gallery_by_the_networks_that_are_there(
    make_trainer: Callable[..., pl.Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    names = ["clip_score", "warping_error(weights='absent.pth')", "temporal_flickering"]
    evaluate = Evaluate(names, clip_model="absent/clip")
    trainer = make_trainer(max_steps=1, limit_val_batches=1.0, val_check_interval=1, callbacks=[evaluate])
    trainer.fit(make_dit(prompts=["a red cube"]), make_data())
    scored = {name for name in trainer.callback_metrics if name.removeprefix("val/") in evaluate.evaluation.metrics}  # type: ignore[union-attr]
    assert scored == {"val/temporal_flickering"}
    for lacking in ("absent/clip", "absent.pth"):
        assert any(lacking in line and "will need it" in line for line in caplog.messages)


def test_a_card_names_how_clips_of_other_sizes_are_placed() -> None:
    plain = make_dit().protocol("test")
    chosen = make_dit(rope="interpolate", shift_by_size=True).protocol("test")
    assert chosen == plain | {"rope": "interpolate", "shift_by_size": True}
    assert not {"rope", "shift_by_size"} & set(plain)


def test_a_training_that_cannot_be_held_is_refused_at_its_first_batch(
    make_trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_dit("identity", patch_size=(1, 8, 8))
    steps: list[int] = []
    monkeypatch.setattr(LitDiT, "training_step", lambda self, batch, index: steps.append(index))
    weights = sum(p.numel() for p in module.model.dit.parameters())
    # gradients, two states of AdamW and the average: four times the weights, and what is saved of the batch
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 4 * 4 * weights)
    words = r"training .* needs for a step, .*gradients .*what helps: low-rank adapters .*, no model\.ema_decay"
    with pytest.raises(SoraError, match=words):
        make_trainer().fit(module, make_data(patch=(1, 8, 8)))
    assert not steps
