"""Steps that are not finite: told where they happen with their clips, left out where that is asked, never saved."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torchmetrics import Metric

from lightning_sora.errors import SoraError
from lightning_sora.lit import LitCaptioner, LitDiT, LitVAE
from lightning_sora.lit.expander import LitExpander
from lightning_sora.lit.finite import FiniteSteps, are_finite
from lightning_sora.testbench.lit_evaluator import LitEvaluator
from lightning_sora.testbench.prompts import PromptDataModule
from lightning_sora.tracking import Checkpoint
from tests.integration.conftest import make_data, make_dit, make_vae

WILD = {"optimizer": "adamw(lr=1e30)", "schedule": "constant"}
SMALL = {"dim": 16, "num_heads": 2, "depth": 1, "longest": 8}
WORLD = {"frames": 17, "height": 64, "width": 64, "batch_size": 2, "patch": [4, 16, 16]}
MAKERS: dict[str, Callable[[], tuple[pl.LightningModule, pl.LightningDataModule]]] = {
    "vae": lambda: (make_vae(**WILD), make_data()),
    "adversarial": lambda: (make_vae(adversarial_weight=0.1, discriminator_dim=4, **WILD), make_data()),
    "dit": lambda: (make_dit(**WILD), make_data()),
    "captioner": lambda: (LitCaptioner(decoder_depth=1, patch=[4, 8, 8], **SMALL, **WILD), make_data()),  # type: ignore[arg-type]
    "evaluator": lambda: (LitEvaluator(dim=8, embedding=8, **WILD), make_data(**WORLD)),  # type: ignore[arg-type]
    "expander": lambda: (LitExpander(**SMALL, **WILD), PromptDataModule(batch_size=4)),  # type: ignore[arg-type]
}


class Seen(pl.Callback):
    """The clips and weights of each step."""

    def __init__(self) -> None:
        self.clips: list[tuple[str, ...]] = []
        self.weights: list[list[torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.clips.append(batch.ids)
        self.weights.append([p.detach().clone() for p in module.parameters()])


class Poisoned(LitDiT):
    """Some steps are spoilt."""

    def spoil(self, how: str, *steps: int) -> "Poisoned":
        self.how, self.steps_spoilt = how, steps
        return self

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if len(self.trainer.callbacks[0].clips) not in self.steps_spoilt:  # type: ignore[attr-defined]
            return loss
        if self.how == "loss":
            return loss * torch.nan
        # The derivative of a square root at zero.
        return loss + (next(self.model.dit.parameters()) * 0).square().sum().sqrt()


def clips_in(problem: BaseException) -> tuple[str, ...]:
    return tuple(re.findall(r"train-\d+", str(problem)))


def poisoned(how: str, *steps: int) -> Poisoned:
    module: Any = make_dit(ema_decay=None)
    module.__class__ = Poisoned
    return module.spoil(how, *steps)


@pytest.mark.parametrize("name", MAKERS)
def test_a_training_that_diverges_says_at_which_step_and_on_which_clips(
    name: str, make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    module, data = MAKERS[name]()
    seen = Seen()
    keep = Checkpoint(monitor=None, every_n_steps=1)
    trainer = make_trainer(max_steps=12, callbacks=[seen, keep], enable_checkpointing=True)
    with pytest.raises(SoraError) as refusal:
        trainer.fit(module, data)
    step = len(seen.clips)
    told = str(refusal.value)
    assert told.startswith(f"step {step}")
    assert clips_in(refusal.value) == seen.clips[-1]
    assert "lower the learning rate" in told
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == step - 1
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_left_out_changes_nothing(how: str, make_trainer: Callable[..., pl.Trainer]) -> None:
    seen, plain = Seen(), Seen()
    trainer = make_trainer(max_steps=4, callbacks=[seen, FiniteSteps("skip")])
    trainer.fit(poisoned(how, 2), make_data(clips=16))
    make_trainer(max_steps=4, callbacks=[plain]).fit(poisoned(how), make_data(clips=16))
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    assert trainer.global_step == 4
    assert seen.clips == plain.clips
    same = [
        [torch.equal(a, b) for a, b in zip(*weights, strict=True)]
        for weights in zip(seen.weights, seen.weights[1:], strict=False)
    ]
    assert [all(step) for step in same] == [False, True, False]
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
    assert all(are_finite([s["exp_avg"], s["exp_avg_sq"]]) for s in optimizer.state.values())
    # Up to the spoilt step, nothing differs from a training that is not looked at.
    assert all(torch.equal(a, b) for a, b in zip(seen.weights[1], plain.weights[1], strict=True))


@pytest.mark.parametrize(
    ("how", "told"), [("loss", "is not finite on"), ("gradient", "is finite but its gradient is not, in 1 tensors")]
)
def test_a_spoilt_step_stops_the_training_before_it_changes_weights(
    how: str, told: str, make_trainer: Callable[..., pl.Trainer]
) -> None:
    seen = Seen()
    module = poisoned(how, 3)
    with pytest.raises(SoraError, match=f"^step 3: the loss {told}") as refusal:
        make_trainer(max_steps=4, callbacks=[seen]).fit(module, make_data(clips=16))
    assert clips_in(refusal.value) == seen.clips[2]
    assert all(torch.equal(a, b) for a, b in zip(seen.weights[2], module.parameters(), strict=True))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_of_two_optimizers_the_second_is_of_the_same_step(
    on_error: Any, make_trainer: Callable[..., pl.Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    module = make_vae(adversarial_weight=0.1, discriminator_dim=4)
    judged = module.loss.discriminator_loss

    def spoilt(video: Any, made: Any) -> dict[str, torch.Tensor]:
        factor = torch.nan if len(seen.clips) == 2 else 1.0
        return {name: factor * value for name, value in judged(video, made).items()}

    module.loss.discriminator_loss = spoilt  # type: ignore[method-assign,assignment]
    trainer = make_trainer(max_steps=3, callbacks=[seen, FiniteSteps(on_error)])
    if on_error == "skip":
        trainer.fit(module, make_data(clips=16))
        assert "step 2: the loss is not finite on" in caplog.text
        assert trainer.callback_metrics["train/skipped_steps"] == 1
        return
    with pytest.raises(SoraError, match=r"^step 2: the loss is not finite on .*Nothing of it is saved") as refusal:
        trainer.fit(module, make_data(clips=16))
    assert clips_in(refusal.value) == seen.clips[1]
    assert "gradient_clip_val" not in str(refusal.value)  # which lightning refuses for two optimizers


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_whose_norm_overflows_is_not_made_into_one_of_zeros(
    clip: float | None, make_trainer: Callable[..., pl.Trainer]
) -> None:
    seen = Seen()
    module = make_dit(ema_decay=None)
    step = module.training_step
    module.training_step = lambda batch, batch_idx: 1e25 * step(batch, batch_idx)  # type: ignore[method-assign]
    with pytest.raises(SoraError, match=r"^step 1: the loss is finite but its gradient's norm overflows, on") as told:
        make_trainer(callbacks=[seen], gradient_clip_val=clip).fit(module, make_data())
    assert clips_in(told.value) == seen.clips[0]
    assert all(torch.equal(a, b) for a, b in zip(seen.weights[0], module.parameters(), strict=True))


def test_of_gathered_batches_those_that_are_spoilt_are_named(make_trainer: Callable[..., pl.Trainer]) -> None:
    seen = Seen()
    with pytest.raises(SoraError, match=r"^step 2: the loss is not finite on") as refusal:
        make_trainer(max_steps=4, accumulate_grad_batches=2, callbacks=[seen]).fit(
            poisoned("loss", 3), make_data(clips=32)
        )
    assert len(seen.clips) == 4
    assert clips_in(refusal.value) == seen.clips[2]


def test_where_every_step_would_be_left_out_the_training_stops(make_trainer: Callable[..., pl.Trainer]) -> None:
    seen = Seen()
    with pytest.raises(SoraError, match=r"^step 12: the last 10 steps were left out"):
        make_trainer(max_steps=40, callbacks=[seen, FiniteSteps("skip")]).fit(
            poisoned("loss", 1, *range(3, 40)), make_data()
        )
    assert len(seen.clips) == 12


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_weights_that_a_step_spoils_stop_the_training(on_error: Any, make_trainer: Callable[..., pl.Trainer]) -> None:
    seen = Seen()
    module = make_dit(optimizer="SGD(lr=1e34, momentum=0.0)", ema_decay=None)
    data = make_data()
    with pytest.raises(SoraError, match=r"^step 1 made weights that are not finite") as refusal:
        make_trainer(callbacks=[seen, FiniteSteps(on_error)], gradient_clip_val=1e12).fit(_steep(module), data)
    assert clips_in(refusal.value) == seen.clips[0]


def _steep(module: LitDiT) -> LitDiT:
    step = module.training_step
    module.training_step = lambda batch, batch_idx: 1e14 * step(batch, batch_idx)  # type: ignore[method-assign]
    return module


# Lightning steps the schedule where the scaler takes no step.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scaler_of_half_precision_may_look_for_its_scale(make_trainer: Callable[..., pl.Trainer]) -> None:
    def run(*steps: int) -> pl.Trainer:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        trainer = make_trainer(
            max_steps=4, callbacks=[Seen()], plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)]
        )
        trainer.fit(poisoned("gradient", *steps), make_data(clips=16))
        return trainer

    trainer = run(1, 2)
    assert trainer.precision_plugin.scaler.get_scale() == 1.0  # type: ignore[attr-defined]
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {2}
    with pytest.raises(SoraError, match=r"^step 3: the loss is finite but its gradient is not"):
        run(1, 2, 3)


def test_a_model_that_is_not_finite_is_neither_saved_nor_loaded(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=1)
    module = make_vae()
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    name = "vae.decoder.input.weight"
    spoilt = dict(module.named_parameters())
    name = next(iter(spoilt))
    for value in (torch.nan, torch.inf):
        stored = torch.load(tmp_path / "good.ckpt", weights_only=True)
        stored["state_dict"][name][..., 0] = value
        torch.save(stored, tmp_path / "bad.ckpt")
        with pytest.raises(SoraError, match=f"step 1 holds values that are not finite, in 1 of .*{name}"):
            LitVAE.load(tmp_path / "bad.ckpt")
    stored = torch.load(tmp_path / "good.ckpt", weights_only=True)
    stored["ema"]["shadow"][name][..., 0] = torch.nan
    torch.save(stored, tmp_path / "bad.ckpt")
    with pytest.raises(SoraError, match="values that are not finite"):
        make_trainer(max_steps=2).fit(make_vae(), make_data(), ckpt_path=tmp_path / "bad.ckpt", weights_only=True)
    spoilt[name].data[..., 0] = torch.nan
    with pytest.raises(SoraError, match=f"no checkpoint of step 1 is written.*{name}"):
        trainer.save_checkpoint(tmp_path / "never.ckpt")
    assert not (tmp_path / "never.ckpt").exists()


@pytest.mark.parametrize("name", ["vae", "captioner", "evaluator", "expander"])
def test_half_and_double_precision_train_what_single_does(
    name: str, make_trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WILD, "optimizer", "adamw(lr=1e-3)")
    losses = {}
    for precision in ("32-true", "64-true", "bf16-true"):
        module, data = MAKERS[name]()
        trainer = make_trainer(max_steps=2, precision=precision)
        trainer.fit(module, data)
        losses[precision] = float(trainer.callback_metrics["train/loss"])
        states = [s for m in module.modules() if isinstance(m, Metric) for s in m._defaults.values()]
        assert {s.dtype for s in states if torch.is_tensor(s) and s.is_floating_point()} <= {
            torch.float64,
            torch.float32,
        }
    assert losses["64-true"] == pytest.approx(losses["32-true"], rel=1e-5)
    assert losses["bf16-true"] == pytest.approx(losses["32-true"], rel=0.02)
