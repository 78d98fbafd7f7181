"""What of a tensor goes into a fingerprint."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    """Of hashlib."""

    def update(self, content: bytes, /) -> None: ...


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor of any shape, device and precision, as they lie in memory.

    Example:
        >>> tensor_bytes(torch.tensor([1, 2], dtype=torch.uint8))
        b'\\x01\\x02'
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def add_tensor(digest: Digest, name: str, tensor: Tensor) -> None:
    """Takes the name, the precision, the shape and the values of a tensor into a digest.

    Example:
        >>> import hashlib
        >>> digest = hashlib.blake2b(digest_size=4)
        >>> add_tensor(digest, "gain", torch.ones(2))
        >>> whole = b"gain torch.float32 (2,)" + 2 * b"\\0\\0\\x80?"
        >>> digest.digest() == hashlib.blake2b(whole, digest_size=4).digest()
        True
    """
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(tensor))
