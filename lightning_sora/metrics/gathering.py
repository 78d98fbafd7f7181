"""States of metrics as all processes together have them, for as long as something is worked out from them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torchmetrics import Metric


@contextmanager
def gathered(states: Iterable[Metric], synchronize: bool = True) -> Iterator[None]:
    """Gathers states from all processes, each of which must come here, and gives each its own back afterwards.

    torchmetrics gathers within ``compute`` alone, and a metric looks at its states outside of it as well. It also warns
    of states that no clip was added to, which a process may well have.

    Args:
        synchronize: False works with the states of this process alone.
    """
    chosen: list[Any] = list(states)
    try:
        for state in chosen:
            state._computed = None
            state.sync(should_sync=synchronize)
            state._to_sync = state._should_unsync = False  # `compute` takes it as it is now
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            yield
    finally:
        for state in chosen:
            if state._is_synced:
                state.unsync()
            state._to_sync = state._should_unsync = True
            state._computed = None
