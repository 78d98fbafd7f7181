"""One trial of an ablation: commands run in this process, what they print kept in a file."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_sora.ablation.engines import Job
from lightning_sora.memory import reset_peak_memory
from lightning_sora.redaction import RedactedStream, redact


def run_job(job: Job) -> tuple[int, str]:
    """Runs the commands of a job until one fails.

    Returns:
        the exit status of the last one, and why it failed, in one line.
    """
    import torch

    from lightning_sora.cli import main

    with printed_to(job.log), _unchanged_torch():
        torch.set_num_threads(job.threads)
        reset_peak_memory()
        for command in job.commands:
            print(f"$ lightning-sora {' '.join(command)}", flush=True)
            begun = os.fstat(1).st_size
            try:
                status = main(list(command))
            except Exception as problem:  # a bug, told with its traceback in the log
                traceback.print_exc()
                return 1, redact(f"{type(problem).__name__}: {' '.join(str(problem).split())}")[:330]
            if status:
                sys.stderr.flush()
                return status, _last_error(job.log, begun)
    return 0, ""


def _last_error(log: Path, begun: int) -> str:
    with log.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.partition(": ")[2] for line in lines if line.startswith("lightning-sora: ")]
    return said[-1].removeprefix("error: ") if said else (lines[-1] if lines else "it said nothing")


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
def _unchanged_torch() -> Iterator[None]:
    """Undoes what a recipe sets for the whole process, so that the order of jobs has no say in what they find."""
    import torch

    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark, exact = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, exact
