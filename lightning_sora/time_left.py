"""The time left of a job of several stages, from the seconds that each took where the job was measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lightning_sora.errors import SoraError

#: So many measured seconds weigh as much as what was seen of this machine so far.
PRIOR = 20.0


def seconds_left(
    measured: Sequence[float], stage: int, done: float, before: float, within: float, prior: float = PRIOR
) -> float:
    """Estimates the seconds that a job has left, while one of its stages runs.

    The rest of the present stage goes on at its own pace, later stages at the pace of the job so far. A pace is
    seconds taken over seconds measured, each with ``prior`` seconds added, so that it starts at 1 (for a stage: at
    the job's) and is believed as it proves itself.

    Args:
        measured: seconds of every stage where they were measured.
        stage: index of the one that runs.
        done: share of it, in [0, 1].
        before: seconds that the stages before it took here, together.
        within: seconds that ``done`` took.
        prior: above 0.

    Example:
        >>> seconds_left([100, 200], stage=0, done=0.0, before=0, within=0)  # as measured
        300.0
        >>> round(seconds_left([100, 200], stage=1, done=0.5, before=200, within=200, prior=1e-9))  # twice as slow
        200
    """
    behind = done * measured[stage]
    pace = (before + within + prior) / (sum(measured[:stage]) + behind + prior)
    own = (within + prior * pace) / (behind + prior)
    return own * (measured[stage] - behind) + pace * sum(measured[stage + 1 :])


class TimeLeft:
    """Follows a job through its stages and says how long the rest will take.

    A stage of which nothing was heard yet is taken to be on schedule; when it tells of itself for the first time, what
    it took to begin is left out of its pace.

    Args:
        measured: name of each stage, in order -> seconds that it took where it was measured.
        clock: seconds, from any moment on.

    Example:
        >>> job = TimeLeft({"fit": 90.0, "test": 30.0}, clock=lambda: 0.0)
        >>> job.line()
        'fit 0 %; whole job: about 2 min left'
    """

    def __init__(self, measured: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        if not measured or min(measured.values()) <= 0:
            raise SoraError(f"stages {dict(measured)} must each have taken more than 0 seconds")
        self.names, self.measured, self.clock = list(measured), list(measured.values()), clock
        self.started = clock()
        self.begin(self.names[0])

    @property
    def name(self) -> str:
        """The present stage."""
        return self.names[self.stage]

    def begin(self, name: str) -> None:
        """Enters a stage; those before it are over."""
        self.stage, self.done, self.begun = self.names.index(name), 0.0, self.clock()
        self.heard: tuple[float, float] | None = None  # when the stage first told of itself, and of what share

    def advance(self, done: float) -> None:
        """Takes note of the share of the present stage that is done."""
        self.done = done
        if self.heard is None:
            self.heard = self.clock(), done

    def seconds(self) -> float:
        """Seconds left of the whole job."""
        now, before = self.clock(), self.begun - self.started
        if self.heard is None:
            left = seconds_left(self.measured, self.stage, 0.0, before, 0.0)
            return left - min(now - self.begun, self.measured[self.stage])
        since, share = self.heard
        rest = [*self.measured[: self.stage], self.measured[self.stage] * (1 - share), *self.measured[self.stage + 1 :]]
        done = (self.done - share) / (1 - share) if share < 1 else 0.0
        return seconds_left(rest, self.stage, done, before, now - since)

    def line(self) -> str:
        """Where the job is, and the time left, for people."""
        return f"{self.name} {100 * self.done:.0f} %; whole job: about {duration(self.seconds())} left"

    @contextmanager
    def told(self, tell: Callable[[str], None], every: float = 15.0) -> Iterator[None]:
        """Tells :meth:`line` at once and then every so many seconds, until the block is left."""
        over = threading.Event()

        def repeat() -> None:
            tell(self.line())
            while not over.wait(every):
                tell(self.line())

        teller = threading.Thread(target=repeat, daemon=True, name="time left")
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()


def duration(seconds: float) -> str:
    """Seconds for people: by 10 s below a minute and a half, by the minute above.

    Example:
        >>> duration(84), duration(500)
        ('80 s', '8 min')
    """
    return f"{round(seconds, -1):.0f} s" if seconds < 85 else f"{seconds / 60:.0f} min"
