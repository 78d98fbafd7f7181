"""Files of text embeddings: safetensors of a tensor per caption, with their encoder and a digest of each."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_sora.errors import SoraError

logger = logging.getLogger(__name__)


def caption_key(caption: str) -> str:
    """What a caption is filed under."""
    return hashlib.blake2b(caption.encode("utf-8", errors="replace"), digest_size=16).hexdigest()


def _digest(embedding: Tensor) -> str:
    content = embedding.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(f"{embedding.dtype} {tuple(embedding.shape)} ".encode() + content).hexdigest()[:32]


def embeddings_bytes(embeddings: Mapping[str, Tensor], fingerprint: str) -> bytes:
    """A safetensors file of embeddings, with the digest of each."""
    told = {"encoder": fingerprint, "sha256": {key: _digest(embedding) for key, embedding in embeddings.items()}}
    tensors = {key: embedding.contiguous() for key, embedding in embeddings.items()}
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
        return list(content.keys())


def read_embedding(path: Path, key: str) -> Tensor:
    """One embedding of a file, as it was written; one without a digest is taken as it is.

    Raises:
        SoraError: it is damaged.
    """
    with _opened(path) as content:
        embedding = content.get_tensor(key)
        told = (content.metadata() or {}).get("lightning_sora")
    try:
        expected = None if told is None else json.loads(told)["sha256"][key]
    except (ValueError, LookupError, TypeError) as problem:
        raise _damaged(path, "its digests cannot be read") from problem
    if expected is not None and expected != _digest(embedding):
        raise _damaged(path, "an embedding is not what was written")
    return embedding


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
