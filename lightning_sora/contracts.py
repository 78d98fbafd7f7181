"""Contracts: what every part of one kind must keep, as laws that any part can be put to, one's own too.

A registry carries the contract of its kind, and ``lightning-sora list KIND --check FILE`` puts parts to it. A law is a
function of a spec: it makes the part at a small size and raises :class:`ContractViolation` with what is wrong, and
where to look. It assumes nothing of how a part works but what it declares.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getdoc
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError, raised_in

if TYPE_CHECKING:
    from torch import Tensor

Law = Callable[[str], None]


class ContractViolation(AssertionError):
    """A part does not do what every part of its kind must."""


@dataclass(frozen=True)
class Finding:
    """What came of one law.

    Attributes:
        law: its name, in words.
        meaning: what it asks for.
        problem: what is wrong; None where it is kept.
    """

    law: str
    meaning: str
    problem: str | None


class Contract:
    """The laws of one kind of part.

    Args:
        make: makes a part of a spec, at the size of the laws.

    Attributes:
        laws: by name.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        self.make = make
        self.laws: dict[str, Law] = {}

    def law(self, law: Law) -> Law:
        """Adds a law; a decorator."""
        self.laws[law.__name__] = law
        return law

    def findings(self, spec: str) -> Iterator[Finding]:
        """Puts a part to every law, whatever one of them finds.

        Raises:
            SoraError: the part cannot be made, which is a mistake of its own.
        """
        if problem := _problem(self.make, spec):
            raise SoraError(f"{spec} cannot be made: {problem}")
        told: dict[str, str] = {}  # a bug that stops several laws is told once
        for name, law in self.laws.items():
            words = name.replace("_", " ")
            meaning = (getdoc(law) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")
            problem = _problem(law, spec)
            first = told.setdefault(problem, words) if problem is not None else words
            yield Finding(words, meaning, problem if first == words else f"the same as of {first!r}")


def _problem(law: Callable[[str], Any], spec: str) -> str | None:
    try:
        law(spec)
    except (ContractViolation, SoraError) as violation:
        return str(violation)
    except Exception as problem:  # the part's own, whatever it is
        place = raised_in(problem)
        said = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
        return f"{place}: {said}" if place else said
    return None


def require(condition: object, message: str) -> None:
    """Raises ContractViolation unless a condition holds."""
    if not condition:
        raise ContractViolation(message)


def require_close(found: Tensor, expected: Tensor, message: str, tolerance: float = 1e-5) -> None:
    """Raises ContractViolation unless tensors of one shape are equal up to ``tolerance``, and finite."""
    require(found.shape == expected.shape, f"{message}: {tuple(found.shape)} instead of {tuple(expected.shape)}")
    distance = float((found.detach().double() - expected.detach().double()).abs().max()) if found.numel() else 0.0
    require(distance <= tolerance, f"{message}: the largest difference is {distance:.3g}, allowed {tolerance:g}")


@contextmanager
def no_global_draws(message: str) -> Iterator[None]:
    """Raises ContractViolation if a global generator of NumPy or torch was drawn from inside.

    Python's own is left out: what checks annotations in tests draws from it.
    """
    import numpy as np
    import torch

    def states() -> tuple[Any, ...]:
        return pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = states()
    yield
    require(states() == before, f"{message}: a global generator was drawn from; draw from keyed ones")
