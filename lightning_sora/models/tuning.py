"""Tunings: which parameters of a denoiser learn, and what it was before they did."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.adapted import without_adapters
from lightning_sora.models.denoisers.base import Denoiser
from lightning_sora.models.digests import add_tensor
from lightning_sora.models.lora import (
    Size,
    add_lora,
    check_size,
    ends_of,
    fill,
    inject,
    targeted,
    usual_targets,
)
from lightning_sora.models.lora_files import matched, read_lora
from lightning_sora.registry import Registry
from lightning_sora.specs import Spec


class Tuning(ABC):
    """Which parameters of a denoiser learn.

    Attributes:
        whole: whether all do, so that nothing is left of what it began as.
        dropout: of what goes into what is added, in training.
    """

    whole: bool = False
    dropout: float = 0.0

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}  # initial values of what has none that were pretrained

    @abstractmethod
    def begin(self, denoiser: Denoiser, seed: int = 0, taken: Collection[str] = ()) -> None:
        """Freezes what does not learn, and puts in what is added, in place; once.

        Args:
            seed: of initial values of what is added.
            taken: names of the parameters whose values were taken over from another training.

        Raises:
            SoraError: there is nothing to learn.
        """

    @contextmanager
    def base(self, denoiser: Denoiser) -> Iterator[None]:
        """Computes as before any training, on leaving as after it."""
        parameters = dict(denoiser.named_parameters())
        kept = {name: parameters[name].data for name in self._before}
        try:
            for name, value in self._before.items():
                parameters[name].data = value.to(kept[name])
            yield
        finally:
            for name, value in kept.items():
                parameters[name].data = value

    def spec_of_its_own(self) -> str:
        """The spec that makes the same parameters learn, once their values are kept elsewhere."""
        return "full" if self.whole else "fresh"

    def _remember(self, denoiser: Denoiser, names: Collection[str]) -> None:
        self._before = {name: p.detach().clone() for name, p in denoiser.named_parameters() if name in names}


TUNINGS: Registry[Tuning] = Registry("tuning")


@TUNINGS.register("full")
class Full(Tuning):
    """All parameters learn."""

    whole = True

    def begin(self, denoiser: Denoiser, seed: int = 0, taken: Collection[str] = ()) -> None:
        """Nothing is to be done."""

    @contextmanager
    def base(self, denoiser: Denoiser) -> Iterator[None]:
        raise SoraError("tuning='full' keeps nothing of what the model began as; take 'lora' or 'fresh'")
        yield


@TUNINGS.register("fresh")
class Fresh(Tuning):
    """The parameters learn that no pretrained weights stand behind: those of attention blocks that were put in."""

    def begin(self, denoiser: Denoiser, seed: int = 0, taken: Collection[str] = ()) -> None:
        fresh = _fresh(denoiser, taken)
        if not fresh:
            why = (
                "all of its parameters are pretrained; put in a block that has parameters of its own by model.attention"
                if denoiser.pretrained
                else "it begins with no weights of another; name such by model.denoiser or model.init_from"
            )
            raise SoraError(f"tuning='fresh' finds nothing to train in this {type(denoiser).__name__}: {why}")
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(name in fresh)
        self._remember(denoiser, fresh)


@TUNINGS.register("lora")
class Lora(Tuning):
    """Low-rank adapters learn (LoRA; Hu et al. 2021), and what no pretrained weights stand behind.

    Args:
        rank: of the adapters; None for 16, or that of ``init``.
        alpha: what they are multiplied by, times the rank; None for the rank, or that of ``init``.
        targets: ends of the names of the linear layers that they go to; None for those that the denoiser names, or
            those of ``init``.
        dropout: of what goes into an adapter, in training.
        init: a file of adapters to begin with; None for new ones, which change nothing at the start.

    Raises:
        SoraError: a value out of range, or one that is not that of ``init``.
    """

    def __init__(
        self,
        rank: int | None = None,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        dropout: float = 0.0,
        init: str | None = None,
    ) -> None:
        super().__init__()
        check_size(16 if rank is None else rank, alpha, dropout)
        self.rank, self.alpha, self.targets, self.dropout, self.init = rank, alpha, targets, dropout, init

    def begin(self, denoiser: Denoiser, seed: int = 0, taken: Collection[str] = ()) -> None:
        fresh = _fresh(denoiser, taken)
        if self.init is None:
            self.rank = 16 if self.rank is None else self.rank
            self.alpha = float(self.rank if self.alpha is None else self.alpha)
            self.targets = tuple(usual_targets(denoiser) if self.targets is None else self.targets)
            add_lora(denoiser, self.rank, self.alpha, self.targets, self.dropout, seed)
        else:
            self._begin_with(denoiser, self.init)
        self._remember(denoiser, fresh)
        for name, parameter in denoiser.named_parameters():
            if name in fresh:
                parameter.requires_grad_(True)

    def _begin_with(self, denoiser: Denoiser, init: str) -> None:
        found = matched(read_lora(init), denoiser)
        sizes = {adapter.size for adapter in found.values()}
        if len(sizes) > 1:
            told = ", ".join(f"rank {rank} and alpha {alpha:g}" for rank, alpha in sorted(sizes)[:3])
            raise SoraError(f"LoRA {init} has adapters of several sizes ({told}); one that is trained on has one size")
        (size,) = sizes
        asked = Size(size.rank if self.rank is None else self.rank, size.alpha if self.alpha is None else self.alpha)
        if asked != size:
            raise SoraError(
                f"LoRA {init} has rank={size.rank} and alpha={size.alpha:g}, and rank={asked.rank} and "
                f"alpha={asked.alpha:g} are asked for; leave them out for those of the file"
            )
        if self.targets is not None and (differ := set(targeted(denoiser, self.targets)) ^ set(found)):
            raise SoraError(
                f"LoRA {init} is of other layers than the targets that are asked for, such as {min(differ)!r}; leave "
                "targets out for those of the file"
            )
        self.rank, self.alpha, self.targets = size.rank, size.alpha, ends_of(denoiser, found)
        inject(denoiser, dict.fromkeys(found, size), self.dropout)
        fill(denoiser, found)

    @contextmanager
    def base(self, denoiser: Denoiser) -> Iterator[None]:
        with super().base(denoiser), without_adapters(denoiser):
            yield

    def spec_of_its_own(self) -> str:
        """Without the file that it began with."""
        options = {"rank": self.rank, "alpha": self.alpha, "targets": self.targets, "dropout": self.dropout}
        return str(Spec("lora", {name: value for name, value in options.items() if value is not None}))


def _fresh(denoiser: Denoiser, taken: Collection[str]) -> frozenset[str]:
    """What has values that no training stands behind, in a denoiser that has others as well."""
    if denoiser.pretrained:
        return denoiser.fresh()
    return denoiser.fresh() - frozenset(taken) if taken else frozenset()


def frozen(denoiser: Denoiser) -> dict[str, Tensor]:
    """The parameters that do not learn, by name; those beneath an adapter by their names without it."""
    return {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in denoiser.named_parameters()
        if not parameter.requires_grad
    }


def fingerprint(weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits over weights and their names."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(weights.items()):
        add_tensor(digest, name, value)
    return digest.hexdigest()
