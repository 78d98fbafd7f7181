"""The time left of a job of several stages, against what a machine of known speed really has left."""

import threading

import pytest

from lightning_sora.errors import SoraError
from lightning_sora.time_left import PRIOR, TimeLeft, duration, seconds_left

MEASURED = {"first": 100.0, "second": 300.0, "third": 20.0}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_before_anything_ran_the_job_takes_as_long_as_measured() -> None:
    assert TimeLeft(MEASURED, Clock()).seconds() == sum(MEASURED.values())


@pytest.mark.parametrize("slow", [0.5, 1.0, 3.0])
def test_on_a_machine_of_another_speed_the_estimate_comes_to_what_is_left(slow: float) -> None:
    clock, total, ended = Clock(), sum(MEASURED.values()), 0.0
    job = TimeLeft(MEASURED, clock)
    for name, seconds in MEASURED.items():
        job.begin(name)
        for tenth in range(11):
            work = ended + seconds * tenth / 10
            clock.now = 1000.0 + slow * work
            job.advance(tenth / 10)
            # The prior's share of the pace, on all that is left.
            error = abs(slow - 1) * PRIOR / (work + PRIOR) * (total - work)
            assert job.seconds() == pytest.approx(slow * (total - work), abs=error + 1e-6)
        ended += seconds
    assert job.seconds() == pytest.approx(0)


def test_what_a_stage_takes_to_begin_is_not_taken_for_its_pace() -> None:
    clock = Clock()
    job = TimeLeft({"fit": 200.0, "test": 50.0}, clock)
    job.begin("fit")
    clock.now += 60
    assert job.seconds() == 190  # on schedule, as far as is known
    job.advance(0.01)
    assert job.seconds() == pytest.approx(0.99 * 200 + 50)
    clock.now += 99
    job.advance(0.505)
    assert job.seconds() == pytest.approx(99 + 50)


def test_a_stage_that_tells_nothing_is_not_late_before_its_time() -> None:
    clock = Clock()
    job = TimeLeft({"fit": 100.0, "sample": 30.0}, clock)
    clock.now += 500
    job.begin("sample")
    late = (500 + PRIOR) / (100 + PRIOR)
    clock.now += 10
    assert job.seconds() == pytest.approx(30 * late - 10)
    clock.now += 1000
    assert job.seconds() == pytest.approx(30 * late - 30)


def test_a_stage_goes_on_at_its_own_pace_and_later_ones_at_that_of_the_job() -> None:
    # The first took twice as long as measured, the second runs at thrice: 60 done in 180, 140 to go; then one of 100.
    left = seconds_left([40, 200, 100], stage=1, done=0.3, before=80, within=180, prior=1e-9)
    assert left == pytest.approx(3 * 140 + (80 + 180) / (40 + 60) * 100)


def test_a_standstill_makes_the_time_left_grow() -> None:
    clock = Clock()
    job = TimeLeft(MEASURED, clock)
    job.begin("first")
    job.advance(0.1)
    early = job.seconds()
    clock.now += 60
    assert job.seconds() > early


def test_it_is_told_at_once_then_again_and_never_after_the_end() -> None:
    job = TimeLeft(MEASURED, Clock())
    job.begin("second")
    job.advance(0.25)
    lines, thrice = [], threading.Event()

    def tell(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            thrice.set()

    with job.told(tell, every=0.001):
        assert thrice.wait(30)
    told = len(lines)
    assert lines[0].startswith("second 25 %; whole job: about ")
    assert all(t.name != "time left" for t in threading.enumerate())
    assert len(lines) == told


def test_stages_need_a_time() -> None:
    with pytest.raises(SoraError, match="more than 0 seconds"):
        TimeLeft({"fit": 0.0})


def test_durations_are_rounded_for_people() -> None:
    assert [duration(s) for s in (0, 14, 84, 86, 500)] == ["0 s", "10 s", "80 s", "1 min", "8 min"]
