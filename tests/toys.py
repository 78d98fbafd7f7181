"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from lightning_sora.jobs.engines import ENGINES, Engine
from lightning_sora.jobs.job import Job, Outcome
from lightning_sora.jobs.running import run_job


class InThisProcess(Engine):
    """Runs jobs here: starting a process takes longer than what most of them do."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for job in jobs:
            status, message = run_job(job)
            yield Outcome(job, status, 0.0, message)


def start_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the local engine is asked for runs in this process, for one test."""
    monkeypatch.setitem(ENGINES._builders, "local", lambda processes=1: InThisProcess())
