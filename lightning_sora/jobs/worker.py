"""A process that runs jobs for the local engine: one per line of its input, an answer per line of its output.

The end of its input, also by the death of the process that feeds it, ends it: a training keeps a checkpoint first.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading

from lightning_sora.jobs.engines import PATIENCE_SECONDS
from lightning_sora.jobs.job import Job
from lightning_sora.jobs.running import run_job


def main() -> None:
    """Runs jobs until the input ends."""
    # Whatever a job prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(jobs, busy), daemon=True).start()
    while (job := jobs.get()) is not None:
        busy.set()
        answer = run_job(job)
        busy.clear()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read(jobs: queue.SimpleQueue[Job | None], busy: threading.Event) -> None:
    for line in sys.stdin:
        jobs.put(Job.from_json(line))
    jobs.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)  # a training stops after its step
        threading.Timer(PATIENCE_SECONDS, os._exit, (1,)).start()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
