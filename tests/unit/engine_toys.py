"""What jobs of the engines' tests do instead of training."""

import os
import signal
import time

from lightning_sora.ablation.engines import Job


def run(job: Job) -> tuple[int, str]:
    """The first word of a job's first command says what happens."""
    ((what, *rest),) = job.commands
    with job.log.open("a") as log:
        log.write(f"{os.getpid()}\n")
    if what == "ok":
        print("what a job prints must not get between the answers")
        return 0, ""
    if what == "fail":
        return 2, "as it was asked to"
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        time.sleep(float(rest[0]))
        return 0, ""
    return 0, os.environ.get(what, "unset")
