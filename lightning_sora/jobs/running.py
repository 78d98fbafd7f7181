"""One job, run in this process: what it prints goes to its log, and how it ends is told as a status and a line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lightning_sora.exits import ending_of, own_signal_handlers
from lightning_sora.jobs.job import Job, function_at
from lightning_sora.memory import reset_peak_memory
from lightning_sora.redaction import RedactedStream, redact


def run_job(job: Job) -> tuple[int, str]:
    """Calls the function of a job.

    Returns:
        the exit status, 0 after success, and why it failed, in one line.
    """
    with printed_to(job.log), own_signal_handlers(), _torch_with(job.threads) if job.threads else nullcontext():
        try:
            function_at(job.function)(**job.arguments)
        except BaseException as problem:
            ended = ending_of(problem)
            if ended is None:  # a bug, told with its traceback in the log
                traceback.print_exc()
                return 1, redact(f"{type(problem).__name__}: {' '.join(str(problem).split())}")[:330]
            status, said = ended[0], redact(" ".join(ended[1].split()))
            print(said, file=sys.stderr, flush=True)
            return status, said.removeprefix("error: ") or f"it ended with status {status}"
    return 0, ""


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Sends standard output and error to a file, also those of libraries that are not Python's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    outer = sys.stdout, sys.stderr
    streams = [RedactedStream(os.fdopen(os.dup(number), "w", buffering=1)) for number in (1, 2)]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.close()
        sys.stdout, sys.stderr = outer
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextmanager
def _torch_with(count: int) -> Iterator[None]:
    """Sets the threads, and undoes what a recipe sets for the whole process: the order of jobs has no say."""
    import torch

    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark, exact = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.set_num_threads(count)
    reset_peak_memory()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, exact
