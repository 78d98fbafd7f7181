"""The world itself as a captioner."""

from __future__ import annotations

from lightning_sora.errors import SoraError
from lightning_sora.lit.captioners import CAPTIONERS, Captioned, ClipCaptioner
from lightning_sora.spacetime import SpacetimeBatch
from lightning_sora.testbench.caption_facts import tell


@CAPTIONERS.register("facts")
class Oracle(ClipCaptioner):
    """Tells the world's own facts: the best that a captioner could do.

    Args:
        style: of the world's captions.
    """

    size = (1, 16, 16)  # it does not look

    def __init__(self, device: str = "cpu", *, style: str = "dense") -> None:
        self.style = style

    def caption(self, batch: SpacetimeBatch) -> list[Captioned]:
        if batch.facts is None:
            raise SoraError("the captioner 'facts' tells what the source knows, and this source knows no facts")
        return [Captioned(tell(facts, self.style), 1.0) for facts in batch.facts]

    def fingerprint(self) -> str:
        return f"facts {self.style}"
