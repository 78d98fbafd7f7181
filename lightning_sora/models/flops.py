"""Counting the FLOPs of parts that do not declare them: convolutional VAEs, text encoders."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

#: A backward pass costs twice the forward one: a product for the input's gradient, one for the weights'.
FORWARD_AND_BACKWARD = 3


class CountedFlops:
    """Runs a part once per key under torch's counter, and remembers.

    What an operator does that the counter does not know (element-wise work, a custom kernel) counts as zero;
    so parts with sparse attention declare their FLOPs and are not counted here.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def __call__(self, key: Hashable, module: nn.Module, run: Callable[[], Any]) -> int:
        """Forward FLOPs of ``run``, in evaluation mode and without gradients."""
        if key not in self._known:
            training = module.training
            module.eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run()
            module.train(training)
            self._known[key] = int(counter.get_total_flops())
        return self._known[key]
