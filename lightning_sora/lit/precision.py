"""Warns of a precision that the CPU emulates."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch

log = logging.getLogger(__name__)

#: From here on a product counts as slower, and not as noise of the measurement.
SLOWER = 1.5


@cache
def bfloat16_slowdown(side: int = 256) -> float:
    """Measures how many times as long as in float32 a matrix product in bfloat16 takes on this CPU, once."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(side, side, dtype=dtype)
        times = []
        for _ in range(4):  # the first also sets up the library
            begun = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - begun)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


@cache
def warn_of_slow_bfloat16(precision: str, device_type: str) -> None:
    """Warns, once per process, if a trainer's precision is bfloat16 on a CPU where that is slower than float32.

    Args:
        precision: lightning's word, such as "bf16-mixed".
        device_type: "cpu", "cuda", ...
    """
    if device_type == "cpu" and precision.startswith("bf16") and (ratio := bfloat16_slowdown()) >= SLOWER:
        log.warning(
            "trainer.precision=%s: a matrix product in bfloat16 takes %.1f times as long as in float32 on this CPU "
            "(measured now); trainer.precision=32-true is faster here",
            precision,
            ratio,
        )
