"""What a trainer's precision does to batches, and a warning of one that the CPU emulates."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import nn
from torchmetrics import Metric

log = logging.getLogger(__name__)

#: Precisions of all weights; mixed ones are a matter of single operations.
WHOLE = ("16-true", "bf16-true", "64-true")
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


def convert_weights_alone(plugin: Precision) -> None:
    """Has a trainer's half or double precision change the weights that are trained, and nothing else.

    Lightning would also replace the tensors in a batch, which frozen ones do not allow (as wherever models are
    sharded); our modules convert the rows that they take. It would round the sums and the networks of metrics, which
    are exact and part of a protocol. And it would make all new tensors in that precision, which draws other noise, and
    rounds timesteps and known facts.
    """
    kind = type(plugin)
    if str(plugin.precision) in WHOLE:
        plugin.forward_context = nullcontext  # type: ignore[method-assign]

    def convert_input(data: Any) -> Any:
        parameters = getattr(data, "__dataclass_params__", None)
        return data if parameters is not None and parameters.frozen else kind.convert_input(plugin, data)

    def convert_module(module: nn.Module) -> nn.Module:
        metrics = [
            (part._modules, name, child)
            for part in module.modules()
            for name, child in part._modules.items()
            if isinstance(child, Metric)
        ]
        for parts, name, _ in metrics:
            parts[name] = None
        try:
            return kind.convert_module(plugin, module)
        finally:
            for parts, name, metric in metrics:
                parts[name] = metric

    plugin.convert_input = convert_input  # type: ignore[method-assign]
    plugin.convert_module = convert_module  # type: ignore[method-assign]
