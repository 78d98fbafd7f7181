"""Scene: the worlds of a recipe, at the size of the model under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.randomness import stream_seed
from lightning_sora.spacetime import PatchSize, VideoSize
from lightning_sora.testbench.evaluator.vocabulary import FPS
from lightning_sora.world import LEVELS, Facts, World

LOOKED_AT = 20_000  # clips of a world, until those that are wanted are found


@dataclass(frozen=True)
class Scene:
    """What cases are made from.

    Attributes:
        worlds: by name, ``{level: NAME, overrides: {FIELD: VALUE}}``.
        size: of the model's clips.
        fps: of all clips.
        patch: pixels per token of the model.
        captions: the style of prompts.
        seed: another seed, other clips.
        rendered: clips that were rendered already.

    Raises:
        SoraError: an unknown level, a field that a world does not have, or a rate that the evaluator does not read.
    """

    worlds: Mapping[str, Mapping[str, Any]]
    size: VideoSize
    patch: PatchSize
    fps: float = FPS
    captions: str = "short"
    seed: int = 0
    rendered: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fps != FPS:
            raise SoraError(f"fps={self.fps:g}: the judge reads {FPS:g} frames per second; sample at that rate")
        for name in self.worlds:
            self.make(name)

    def make(self, name: str, split: str = "heldout", **overrides: Any) -> World:
        """A world of the recipe, with some fields replaced.

        Raises:
            SoraError: the recipe has no such world, or it has no such field.
        """
        if name not in self.worlds:
            raise SoraError(f"the recipe has no world {name!r}; it has {', '.join(self.worlds)}")
        told = self.worlds[name]
        if set(told) - {"level", "overrides"} or told.get("level") not in LEVELS:
            raise SoraError(
                f"world {name}: {dict(told)}; give {{level: NAME, overrides: {{...}}}} with a level of "
                f"{', '.join(LEVELS)}"
            )
        base = LEVELS[told["level"]]
        fields = {**(told.get("overrides") or {}), **overrides}
        if unknown := set(fields) - set(asdict(base)):
            raise SoraError(
                f"world {name}: a world has no {', '.join(sorted(unknown))}; it has {', '.join(asdict(base))}"
            )
        return World(replace(base, **fields), seed=stream_seed(self.seed, "sora_tasks", name) % (1 << 31), split=split)

    def draw(self, world: World, count: int, wanted: Callable[[Facts], bool] = lambda _: True) -> list[Facts]:
        """The facts of the first clips that are as wanted.

        Raises:
            SoraError: the world has too few of them.
        """
        found: list[Facts] = []
        for index in range(LOOKED_AT):
            facts = world.facts(index)
            if wanted(facts):
                found.append(facts)
            if len(found) == count:
                return found
        raise SoraError(f"of {LOOKED_AT} clips of the world {len(found)} are as wanted, not {count}; ask for fewer")

    def render(self, facts: Facts, world: World, size: VideoSize | None = None, frames: int | None = None) -> Tensor:
        """A clip's pixels: of the model's size and length, or others."""
        size = self.size if size is None else size
        size = size if frames is None else size._replace(frames=frames)
        if (facts, size) not in self.rendered:  # tasks share their clips
            self.rendered[facts, size] = world.render(facts, *size, self.fps)
        return self.rendered[facts, size]

    def prompt(self, facts: Facts, world: World) -> str:
        """The prompt of a clip."""
        return world.caption(facts, self.captions, key=facts.index)
