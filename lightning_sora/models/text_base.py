"""What every text encoder is, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_sora.registry import Registry


@dataclass(frozen=True)
class TextContext:
    """The encoded captions of a batch.

    Attributes:
        embeddings: padded at the end.
        mask: True where there is text; at least once per clip.
        pooled: a vector of the whole caption, for denoisers that ask for one; None where the encoder makes none.
        padded: whether what is beyond the mask are embeddings of padding, which text was encoded together with and
            some denoisers see; otherwise nothing is to be made of it.
    """

    embeddings: Float[Tensor, "clips text_tokens dim"]
    mask: Bool[Tensor, "clips text_tokens"]
    pooled: Float[Tensor, "clips pooled_dim"] | None = None
    padded: bool = False

    @classmethod
    def join(cls, contexts: Sequence[TextContext]) -> TextContext:
        """The clips of several batches in one, padded to the longest text."""
        length = max(context.mask.shape[1] for context in contexts)
        padding = [length - context.mask.shape[1] for context in contexts]
        pooled = [c.pooled for c in contexts if c.pooled is not None]
        return cls(
            torch.cat([F.pad(c.embeddings, (0, 0, 0, more)) for c, more in zip(contexts, padding, strict=True)]),
            torch.cat([F.pad(c.mask, (0, more)) for c, more in zip(contexts, padding, strict=True)]),
            torch.cat(pooled) if pooled else None,
            all(context.padded for context in contexts),
        )


class TextEncoder(nn.Module, ABC):
    """Encodes captions; the empty caption is the unconditional one.

    Attributes:
        dim: width of the embeddings.
        trainable: whether it learns together with the DiT.
        padded: tokens that every caption is padded to, and encoded with: its padding is seen, and has embeddings; None
            where padding is masked.
        pooled_dim: width of the vector of a whole caption that it gives beside; None where it gives none.
    """

    dim: int
    trainable: bool
    padded: int | None = None
    pooled_dim: int | None = None

    @abstractmethod
    def forward(self, captions: Sequence[str]) -> TextContext:
        """Encodes captions of any length; each, the empty one too, has at least one unmasked token."""

    @abstractmethod
    def probe(self, tokens: int) -> Any:
        """Encodes a made-up caption of so many tokens, padding included, for its FLOPs to be counted."""

    def check_captions(self, captions: Iterable[str]) -> None:
        """Refuses captions that it cannot encode, before any is trained on; most encode all.

        Raises:
            SoraError: a caption that it cannot encode.
        """

    @torch.no_grad()
    def length(self, captions: Sequence[str]) -> int:
        """Tokens of each row of :meth:`forward`, padding included."""
        return self(captions).mask.shape[1]


TEXT_ENCODERS: Registry[TextEncoder] = Registry(
    "text encoder", name="text_encoder", contract="lightning_sora.models.text_contract"
)
