"""Generalisation to combinations of colour and shape that training never showed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.sora_tasks.capabilities.text import Facts
from benchmarks.sora_tasks.protocol import CAPABILITIES, Case
from benchmarks.sora_tasks.scene import Scene

GROUPS = {"trained pairs": "train", "held-out pairs": "heldout"}


@CAPABILITIES.register("composition")
class Composition(Facts):
    """Prompts of pairs of colour and shape that training shows, and of pairs that it never shows."""

    @property
    def contrasts(self) -> Sequence[tuple[str, str]]:
        return [("held-out pairs", "trained pairs")]

    def cases(self, scene: Scene) -> list[Case]:
        found = []
        for group, split in GROUPS.items():
            world = scene.make(self.world, split)
            for number, f in enumerate(scene.draw(world, self.clips)):
                prompt, truth = scene.prompt(f, world), scene.render(f, world)
                found.append(Case(f"composition-{number}", f, world.config, prompt, truth, scene.size, group))
        return found
