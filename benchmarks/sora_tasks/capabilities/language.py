"""The same clips, asked for in several languages."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.sora_tasks.capabilities.text import Facts
from benchmarks.sora_tasks.protocol import CAPABILITIES, Case
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.errors import SoraError


@CAPABILITIES.register("language")
class Language(Facts):
    """Short prompts of the same held-out clips in several languages, each clip from the same noise in all: the facts
    that are as told, and how far each language is from the first, clip by clip.

    Args:
        clips: how many in each language.
        languages: at least two of the world's; the others are compared with the first.
    """

    def __init__(
        self, clips: int = 48, world: str = "medium", languages: Sequence[str] = ("en", "es", "zh", "ar")
    ) -> None:
        super().__init__(clips, world)
        if len(languages) < 2 or len(set(languages)) != len(languages):
            raise SoraError(f"languages={list(languages)} must name at least two to compare, each once")
        self.languages = tuple(languages)

    @property
    def contrasts(self) -> Sequence[tuple[str, str]]:
        first, *others = self.languages
        return [(other, first) for other in others]

    def cases(self, scene: Scene) -> list[Case]:
        world = scene.make(self.world)
        facts = scene.draw(world, self.clips)
        return [
            Case(f"{self.world}-{f.index}", f, world.config, world.caption(f, "short", f.index, language),
                 scene.render(f, world), scene.size, language)
            for language in self.languages
            for f in facts
        ]  # fmt: skip
