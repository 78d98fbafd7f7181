"""From a run to its record: the mlflow logger, checkpoints, and what a run came from."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sora.tracking.checkpoint import Checkpoint
    from lightning_sora.tracking.interrupt import StopBetweenSteps
    from lightning_sora.tracking.logger import MLflowTracker
    from lightning_sora.tracking.recorder import RunRecorder

__all__ = ["Checkpoint", "MLflowTracker", "RunRecorder", "StopBetweenSteps"]

_HOMES = {
    "Checkpoint": "checkpoint",
    "MLflowTracker": "logger",
    "RunRecorder": "recorder",
    "StopBetweenSteps": "interrupt",
}


def __getattr__(name: str) -> Any:
    # These import lightning, which takes many seconds; the store does without it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"lightning_sora.tracking.{_HOMES[name]}"), name)
    raise AttributeError(name)
