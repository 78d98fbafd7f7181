"""What every metric of videos must do, over the registry; and that its laws catch what is wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_sora.contracts import ContractViolation
from lightning_sora.errors import SoraError
from lightning_sora.metrics import motion
from lightning_sora.metrics.base import METRICS, Evaluated, Needs, PerVideoMetric, Score, Side, VideoMetric
from lightning_sora.metrics.clip_lists import Rows
from lightning_sora.metrics.contract import CONTRACT

#: What a metric must be told beside its name.
OPTIONS = {
    "dynamic_degree": "weights='raft.pth'",
    "warping_error": "weights='raft.pth'",
    "lpips": "weights='squeeze.pth', net='squeeze'",
}


class Brightening(nn.Module):
    """In the place of RAFT, whose 20 rounds are long: things move by what they brighten."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, before: Tensor, after: Tensor, num_flow_updates: int) -> list[Tensor]:
        step = (after - before).mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return [100 * step.expand(-1, 2, *after.shape[2:])]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "squeeze.pth")
    return folder


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("name", METRICS.list())
def test_contract(name: str, law: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights)
    monkeypatch.setattr(motion, "load_raft", lambda path: Brightening())
    CONTRACT.laws[law](f"{name}({OPTIONS[name]})" if name in OPTIONS else name)


class Brightness(VideoMetric):
    """The mean of all pixels over clips, in [0, 1]: a sound one that keeps its clips itself."""

    def __init__(self) -> None:
        self.rows = Rows(1)

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        means = [float(video.clip.double().mean() / 255) for video in videos]
        self.rows.update([video.id for video in videos], torch.tensor(means, dtype=torch.float64)[:, None])
        return {}

    def compute(self) -> Score | None:
        rows = self.rows.compute()[:, 0]
        return Score(float(rows.mean()), len(rows)) if len(rows) else None


class BrightnessOfEach(PerVideoMetric):
    """The mean of all pixels, in [0, 1]."""

    def score(self, video: Evaluated) -> float:
        return float(video.clip.double().mean() / 255)


class Apart(Brightness):
    """How far the mean brightness is from that of the real clips."""

    needs = Needs(real=True)
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.real = Rows(1)

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        if side != "real":
            return super().add(videos, side)
        mine, self.rows = self.rows, self.real
        try:
            return super().add(videos, side)
        finally:
            self.rows = mine

    def compute(self) -> Score | None:
        found = super().compute()
        return found and Score(abs(found.value - float(self.real.compute().mean())), found.clips)


class AsBright(PerVideoMetric):
    """One less how far the brightness is from that of the real clip; it does not say that more is better."""

    needs = Needs(pairs=True)

    def score(self, video: Evaluated) -> float:
        assert video.real is not None
        return 1 - abs(float(video.clip.double().mean() - video.real.double().mean())) / 255


SOUND = (Brightness, BrightnessOfEach, Apart, AsBright)


@pytest.fixture
def scratch() -> Iterator[None]:
    with METRICS.temporary():
        yield


@pytest.mark.parametrize("sound", SOUND, ids=lambda m: m.__name__)
def test_a_sound_one_keeps_every_law(sound: Any, scratch: None) -> None:
    METRICS.register("mine")(sound)
    assert not [found for found in CONTRACT.findings("mine") if found.problem]


class Judgeless(BrightnessOfEach):
    """Of no clip."""

    def score(self, video: Evaluated) -> None:  # type: ignore[override]
        return None


class CountsFrames(Brightness):
    """By frames."""

    def compute(self) -> Score | None:
        found = super().compute()
        return found and Score(found.value, 9 * found.clips)


class FirstWeighsMore(Brightness):
    """By the order of clips."""

    first = True

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        for video in videos:
            gain, self.first = 0.5 if self.first else 1.0, False
            row = torch.tensor([[gain * float(video.clip.double().mean())]])
            self.rows.update([video.id], row)
        return {}

    def reset(self) -> None:
        super().reset()
        self.first = True


class MeanOfBatches(Brightness):
    """The mean over batches of the brightest of each."""

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        brightest = max((float(video.clip.double().mean()) for video in videos), default=0.0)
        self.rows.update([video.id for video in videos], torch.full((len(videos), 1), brightest))
        return {}


class InAList(VideoMetric):
    """The mean brightness of clips that lie in a list."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        for video in videos:
            if video.id in self.seen:
                raise SoraError("twice")
            self.seen[video.id] = float(video.clip.double().mean())
        return {}

    def compute(self) -> Score | None:
        return Score(sum(sorted(self.seen.values())) / len(self.seen), len(self.seen)) if self.seen else None

    def reset(self) -> None:
        self.seen.clear()


class OnlyHere(Brightness):
    """Multiplied by how many clips this process saw."""

    mine = 0

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        self.mine += len(videos)
        return super().add(videos, side)

    def compute(self) -> Score | None:
        found = super().compute()
        return found and Score(found.value * self.mine, found.clips)

    def reset(self) -> None:
        super().reset()
        self.mine = 0


class ByName(BrightnessOfEach):
    """Brighter for longer names."""

    def score(self, video: Evaluated) -> float:
        return super().score(video) + len(video.id)


class CountsTwice(InAList):
    """Whatever is given."""

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        for video in videos:
            self.seen[f"{video.id} {len(self.seen)}"] = float(video.clip.double().mean())
        return {}


class Contrast(Brightness):
    """The mean over the spread, which equal clips do not have."""

    def compute(self) -> Score | None:
        rows = self.rows.compute()[:, 0]
        return Score(float((rows - rows.mean()).mean() / rows.std()), len(rows))


class FavoursReal(BrightnessOfEach):
    """Real clips are the better ones."""

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        self.bonus = float(side == "real")
        return super().add(videos, side)

    def score(self, video: Evaluated) -> float:
        return super().score(video) + self.bonus


class WrongWayRound(Apart):
    """More is closer."""

    higher_is_better = True


class HoldsALambda(BrightnessOfEach):
    """By a function that nothing can name."""

    def __init__(self) -> None:
        self.gain = lambda value: value


class Forgetful(Brightness):
    """It leaves its clips behind."""

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": Rows(1)}


class KeepsTheDarkest(Brightness):
    """Over the darkest clip of all times."""

    least = math.inf

    def add(self, videos: Sequence[Evaluated], side: Side) -> Mapping[str, float]:
        self.least = min([self.least, *(1 + float(video.clip.double().mean()) for video in videos)])
        return super().add(videos, side)

    def compute(self) -> Score | None:
        found = super().compute()
        return found and Score(found.value / self.least, found.clips)


class WorksInPlace(BrightnessOfEach):
    """Of the clip without its first frame."""

    def score(self, video: Evaluated) -> float:
        video.clip[0] = 0
        return super().score(video)


class Nameless(BrightnessOfEach):
    pass


Nameless.__doc__ = None


class AnotherEachTime(BrightnessOfEach):
    """Numbered."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)

    def card(self) -> dict[str, Any]:
        return {**super().card(), "number": self.number}


class OfTensors(BrightnessOfEach):
    """It tells its scale as a tensor."""

    def card(self) -> dict[str, Any]:
        return {**super().card(), "scale": torch.ones(1)}


class Infinite(Brightness):
    """It tells what it has no number for."""

    def compute(self) -> Score | None:
        found = super().compute()
        return found and Score(found.value, found.clips, stderr=math.inf)


MUTANTS = {
    Judgeless: "gives_a_finite_score",
    CountsFrames: "gives_a_finite_score",
    Infinite: "gives_a_finite_score",
    FirstWeighsMore: "no_order_of_clips_matters",
    MeanOfBatches: "no_batch_size_matters",
    InAList: "no_number_of_processes_matters",
    OnlyHere: "no_number_of_processes_matters",
    ByName: "no_name_matters",
    CountsTwice: "clips_given_twice_are_refused",
    Contrast: "plain_clips_do_not_break_it",
    FavoursReal: "equal_clips_score_as_equal",
    WrongWayRound: "equal_clips_score_as_equal",
    HoldsALambda: "survives_pickling",
    Forgetful: "survives_pickling",
    KeepsTheDarkest: "forgets_when_reset",
    WorksInPlace: "leaves_clips_as_they_are",
    Nameless: "says_what_it_is",
    AnotherEachTime: "says_what_it_is",
    OfTensors: "says_what_it_is",
}
#: What breaks several laws at once.
ALSO = {
    Infinite: set(CONTRACT.laws) - {"says_what_it_is"},  # no two infinities are alike
    Judgeless: set(CONTRACT.laws) - {"clips_given_twice_are_refused", "plain_clips_do_not_break_it"},
    CountsTwice: {"no_number_of_processes_matters"},
    KeepsTheDarkest: {"no_number_of_processes_matters"},
    FirstWeighsMore: {"no_number_of_processes_matters"},
    MeanOfBatches: {"no_number_of_processes_matters", "survives_pickling"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_laws_catch_a_metric_that_breaks_them(mutant: Any, scratch: None) -> None:
    METRICS.register("mutant")(mutant)
    with pytest.raises(ContractViolation):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_no_other_law_is_broken(mutant: Any, scratch: None) -> None:
    METRICS.register("mutant")(mutant)
    broken = {found.law.replace(" ", "_") for found in CONTRACT.findings("mutant") if found.problem}
    assert broken - {MUTANTS[mutant]} <= ALSO.get(mutant, set())


def test_every_law_has_its_mutant() -> None:
    assert set(MUTANTS.values()) == set(CONTRACT.laws)
