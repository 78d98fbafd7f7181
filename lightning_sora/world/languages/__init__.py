"""Short captions in other languages than English, each in the grammar of its own."""

from __future__ import annotations

from lightning_sora.world.languages import ar, es, zh
from lightning_sora.world.languages.base import Language

LANGUAGES: dict[str, Language] = {"es": es.SPANISH, "zh": zh.CHINESE, "ar": ar.ARABIC}

__all__ = ["LANGUAGES", "Language"]
