"""What the benchmarks share: interleaved timing, where a figure comes from, tables and pages.

Times are CPU seconds of this process (all its threads), which a busy neighbour disturbs far less than wall time. What
is left of the disturbance falls on all candidates alike when they take turns, so that ratios are the figures to read.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from lightning_sora.tracking.provenance import code_state, machine

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that keep torch's own kernels, oneDNN and MKL from newer instructions, in this order."""

_CPU_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_bf16": "AMX bfloat16"}


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 7, warmup: int = 1, least: float = 0.0
) -> dict[str, float]:
    """Times candidates in turns, A B A B ..., and takes the median of each.

    Args:
        candidates: what to call, by name.
        repeats: turns of each that count.
        warmup: calls of each before, which do not count.
        least: CPU seconds that one turn takes at least; a candidate that is quicker, by its warm-up, is called several
            times in each.

    Returns:
        CPU seconds per call, by name.
    """
    calls = {}
    for name, call in candidates.items():
        begun = time.process_time()
        for _ in range(warmup):
            call()
        spent = time.process_time() - begun
        calls[name] = max(1, round(least * warmup / spent)) if warmup and spent else 1
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            begun = time.process_time()
            for _ in range(calls[name]):
                call()
            seconds[name].append((time.process_time() - begun) / calls[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_rate(size: int = 1024, repeats: int = 7) -> float:
    """The rate of a float32 matrix product of ``size`` cubed in this process, in FLOP per CPU second."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / interleaved({"product": lambda: a @ b}, repeats=repeats)["product"]


def instruction_set() -> str:
    """The instructions that float32 kernels use here, what the processor has beside, and what limits it."""
    has = cpu_features()
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    text = f"{torch.backends.cpu.get_cpu_capability()} in effect; the processor has {', '.join(has) or 'unknown'}"
    return f"{text}; limited by {' '.join(limits)}" if limits else text


def cpu_features() -> list[str]:
    """Which of AVX2, AVX-512, bfloat16 and AMX bfloat16 the processor itself has, whatever is allowed."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return []
    flags = next((line.split() for line in info.read_text().splitlines() if line.startswith("flags")), [])
    return [name for flag, name in _CPU_FLAGS.items() if flag in flags]


def provenance() -> dict[str, str]:
    """Where figures of this process come from: hardware, instruction set, versions, date and commit."""
    host, code = machine(), code_state(Path(__file__).resolve().parent)
    found = {
        "processor": str(host["processor"]),
        "instruction set": instruction_set(),
        "cores": str(host["cpus"]),
        "threads": str(torch.get_num_threads()),
        "memory": f"{host['memory_gib']:.0f} GiB",
        "torch": str(host["torch"]),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": code.commit[:12] + (" + changes" if code.dirty else ""),
    }
    if host["accelerators"]:
        found["accelerators"] = f"{', '.join(host['accelerators'])} (CUDA {host['cuda']})"
    return found


def markdown_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def command_line(name: str, arguments: Sequence[str] | None) -> str:
    """The command that runs a benchmark with these arguments, less where it writes.

    Args:
        arguments: None means those of this process.
    """
    left = list(sys.argv[1:] if arguments is None else arguments)
    if "--out" in left:
        at = left.index("--out")
        del left[at : at + 2]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *left])


def page(title: str, command: str, sections: Sequence[str], origin: Mapping[str, str] | None = None) -> str:
    """A page of results in Markdown.

    Args:
        command: what makes these figures anew.
        sections: paragraphs and tables, in order.
        origin: see :func:`provenance`, which is the default.
    """
    origin = provenance() if origin is None else origin
    facts = "; ".join(f"{name}: {value}" for name, value in origin.items())
    return "\n\n".join([f"# {title}", f"`{command}`", f"{facts}.", *sections]) + "\n"


def write_page(out: Path | None, text: str) -> None:
    """Prints a page, and writes it to ``out`` where that is given."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        print(f"written: {out}")
