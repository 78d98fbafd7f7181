"""A part of the suite: cases in order of worth, and how they are run."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.session import Session, first_line, rounded

Row = dict[str, Any]
#: What running a part tells, one at a time: a case begins, a row, an error of a case, cases left, or the end.
Event = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        labels: which; the first columns of its rows.
        measure: yields rows, as far as it gets.
        seconds: what it surely takes; with less time left it is not begun.
    """

    labels: Mapping[str, Any]
    measure: Callable[[], Iterable[Row]]
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """A part of the suite.

    Attributes:
        name: of its module, too, unless ``module`` says another.
        title: for the page.
        share: of the minutes, in proportion to the others'.
        needs: packages beside torch, einops and jaxtyping, by the names that they are imported by.
        module: holds ``cases(session) -> list[Case]``.
    """

    name: str
    title: str
    share: float
    needs: tuple[str, ...] = ()
    module: str = ""

    def missing(self) -> list[str]:
        """Packages that it needs and this environment lacks."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def about(self) -> str:
        """What it measures and how, without the title."""
        return (self._module().__doc__ or "").partition("\n\n")[2].strip()

    def cases(self, session: Session) -> list[Case]:
        return self._module().cases(session)

    def _module(self) -> Any:
        return importlib.import_module(self.module or f"benchmarks.gpu.{self.name}")


def events(part: Part, session: Session, *, first: int, until: float) -> Iterator[Event]:
    """Runs the cases of a part and tells what happens.

    Args:
        first: the case to begin with; those before it are done.
        until: no case is begun after this ``time.monotonic()``.
    """
    if session.cuda:
        torch.cuda.set_device(session.device)
    cases = part.cases(session)
    yield {"cases": len(cases)}
    for index, case in enumerate(cases[first:], start=first):
        if time.monotonic() + case.seconds > until:
            yield {"left": len(cases) - index}
            return
        yield {"begin": index, "labels": dict(case.labels)}
        try:
            for row in case.measure():
                yield {"row": {**case.labels, **{key: rounded(value) for key, value in row.items()}}}
        except Exception as problem:  # whatever the device, the compiler or the code raises is a finding
            yield {"error": {**case.labels, "raised": first_line(problem)}}
            if not alive(session):
                yield {"lost": "the device takes no more work in this process"}
                return
        session.clean()
    yield {"end": True}


def alive(session: Session) -> bool:
    """Whether the device still computes here: after an illegal access it does not, in the process that made it."""
    try:
        torch.ones(1, device=session.device).sum().item()
        session.synchronize()
    except RuntimeError:
        return False
    return True
