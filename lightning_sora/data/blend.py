"""Captions from a table in place of a source's own, at a share of visits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from lightning_sora.data.recaptions import read_captions
from lightning_sora.data.sources.base import ClipInfo
from lightning_sora.errors import SoraError
from lightning_sora.randomness import uniform_per_clip


class CaptionBlend:
    """Blends a table's captions with a source's own (DALL-E 3, Betker et al. 2023, section 3.2: 95 % to 5 %).

    Args:
        path: a table of ``lightning-sora caption``.
        share: of visits at which the table's caption stands.

    Raises:
        SoraError: no such table, wrong columns, or an impossible share.
    """

    def __init__(self, path: str, share: float) -> None:
        if not 0 < share <= 1:
            raise SoraError(f"caption_share={share} must lie in (0, 1]")
        self.path, self.share = path, share
        everything = read_captions(path)
        self._errors = {clip_id: row.error for clip_id, row in everything.items() if row.error}
        rows = {clip_id: row for clip_id, row in everything.items() if row.caption}
        self._captions = {clip_id: row.caption for clip_id, row in rows.items()}
        self._contents = {clip_id: row.content for clip_id, row in rows.items()}

    @property
    def captions(self) -> Collection[str]:
        """Those of the table."""
        return self._captions.values()

    def _reason(self, clip_id: str) -> str:
        return f" ({self._errors[clip_id]})" if clip_id in self._errors else ""

    def check(self, infos: Sequence[ClipInfo]) -> None:
        """Raises SoraError unless the table has a caption for each of these clips, made from this very content."""
        ids = [info.id for info in infos]
        missing = [clip_id for clip_id in ids if clip_id not in self._captions]
        if missing:
            raise SoraError(
                f"{self.path} has no caption for {len(missing)} of {len(ids)} training clips, such as {missing[0]!r}"
                f"{self._reason(missing[0])}; leave it out of both by the source's quarantine, or make the table anew "
                "from this source with `lightning-sora caption`"
            )

        others = [info.id for info in infos if info.content and self._contents[info.id] not in ("", info.content)]
        if others:
            raise SoraError(
                f"{self.path} tells of other clips of the same names: {len(others)} of {len(ids)} have changed since, "
                f"such as {others[0]!r} (another seed or level of a world, or another file); make it anew from this "
                "source with `lightning-sora caption`"
            )

    def caption(self, clip_id: str, visit: int, seed: int) -> str | None:
        """The table's caption, or None where the clip's own stands at this visit."""
        if self.share < 1 and float(uniform_per_clip(seed, "caption_blend", [(clip_id, visit)])) >= self.share:
            return None
        return self._captions[clip_id]

    def fingerprint(self) -> str:
        """A hash of the captions and their share."""
        text = repr((self.share, sorted(self._captions.items())))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
