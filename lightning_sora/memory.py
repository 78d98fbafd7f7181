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


_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_memory(device: str = "cpu") -> int | None:
    """The bytes that can still be taken on a device; None where nobody tells.

    On a CPU the memory that the system has available, and that the limits of this process's control groups (of version
    1 or 2) leave; on CUDA what the driver says to be free, with what torch holds in reserve.

    Args:
        device: such as "cpu" or "cuda:0".
    """
    if device.startswith("cuda"):
        import torch

        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    if device != "cpu":
        return None
    found = [
        int(line.split()[1]) * 1024
        for line in (_MEMINFO.read_text().splitlines() if _MEMINFO.exists() else ())
        if line.startswith("MemAvailable:")
    ]
    return min((*found, *_left_of_groups(_OWN_GROUPS, _GROUPS)), default=None)


def _left_of_groups(own: Path, root: Path) -> list[int]:
    """What each limit of the control groups that a process is in leaves, in bytes.

    Args:
        own: the file that names them, a line each: number, controllers, path.
        root: where they are mounted.
    """
    left = []
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root, ("memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            of_files = ("total_inactive_file", "total_active_file")
            mount, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", of_files)
        else:
            continue
        place = mount / path.strip("/")
        for group in (place, *place.parents):
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None:
                # Of files, which the kernel gives up.
                cached = sum(_number(group / "memory.stat", key) or 0 for key in names[2])
                left.append(max(0, limit - used + cached))
            if group == mount:
                break
    return left


def _number(file: Path, key: str | None = None) -> int | None:
    """The number that a file holds, or that stands behind a key of its lines; None for "max" or nothing."""
    try:
        lines = file.read_text().split("\n")
    except OSError:
        return None
    for words in map(str.split, lines):
        if words and (key is None or words[0] == key) and words[-1].isdigit():
            return int(words[-1])
    return None
