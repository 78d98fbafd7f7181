"""Several sources as one, in stated shares: images beside videos, one data set beside another."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from lightning_sora.data.sources.base import SOURCES, Clip, ClipInfo, Source, create_source
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import Crop


@SOURCES.register("mixture")
class MixtureSource(Source):
    """Draws from several sources by weight.

    An epoch of training has ``clips`` visits, of which every source gets its share, to a whole clip. Each source is
    gone through without repetition, shuffled anew each time round, on from where the epoch before left off: so within
    a source all clips are seen equally often, and a small one with a large weight comes round more often. Validation
    and test hold every clip of every source once; scores are logged for each source too.

    Args:
        root: not taken: each source names its own.
        sources: name -> spec; a source on disk takes its folder as an option, as in "folder(root='images')".
        weights: name -> share, in any unit; None: as many visits as each has clips.
        clips: visits of an epoch; None: as many as there are clips.

    Raises:
        SoraError: names that do not agree, weights that are not positive, latents beside pixels.
    """

    def __init__(
        self,
        *,
        root: str | None,
        split: str,
        seed: int,
        sources: dict[str, str],
        weights: dict[str, float] | None = None,
        clips: int | None = None,
    ) -> None:
        if root is not None:
            raise SoraError(f"a mixture has no root of its own; drop root={root!r} and give one to its sources")
        if not sources or not isinstance(sources, Mapping):
            raise SoraError("a mixture needs sources={'name': 'spec', ...}")
        shares = None if weights is None else list(weights.values()) if isinstance(weights, Mapping) else [None]
        numbers = shares is None or all(isinstance(share, int | float) and share > 0 for share in shares)
        if weights is not None and (not numbers or set(weights) != set(sources)):
            raise SoraError(
                f"weights={weights} must give a positive number for each of {', '.join(sources)}, and no other; to "
                "leave a source out, take it out of sources"
            )
        self.parts = {name: create_source(spec, split, seed) for name, spec in sources.items()}
        self.parts = {name: part for name, part in self.parts.items() if part.infos or split == "train"}
        empty = [name for name, part in self.parts.items() if not part.infos]
        if empty or not self.parts:
            raise SoraError(f"the sources {', '.join(empty or sources)} have no clips in split {split!r}; add some")
        spaces = {name: (part.space, part.vae_hash, part.vae_stride) for name, part in self.parts.items()}
        if len(set(spaces.values())) > 1:
            told = ", ".join(f"{name}: {space} {vae or ''}".strip() for name, (space, vae, _) in spaces.items())
            raise SoraError(f"the sources of a mixture must all be pixels, or latents of one VAE; they are {told}")
        self.space, self.vae_hash, self.vae_stride = next(iter(spaces.values()))
        self.unchanging = all(part.unchanging for part in self.parts.values())
        self.infos: Sequence[ClipInfo] = [
            replace(info, id=f"{name}/{info.id}", source=name)
            for name, part in self.parts.items()
            for info in part.infos
        ]
        self._firsts: dict[str, int] = {}
        first = 0
        for name, part in self.parts.items():
            self._firsts[name] = first
            first += len(part.infos)
        if clips is not None and clips < len(self.parts):
            raise SoraError(f"clips={clips} must be at least one for each of {len(self.parts)} sources")
        parts = {name: len(part.infos) if weights is None else weights[name] for name, part in self.parts.items()}
        self.visits = apportion(parts, len(self.infos) if clips is None else clips)

    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        members: list[tuple[int, int]] = []
        for name, visits in self.visits.items():
            length = len(self.parts[name].infos)
            for turn in range(epoch * visits // length, -(-(epoch + 1) * visits // length)):
                shuffled = torch.randperm(length, generator=coarse_generator(seed, "order", name, turn)).tolist()
                begin, end = max(0, epoch * visits - turn * length), min(length, (epoch + 1) * visits - turn * length)
                members += [(self._firsts[name] + index, turn) for index in shuffled[begin:end]]
        mixed = torch.randperm(len(members), generator=coarse_generator(seed, "mixture", epoch)).tolist()
        return [members[i] for i in mixed]

    def prepare(self, crops: Mapping[int, Crop]) -> None:
        for name, part in self.parts.items():
            first = self._firsts[name]
            own = range(first, first + len(part.infos))
            part.prepare({index - first: crops[index] for index in own if index in crops})

    def load(self, index: int, crop: Crop, *, generator: torch.Generator) -> Clip:
        name = self.infos[index].source
        own = index - self._firsts[name]
        return self.parts[name].load(own, crop, generator=generator)

    def told_captions(self) -> Iterator[str]:
        return itertools.chain.from_iterable(part.told_captions() for part in self.parts.values())

    def refusal(self, index: int, crop: Crop) -> str | None:
        name = self.infos[index].source
        return self.parts[name].refusal(index - self._firsts[name], crop)

    def fingerprint(self) -> str:
        parts = [f"{name} {self.visits[name]} {part.fingerprint()}" for name, part in self.parts.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in proportion to shares that sum to ``total``, by largest remainders; each at least 1."""
    whole = sum(shares.values())
    exact = {name: total * share / whole for name, share in shares.items()}
    parts = {name: max(1, int(value)) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))
    for name in itertools.cycle(by_remainder):
        if sum(parts.values()) >= total:
            break
        parts[name] += 1
    while sum(parts.values()) > total:
        parts[max(parts, key=lambda name: (parts[name], name))] -= 1
    return parts
