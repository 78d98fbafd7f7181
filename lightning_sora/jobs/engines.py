"""Engines: what runs jobs, on this machine or on a Ray cluster.

A process stays alive for many jobs, because importing torch and lightning takes longer than a small training.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.jobs.job import Job, Outcome
from lightning_sora.jobs.running import run_job
from lightning_sora.registry import Registry

WORKER = "lightning_sora.jobs.worker"
#: How long a worker may take to keep a checkpoint when the work is stopped.
PATIENCE_SECONDS = 30.0


class Engine(ABC):
    """Runs jobs, in any order and side by side."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yields an outcome as each job ends; one that fails does not stop the others."""


ENGINES: Registry[Engine] = Registry("engine", name="engine")


def thread_variables(threads: int | None) -> dict[str, str]:
    """What a process must find set before it loads torch."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads or 1)), "OMP_WAIT_POLICY": "PASSIVE"}


@ENGINES.register("local")
class LocalEngine(Engine):
    """Processes of this machine, each of which runs one job after the other.

    Args:
        processes: how many at once.
    """

    def __init__(self, *, processes: int = 1) -> None:
        if processes < 1:
            raise SoraError(f"processes={processes} must be at least 1")
        self.processes = processes

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
        done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)
        workers = [_Worker(todo, done) for _ in range(min(self.processes, len(jobs)))]
        try:
            for worker in workers:
                worker.start()
            for _ in jobs:
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            for worker in workers:
                worker.stop()
            deadline = time.monotonic() + PATIENCE_SECONDS
            for worker in workers:
                worker.kill_after(deadline)


class _Worker(threading.Thread):
    """Feeds one process; begins another where it dies."""

    def __init__(self, todo: queue.SimpleQueue[Job], done: queue.SimpleQueue[Any]) -> None:
        super().__init__(daemon=True)
        self.todo, self.done = todo, done
        self.process: subprocess.Popen[str] | None = None
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                try:
                    job = self.todo.get_nowait()
                except queue.Empty:
                    break
                self.done.put(self._run(job))
        except BaseException as problem:  # the main thread raises it
            self.done.put(problem)

    def _run(self, job: Job) -> Outcome:
        begun = time.monotonic()
        process = self._alive(job)
        assert process.stdin is not None
        assert process.stdout is not None
        answer = ""
        with suppress(BrokenPipeError, ValueError):
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        seconds = time.monotonic() - begun
        if answer:
            status, message = json.loads(answer)
            return Outcome(job, status, seconds, message)
        status = process.wait()
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return Outcome(job, status or 1, seconds, f"its process died ({name}); see {job.log}")

    def _alive(self, job: Job) -> subprocess.Popen[str]:
        with self.lock:
            if self.process is not None and self.process.poll() is not None:
                _close(self.process)
                self.process = None
            if self.process is None:
                # A session of its own: Ctrl-C in the terminal reaches this process, which tells the workers.
                self.process = subprocess.Popen(
                    [sys.executable, "-m", WORKER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **thread_variables(job.threads)},
                    start_new_session=True,
                )
            return self.process

    def stop(self) -> None:
        """Asks the process to end: at once if idle, after the present step if it trains."""
        self.stopping.set()
        with self.lock:
            if self.process is not None and self.process.stdin is not None:
                with suppress(BrokenPipeError, OSError):
                    self.process.stdin.close()

    def kill_after(self, deadline: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.join(5.0)  # it reads what the process says until that has ended, with its children
        if not self.is_alive():
            _close(self.process)


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError, OSError):
                pipe.close()


@ENGINES.register("ray")
class RayEngine(Engine):
    """Tasks of a Ray cluster, one per job.

    On a cluster of several machines, the folder of the outputs must be shared among them and the mlflow store
    be a server.

    Args:
        address: of the cluster; None means ``RAY_ADDRESS``, or else a cluster of this machine's that ends with the run.
        cpus, gpus: that each task reserves.
    """

    def __init__(self, *, address: str | None = None, cpus: float = 1.0, gpus: float = 0.0) -> None:
        if cpus <= 0 or gpus < 0:
            raise SoraError(f"cpus={cpus} must be positive and gpus={gpus} not negative")
        self.address, self.cpus, self.gpus = address, cpus, gpus
        try:
            importlib.import_module("ray")
        except ModuleNotFoundError:
            raise SoraError("engine 'ray' needs Ray: pip install 'lightning-sora[ray]'") from None

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        import ray

        if not jobs:
            return
        own = not ray.is_initialized()
        if own:
            variables = {**thread_variables(jobs[0].threads), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
            ray.init(
                address=self.address,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
            )
        task = ray.remote(_in_folder).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)
        running = {task.remote(os.getcwd(), job.to_json()): job for job in jobs}
        try:
            while running:
                (reference, *_), _ = ray.wait(list(running))
                job = running.pop(reference)
                try:
                    status, message, seconds = ray.get(reference)
                except ray.exceptions.RayError as problem:
                    status, message, seconds = 1, " ".join(str(problem).split())[:500], 0.0
                yield Outcome(job, status, seconds, message)
        finally:
            for reference in running:
                ray.cancel(reference, force=False)
            if own:
                ray.shutdown()


def _in_folder(folder: str, job: str) -> tuple[int, str, float]:
    os.chdir(folder)
    begun = time.monotonic()
    status, message = run_job(Job.from_json(job))
    return status, message, time.monotonic() - begun
