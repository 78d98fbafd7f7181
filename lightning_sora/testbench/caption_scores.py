"""What captions and expanded prompts of the world tell rightly, as scores of those who write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sora.metrics.texts import CAPTION_SCORES, EXPANSION_SCORES, CaptionScore, ExpansionScore
from lightning_sora.testbench.caption_facts import FACTS, is_rich, kept, recovered


@CAPTION_SCORES.register("facts")
class RecoveredFacts(CaptionScore):
    """The share of a clip's facts that a caption tells rightly, in [0, 1]."""

    names = tuple(f"fact_{name}" for name in (*FACTS, "all"))
    each = ("fact_all",)
    method = "facts read back from words"

    def __call__(self, text: str, facts: Mapping[str, Any]) -> Mapping[str, float]:
        if "objects" not in facts:
            return {}
        return {f"fact_{name}": share for name, share in recovered(text, facts).items()}


@EXPANSION_SCORES.register("facts")
class KeptFacts(ExpansionScore):
    """Whether an expansion tells what its prompt tells, and whether it tells every fact."""

    names = ("kept", "rich")
    each = ("kept",)

    def __call__(self, text: str, prompt: str) -> Mapping[str, float]:
        return {"kept": float(kept(prompt, text)), "rich": float(is_rich(text))}
