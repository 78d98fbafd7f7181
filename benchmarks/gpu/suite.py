"""Runs the parts one after the other, bounds each, and writes down what came of it as it comes."""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.page import page
from benchmarks.gpu.part import Event, Part, events
from benchmarks.gpu.session import Session, first_line

#: In order of worth. ``training`` takes what is left.
PARTS = (
    Part("contract", "Blocks against float64", share=6),
    Part("mfu", "Model FLOPs utilization of training a DiT", share=8),
    Part("blocks", "Blocks against full attention", share=4),
    Part("vae", "VAE throughput", share=1),
    Part("packing", "Packed, padded, one by one", share=1),
    Part("sampling", "Sampling latency", share=1.5),
    Part("optimizers", "A step of the optimizer", share=1, needs=("timm", "lightning", "torchmetrics")),
    Part(
        "training",
        "The main recipe",
        share=6,
        needs=("lightning", "mlflow", "timm", "torchmetrics", "torchvision", "jsonargparse", "omegaconf", "av"),
    ),
)
#: Seconds that a process which is told to end has for it.
PATIENCE = 10.0


class Suite:
    """The state of one run of the suite, mirrored in its folder after every figure.

    A part is "done" when each of its cases was tried and some gave a figure, "failed" when none did, "out of time" when
    cases are left, "not run" when packages are missing or it was not reached. What cases raised is among its rows.

    Args:
        minutes: for all parts together.
        provenance: of the results.
        isolate: a process for each part, which can then be ended when its time is up, or end itself.
    """

    def __init__(
        self,
        session: Session,
        minutes: float,
        provenance: dict[str, Any],
        *,
        parts: Sequence[Part] = PARTS,
        isolate: bool = True,
    ) -> None:
        self.session, self.parts, self.isolate = session, list(parts), isolate
        self.until = time.monotonic() + 60 * minutes
        self.results: dict[str, Any] = {
            "provenance": provenance,
            "parts": {
                part.name: {"title": part.title, "status": "not run", "reason": "not reached", "seconds": 0, "rows": []}
                for part in parts
            },
        }

    def run(self) -> dict[str, Any]:
        """Runs every part; the results, as they are in ``results.json``."""
        self.session.folder.mkdir(parents=True, exist_ok=True)
        self.write()
        for index, part in enumerate(self.parts):
            found = self.results["parts"][part.name]
            left = self.until - time.monotonic()
            if missing := part.missing():
                found["reason"] = f"needs {', '.join(missing)}; install the locked dependencies: make setup"
            elif left <= 0:
                found.update(status="out of time", reason="no time was left to begin")
            else:
                seconds = left * part.share / sum(p.share for p in self.parts[index:])
                found.update(status="failed", reason="ended from outside before it was done")
                self._run(part, found, seconds)
            self.write()
            _say(f"{part.name}: {found['status']}" + (f", {found['reason']}" if found["reason"] else ""))
        return self.results

    def _run(self, part: Part, found: dict[str, Any], seconds: float) -> None:
        _say(f"{part.name}: {part.title}, at most {seconds:.0f} s")
        begun, until = time.monotonic(), time.monotonic() + seconds
        told = Told()
        try:
            found["about"] = part.about()
            source = isolated if self.isolate else in_process
            for event in source(part, self.session, until):
                told.add(event, found["rows"])
                found["seconds"] = round(time.monotonic() - begun, 1)
                if "row" in event or "error" in event:
                    self.write()
        except Exception as problem:  # of a part that cannot even say what its cases are
            told.failure = first_line(problem)
        found["seconds"] = round(time.monotonic() - begun, 1)
        found["status"], found["reason"] = told.verdict()

    def write(self) -> None:
        """Writes results and page, each whole or not at all."""
        _replace(self.session.folder / "results.json", json.dumps(_finite(self.results), indent=1) + "\n")
        _replace(self.session.folder / "page.md", page(self.results))


class Told:
    """What the events of a part amount to."""

    def __init__(self) -> None:
        self.cases = self.left = self.rows = 0
        self.errors: list[str] = []
        self.failure = ""

    def add(self, event: Event, rows: list[dict[str, Any]]) -> None:
        self.cases = event.get("cases", self.cases)
        self.left = event.get("left", self.left)
        self.failure = event.get("failed", self.failure)
        if "row" in event:
            self.rows += 1
            rows.append(event["row"])
        if "error" in event:
            self.errors.append(event["error"]["raised"])
            rows.append(event["error"])

    def verdict(self) -> tuple[str, str]:
        """Status and reason."""
        raised = f"{len(self.errors)} of {self.cases} cases raised" if self.errors else ""
        if self.failure:
            return "failed", self.failure
        if self.left:
            left = f"{self.left} of {self.cases} cases left"
            return "out of time", f"{left}; {raised}" if raised else left
        if not self.rows:
            return "failed", f"no figure; {raised}: {self.errors[0]}" if raised else "no figure"
        return "done", raised


def in_process(part: Part, session: Session, until: float) -> Iterator[Event]:
    """Runs a part here; nothing ends a case that takes too long."""
    yield from events(part, session, first=0, until=until)


def isolated(part: Part, session: Session, until: float) -> Iterator[Event]:
    """Runs a part in a process of its own, in another where that one dies, until the time is up."""
    first, total = 0, 0
    labels: dict[str, Any] = {}
    while True:
        begun, ended = first - 1, False
        for event in _process(part, session, first, until):
            begun, labels = event.get("begin", begun), event.get("labels", labels)
            total = event.get("cases", total)
            ended = ended or bool(event.keys() & {"end", "left", "failed"})
            if "died" in event:
                if event["died"] == "time":
                    yield {"left": total - begun if begun >= first else max(1, total - first)}
                    return
                if begun < first:  # before its first case: another process would die as well
                    yield {"failed": f"its process {event['died']}"}
                    return
                yield {"error": {**labels, "raised": f"its process {event['died']}"}}
            elif not (first and "cases" in event):
                yield event
        if ended:
            return
        first = begun + 1
        if first >= total:
            return


def _process(part: Part, session: Session, first: int, until: float) -> Iterator[Event]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    seconds = until - time.monotonic()
    process = context.Process(target=_work, args=(theirs, part, session, first, seconds))
    process.start()
    theirs.close()
    try:
        while True:
            left = until - time.monotonic()
            if left <= 0:
                yield {"died": "time"}
                return
            if not multiprocessing.connection.wait([ours, process.sentinel], timeout=left):
                continue
            try:
                while ours.poll():
                    event = ours.recv()
                    yield event
                    if event.keys() & {"end", "left", "failed", "lost"}:
                        process.join(PATIENCE)
                        return
            except (EOFError, OSError):
                pass
            if not process.is_alive():
                code = process.exitcode or 0
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                yield {"died": how}
                return
    finally:
        ours.close()
        _end(process)


def _end(process: Any) -> None:
    """Ends a process and those that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.is_alive():
            _signal_group(process.pid, number)
            process.join(PATIENCE)
    process.close()


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has not made a group of its own yet
        os.kill(pid, number)


def _work(events_to: Any, part: Part, session: Session, first: int, seconds: float) -> None:
    """The body of a part's process."""
    os.setsid()
    until = time.monotonic() + seconds
    logs = session.folder / "logs"
    logs.mkdir(exist_ok=True)
    with open(logs / f"{part.name}.txt", "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        for event in events(part, session, first=first, until=until):
            events_to.send(event)
    except Exception as problem:
        events_to.send({"failed": first_line(problem)})
        raise


def _finite(value: Any) -> Any:
    """With what JSON has no number for as a word."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(f"{path.suffix}.new")
    new.write_text(text)
    new.replace(path)


def _say(words: str) -> None:
    print(time.strftime("%H:%M:%S"), words, flush=True)
