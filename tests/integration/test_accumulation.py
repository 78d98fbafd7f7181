"""Batches that make a step together: over the ends of stretches, and from checkpoints that fall between two steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import Logger

from lightning_sora.errors import SoraError
from lightning_sora.lit import LitVAE
from lightning_sora.lit.callbacks import Costs
from lightning_sora.lit.expander import LitExpander
from lightning_sora.testbench.prompts import PromptDataModule
from tests.integration.conftest import make_data, make_dit, make_vae

Make = Callable[..., pl.Trainer]


class Watch(pl.Callback):
    """Writes down which clips made each step, and may keep a checkpoint at every batch and validation."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.batches = folder, 0
        self.seen: list[tuple[int, Any]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen += [(trainer.global_step, key) for key in (batch.keys if hasattr(batch, "keys") else batch.ids)]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1
        self.keep(trainer, f"{self.batches:02d}.ckpt")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.keep(trainer, f"{self.batches:02d}_validated.ckpt")

    def keep(self, trainer: Any, name: str) -> None:
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / name)


class Told(Logger):
    """The steps at which the loss was told."""

    name, version = "told", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(name.startswith("train/") for name in metrics):
            self.steps.append(step or 0)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def fitted(trainer: pl.Trainer, module: Any, data: Any, start: Path | None = None) -> list[tuple[int, Any]]:
    """Which clips made each step."""
    trainer.fit(module, data, ckpt_path=start, weights_only=True if start else None)
    (watch,) = (one for one in trainer.callbacks if isinstance(one, Watch))  # type: ignore[attr-defined]
    return watch.seen


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], where: str) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), f"{where}: {name} differs by {(value - other[name]).abs().max()}"


@pytest.mark.parametrize(("clips", "per_step"), [(8, 4), (12, 2), (4, 3)])
def test_a_step_takes_all_its_batches_over_the_ends_of_stretches(make_trainer: Make, clips: int, per_step: int) -> None:
    trainer = make_trainer(callbacks=[Watch()], accumulate_grad_batches=per_step, max_steps=4)
    seen = fitted(trainer, make_dit(), make_data(clips))
    assert [step for step, _ in seen] == [step for step in range(4) for _ in range(4 * per_step)]
    keys = [key for _, key in seen]
    assert len(set(keys)) == len(keys)
    for epoch in range(len(keys) // clips):  # each clip once before any comes again
        assert {visit for _, visit in keys[epoch * clips : (epoch + 1) * clips]} == {epoch}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "kept"), [(make_dit, "0[1246]*"), (make_vae, "0[45]*")])
def test_a_checkpoint_at_any_batch_goes_on_bit_by_bit(make_trainer: Make, tmp_path: Path, make: Any, kept: str) -> None:
    """Three batches to a step and two to an epoch; validations between two steps, at a step and at an end."""

    def trainer(folder: Path | None = None) -> pl.Trainer:
        return make_trainer(
            callbacks=[Costs(), Watch(folder)],
            logger=Told(),
            log_every_n_steps=1,
            accumulate_grad_batches=3,
            max_steps=3,
            limit_val_batches=1,
            val_check_interval=2,
            check_val_every_n_epoch=None,
        )

    through, first = make(), trainer(tmp_path)
    whole = fitted(first, through, make_data(batch_size=4))
    assert first.logger.steps == [0, 1, 2]  # type: ignore[union-attr]
    assert len(list(tmp_path.glob("*.ckpt"))) == 9 + 4
    for start in sorted(tmp_path.glob(f"{kept}.ckpt")):
        resumed, again = make(), trainer()
        step = torch.load(start, weights_only=True)["global_step"]
        assert fitted(again, resumed, make_data(batch_size=4), start) == [s for s in whole if s[0] >= step], start.name
        # A step that a callback interrupts has not been told yet.
        assert again.logger.steps in ([0, 1, 2][step:], [0, 1, 2][step - 1 :]), start.name  # type: ignore[union-attr]
        assert_same(through.state_dict(), resumed.state_dict(), start.name)
        assert_same(through.ema.shadow, resumed.ema.shadow, start.name)
        costs = [next(c for c in t.callbacks if isinstance(c, Costs)) for t in (first, again)]  # type: ignore
        assert costs[0].tokens == costs[1].tokens, start.name
        if isinstance(resumed, LitVAE):
            assert torch.equal(through.statistics.sums, resumed.statistics.sums), start.name


def test_pairs_of_texts_are_accumulated_and_gone_on_from_alike(make_trainer: Make, tmp_path: Path) -> None:
    def trainer(folder: Path | None = None) -> pl.Trainer:
        return make_trainer(callbacks=[Watch(folder)], accumulate_grad_batches=2, max_steps=3)

    def model() -> LitExpander:
        return LitExpander(dim=16, depth=1, num_heads=2)

    data: dict[str, Any] = {"clips": 6, "heldout_clips": 2, "batch_size": 2}
    through = model()
    whole = fitted(trainer(tmp_path), through, PromptDataModule(**data))
    assert [step for step, _ in whole] == [step for step in range(3) for _ in range(4)]
    resumed = model()
    assert fitted(trainer(), resumed, PromptDataModule(**data), tmp_path / "03.ckpt") == whole[4:]
    assert_same(through.state_dict(), resumed.state_dict(), "03.ckpt")


def test_epochs_are_counted_alike_by_a_fit_that_is_gone_on_from(make_trainer: Make, tmp_path: Path) -> None:
    def trainer(folder: Path | None = None) -> pl.Trainer:
        return make_trainer(callbacks=[Watch(folder)], accumulate_grad_batches=2, max_steps=100, max_epochs=3)

    whole = fitted(trainer(tmp_path), make_dit(), make_data(12))
    assert len(whole) == 3 * 16  # three batches to an epoch, made up to whole steps
    for start in sorted(tmp_path.glob("*.ckpt"))[2:9:2]:
        step = torch.load(start, weights_only=True)["global_step"]
        assert fitted(trainer(), make_dit(), make_data(12), start) == [s for s in whole if s[0] >= step], start.name


def test_a_number_of_batches_to_a_step_that_changes_is_refused(make_trainer: Make) -> None:
    trainer = make_trainer(callbacks=[Watch(), GradientAccumulationScheduler({2: 4})])
    with pytest.raises(SoraError, match=r"set trainer\.accumulate_grad_batches to one number"):
        fitted(trainer, make_dit(), make_data())


@pytest.mark.parametrize("validations", [0, 1])
def test_a_fit_that_ended_with_a_stretch_goes_on_by_whole_steps(
    make_trainer: Make, tmp_path: Path, validations: int
) -> None:
    def trainer(steps: int) -> pl.Trainer:
        options: dict[str, Any] = {"limit_val_batches": validations, "accumulate_grad_batches": 2, "max_steps": steps}
        return make_trainer(callbacks=[Watch()], **options)

    first = trainer(2)
    begun = fitted(first, make_dit(), make_data())
    first.save_checkpoint(tmp_path / "end.ckpt")
    whole = fitted(trainer(5), make_dit(), make_data())
    assert begun + fitted(trainer(5), make_dit(), make_data(), tmp_path / "end.ckpt") == whole


def test_a_fit_that_was_stopped_early_at_the_end_of_a_stretch_goes_on_by_whole_steps(
    make_trainer: Make, tmp_path: Path
) -> None:
    class Stop(Watch):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.batches += 1
            trainer.should_stop = self.batches == 4  # lightning validates then, though none is due

    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_steps": 5, "limit_val_batches": 1}
    options |= {"val_check_interval": 3, "check_val_every_n_epoch": None}
    whole = fitted(make_trainer(callbacks=[Watch()], **options), make_dit(), make_data())
    begun = fitted(make_trainer(callbacks=[Stop(tmp_path)], **options), make_dit(), make_data())
    again = make_trainer(callbacks=[Watch()], **options)
    assert begun + fitted(again, make_dit(), make_data(), tmp_path / "04_validated.ckpt") == whole


@pytest.mark.parametrize(
    "cut", [{"limit_train_batches": 1}, {"limit_train_batches": 0.5}, {"overfit_batches": 2}], ids=str
)
@pytest.mark.parametrize("pairs", [False, True])
def test_stretches_that_lightning_would_cut_short_are_refused(
    make_trainer: Make, cut: dict[str, Any], pairs: bool
) -> None:
    module = LitExpander(dim=16, depth=1, num_heads=2) if pairs else make_dit()
    data = PromptDataModule(clips=16, heldout_clips=2, batch_size=4) if pairs else make_data(16)
    with pytest.raises(
        SoraError, match=r"trainer\.(limit_train|overfit)_batches=\S+ would cut .*set trainer\.max_steps"
    ):
        make_trainer(callbacks=[Watch()], **cut).fit(module, data)
    dry = make_trainer(fast_dev_run=1)
    dry.fit(module, data)
    assert dry.global_step == 1
