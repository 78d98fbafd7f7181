"""Where a part runs, and how it measures time and memory there."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: Repeats of a timed run, and the seconds after which no further one is begun.
REPEATS, REPEAT_SECONDS = 20, 4.0
FEWEST_REPEATS = 3


@dataclass(frozen=True)
class Session:
    """A device, and the sizes to measure at.

    Attributes:
        reduced: tiny sizes, for a test of the suite itself.
        folder: where a part may leave files.
    """

    device: torch.device
    reduced: bool
    folder: Path

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def backend(self) -> str:
        """What torch.compile compiles with: Inductor, or, at reduced size, nothing, after tracing."""
        return "eager" if self.reduced else "inductor"

    def half(self) -> torch.autocast:
        """bfloat16 by autocast, as ``trainer.precision: bf16-mixed`` trains."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def compile(self, module: nn.Module) -> None:
        """Compiles a module in place; layers that are alike share what is compiled."""
        module.compile(backend=self.backend, dynamic=False)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], warmup: int = 2) -> float:
        """The median seconds of a run, the device's work included."""
        return self.interleaved({"": run}, warmup)[""]

    def interleaved(self, runs: Mapping[str, Callable[[], object]], warmup: int = 2) -> dict[str, float]:
        """The median seconds of each run, taken in turn, so that a change of clocks meets all alike.

        At least three and at most :data:`REPEATS` rounds; none is begun after :data:`REPEAT_SECONDS` of all runs
        together.
        """
        for _ in range(1 if self.reduced else warmup):
            for run in runs.values():
                run()
        taken: dict[str, list[float]] = {name: [] for name in runs}
        rounds, fewest, limit = (1, 1, 0.0) if self.reduced else (REPEATS, FEWEST_REPEATS, REPEAT_SECONDS * len(runs))
        begun = time.perf_counter()
        for done in range(rounds):
            if done >= fewest and time.perf_counter() - begun > limit:
                break
            for name, run in runs.items():
                taken[name].append(self.once(run))
        return {name: statistics.median(values) for name, values in taken.items()}

    def once(self, run: Callable[[], object]) -> float:
        """The seconds of one run, the device's work included."""
        if not self.cuda:
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1000

    def peak_gib(self, run: Callable[[], object]) -> float | None:
        """The most memory that torch held on the device during a run, in GiB; None where it does not count (a CPU)."""
        if not self.cuda:
            run()
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def capacity_gib(self) -> float:
        """Memory of a CUDA device that is free or held by this process, in GiB."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return (free + torch.cuda.memory_reserved(self.device)) / 2**30

    def clean(self) -> None:
        """Gives compiled code and the device's memory back, so that the next case begins as the first did."""
        torch.compiler.reset()
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()


def first_line(problem: BaseException) -> str:
    """An exception in one line of at most 300 characters."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]


def rounded(value: Any, digits: int = 4) -> Any:
    """A number to so many significant digits; anything else as it is."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
