"""Files of text embeddings: safetensors of a tensor per caption, with their encoder and a digest of each.

Of captions that were encoded with their padding, a file has the embeddings of that too, and says how many are of text;
of those with a vector of the whole, that is a tensor beside.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.text_base import TextContext

logger = logging.getLogger(__name__)

POOLED = ".pooled"  # behind the key of a caption, of its vector


class Embedded(NamedTuple):
    """What is kept of a caption, on the CPU.

    Attributes:
        rows: its embeddings.
        tokens: how many of them, the first, are of text and not of padding; None where there is no padding.
        pooled: a vector of the whole; None where the encoder makes none.
    """

    rows: Float[Tensor, "text_tokens dim"]
    tokens: int | None = None
    pooled: Float[Tensor, " pooled_dim"] | None = None


def context_of(embedded: Sequence[Embedded], device: torch.device) -> TextContext:
    """The context of a batch of captions, in float32."""
    rows = nn.utils.rnn.pad_sequence([one.rows for one in embedded], batch_first=True).to(device).float()
    lengths = torch.tensor([len(one.rows) if one.tokens is None else one.tokens for one in embedded], device=device)
    pooled = [one.pooled for one in embedded if one.pooled is not None]
    return TextContext(
        rows,
        torch.arange(rows.shape[1], device=device) < lengths[:, None],
        torch.stack(pooled).to(device).float() if pooled else None,
        all(one.tokens is not None for one in embedded),
    )


def embedded_of(context: TextContext) -> list[Embedded]:
    """What is kept of each caption of a context."""
    found = []
    for i, (rows, mask) in enumerate(zip(context.embeddings, context.mask, strict=True)):
        pooled = None if context.pooled is None else context.pooled[i].cpu()
        kept = (rows, int(mask.sum())) if context.padded else (rows[mask], None)
        found.append(Embedded(kept[0].cpu(), kept[1], pooled))
    return found


#: What files say of themselves that were written before embeddings had digests.
UNDIGESTED = frozenset({"encoder", "format"})


def caption_key(caption: str) -> str:
    """What a caption is filed under."""
    return hashlib.blake2b(caption.encode("utf-8", errors="replace"), digest_size=16).hexdigest()


def _digest(embedded: Embedded) -> str:
    digest = hashlib.sha256()
    for value in (embedded.rows, embedded.pooled):
        if value is not None:
            content = value.contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode() + content)
    if embedded.tokens is not None:
        digest.update(f"{embedded.tokens} of text".encode())
    return digest.hexdigest()[:32]


def embeddings_bytes(embeddings: Mapping[str, Embedded], fingerprint: str) -> bytes:
    """A safetensors file of embeddings, with the digest of each."""
    told: dict[str, Any] = {"encoder": fingerprint, "sha256": {key: _digest(one) for key, one in embeddings.items()}}
    if tokens := {key: one.tokens for key, one in embeddings.items() if one.tokens is not None}:
        told["tokens"] = tokens
    tensors = {key: one.rows.contiguous() for key, one in embeddings.items()}
    tensors |= {key + POOLED: one.pooled.contiguous() for key, one in embeddings.items() if one.pooled is not None}
    return save(tensors, metadata={"lightning_sora": json.dumps(told, sort_keys=True)})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except (SafetensorError, UnicodeDecodeError) as problem:
        raise _damaged(path, str(problem)) from problem


def _damaged(path: Path, reason: str) -> SoraError:
    return SoraError(f"{path} is damaged ({' '.join(reason.split())}); delete it, and its captions are encoded again")


def stored_keys(path: Path) -> list[str]:
    """What a file has embeddings of."""
    with _opened(path) as content:
        return [key for key in content.keys() if not key.endswith(POOLED)]  # noqa: SIM118 (it is no mapping)


def read_embedding(path: Path, key: str) -> Embedded:
    """One embedding of a file, as it was written; one without a digest is taken as it is.

    Raises:
        SoraError: it is damaged.
    """
    with _opened(path) as content:
        rows = content.get_tensor(key)
        pooled = content.get_tensor(key + POOLED) if key + POOLED in content.keys() else None  # noqa: SIM118
        told = content.metadata() or {}
    if set(told) <= UNDIGESTED:
        return Embedded(rows, None, pooled)
    try:
        said = json.loads(told["lightning_sora"])
        expected, tokens = said["sha256"][key], said.get("tokens", {}).get(key)
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        raise _damaged(path, "its digests cannot be read") from problem
    if expected != _digest(embedded := Embedded(rows, tokens, pooled)):
        raise _damaged(path, "an embedding is not what was written")
    return embedded


def whole_keys(path: Path) -> set[str]:
    """What a file has embeddings of, each as it was written; nothing of a damaged one, which is told."""
    try:
        keys = stored_keys(path)
        for key in keys:
            read_embedding(path, key)
    except SoraError as problem:
        logger.warning("%s: now", problem)
        return set()
    return set(keys)
