"""The memory peak of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_gib() -> float:
    """The largest resident size since the start, or since :func:`reset_peak_memory` where that is possible, in GiB."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def reset_peak_memory() -> None:
    """Begins the peak anew, so that what ran before in this process is left out; Linux alone can."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")
