"""A fit ends by steps or by epochs, whichever comes first; its schedule ends there too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Timer

from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks import Progress
from lightning_sora.lit.expander import LitExpander
from lightning_sora.testbench.prompts import PromptDataModule
from tests.integration.conftest import make_data, make_dit, make_vae

Make = Callable[..., pl.Trainer]
COSINE = {"schedule": "cosine", "optimizer": "adamw(lr=1.0e-3)"}


class Rates(pl.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.of: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.of[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]


def rates(trainer: pl.Trainer, module: Any, data: Any, start: Path | None = None) -> list[float]:
    watch = Rates()
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(module, data, ckpt_path=start, weights_only=True if start else None)
    assert sorted(watch.of) == list(range(min(watch.of), min(watch.of) + len(watch.of)))
    return list(watch.of.values())


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 2, "max_steps": 100}, 4),
        ({"max_epochs": 100, "max_steps": 3}, 3),
        ({"max_epochs": 2, "max_steps": 100, "accumulate_grad_batches": 4}, 2),  # an epoch is made up to a whole step
    ],
    ids=str,
)
def test_the_schedule_spans_what_is_trained(make_trainer: Make, limits: dict[str, int], steps: int) -> None:
    alone = {"max_steps": steps, "accumulate_grad_batches": limits.get("accumulate_grad_batches", 1)}
    expected = rates(make_trainer(**alone), make_dit(**COSINE), make_data())
    assert len(expected) == steps
    assert rates(make_trainer(**limits), make_dit(**COSINE), make_data()) == expected


def test_the_schedule_of_pairs_and_of_two_optimizers_ends_with_the_epochs(make_trainer: Make) -> None:
    both = {"max_epochs": 1, "max_steps": 100}
    half = pytest.approx([1e-3, 5e-4])  # a cosine over two steps
    vae = make_vae(**COSINE, adversarial_weight=0.1, discriminator_dim=4)
    assert rates(make_trainer(**both), vae, make_data()) == half
    pairs = PromptDataModule(clips=4, heldout_clips=2, batch_size=2)
    assert rates(make_trainer(**both), LitExpander(dim=16, depth=1, num_heads=2, **COSINE), pairs) == half


def test_a_fit_that_goes_on_ends_its_schedule_where_it_ends(make_trainer: Make, tmp_path: Path) -> None:
    first = make_trainer(max_steps=3)
    first.fit(make_dit(), make_data())  # one batch into the second epoch of two
    first.save_checkpoint(tmp_path / "mid.ckpt")
    whole = rates(make_trainer(max_steps=8), make_dit(**COSINE), make_data())
    limits = {"max_steps": 100, "max_epochs": 4}
    assert rates(make_trainer(**limits), make_dit(**COSINE), make_data(), tmp_path / "mid.ckpt") == whole[3:]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"max_steps": 3}, {"max_steps": 3}, "trainer.max_steps=3; raise it"),
        ({"max_steps": 3}, {"max_steps": 2}, "trainer.max_steps=2; raise it"),
        ({"max_epochs": 2, "max_steps": 9}, {"max_epochs": 2, "max_steps": 9}, "trainer.max_epochs=2; raise it"),
        ({"max_steps": 4}, {"max_steps": 4, "max_epochs": 2}, "trainer.max_steps=4 and trainer.max_epochs=2; raise"),
        ({"max_steps": 4}, {"max_steps": 9, "max_epochs": 1}, "trainer.max_epochs=1; raise it"),
    ],
    ids=str,
)
@pytest.mark.parametrize("validated", [0, 1])
def test_a_finished_fit_says_what_to_raise(
    make_trainer: Make, tmp_path: Path, before: Any, after: Any, words: str, validated: int
) -> None:
    class Keep(pl.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    first = make_trainer(**before, limit_val_batches=validated, callbacks=[Keep()])
    first.fit(make_dit(), make_data())
    if not validated or before["max_steps"] == 3:  # which ends between two validations
        first.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(SoraError, match=f"this fit is finished: the checkpoint is of step ., where it ends by {words}"):
        make_trainer(**after).fit(make_dit(), make_data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_fit_whose_time_is_used_up_says_so(make_trainer: Make, tmp_path: Path) -> None:
    first = make_trainer(max_steps=9, max_time={"microseconds": 1})
    first.fit(make_dit(), make_data())
    first.save_checkpoint(tmp_path / "end.ckpt")
    assert first.global_step == 1
    with pytest.raises(
        SoraError, match=r"finished: .* of step 1, where it ends by trainer\.max_time, of 1e-06 s; raise"
    ):
        make_trainer(max_steps=9, max_time={"microseconds": 1}).fit(
            make_dit(), make_data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True
        )
    for more in ({"max_time": {"hours": 1}}, {"callbacks": [Timer()]}, {}):
        again = make_trainer(max_steps=3, **more)
        again.fit(make_dit(), make_data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
        assert again.global_step == 3


def test_the_bar_counts_up_to_the_end_of_the_fit(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(Progress, "listeners", [shares.append])
    trainer = make_trainer(callbacks=[Progress()], enable_progress_bar=True, max_steps=100, max_epochs=2)
    trainer.fit(make_dit(), make_data())
    assert shares == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("data", [make_data(), PromptDataModule(clips=4, heldout_clips=2, batch_size=2)])
def test_validations_further_apart_than_an_epoch_name_the_remedy_that_works(make_trainer: Make, data: Any) -> None:
    far = {"val_check_interval": 3, "limit_val_batches": 1, "max_steps": 3}
    model = make_dit() if data.patch == make_data().patch else LitExpander(dim=16, depth=1, num_heads=2)
    with pytest.raises(
        SoraError, match=r"which has 2 on 1 rank; set trainer.check_val_every_n_epoch=null .* at most 2"
    ):
        make_trainer(**far).fit(model, data)
    trainer = make_trainer(**far, check_val_every_n_epoch=None)
    trainer.fit(model, data)
    assert "val/loss" in trainer.callback_metrics
