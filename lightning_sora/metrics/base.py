"""What a metric of videos is: what it needs, what it is given of each clip, and what it says of all of them.

A metric of one's own is one class in one file::

    from lightning_sora import Evaluated, PerVideoMetric, register_metric

    @register_metric("brightness")
    class Brightness(PerVideoMetric):
        '''The mean of all pixels, in [0, 1].'''

        higher_is_better = True

        def score(self, video: Evaluated) -> float:
            return float(video.clip.double().mean() / 255)

It is then known to recipes, ``score`` and notebooks alike, and ``lightning-sora list metric --check FILE`` tries it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_sora import directions
from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_lists import Rows
from lightning_sora.metrics.extractors.base import Clip, Extractor
from lightning_sora.registry import Registry

Side = Literal["generated", "real", "reconstructed"]
SIDES: tuple[Side, ...] = ("real", "generated", "reconstructed")
T = TypeVar("T")
M = TypeVar("M", bound="type[VideoMetric]")


@dataclass(frozen=True)
class Needs:
    """What a metric must be given.

    Attributes:
        real: a set of real clips, to be compared with.
        pairs: for each clip the real one of the same id.
        captions: of the clips.
        facts: what is known of a clip of the world.
        fps: frames per second of the clips.
        features: spec of the extractor whose outputs it looks at, such as "dino"; None for none.
        per: what one output is of: "clip" for a row a clip, "frame" for a row of each frame, or what else the
            extractor offers.
        min_frames: of a clip; shorter ones among longer are left out.
        frames: evenly spaced ones of each clip that features are made of, where they are per frame; None for all.

    Example:
        >>> import lightning_sora as ls
        >>> ls.Needs(features="dino", per="frame", min_frames=2).min_frames
        2
    """

    real: bool = False
    pairs: bool = False
    captions: bool = False
    facts: bool = False
    fps: bool = False
    features: str | None = None
    per: str = "clip"
    min_frames: int = 1
    frames: int | None = None


#: What a clip may lack, and how a metric asks for it.
_DECLARED = {
    "fps": "fps=True",
    "caption": "captions=True",
    "facts": "facts=True",
    "real": "pairs=True",
    "features": "features='dino'",
}


@dataclass(frozen=True)
class Evaluated:
    """One clip as a metric is given it.

    What the metric did not ask for by its ``needs`` may not be there; to read it is an error that says what to declare.

    Attributes:
        id: of the clip, whatever process or batch it is in.
        clip: uint8 [frames height width 3], display values.
        fps: frames per second.
        caption: that it was generated for.
        facts: ``Facts.as_dict()`` of the clip of the world that it was generated for.
        real: the real clip of the same id.
        features: what the extractor makes of it: [width] per clip, [frames width] per frame, float64.
        content: a digest of its pixels.
        shared: for what several metrics work out of one clip; see :meth:`once`.
        metric: that it is given to.

    Example:
        >>> import torch, lightning_sora as ls
        >>> video = ls.Evaluated("0", torch.zeros(2, 8, 8, 3, dtype=torch.uint8), caption="night")
        >>> video.once("mean", lambda: float(video.clip.double().mean()))
        0.0
    """

    id: str
    clip: Clip
    fps: float | None = None
    caption: str | None = None
    facts: Mapping[str, Any] | None = None
    real: Clip | None = None
    features: Any = field(default=None, repr=False)
    content: str = ""
    shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    metric: VideoMetric | None = field(default=None, repr=False, compare=False)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is None and name in _DECLARED:
            metric = super().__getattribute__("metric")
            if metric is not None and not getattr(metric.needs, _DECLARED[name].partition("=")[0]):
                raise SoraError(
                    f"{metric.name} reads video.{name}, which it does not ask for; declare "
                    f"needs = Needs({_DECLARED[name]}) in its class"
                )
        return value

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all metrics that ask for it by this name."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]


@dataclass(frozen=True)
class Score:
    """What a metric says of a set of clips.

    Attributes:
        value: as the metric is defined.
        clips: how many it is of.
        stderr: standard error of a mean over clips, or of ``figures["unbiased"]``.
        low, high: 95 % interval, of ``figures["unbiased"]`` where there is one.
        figures: what is told beside it, by name: "unbiased", "small_sample_bias" (what two sets of this size from one
            law would give), "real_vs_real", "real" (the same of the real clips), parts of the score.

    Example:
        >>> import lightning_sora as ls
        >>> ls.Score(0.5, clips=2, figures={"real": 0.6}).logged("brightness")
        {'brightness': 0.5, 'brightness_real': 0.6}
    """

    value: float
    clips: int
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """All that is known, as plain numbers by name."""
        own = {"value": self.value, "stderr": self.stderr, "low": self.low, "high": self.high}
        return {name: value for name, value in own.items() if value is not None} | {
            **self.figures,
            "clips": self.clips,
        }

    def logged(self, name: str) -> dict[str, float]:
        """The same as names of a run's metrics: ``fvd``, ``fvd_low`` ...; the numbers of clips are in the protocol."""
        found = {key: value for key, value in self.as_dict().items() if key != "clips"}
        return {name if key == "value" else f"{name}_{key}": value for key, value in found.items()}


class VideoMetric(ABC):
    """A metric of generated videos; most are a :class:`PerVideoMetric`, which asks for one method.

    Whatever it keeps of clips lies in attributes that are torchmetrics' ``Metric``: so it is exact on any number of
    processes.

    Attributes:
        needs: what it must be given.
        higher_is_better: None where neither is.
        of: whose clips it looks at: "generated", or "reconstructed" by a VAE.
        automatic: the spec by which it is taken where a recipe names no metrics; empty for not at all.
        name: that it is registered by; else that of the class.

    Example:
        >>> import lightning_sora as ls
        >>> isinstance(ls.METRICS.create("fvd(extractor='world')"), ls.VideoMetric)
        True
    """

    needs: Needs = Needs()
    higher_is_better: ClassVar[bool | None] = None
    of: Side = "generated"
    automatic: ClassVar[str] = ""
    name: str = ""
    network: Extractor | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):  # of one that is not registered
            cls.name = cls.__name__

    @property
    def sides(self) -> tuple[Side, ...]:
        """Whose clips it is to be given."""
        return ("real", self.of) if self.needs.real else (self.of,)

    @property
    def title(self) -> str:
        """What it is called in tables; what is not the published metric must not have its name."""
        return self.name.replace("_", " ")

    def load(self) -> None:  # noqa: B027 (most have none)
        """Loads networks of its own, once, before clips come; that of its needs comes by :meth:`bind`.

        Raises:
            WeightsMissing: one is not where it is looked for.
        """

    def bind(self, network: Extractor) -> None:
        """Takes the extractor that its needs name, once that is loaded."""
        self.network = network

    @abstractmethod
    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        """Takes clips of one side; returns scores of single clips by id, where it has such."""

    @abstractmethod
    def compute(self) -> Score | None:
        """What it says of all clips of all processes; None where no clip could be judged.

        Raises:
            SoraError: too few clips, or clips given twice.
        """

    def states(self) -> Iterator[Metric]:
        """All that is kept of clips."""
        for value in vars(self).values():
            parts = value.values() if isinstance(value, Mapping) else [value]
            yield from (part for part in parts if isinstance(part, Metric))

    def reset(self) -> None:
        """Forgets all clips."""
        for state in self.states():
            state.reset()

    def to(self, device: torch.device | str) -> None:
        """Moves what is kept of clips, and networks of its own."""
        for state in self.states():
            state.to(device)

    def card(self) -> dict[str, Any]:
        """What moves its value, beside the clips and the extractor, for the protocol."""
        return {"definition": _summary(type(self))}


class PerVideoMetric(VideoMetric):
    """A metric that scores each clip by itself; its value is the mean over clips, with its standard error.

    The real clips are scored too, where they have what it needs: ``figures["real"]``.

    Attributes:
        parts: names of figures that :meth:`score` gives beside "value".

    Example:
        >>> import torch, lightning_sora as ls
        >>> class Brightness(ls.PerVideoMetric):
        ...     def score(self, video):
        ...         return float(video.clip.double().mean() / 255)
        >>> evaluation = ls.Evaluation([Brightness()])
        >>> _ = evaluation.update(["0"], generated=[torch.full((2, 8, 8, 3), 255, dtype=torch.uint8)])
        >>> evaluation.compute()["Brightness"].value
        1.0
    """

    parts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(self, video: Evaluated) -> float | Mapping[str, float] | None:
        """The score of one clip: a number; or several, as "value" and any of ``parts``; None if it has none."""

    @property
    def sides(self) -> tuple[Side, ...]:
        alone = not (self.needs.captions or self.needs.facts or self.needs.pairs)
        return ("real", self.of) if alone else (self.of,)

    @property
    def _rows(self) -> dict[Side, Rows]:
        # Made on first use: subclasses need not call super().__init__().
        if "_scores" not in vars(self):
            self._scores: dict[Side, Rows] = {side: Rows(1 + len(self.parts)) for side in self.sides}
        return self._scores

    def states(self) -> Iterator[Metric]:
        own = list(self._rows.values())
        yield from own
        # By identity: torchmetrics makes of == another metric.
        yield from (state for state in super().states() if not any(state is one for one in own))

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        columns = ("value", *self.parts)
        rows = torch.full((len(videos), len(columns)), math.nan, dtype=torch.float64)
        for row, video in zip(rows, videos, strict=True):
            found = self.score(video)
            given = found if isinstance(found, Mapping) else {} if found is None else {"value": found}
            unknown = set(given) - set(columns)
            if unknown:
                raise SoraError(
                    f"{self.name} gives {', '.join(sorted(unknown))}, which it does not declare; add to its `parts`"
                )
            for name, value in given.items():
                if not math.isfinite(value):
                    raise SoraError(
                        f"{self.name} of the {side} clip {video.id} is {float(value)}, which is no score; "
                        "return None for "
                        "clips that have none, and look at this one"
                    )
                row[columns.index(name)] = float(value)
        self._rows[side].update([video.id for video in videos], rows)
        return {v.id: float(row[0]) for v, row in zip(videos, rows, strict=True) if not row[0].isnan()}

    def compute(self) -> Score | None:
        columns = 1 + len(self.parts)
        # torchmetrics makes a plain number of the row of a single clip.
        means = {side: _means(rows.compute().view(-1, columns), self.parts) for side, rows in self._rows.items()}
        own = means.pop(self.of)
        if own is None:
            return None
        figures = dict(own.figures)
        if (real := means.get("real")) is not None:
            figures["real"] = real.value
            figures |= {f"real_{part}": value for part, value in real.figures.items()}
            figures |= {"real_stderr": real.stderr} if real.stderr is not None else {}
        return replace(own, figures=figures)


def _means(rows: Tensor, parts: Sequence[str]) -> Score | None:
    means: dict[str, float] = {}
    stderr, clips = None, 0
    for index, name in enumerate(("value", *parts)):
        values = rows[:, index][~rows[:, index].isnan()]
        if len(values):
            means[name] = float(values.mean())
        if name == "value":
            clips = len(values)
            stderr = float(values.std() / clips**0.5) if clips > 1 else None
    return Score(means.pop("value"), clips, stderr, figures=means) if "value" in means else None


METRICS: Registry[VideoMetric] = Registry("metric", name="metric", contract="lightning_sora.metrics.contract")


def register_metric(name: str) -> Callable[[M], M]:
    """Files a class of metrics under a name, by which recipes, ``score`` and notebooks ask for it.

    Raises:
        SoraError: the name is taken.

    Example:
        >>> import lightning_sora as ls
        >>> @ls.register_metric("redness")
        ... class Redness(ls.PerVideoMetric):
        ...     def score(self, video):
        ...         return float(video.clip[..., 0].double().mean() / 255)
    """

    def decorate(metric: M) -> M:
        if metric.higher_is_better is not None:
            directions.declare(name, "max" if metric.higher_is_better else "min")
        METRICS.register(name)(metric)
        metric.name = name
        return metric

    return decorate


def _summary(kind: type) -> str:
    return " ".join((kind.__doc__ or kind.__name__).split("\n\n")[0].split())
