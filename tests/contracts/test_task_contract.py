"""What every task must do, over the registry; and that its laws catch what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightning_sora.contracts import ContractViolation
from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize
from lightning_sora.tasks import TASKS, register_task
from lightning_sora.tasks.base import Clip, Inputs, SamplingModel, Strengths, Task
from lightning_sora.tasks.contract import CONTRACT
from lightning_sora.tasks.extend import Connect, ExtendForward
from lightning_sora.tasks.frames import FirstAndLast, ImageToVideo, Interpolate
from lightning_sora.tasks.paint import Edit, Inpaint


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", TASKS.list())
def test_contract(spec: str, law: str) -> None:
    CONTRACT.laws[law](spec)


class GivesAll(ImageToVideo):
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return torch.zeros(tuple(grid))


class Brightens(ImageToVideo):
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return super().strengths(grid, draw) * 2


class Flattens(ImageToVideo):
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return super().strengths(grid, draw).flatten()


class Draws(Inpaint):
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        torch.rand(())
        return super().strengths(grid, draw)


class Remembers(ImageToVideo):
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        self.one = getattr(self, "one", super().strengths(grid, draw))
        return self.one if self.one.shape == tuple(grid) else super().strengths(grid, draw)


class TrainsOnTheLast(ImageToVideo):
    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return super().strengths(grid, draw).flip(0)


class StartsLate(ImageToVideo):
    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        given = super().given(size, patch, inputs)
        return Given(given.video.roll(1, 0), given.strength.roll(1, 0))


class SwapsTheEnds(FirstAndLast):
    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        return super().given(size, patch, {"first": inputs["last"], "last": inputs["first"]})


class ForgetsTheImage(ImageToVideo):
    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        return super().given(size, patch, {"image": 255 - inputs["image"]})


class DropsAFrame(ExtendForward):
    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        return [
            torch.cat([clip[:4], clip[5:], clip[-1:]])
            for clip in super().sample(model, prompts, size, inputs, **options)
        ]


class Swaps(Connect):
    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        swapped = {"video": inputs["second"], "second": inputs["video"]}
        return super().sample(model, prompts, size, swapped, **options)


class InvertsTheMask(Inpaint):
    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        return super().given(size, patch, {**inputs, "mask": 255 - inputs["mask"]})


class IgnoresStrength(Edit):
    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        return super().given(size, patch, {**inputs, "strength": 0.5})


class IsLate(Interpolate):
    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        return [clip.roll(1, 0) for clip in super().sample(model, prompts, size, inputs, **options)]


class OneForAll(ImageToVideo):
    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        return super().sample(model, prompts, size, inputs, **(options | {"keys": [(0,)] * len(prompts)}))


class MixesPrompts(ImageToVideo):
    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        return super().sample(model, [f"{prompt} of {len(prompts)}" for prompt in prompts], size, inputs, **options)


class StopsEarly(ExtendForward):
    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        return [clip[:-1] for clip in super().sample(model, prompts, size, inputs, **options)]


MUTANTS: list[tuple[type[Task], str]] = [
    (GivesAll, "something_is_left_to_make"),
    (Brightens, "something_is_left_to_make"),
    (Flattens, "something_is_left_to_make"),
    (Draws, "all_chance_is_the_draws"),
    (Remembers, "all_chance_is_the_draws"),
    (TrainsOnTheLast, "samples_what_it_trained_on"),
    (StartsLate, "samples_what_it_trained_on"),
    (SwapsTheEnds, "keeps_what_it_is_given"),
    (ForgetsTheImage, "keeps_what_it_is_given"),
    (DropsAFrame, "keeps_what_it_is_given"),
    (Swaps, "keeps_what_it_is_given"),
    (InvertsTheMask, "keeps_what_it_is_given"),
    (IgnoresStrength, "keeps_what_it_is_given"),
    (IsLate, "keeps_what_it_is_given"),
    (OneForAll, "each_clip_is_made_alone"),
    (MixesPrompts, "each_clip_is_made_alone"),
    (StopsEarly, "makes_as_much_as_is_asked"),
]


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_task_breaks_its_law(mutant: type[Task], law: str) -> None:
    with TASKS.temporary():
        register_task("mutant")(mutant)
        with pytest.raises(ContractViolation):
            CONTRACT.laws[law]("mutant")


def test_each_law_catches_a_mutant() -> None:
    assert {law for _, law in MUTANTS} == set(CONTRACT.laws)


def test_a_task_says_what_it_may_be_given() -> None:
    class Sings(ImageToVideo):
        needs = ("song",)

    with TASKS.temporary(), pytest.raises(SoraError, match="asks for song; inputs are image, first"):
        register_task("sings")(Sings)
