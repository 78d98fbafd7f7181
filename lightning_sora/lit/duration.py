"""How many steps a fit is to make, by ``trainer.max_steps`` and ``trainer.max_epochs``, whichever ends it first.

``trainer.max_time`` may end it earlier still, which cannot be told in steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer

from lightning_sora.errors import SoraError


@dataclass(frozen=True)
class Begun:
    """What a fit had done when it was resumed: steps, whole epochs, and batches of one rank in the next epoch.

    Attributes:
        seconds: by the clock of ``trainer.max_time``, where there was one.
    """

    steps: int = 0
    epochs: int = 0
    batches: int = 0
    at_the_end: bool = False
    seconds: float = 0.0

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> Begun:
        """As counted in a checkpoint."""
        if "loops" not in checkpoint:
            return cls()
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
        steps, used, ends = checkpoint["global_step"], batches["current"]["ready"], batches["is_last_batch"]
        clock = checkpoint.get("callbacks", {}).get(Timer.__name__, {}).get("time_elapsed", {})
        seconds = float(clock.get("train", 0.0))
        if epochs["ready"] > epochs["processed"]:
            return cls(steps, epochs["processed"], used, ends, seconds)
        if used and not ends:  # lightning also counts the one that `max_steps` cut short
            return cls(steps, epochs["processed"] - 1, used, seconds=seconds)
        return cls(steps, epochs["processed"], seconds=seconds)


def planned_steps(trainer: pl.Trainer, begun: Begun) -> int:
    """The steps that a fit will have made at its end.

    Raises:
        SoraError: no limit in steps, or one that leaves nothing to train.
    """
    return min(_limits(trainer, begun).values())


def refuse_finished(trainer: pl.Trainer, begun: Begun) -> None:
    """Refuses to go on with a fit that is at its end.

    Raises:
        SoraError: it is; what ends it is named.
    """
    limits = _limits(trainer, begun).items()
    ends = [f"trainer.{name}={getattr(trainer, name)}" for name, steps in limits if steps <= begun.steps]
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    times = [seconds for one in timers if (seconds := one.time_remaining()) is not None]  # none has begun
    ends += [f"trainer.max_time, of {seconds:g} s" for seconds in times if seconds <= begun.seconds]
    if ends:
        named = " and ".join(ends)
        raise SoraError(
            f"this fit is finished: the checkpoint is of step {begun.steps}, where it ends by {named}; "
            f"raise {'both' if len(ends) > 1 else 'it'} to go on"
        )


def _limits(trainer: pl.Trainer, begun: Begun) -> dict[str, int]:
    """After how many steps each of the trainer's limits ends the fit."""
    if trainer.max_steps is None or trainer.max_steps < 1:
        raise SoraError(f"trainer.max_steps={trainer.max_steps} must be at least 1: schedules are planned in steps")
    limits = {"max_steps": trainer.max_steps}
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return limits
    if trainer.max_epochs == 0:
        raise SoraError("trainer.max_epochs=0 must be at least 1, or null for as many as trainer.max_steps takes")
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not hasattr(data, "stretch"):  # not one of this package
        return limits | {"max_epochs": int(trainer.estimated_stepping_batches)}
    length = data.stretch()
    used = begun.batches if begun.batches == length and begun.at_the_end else begun.batches % length
    used -= used % trainer.accumulate_grad_batches
    left = (trainer.max_epochs - begun.epochs) * length - used
    return limits | {"max_epochs": begun.steps + max(0, -(-left // trainer.accumulate_grad_batches))}
