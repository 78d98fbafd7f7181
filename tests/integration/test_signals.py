"""SIGTERM, and SIGHUP by it, where lightning does not listen: before a fit, in its sanity check, in predictions."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_sora.tracking import Checkpoint, StopBetweenSteps
from tests.integration.conftest import make_data, make_dit, make_vae

Make = Callable[..., pl.Trainer]


class End(pl.Callback):
    """Sends SIGTERM at one place, and tells which predictions were begun and handed on, and what ended them."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.begun, self.made = 0, 0
        self.ended_by: BaseException | None = None

    def _end(self, place: str) -> None:
        if place == self.place:
            os.kill(os.getpid(), signal.SIGTERM)

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self._end("setup")

    def on_validation_batch_start(self, *_: Any) -> None:
        self._end("sanity check")

    def on_predict_batch_start(self, *_: Any) -> None:
        self.begun += 1
        self._end("prediction")

    def on_predict_batch_end(self, *_: Any) -> None:
        self.made += 1

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.ended_by = exception


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def trainer(make_trainer: Make, end: End, **changes: Any) -> pl.Trainer:
    callbacks = [StopBetweenSteps(), end, Checkpoint(monitor=None)]
    return make_trainer(callbacks=callbacks, enable_checkpointing=True, **changes)


@pytest.mark.parametrize("place", ["setup", "sanity check"])
def test_a_fit_that_ends_before_its_first_step_leaves_the_checkpoints_of_another(
    make_trainer: Make, tmp_path: Path, place: str
) -> None:
    trainer(make_trainer, End("nowhere"), max_steps=2).fit(make_vae(), make_data())
    end = End(place)
    second = trainer(make_trainer, end, limit_val_batches=2, num_sanity_val_steps=2)
    with pytest.raises(SIGTERMException):
        second.fit(make_vae(), make_data(batch_size=2))
    assert isinstance(end.ended_by, SIGTERMException)
    (kept,) = tmp_path.glob("*/*.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == 2


def test_predictions_end_after_the_batch_that_is_made(make_trainer: Make) -> None:
    end = End("prediction")
    with pytest.raises(SIGTERMException):
        trainer(make_trainer, end).predict(make_dit(), make_data(batch_size=2))
    assert (end.begun, end.made) == (1, 1)
    assert isinstance(end.ended_by, SIGTERMException)
