"""``python -m benchmarks.gpu``: see the package."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import benchmarks.gpu
from benchmarks.gpu.devices import accelerator
from benchmarks.gpu.session import Session
from benchmarks.gpu.suite import PARTS, Suite
from benchmarks.measure import provenance as host


def main(argv: list[str] | None = None) -> int:
    """Runs the suite; 0 if every part is done, nothing raised and every check passed, else 1."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60, help="for all parts together (default: 60)")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json, page.md and logs")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu, with --reduced (default: cuda)")
    parser.add_argument("--reduced", action="store_true", help="tiny sizes: does the suite itself work?")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    asked = parser.parse_args(argv)
    device = torch.device(asked.device)
    if asked.minutes <= 0:
        parser.error(f"--minutes={asked.minutes} must be positive")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; install a CUDA build of torch, or try --device cpu --reduced")
    if device.type != "cuda" and not asked.reduced:
        parser.error(f"--device {device} runs at --reduced size only; the full sizes are for an accelerator")
    if (asked.out / "results.json").exists():
        parser.error(f"{asked.out} holds results already; give another --out, or move them")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    session = Session(device, asked.reduced, asked.out)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part's process is ended, too
    parts = [part for part in PARTS if part.name in asked.parts]
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)])
    results = Suite(session, asked.minutes, provenance(device, command), parts=parts).run()
    print((asked.out / "page.md").read_text())
    print(f"written: {asked.out / 'page.md'} and {asked.out / 'results.json'}")
    return int(not passed(results))


def passed(results: dict[str, Any]) -> bool:
    """Whether every part is done, nothing raised and every check passed."""
    parts = results["parts"].values()
    rows = [row for part in parts for row in part["rows"]]
    return all(part["status"] == "done" for part in parts) and all(
        row.get("passed", True) and "raised" not in row for row in rows
    )


def provenance(device: torch.device, command: str) -> dict[str, Any]:
    """Command, device, host, versions and commit."""
    # In another process: parts have the device for themselves.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        return {"command": command, **elsewhere.submit(accelerator, device).result(), **host()}


if __name__ == "__main__":
    sys.exit(main())
