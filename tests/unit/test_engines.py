"""Engines: outcomes, deaths, and that nothing outlives the one who asked."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_sora.errors import SoraError
from lightning_sora.jobs.engines import ENGINES, Engine
from lightning_sora.jobs.job import Job, Outcome, path_of
from lightning_sora.jobs.shards import Shard, run_shards

TOY = "tests.unit.engine_toys:run"


@pytest.fixture(autouse=True)
def _toys_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))


def job(folder: Path, name: str, what: str, seconds: float = 0.0, threads: int | None = None) -> Job:
    return Job(name, TOY, {"what": what, "seconds": seconds}, folder / f"{name}.log", threads)


def first_line(file: Path) -> str:
    return file.read_text().splitlines()[0]


def test_jobs_survive_their_text(tmp_path: Path) -> None:
    made = Job("a/b", TOY, {"what": "ok", "seconds": 1}, tmp_path / "log", 3)
    assert Job.from_json(made.to_json()) == made


def test_a_job_is_a_function_that_another_process_finds(tmp_path: Path) -> None:
    assert Job.of("a", path_of, {}, tmp_path / "log").function == "lightning_sora.jobs.job:path_of"
    with pytest.raises(SoraError, match="put it into a module"):
        Job.of("a", lambda: None, {}, tmp_path / "log")


def test_a_failing_and_a_dying_job_stop_no_other(tmp_path: Path) -> None:
    jobs = [job(tmp_path, n, n.split("-")[0]) for n in ("ok-1", "fail", "bug", "die", "ok-2", "ok-3")]
    outcomes = {o.job.name: o for o in ENGINES.create("local").run(jobs)}
    assert {n: o.status for n, o in outcomes.items()} == {
        "ok-1": 0, "fail": 2, "bug": 1, "die": -9, "ok-2": 0, "ok-3": 0,
    }  # fmt: skip
    assert outcomes["fail"].message == "as it was asked to"
    assert "error: as it was asked to" in (tmp_path / "fail.log").read_text()
    assert outcomes["bug"].message == "KeyError: 'nobody caught this'"
    assert "Traceback" in (tmp_path / "bug.log").read_text()
    assert "SIGKILL" in outcomes["die"].message
    pids = {n: first_line(tmp_path / f"{n}.log") for n in outcomes}
    assert pids["ok-1"] == pids["fail"] == pids["bug"] == pids["die"]  # one process for many jobs
    assert pids["ok-2"] == pids["ok-3"] != pids["die"]  # and another after its death


@pytest.mark.slow
def test_as_many_processes_as_asked_for_work_side_by_side(tmp_path: Path) -> None:
    jobs = [job(tmp_path, f"w{i}", "wait", 0.5) for i in range(4)]
    assert len(list(ENGINES.create("local(processes=2)").run(jobs))) == 4
    assert len({first_line(tmp_path / f"w{i}.log") for i in range(4)}) == 2


@pytest.mark.slow
def test_threads_are_set_before_torch_is_loaded(tmp_path: Path) -> None:
    (outcome,) = ENGINES.create("local").run([job(tmp_path, "t", "OMP_NUM_THREADS", threads=3)])
    assert outcome.message == "3"


def test_no_jobs_need_no_engine() -> None:
    assert list(ENGINES.create("local(processes=3)").run([])) == []


def test_a_function_that_does_not_exist_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    jobs = [Job("x", "tests.unit.engine_toys:nothing", {}, tmp_path / "x.log")]
    (outcome,) = ENGINES.create("local").run(jobs)
    assert outcome.status == 1
    assert "has no attribute 'nothing'" in outcome.message


@pytest.mark.parametrize("spec", ["local(processes=0)", "ray(cpus=0.0)", "ray(gpus=-1.0)"])
def test_impossible_options_are_refused(spec: str) -> None:
    with pytest.raises(SoraError):
        ENGINES.create(spec)


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SoraError, match=r"pip install 'lightning-sora\[ray\]'"):
        ENGINES.create("ray")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "from pathlib import Path\n"
        "from lightning_sora.jobs.engines import ENGINES\nfrom lightning_sora.jobs.job import Job\n"
        f"job = Job('long', {TOY!r}, dict(what='wait', seconds=60), Path({str(tmp_path / 'long.log')!r}))\n"
        "list(ENGINES.create('local').run([job]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    log = tmp_path / "long.log"
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(first_line(log))
    parent.send_signal(number)
    parent.wait(20)
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_plugins_of_a_shard_may_be_paths(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    class Telling(Engine):
        def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
            told.extend(job.to_json() for job in jobs)
            yield from (Outcome(job, 0, 0.0) for job in jobs)

    shards = [Shard(tmp_path / "one.parquet", {"first": 0})]
    with ENGINES.temporary():
        ENGINES.register("telling")(Telling)
        made = run_shards(
            shards, _write, engine="telling", intact=Path.is_file, label="telling", logs=tmp_path,
            plugins=[tmp_path / "mine.py"],
        )  # fmt: skip
    assert made == 1
    assert json.loads(told[0])["arguments"]["plugins"] == [str(tmp_path / "mine.py")]


def _write(work: Mapping[str, Any], path: Path) -> None:
    path.touch()
