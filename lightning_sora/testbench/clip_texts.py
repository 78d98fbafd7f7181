"""Which captions a clip of the world has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.randomness import stream_seed
from lightning_sora.world import World


@dataclass(frozen=True)
class Texts:
    """The captions of a split.

    Attributes:
        style: of the first caption.
        languages: of a caption each; those in other languages than English, but the first, are "short". One that is
            named again gives another wording.
        alternatives: styles of further captions in English.
    """

    style: str
    languages: tuple[str, ...] = ("en",)
    alternatives: tuple[str, ...] = ()

    @classmethod
    def of_split(
        cls, split: str, style: str, languages: Sequence[str], heldout: str | None, alternatives: Sequence[str]
    ) -> Texts:
        """Those of a split: of validation and test, one caption in one language.

        Raises:
            SoraError: no language.
        """
        if not languages:
            raise SoraError("languages=[] must name at least one; of captions in English alone it is ['en']")
        if split == "train":
            return cls(style, tuple(languages), tuple(alternatives))
        return cls(style, (languages[0] if heldout is None else heldout,))

    def described(self) -> list[Any]:
        """What tells them from captions in English alone."""
        told = [list(self.languages), list(self.alternatives)]
        return [] if told == [["en"], []] else [told]

    def write(self, world: World, number: int) -> tuple[str, ...]:
        """The caption of a clip of the world, and its alternatives, each worded by a key of its own.

        Raises:
            SoraError: unknown style or language, or a language that does not have the style.
        """
        facts, texts = world.facts(number), []
        for place, name in enumerate(self.languages):
            style = self.style if name == "en" or not place else "short"
            turn = self.languages[:place].count(name)
            texts.append(world.caption(facts, style, stream_seed(number, name, turn) if turn else number, name))
        for place, style in enumerate(self.alternatives):
            texts.append(world.caption(facts, style, stream_seed(number, "alternative", place)))
        return tuple(texts)
