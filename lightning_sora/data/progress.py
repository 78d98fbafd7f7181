"""How far training is in its endless stream of batches, and the stretches that lightning cuts the stream into.

Lightning trains by epochs, ends each with a step of the optimizer, and counts batches. Here the stream is what counts:
its place is one integer, batches of all ranks that made a step. A stretch, lightning's epoch, is a whole number of
steps, so that batches that make a step together may lie on both sides of an end of the data.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_sora.errors import SoraError


class StreamProgress:
    """How many batches of the stream were used, as one integer that does not depend on the number of ranks."""

    def __init__(self) -> None:
        self._consumed = self._processed = 0

    @property
    def begun(self) -> bool:
        """Whether it was loaded from elsewhere than the start."""
        return self._consumed > 0

    def consumed(self, trainer: pl.Trainer | None) -> int:
        """Batches of all ranks so far."""
        if trainer is None:
            return self._consumed
        return self._consumed + (_counts(trainer).total.processed - self._processed) * trainer.world_size

    def state_dict(self, trainer: pl.Trainer | None) -> dict[str, int]:
        """``consumed``, as of the last step; ``processed`` is the trainer's own count then, of one rank's batches."""
        if trainer is None:
            return {"consumed": self._consumed, "processed": self._processed}
        waiting = unstepped(trainer)
        return {
            "consumed": self.consumed(trainer) - waiting * trainer.world_size,
            "processed": _counts(trainer).total.processed - waiting,
        }

    def begin_anew(self) -> None:
        """Counts from here on, in another stream."""
        self._consumed = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._consumed, self._processed = state_dict["consumed"], state_dict["processed"]


def unstepped(trainer: pl.Trainer) -> int:
    """Batches of one rank whose gradients wait for the step that they make together with others."""
    loop = trainer.fit_loop
    return _counts(trainer).current.processed % trainer.accumulate_grad_batches if loop._should_accumulate() else 0


def stretch(batches: int, trainer: pl.Trainer | None) -> int:
    """Batches of one rank in a stretch: what an epoch of so many batches has, made up to whole steps.

    Raises:
        SoraError: the number of batches to a step changes as training goes on, or lightning would cut stretches short.
    """
    if trainer is None:
        return batches
    limit, overfit = trainer.limit_train_batches, getattr(trainer, "overfit_batches", 0)
    # An integer 1 is one batch, and 1.0 all of them.
    if (limit != 1.0 or isinstance(limit, int) or overfit) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        asked = f"overfit_batches={overfit}" if overfit else f"limit_train_batches={limit}"
        raise SoraError(
            f"trainer.{asked} would cut epochs short, so that steps lack batches, and the same ones come again and "
            "again; set trainer.max_steps, or give the data fewer clips"
        )
    if any(isinstance(one, GradientAccumulationScheduler) for one in trainer.callbacks):  # type: ignore[attr-defined]
        raise SoraError(
            "GradientAccumulationScheduler changes how many batches make a step, which a resumed fit could not know; "
            "set trainer.accumulate_grad_batches to one number"
        )
    together = trainer.accumulate_grad_batches
    return -(-batches // (trainer.world_size * together)) * together


def check_interval(trainer: pl.Trainer, length: int) -> None:
    """Refuses an interval of validations that no stretch of this length reaches.

    Raises:
        SoraError: it is longer, and not counted over the ends of epochs.
    """
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int) and interval > length and every is not None and trainer.limit_val_batches:
        raise SoraError(
            f"trainer.val_check_interval={interval} counts batches of one rank in an epoch, which has {length} on "
            f"{trainer.world_size} rank{'s'[: trainer.world_size != 1]}; set trainer.check_val_every_n_epoch=null to "
            f"count over the ends of epochs, or an interval of at most {length}"
        )


def settle(trainer: pl.Trainer, length: int) -> None:
    """Has lightning count what a resumed fit had done within stretches of this length, as others may have trained.

    Else it would take the first batch for a stretch's last, and step on it alone; and it takes a stretch that
    ``max_steps`` cut short for a whole one.
    """
    progress, epochs = _counts(trainer), _epochs(trainer)
    current = progress.current
    over = epochs.current.ready == epochs.current.processed
    if over and current.ready and not progress.is_last_batch:
        _add(-1, epochs, "processed", "completed")
    elif not over and progress.is_last_batch and current.ready == length:
        if current.completed < current.processed:  # saved within the batch; lightning ends the stretch itself
            return
        _add(1, epochs, "processed", "completed")
    past = current.ready // length * length
    past += (current.ready - past) % trainer.accumulate_grad_batches  # more or fewer made a step until now
    for name in ("ready", "started", "processed", "completed"):
        setattr(current, name, getattr(current, name) - past)


def _add(number: int, epochs: Any, *names: str) -> None:
    for count in (epochs.current, epochs.total):
        for name in names:
            setattr(count, name, getattr(count, name) + number)


def place_in_stretch(trainer: pl.Trainer, length: int) -> int:
    """How many batches of its present stretch a rank has used."""
    return int(_counts(trainer).current.processed % length)


def _counts(trainer: pl.Trainer) -> Any:
    # Not `completed`, which lacks the present batch while a callback saves.
    return trainer.fit_loop.epoch_loop.batch_progress


def _epochs(trainer: pl.Trainer) -> Any:
    return trainer.fit_loop.epoch_progress
