"""Studio: one model, one job at a time, by the same function as ``lightning-sora sample``."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_sora.lab.given_files import check_files, read_inputs
from lightning_sora.lab.models import VideoModel
from lightning_sora.lab.sampling import Samples, sample
from lightning_sora.page.bounds import Asked, check, check_given, check_passes, size_of
from lightning_sora.spacetime import VideoSize
from lightning_sora.tasks import TASKS
from lightning_sora.tasks.base import check_inputs
from lightning_sora.tasks.contract import Painter

#: Pixels that the shorter side of a file has at least: of less, H.264 loses the colours.
SHOWN = 256


@dataclass(frozen=True)
class Step:
    """How far a job has come.

    Attributes:
        left: seconds; None before anything is known.
        preview: a picture of what is being made, once there is one.
    """

    done: int
    total: int
    left: float | None
    preview: Path | None


@dataclass(frozen=True)
class Made:
    """What a job has made.

    Attributes:
        notes: what was warned of meanwhile.
        seconds: that it took.
    """

    samples: Samples
    size: VideoSize
    notes: tuple[str, ...]
    seconds: float

    def file(self, ending: str) -> Path:
        """The MP4, the GIF or the JSON."""
        return next(file for file in self.samples.files if file.suffix == ending)


class Stopped(Exception):
    """Somebody asked for no more of it."""


class Studio:
    """Makes videos by one model, one after another, each in a folder of its own.

    Args:
        model: loaded.
        out: the folder of all of them.
        plugins: files that registered parts, for the JSON of each video.
    """

    def __init__(self, model: VideoModel, out: Path, plugins: Sequence[str] = ()) -> None:
        self.loaded, self.model = model, model.model
        self.out, self.plugins = out.absolute(), tuple(plugins)
        self._turn = threading.Lock()
        self._owner: str | None = None
        self._waiting, self._given_up = set[str](), set[str]()
        self._stopped = threading.Event()

    def wait(self, owner: str) -> None:
        """Tells that a job of this owner waits for its turn, so that it may be stopped before."""
        self._given_up.discard(owner)
        self._waiting.add(owner)

    def stop(self, owner: str) -> None:
        """Ends the job of this owner after its step, or before it begins; others go on."""
        if self._owner == owner:
            self._stopped.set()
        elif owner in self._waiting:
            self._given_up.add(owner)

    def make(self, asked: Asked, owner: str = "") -> Iterator[Step | Made]:
        """Yields how far it is, and then what is made; nothing is left of what is not finished.

        Raises:
            SoraError: what is asked for cannot be, or is out of bounds.
            Stopped: by :meth:`stop`.
        """
        with self._turn:
            self._waiting.discard(owner)
            if owner in self._given_up:
                self._given_up.remove(owner)
                raise Stopped
            check(asked, self.model)
            self._stopped.clear()
            self._owner = owner
            try:
                yield from self._make(asked)
            finally:
                self._owner = None

    def _make(self, asked: Asked) -> Iterator[Step | Made]:
        folder, finished = self._new_folder(), False
        try:
            inputs = _kept(asked.inputs, folder)
            size, steps = size_of(asked, self.model), asked.steps or self.model.sampling.steps
            passes = self._passes(asked, inputs, size)
            check_passes(asked.task, passes, steps)
            yield Step(0, passes * steps, None, None)
            begun, notes = time.monotonic(), []
            options: dict[str, Any] = {
                "task": asked.task, "inputs": inputs, "seed": asked.seed, "negative": asked.negative,
                "steps": asked.steps, "guidance": asked.guidance, "sampler": asked.sampler, "frames": asked.frames,
                "height": asked.height, "width": asked.width, "fps": asked.fps, "rope": asked.rope,
                "plugins": self.plugins, "out": folder, "scale": max(1, -(-SHOWN // min(size.height, size.width))),
                "preview": True,
            }  # fmt: skip
            work = _Work(self.loaded, asked.prompt, options, self._stopped)
            try:
                for done in work.steps():
                    took = time.monotonic() - begun
                    preview = folder / "preview.png"
                    left = max(0.0, took / done * (passes * steps - done))
                    yield Step(done, passes * steps, left, preview if preview.exists() else None)
            finally:
                notes += work.end()
            (folder / "preview.png").unlink(missing_ok=True)
            finished = True
            yield Made(work.samples(), size, tuple(notes), time.monotonic() - begun)
        finally:
            if not finished:
                shutil.rmtree(folder, ignore_errors=True)

    def _new_folder(self) -> Path:
        number = 1
        while True:
            folder = self.out / f"{number:04d}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1

    def _passes(self, asked: Asked, inputs: Mapping[str, str | float], size: VideoSize) -> int:
        """How many clips the model makes for a task, by going through it with what the law of tasks puts in its place.

        Raises:
            SoraError: inputs that the task does not take, or that do not fit.
        """
        rate = self.model.seen_sizes.fps if asked.fps is None else asked.fps
        task = TASKS.create(asked.task)
        check_files(inputs)
        for name, value in inputs.items():
            if isinstance(value, str):
                check_given(name, Path(value), size, rate)
        read = check_inputs(asked.task, task, size, read_inputs(task, inputs, size, rate))
        painter = Painter(self.model.patch, self.model.tasks)
        task.sample(painter, [asked.prompt], size, read, keys=[(0,)])
        return len(painter.asked)


def _kept(inputs: Mapping[str, str | float], folder: Path) -> dict[str, str | float]:
    """What is given, with copies of files beside what is made of them, so that its JSON makes it again."""
    kept: dict[str, str | float] = {}
    for name, value in inputs.items():
        if isinstance(value, str):
            copy = folder / f"given_{name}{Path(value).suffix.lower()}"
            shutil.copyfile(value, copy)
            kept[name] = str(copy)
        else:
            kept[name] = value
    return kept


class _Work:
    """A job in a thread of its own, so that whoever waits for it hears of its steps."""

    def __init__(self, model: VideoModel, prompt: str, options: dict[str, Any], stopped: threading.Event) -> None:
        self._stopped, self._notes = stopped, list[str]()
        self._heard: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done = 0
        self._problem: BaseException | None = None
        self._samples: Samples | None = None
        self._thread = threading.Thread(target=self._run, args=(model, prompt, options), daemon=True)
        self._thread.start()

    def steps(self) -> Iterator[int]:
        """How many steps are done, whenever there are more, without those that nobody had time for.

        Raises:
            SoraError, Stopped: as the work did.
        """
        while (done := self._heard.get()) is not None:
            while not self._heard.empty():
                later = self._heard.get()
                if later is None:
                    self._heard.put(None)
                    break
                done = later
            yield done
        if self._problem is not None:
            raise self._problem

    def samples(self) -> Samples:
        assert self._samples is not None
        return self._samples

    def end(self) -> list[str]:
        """Ends the work, if it has not, and returns what was warned of."""
        self._stopped.set()
        self._thread.join()
        return list(dict.fromkeys(self._notes))

    def _run(self, model: VideoModel, prompt: str, options: dict[str, Any]) -> None:
        try:
            with _noted(self._notes):
                self._samples = sample(model, prompt, progress=self._watched, **options)
        except BaseException as problem:  # told by whoever hears of the steps
            self._problem = problem
        finally:
            self._heard.put(None)

    def _watched(self, steps: Iterable[Any]) -> Iterator[Any]:
        for step in steps:
            if self._stopped.is_set():
                raise Stopped
            yield step
            self._done += 1
            self._heard.put(self._done)


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Keeps what this thread warns of."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                notes.append(record.getMessage())

    thread, handler, log = threading.get_ident(), Notes(logging.WARNING), logging.getLogger("lightning_sora")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
