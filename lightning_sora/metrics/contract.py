"""The contract of a metric, as checks that any metric can be put to: one's own as well as the shipped ones.

Each check evaluates a few small clips and raises :class:`ContractViolation` with what is wrong, and where to look. A
small stand-in takes the place of a metric's extractor: the contract is about how clips are put together to a number,
not about the network, whose weights may not be at hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.contracts import Contract, ContractViolation, require
from lightning_sora.errors import SoraError, raised_in
from lightning_sora.metrics.asked import create_metric
from lightning_sora.metrics.base import METRICS, PerVideoMetric, Score, VideoMetric
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.extractors import EXTRACTORS, Extractor
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.seen import clip_digest
from lightning_sora.specs import Spec
from lightning_sora.world import World

#: Of a set, which distances need; a metric that scores each clip by itself shows what it does with FEW.
CLIPS, FEW = 20, 7
FRAMES, SIDE, FPS = 9, 32, 8.0
STAND_IN, READER = "stand_in_of_the_contract", "reader_of_the_contract"
TOLERANCE = 1e-5


class StandIn(Extractor):
    """A clip's mean colours and their squares, and captions by their digests: in the place of a network."""

    title, width, text_per = "stand-in", 6, "frame"

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames side side"]:
        return clip.permute(3, 0, 1, 2).float() / 255

    def features(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips dim"]:
        means = clips.double().mean(dim=(2, 3, 4))
        return torch.cat([means, means.square()], dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        rows = [[byte / 255 for byte in hashlib.sha256(text.encode()).digest()[: self.width]] for text in texts]
        return torch.tensor(rows, dtype=torch.float64)

    def describe(self) -> dict[str, Any]:
        return {"name": "stand-in", "verified": True}


class Reader(Extractor):
    """An extractor that makes what is no vector, such as readings, of each clip once, however many laws look at it.

    Args:
        of: spec of the extractor.
    """

    read: ClassVar[dict[tuple[str, str, str], Any]] = {}

    def __init__(self, *, of: str) -> None:
        super().__init__()
        self.of, self.inner = of, EXTRACTORS.create(of)
        self.title, self.width, self.text_per = self.inner.title, self.inner.width, self.inner.text_per
        self.min_frames, self.frames, self.by_seconds = (
            self.inner.min_frames,
            self.inner.frames,
            self.inner.by_seconds,
        )

    def prepare(self, clip: Clip) -> Float[Tensor, "3 frames height width"]:
        return self.inner.prepare(clip)

    def features(self, clips: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips dim"]:
        return self.inner.features(clips)

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def least_frames(self, fps: float | None) -> int:
        return self.inner.least_frames(fps)

    def takes_per(self, per: str, frames: int, fps: float | None = None) -> bool:
        return self.inner.takes_per(per, frames, fps)

    def outputs(self, clips: Sequence[Clip], fps: Sequence[float] | None = None, per: str = "clip") -> list[Any]:
        names = [(self.of, per, clip_digest(clip)) for clip in clips]
        new = {name: clip for name, clip in zip(names, clips, strict=True) if name not in self.read}
        if new:
            self.read.update(zip(new, self.inner.outputs(list(new.values()), [FPS] * len(new), per), strict=True))
        return [self.read[name] for name in names]


def make(spec: str) -> VideoMetric:
    """A metric that is ready for clips.

    Raises:
        SoraError: a spec that cannot be made.
    """
    return _evaluation(spec).metrics.popitem()[1]


CONTRACT = Contract(make)


def _evaluation(spec: str) -> Evaluation:
    metric = create_metric(spec, extractor=STAND_IN, clip_model=STAND_IN)
    with EXTRACTORS.temporary():
        EXTRACTORS.register(STAND_IN)(StandIn)
        EXTRACTORS.register(READER)(Reader)
        if metric.needs.features is not None and metric.needs.per in ("clip", "frame"):
            metric.needs = replace(metric.needs, features=STAND_IN)
        elif metric.needs.features is not None:
            metric.needs = replace(metric.needs, features=str(Spec(READER, {"of": metric.needs.features})))
        evaluation = Evaluation([metric])
        evaluation.load()
    return evaluation


class _Set:
    """Clips of the world, with all that may be told of them."""

    def __init__(self, first: int = 0) -> None:
        world = World("simple")  # one object, and cameras of all kinds
        facts = [world.facts(i) for i in range(first, first + CLIPS)]
        self.clips = [world.render(fact, FRAMES, SIDE, SIDE, FPS) for fact in facts]
        self.negatives = [255 - clip for clip in self.clips]
        self.captions = [f"clip {first + i}" for i in range(CLIPS)]
        self.facts = [{**fact.as_dict(), "config": vars(world.config)} for fact in facts]


_set = lru_cache(_Set)


def _all(evaluation: Evaluation) -> range:
    """The places of the clips that a metric is given."""
    (metric,) = evaluation.metrics.values()
    return range(FEW if isinstance(metric, PerVideoMetric) else CLIPS)


def _add(
    evaluation: Evaluation,
    places: Sequence[int],
    *,
    made: Sequence[Clip] | None = None,
    real: Sequence[Clip] | None = None,
    prefix: str = "",
) -> None:
    """Adds some of the clips to both sides, with what the metric declares that it needs and no more."""
    (metric,) = evaluation.metrics.values()
    needs, known = metric.needs, _set()
    made, real = made or known.clips, real or _set(CLIPS).clips
    chosen = [made[i] for i in places]
    evaluation.update(
        [f"{prefix}{i}" for i in places],
        real=[real[i] for i in places] if needs.real or needs.pairs or "real" in metric.sides else None,
        captions=[known.captions[i] for i in places] if needs.captions else None,
        facts=[known.facts[i] for i in places] if needs.facts else None,
        fps=FPS if needs.fps or (metric.network is not None and metric.network.by_seconds) else None,
        **{metric.of: chosen},
    )


def _score(evaluation: Evaluation) -> Score:
    (score,) = evaluation.compute().values()
    return score


def _whole(spec: str) -> Score:
    """The score of all clips, given at once."""
    return _known(spec, METRICS.builder(METRICS.resolve(spec).name))


@lru_cache(maxsize=1)
def _known(spec: str, builder: Callable[..., Any]) -> Score:  # a name may be given to another part
    evaluation = _evaluation(spec)
    _add(evaluation, _all(evaluation))
    return _score(evaluation)


@contextmanager
def _must(what: str) -> Iterator[None]:
    """Tells what does not work where all must."""
    try:
        yield
    except ContractViolation:
        raise
    except Exception as problem:  # the metric's own, whatever it is
        if raised_in(problem):  # told with file and line, and once for all laws that meet it
            raise
        told = " ".join(str(problem).split())[:300]
        raise ContractViolation(f"{what}: {type(problem).__name__}: {told}") from problem


def _same(found: Score, wanted: Score, what: str, tolerance: float = TOLERANCE) -> None:
    mine, theirs = found.as_dict(), wanted.as_dict()
    require(mine.keys() == theirs.keys(), f"{what}: {sorted(mine.keys() ^ theirs.keys())} come and go")
    for name, value in mine.items():
        off = abs(value - theirs[name])
        require(
            off <= tolerance * max(1.0, abs(theirs[name])),
            f"{what}: {name} is {value:.9g}, and {theirs[name]:.9g} else",
        )


# The contract.
@CONTRACT.law
def gives_a_finite_score(spec: str) -> None:
    """Of ordinary clips: a value, of as many clips as were given, every figure finite."""
    with _must("of ordinary clips"):
        score = _whole(spec)
    given = len(_all(_evaluation(spec)))
    require(0 < score.clips <= given, f"{score.clips} clips are counted where {given} were given")
    for name, value in score.as_dict().items():
        require(math.isfinite(value), f"{name} is {value}")


@CONTRACT.law
def no_order_of_clips_matters(spec: str) -> None:
    """Clips that come in another order give the same figures."""
    evaluation = _evaluation(spec)
    _add(evaluation, _all(evaluation)[::-1])
    _same(_score(evaluation), _whole(spec), "with the clips in the opposite order")


@CONTRACT.law
def no_batch_size_matters(spec: str) -> None:
    """Clips that come one by one, or in uneven batches, give the same figures."""
    whole = _whole(spec)
    for size in (1, len(_all(_evaluation(spec))) // 3 + 1):
        evaluation = _evaluation(spec)
        places = _all(evaluation)
        for first in range(0, len(places), size):
            _add(evaluation, places[first : first + size])
        _same(_score(evaluation), whole, f"in batches of {size}")


@CONTRACT.law
def no_number_of_processes_matters(spec: str) -> None:
    """Clips that are dealt to three processes, one of which gets none, give the same figures.

    All that is kept of clips must lie in attributes that are torchmetrics' Metric, with states that can be merged.
    """
    ranks = [_evaluation(spec) for _ in range(3)]
    _add(ranks[1], _all(ranks[1])[::2])
    _add(ranks[2], _all(ranks[2])[1::2])
    whole = ranks[0]
    what = "dealt to three processes, one of them without clips"
    with _must(what):
        for rank in ranks[1:]:
            for mine, theirs in zip(_states(whole), _states(rank), strict=True):
                mine.merge_state(theirs)
        _same(_score(whole), _whole(spec), what)


def _states(evaluation: Evaluation) -> list[Any]:
    (metric,) = evaluation.metrics.values()
    return list(metric.states())


@CONTRACT.law
def no_name_matters(spec: str) -> None:
    """The value is the same whatever the clips are called; intervals may deal clips to groups by their names."""
    evaluation = _evaluation(spec)
    _add(evaluation, _all(evaluation), prefix="other/")
    found, wanted = _score(evaluation).value, _whole(spec).value
    require(abs(found - wanted) <= TOLERANCE * max(1.0, abs(wanted)), f"{found:.9g} by other names, {wanted:.9g} else")


@CONTRACT.law
def clips_given_twice_are_refused(spec: str) -> None:
    """A sampler that pads gives clips twice, which would bias the value: that is one SoraError."""
    evaluation = _evaluation(spec)
    _add(evaluation, _all(evaluation))
    try:
        _add(evaluation, range(2))
        score = _score(evaluation)
    except SoraError:
        return
    raise ContractViolation(f"two clips were given twice, and the value is {score.value:.6g}; raise SoraError")


@CONTRACT.law
def plain_clips_do_not_break_it(spec: str) -> None:
    """Black, white and still clips have a finite score, or none, or are refused by one SoraError."""
    for told, clip in (
        ("black", torch.zeros((FRAMES, SIDE, SIDE, 3), dtype=torch.uint8)),
        ("white", torch.full((FRAMES, SIDE, SIDE, 3), 255, dtype=torch.uint8)),
        ("still", _set().clips[0][:1].expand(FRAMES, -1, -1, -1).contiguous()),
    ):
        evaluation = _evaluation(spec)
        try:
            _add(evaluation, _all(evaluation), made=[clip] * CLIPS)
            score = _score(evaluation)
        except SoraError:
            continue
        require(math.isfinite(score.value), f"of {told} clips it is {score.value}")


@CONTRACT.law
def equal_clips_score_as_equal(spec: str) -> None:
    """A set is no further from itself than from its negative; a score of single clips is the same for real ones."""
    evaluation = _evaluation(spec)
    (metric,) = evaluation.metrics.values()
    clips = _set().clips
    _add(evaluation, _all(evaluation), made=clips, real=clips)
    same = _score(evaluation)
    if metric.needs.real or metric.needs.pairs:
        if metric.higher_is_better is None:
            return
        other = _evaluation(spec)
        _add(other, _all(other), made=_set().negatives, real=clips)
        sign, far = 1 if metric.higher_is_better else -1, _score(other).value
        require(
            sign * (same.value - far) >= -TOLERANCE,
            f"of equal clips it is {same.value:.6g}, of their negatives {far:.6g}",
        )
    elif "real" in metric.sides:
        real = same.figures.get("real")
        require(
            real is not None and abs(real - same.value) <= TOLERANCE * max(1.0, abs(real)),
            f"the same clips have {same.value:.9g} as generated and {real} as real ones",
        )


@CONTRACT.law
def survives_pickling(spec: str) -> None:
    """Pickled between two batches it goes on as if nothing had been."""
    evaluation = _evaluation(spec)
    places = _all(evaluation)
    _add(evaluation, places[::2])
    with _must("it cannot be pickled"):
        evaluation = pickle.loads(pickle.dumps(evaluation))
    _add(evaluation, places[1::2])
    _same(_score(evaluation), _whole(spec), "after pickling")


@CONTRACT.law
def forgets_when_reset(spec: str) -> None:
    """After a reset, nothing of earlier clips is left."""
    evaluation = _evaluation(spec)
    places = _all(evaluation)
    _add(evaluation, places, made=_set().negatives)
    with suppress(SoraError):  # it may judge none of those
        _score(evaluation)
    evaluation.reset()
    _add(evaluation, places)
    _same(_score(evaluation), _whole(spec), "after a reset")


@CONTRACT.law
def leaves_clips_as_they_are(spec: str) -> None:
    """Clips are shared by all metrics: none may write into them."""
    clips = [clip.clone() for clip in _set().clips]
    real = [clip.clone() for clip in _set(CLIPS).clips]
    evaluation = _evaluation(spec)
    _add(evaluation, _all(evaluation), made=clips, real=real)
    _score(evaluation)
    for mine, theirs in zip((*clips, *real), (*_set().clips, *_set(CLIPS).clips), strict=True):
        require(torch.equal(mine, theirs), "it changes the pixels of a clip; work on a copy")


@CONTRACT.law
def says_what_it_is(spec: str) -> None:
    """Its card is plain values, the same each time, and its class has a docstring that says what it measures."""
    one, other = _evaluation(spec), _evaluation(spec)
    for evaluation in (one, other):
        _add(evaluation, _all(evaluation))
    (metric,) = one.metrics.values()
    with _must("its card is not of plain values"):
        json.dumps(metric.card())
    require(one.card().id == other.card().id, "its protocol card is another each time")
    require((type(metric).__doc__ or "").strip(), "its class has no docstring, which is what `list` and the card show")
