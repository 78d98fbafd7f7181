"""What is run elsewhere: a function by its import path, with JSON arguments."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError


@dataclass(frozen=True)
class Job:
    """One call of a function, in another process.

    Attributes:
        name: unique, for messages.
        function: "module:name"; see :meth:`of`.
        arguments: by name, as JSON values.
        log: gets everything that the job prints.
        threads: of torch; None for a function that does without torch.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    log: Path
    threads: int | None = None

    @classmethod
    def of(
        cls, name: str, function: Callable[..., None], arguments: Mapping[str, Any], log: Path,
        threads: int | None = None,
    ) -> Job:  # fmt: skip
        """The job that calls a function of a module; see :func:`path_of`."""
        return cls(name, path_of(function), arguments, log, threads)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "log": str(self.log)})

    @classmethod
    def from_json(cls, text: str) -> Job:
        content = json.loads(text)
        return cls(**{**content, "log": Path(content["log"])})


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: exit status; 0 after success, negative after a signal.
        message: why it failed, in one line; empty after success.
    """

    job: Job
    status: int
    seconds: float
    message: str = ""


def path_of(function: Callable[..., Any]) -> str:
    """The import path of a function, as "module:name".

    Raises:
        SoraError: another process cannot import it.
    """
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise SoraError(f"{function.__qualname__} cannot be imported by another process; put it into a module")
    return f"{function.__module__}:{function.__qualname__}"


def function_at(path: str) -> Callable[..., Any]:
    """The function of an import path."""
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
