"""What a source of clips must do."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.registry import Registry, Spec
from lightning_sora.spacetime import Crop, PatchSize


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before its pixels are read.

    Attributes:
        id: stable across runs; the key of all the clip's randomness.
        frames, height, width: as shown, after rotation.
        fps: frames per second.
        caption: what to train on; empty where there is none.
        split: the split that the source's own metadata assigns, if any.
        alternatives: further captions of equal standing; one of all is drawn at every visit.
        source: which of the sources of a mixture it came from; empty where there is one only.
        content: tells the clip from another of the same id, such as its bytes in number; empty where that is not known.
    """

    id: str
    frames: int
    height: int
    width: int
    fps: float
    caption: str = ""
    split: str | None = None
    alternatives: tuple[str, ...] = ()
    source: str = ""
    content: str = ""


@dataclass(frozen=True)
class Clip:
    """One window of a clip, decoded or as latents.

    Attributes:
        video: pixels, uint8 with 3 channels; or scaled latents, float, of a source whose ``space`` is "latent".
        alternatives: see :class:`ClipInfo`.
    """

    video: Shaped[Tensor, "frames height width channels"]
    caption: str
    fps: float
    facts: Mapping[str, Any] | None = None
    alternatives: tuple[str, ...] = ()


#: How methods of a source are called: what they are given in order, and by name.
CALLS = {"load": (("index", "crop"), ("generator",)), "prepare": (("crops",), ()), "refusal": (("index", "crop"), ())}


class Source(ABC):
    """A sequence of clips: cheap to describe, costly to load. :mod:`.contract` says what all must keep.

    Builders get ``root``, ``split`` (train, val, test) and ``seed`` from the framework.

    Attributes:
        infos: of every clip. Frames, height and width count pixels, also where the clips are latents.
        space: what ``load`` yields.
        vae_hash: of the VAE that made the latents; None for pixels.
        vae_stride: pixels per position of the latents; 1 for pixels.
        unchanging: whether ``load`` draws nothing, so that a clip has equal pixels at every visit of equal size and
            rate.
    """

    infos: Sequence[ClipInfo]
    space: Literal["pixel", "latent"] = "pixel"
    vae_hash: str | None = None
    vae_stride: PatchSize = PatchSize(1, 1, 1)
    unchanging: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, (names, given) in CALLS.items():
            try:
                inspect.signature(getattr(cls, name)).bind("self", *names, **dict.fromkeys(given))
            except TypeError as problem:
                wanted = ", ".join(("self", *names, *(("*", *given) if given else ())))
                raise SoraError(
                    f"{cls.__name__}.{name} cannot be called as every source is ({problem}); write "
                    f"def {name}({wanted}), where a crop has size.frames, size.height, size.width and fps"
                ) from problem

    def prepare(self, crops: Mapping[int, Crop]) -> None:  # noqa: B027 (most need none)
        """Does once what would slow down loading, if there is such a thing.

        Args:
            crops: the windows to come, by the index of the clip.
        """

    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        """The clips of an epoch of training, shuffled, each with how often it was visited before."""
        drawn = torch.randperm(len(self.infos), generator=coarse_generator(seed, "order", epoch)).tolist()
        return [(index, epoch) for index in drawn]

    @abstractmethod
    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        """Reads a window of exactly the asked size, in pixels.

        Args:
            generator: where every random choice (first frame, place of the cut) is drawn from.

        Raises:
            DecodeError: the clip cannot be read.
        """

    def told_captions(self) -> Iterator[str]:
        """Every caption that ``load`` may give, as far as it is known before a clip is read; made one by one."""
        for info in self.infos:
            yield from (info.caption, *info.alternatives)

    def refusal(self, index: int, crop: Crop) -> str | None:
        """Why a window would not be loaded, in words, as far as that shows without reading it."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what the source would yield: identical data, identical fingerprint."""


SOURCES: Registry[Source] = Registry(
    "source", name="source", given=("root", "split", "seed"), contract="lightning_sora.data.sources.contract"
)


def create_source(spec: str | Mapping[str, Any], split: str, seed: int, root: str | None = None) -> Source:
    """A source whose spec may also say its root, as in ``folder(root='images')``.

    Args:
        root: where the spec says none.

    Raises:
        SoraError: unknown, or it cannot be made.
    """
    asked = SOURCES.resolve(spec)
    options = dict(asked.options)
    root = options.pop("root", root)
    return SOURCES.create(Spec(asked.name, options), root=root, split=split, seed=seed)
