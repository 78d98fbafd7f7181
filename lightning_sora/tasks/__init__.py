"""Tasks: what is given of a clip and what is made, by name."""

from lightning_sora.tasks import extend, frames, long, paint, text  # noqa: F401  (they register themselves)
from lightning_sora.tasks.base import INPUTS, TASKS, Task, register_task, sample_task
from lightning_sora.tasks.mixture import Drawn, TaskMixture

__all__ = ["INPUTS", "TASKS", "Drawn", "Task", "TaskMixture", "register_task", "sample_task"]
