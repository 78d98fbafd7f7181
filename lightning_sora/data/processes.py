"""Processes that begin with what they are given, and not by running again the script that started this one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from multiprocessing import context
from pathlib import Path
from pickle import PicklingError
from types import ModuleType
from typing import Any

from lightning_sora.errors import SoraError

_GUARD = re.compile(r"""__name__\s*==\s*['"]__main__['"]""")


class _SpawnProcess(context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _started(context.SpawnProcess._Popen, process_obj)


class _ForkServerProcess(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _started(context.ForkServerProcess._Popen, process_obj)


class Spawned(context.SpawnContext):
    """Processes that share nothing with this one."""

    Process = _SpawnProcess


class Served(context.ForkServerContext):
    """Processes that are forked from one which has run nothing but imports."""

    Process = _ForkServerProcess


def _started(start: Callable[[Any], Any], process: Any) -> Any:
    script = sys.modules["__main__"]
    # multiprocessing would have the process import the script: what has no guard would run once more, though another
    # part of it has one, and what was read from a pipe has no file.
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return start(process)
    except PicklingError as problem:
        sys.modules["__main__"] = script
        if _is_guarded(script):  # and defines what the process needs
            return start(process)
        raise SoraError(
            f"{getattr(script, '__file__', 'the script')} defines what processes need that read clips ({problem}), and "
            "they cannot import it: put what it runs under `if __name__ == '__main__':`, give the rest as a file of "
            "plugins, or set data.num_workers=0"
        ) from problem
    finally:
        sys.modules["__main__"] = script


def _is_guarded(script: ModuleType) -> bool:
    """Whether a process can import the script and run nothing by that."""
    file = getattr(script, "__file__", None)
    if file is None:  # nothing is imported
        return True
    try:
        return _GUARD.search(Path(file).read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False
