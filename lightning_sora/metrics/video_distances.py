"""FVD and KVD as one calls them in a notebook: by the name of their network, of clips without names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_sora.metrics.distances import ClipSetMetric, FrechetVideoDistance, KernelVideoDistance
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.extractors.base import Clip, Extractor


class _Numbered(ClipSetMetric):
    """Takes clips without ids, which are numbered as they come."""

    def update(
        self,
        clips: Sequence[Clip] | Tensor,
        ids: Sequence[str] | None = None,
        *,
        real: bool,
        fps: float | Sequence[float] | None = None,
    ) -> None:
        """Adds clips to one side.

        Args:
            clips: uint8 [frames height width 3], values 0 to 255, of any sizes; a list, or one tensor of clips.
            ids: one per clip; None numbers them, on one process alone. Clips of one id are pairs.
            fps: frames per second, of all or of each, for a network that goes by seconds.

        Raises:
            SoraError: what the network cannot take.
        """
        clips = list(clips)
        if ids is None:
            side = "real" if real else "generated"
            begin = sum(len(part) for part in getattr(self, f"{side}_ids"))
            ids = [f"{side} {begin + index}" for index in range(len(clips))]
        rates = [float(fps)] * len(clips) if isinstance(fps, int | float) else fps
        super().update(clips, ids, real=real, fps=rates)


class FVD(_Numbered, FrechetVideoDistance):
    """The Fréchet distance between features of real and generated clips (Unterthiner et al. 2018, arXiv:1812.01717).

    It is FVD as papers mean it with "i3d" and the published weights; with any other network it is that network's own.

    Args:
        extractor: spec, as ``lightning-sora list extractor`` shows them, or a network that is made already.

    Raises:
        SoraError: an unknown extractor, or weights that are missing or not those that were published.

    Example:
        >>> import lightning_sora as ls
        >>> world = ls.World("tiny")
        >>> clips = [world.render(world.facts(i), frames=9, height=32, width=32, fps=8) for i in range(16)]
        >>> fvd = ls.FVD("world")
        >>> fvd.update(clips[:8], real=True, fps=8)
        >>> fvd.update(clips[8:], real=False, fps=8)
        >>> sorted(fvd.compute())
        ['generated', 'real', 'small_sample_bias', 'value']
    """

    def __init__(self, extractor: str | Extractor) -> None:
        super().__init__(EXTRACTORS.create(extractor) if isinstance(extractor, str) else extractor)


class KVD(_Numbered, KernelVideoDistance):
    """The kernel distance between features of real and generated clips: cubic-kernel MMD^2 (Binkowski et al. 2018).

    Unlike :class:`FVD` it has no bias of few clips.

    Args:
        extractor: as of :class:`FVD`.

    Raises:
        SoraError: as :class:`FVD`.

    Example:
        >>> import lightning_sora as ls
        >>> world = ls.World("tiny")
        >>> clips = [world.render(world.facts(i), frames=9, height=32, width=32, fps=8) for i in range(8)]
        >>> kvd = ls.KVD("world")
        >>> kvd.update(clips[:4], real=True, fps=8)
        >>> kvd.update(clips[4:], real=False, fps=8)
        >>> sorted(kvd.compute())
        ['high', 'low', 'stderr', 'value']
    """

    def __init__(self, extractor: str | Extractor) -> None:
        super().__init__(EXTRACTORS.create(extractor) if isinstance(extractor, str) else extractor)
