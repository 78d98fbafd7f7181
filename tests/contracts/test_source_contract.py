"""What every source must do, over the registry; and that its laws catch what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora.contracts import ContractViolation
from lightning_sora.data.sources import SOURCES, Clip, ClipInfo, DecodeError, Source
from lightning_sora.data.sources.contract import CONTRACT, make
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import Crop
from tests.unit.test_latents import write

WORLD = "world(clips=8, heldout_clips=4)"
#: Small ones; a source that is not named here is put to the contract as it is, on the contract's own folder.
SPECS = {
    "world": [WORLD, "world(clips=6, heldout_clips=4, native=((9, 32, 48), (1, 20, 30)), captions='dense')"],
    "worlds": ["worlds(levels=('tiny', 'simple'), clips=8, heldout_clips=4)"],
    "mixture": [
        f"mixture(sources={{'a': {WORLD!r}, 'b': 'worlds(clips=6, heldout_clips=6)'}}, weights={{'a': 3, 'b': 1}})"
    ],
    "latents": ["latents(root={root!r})"],
}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("latents"))


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", [spec for name in SOURCES.list() for spec in SPECS.get(name, [name])])
def test_contract(spec: str, law: str, latents: Path) -> None:
    CONTRACT.laws[law](spec.replace("{root!r}", repr(str(latents))))


class Noise(Source):
    """A sound one, of windows drawn out of noise."""

    unchanging = False

    def __init__(self, *, root: str | None, split: str, seed: int) -> None:
        self.split, self.seed = split, seed
        self.infos = [ClipInfo(f"{split}-{n}", 9, 32, 48, 8.0, f"noise {n}") for n in range(5)]

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        info, rate = self.infos[index], crop.fps or self.infos[index].fps
        if (crop.size.frames - 1) / rate > (info.frames - 1) / info.fps:
            raise DecodeError(f"{info.id}: too short")
        whole = coarse_generator(self.seed, "noise", info.id)
        height, width = crop.size[1:]
        first = int(torch.randint(8, (), generator=generator))
        video = torch.randint(256, (64, 64, 64, 3), generator=whole, dtype=torch.uint8)
        return Clip(video[first : first + crop.size.frames, :height, :width], info.caption, rate)

    def fingerprint(self) -> str:
        return f"noise {self.split} {self.seed}"


def test_a_sound_one_keeps_every_law(scratch: None) -> None:
    SOURCES.register("noise")(Noise)
    assert not [found for found in CONTRACT.findings("noise") if found.problem]


def test_a_root_is_taken_from_the_spec() -> None:
    with pytest.raises(SoraError, match="nowhere"):
        make("folder(root='nowhere')")
    with pytest.raises(SoraError, match="needs a root"):
        make("latents")  # what the contract's folder is not


class NamesTwice(Noise):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.infos = [replace(info, id="one") for info in self.infos]


class Floats(Noise):
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        clip = super().load(index, crop, generator=generator)
        return replace(clip, video=clip.video.float())


class OtherCaptions(Noise):
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        return replace(super().load(index, crop, generator=generator), caption="something else")


class ForgetsTheRate(Noise):
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        return replace(super().load(index, crop, generator=generator), fps=8.0)


class DrawsFromTorch(Noise):
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        torch.rand(1)
        return super().load(index, crop, generator=generator)


class DrawsFromPython(Noise):
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        clip = super().load(index, crop, generator=generator)
        return replace(clip, video=(clip.video * random.random()).to(torch.uint8))


class SaysItNeverChanges(Noise):
    unchanging = True


class CountsItsReads(Noise):
    reads = 0

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        self.reads += 1
        clip = super().load(index, crop, generator=generator)
        return replace(clip, video=clip.video + self.reads)


class OfItsProcess(Noise):
    def fingerprint(self) -> str:
        return f"{id(self)}"


class ForgetsWhenPickled(Noise):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seed": 7}


class OfOneName(Noise):
    def fingerprint(self) -> str:
        return "noise"


class DrawsItsOrder(Noise):
    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        return [(index, epoch) for index in torch.randperm(5).tolist()]


class VisitsAgain(Noise):
    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        return [(index, 0) for index, _ in super().order(seed, epoch)]


class PadsClips(Noise):
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        frames = min(crop.size.frames, 9)
        return super().load(index, replace(crop, size=crop.size._replace(frames=frames)), generator=generator)


class RefusesAll(Noise):
    def refusal(self, index: int, crop: Crop) -> str | None:
        return "no"


MUTANTS = {
    NamesTwice: "tells_what_its_clips_are",
    Floats: "reads_what_is_asked",
    OtherCaptions: "reads_what_is_asked",
    ForgetsTheRate: "reads_what_is_asked",
    DrawsFromTorch: "reading_is_a_function_of_clip_and_generator",
    DrawsFromPython: "reading_is_a_function_of_clip_and_generator",
    SaysItNeverChanges: "reading_is_a_function_of_clip_and_generator",
    CountsItsReads: "reading_is_a_function_of_clip_and_generator",
    OfItsProcess: "is_the_same_in_every_process",
    ForgetsWhenPickled: "is_the_same_in_every_process",
    OfOneName: "its_fingerprint_tells_other_clips",
    DrawsItsOrder: "an_epoch_is_a_function_of_seed_and_number",
    VisitsAgain: "an_epoch_is_a_function_of_seed_and_number",
    PadsClips: "refuses_what_it_does_not_have",
    RefusesAll: "refuses_what_it_does_not_have",
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with SOURCES.temporary():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_laws_catch_a_source_that_breaks_them(mutant: Any, scratch: None) -> None:
    SOURCES.register("mutant")(mutant)
    with pytest.raises(ContractViolation):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")


def test_every_law_has_its_mutant() -> None:
    assert set(MUTANTS.values()) == set(CONTRACT.laws)
