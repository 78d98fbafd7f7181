"""Decodes many files in processes of their own: a file that kills or hangs its decoder costs one process alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from lightning_sora.data import decode
from lightning_sora.data.places import MediaPath
from lightning_sora.data.processes import Spawned
from lightning_sora.lifeline import end_with_parent

#: The decoded file, or why it is unfit.
Answer = decode.VideoInfo | str


def check_files(paths: Sequence[MediaPath], processes: int, seconds: float) -> Iterator[tuple[int, Answer]]:
    """Decodes files to their ends, side by side.

    Args:
        seconds: that one file may take.

    Yields:
        the place of a file with what it is or why it is unfit, in the order in which they are done.
    """
    todo = list(reversed(range(len(paths))))
    workers: list[_Worker] = []
    try:
        while todo or workers:
            while todo and len(workers) < processes:
                workers.append(_Worker())
            for worker in workers:
                if worker.place is None and todo:
                    worker.give(todo.pop(), paths)
            busy = [worker for worker in workers if worker.place is not None]
            if not busy:
                break
            wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                answer = worker.answer(seconds)
                if answer is not None:
                    yield answer
                if worker.dead:
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that decodes one file after the other."""

    def __init__(self) -> None:
        context = Spawned()  # not forked: decoders have run in this process
        self.pipe, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.place: int | None = None
        self.since, self.dead, self.started = 0.0, False, False

    def give(self, place: int, paths: Sequence[MediaPath]) -> None:
        self.place, self.since = place, time.monotonic()
        self.pipe.send(paths[place])

    def answer(self, seconds: float) -> tuple[int, Answer] | None:
        """What came of the file that it has, if anything by now."""
        place = self.place
        assert place is not None
        try:
            if self.pipe.poll():
                found = place, self.pipe.recv()
                self.place, self.started = None, True
                return found
            reason = ""
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            reason = f"its decoder died ({name})"
        # The first file pays for the start of the process.
        if not reason and time.monotonic() - self.since > seconds + (0 if self.started else 30):
            reason = f"its decoder did not end within {seconds:g} s"
        if not reason:
            return None
        self.end()
        return place, reason

    def end(self) -> None:
        self.dead = True
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    end_with_parent()  # also out of a decoder that hangs
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        pipe.send(decode.check(path) or decode.probe(path))
