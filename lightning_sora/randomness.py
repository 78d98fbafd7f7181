"""Keyed randomness: every draw that matters is a function of (seed, purpose, keys).

A global generator makes every later draw depend on every earlier one, so that adding a layer to
one arm of an experiment changes the noise and the data order of that arm too. Here a draw depends
on what it is *for*: the batch size, the number of workers or ranks and the point of resumption do
not enter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_sora.errors import SoraError

Key = int | str


def stream_seed(seed: int, purpose: str, *keys: Key) -> int:
    """A 63-bit seed for one stream: the first bytes of BLAKE2b over the key's text."""
    return int.from_bytes(hashlib.blake2b(_text(seed, purpose, keys), digest_size=8).digest(), "little") >> 1


def _text(seed: int, purpose: str, keys: Sequence[Key]) -> bytes:
    return "\x1f".join([str(int(seed)), purpose, *(f"{type(k).__name__[0]}{k}" for k in keys)]).encode()


def generator(seed: int, purpose: str, *keys: Key) -> torch.Generator:
    """A CPU generator of one stream, for example ``(seed, "noise", clip_id, visit)``.

    Draws are made on the CPU, so that a run on any device sees the same numbers. The whole state of the Mersenne
    twister is drawn from the key's text (by SHAKE-128): torch's ``manual_seed`` uses 32 bits of a seed, so that of
    300,000 clips some ten pairs would share their noise.
    """
    words = hashlib.shake_128(_text(seed, purpose, keys)).digest(4 * 624)
    state = _fresh_state().copy()
    state[_WORDS] = np.frombuffer(words, dtype="<u4").astype(np.uint64).view(np.uint8)
    return torch.Generator().set_state(torch.from_numpy(state))


def coarse_generator(seed: int, purpose: str, *keys: Key) -> torch.Generator:
    """A CPU generator of a stream from 32 bits of its seed: for what may be shared by chance, as the order of an epoch
    or the size of a clip may."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *keys))


_WORDS = slice(24, 24 + 8 * 624)  # of the state of torch's Mersenne twister: behind seed, left, seeded, next


@cache
def _fresh_state() -> NDArray[np.uint8]:
    """The state of a generator that has drawn nothing.

    Raises:
        RuntimeError: this torch keeps its state otherwise.
    """
    state = torch.Generator().manual_seed(1).get_state().numpy()
    known: Any = np.random.RandomState(1).get_state(legacy=True)
    if not np.array_equal(state[_WORDS].view(np.uint64), np.asarray(known[1], dtype=np.uint64)):
        raise RuntimeError(f"torch {torch.__version__} keeps the state of generators in another form; report this")
    return state


def normal_per_clip(
    sizes: Sequence[tuple[int, ...]],
    seed: int,
    purpose: str,
    keys: Sequence[tuple[Key, ...]],
) -> list[Float[Tensor, ...]]:
    """One standard normal tensor per clip, each from its own stream.

    Args:
        sizes: the shape of each clip's draw.
        keys: the keys of each clip's stream, usually ``(clip_id, visit)``.
    """
    return [torch.randn(size, generator=generator(seed, purpose, *key)) for size, key in zip(sizes, keys, strict=True)]


def uniform_per_clip(seed: int, purpose: str, keys: Sequence[tuple[Key, ...]]) -> Float[Tensor, " clips"]:
    """One uniform number in [0, 1) per clip, each from its own stream."""
    return torch.stack([torch.rand((), generator=generator(seed, purpose, *key)) for key in keys])


@torch.no_grad()
def initialize(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Draws every parameter anew from the stream (seed, "init", parameter name), of 32 bits: of 1,000 names two share
    their draws with a chance of 1 in 10,000.

    Two models that share a parameter's name and shape share its initial value, whatever else
    differs between them. Each owner of parameters must have ``reset_parameters``.

    Args:
        module: initialised in place.
        prefix: put before the names, so that ``initialize(net, seed, "net.")`` equals what the
            whole model gives ``net``.

    Raises:
        SoraError: an owner of parameters has no ``reset_parameters``.
    """
    for owner_name, owner in module.named_modules():
        own = dict(owner.named_parameters(recurse=False))
        if not own:
            continue
        reset: Any = getattr(owner, "reset_parameters", None) or getattr(owner, "_reset_parameters", None)
        if reset is None:
            raise SoraError(
                f"{type(owner).__name__} at {owner_name!r} owns parameters {sorted(own)} but has no "
                "reset_parameters(); add one, so that its initial values can be keyed by name"
            )
        drawn: dict[str, Tensor] = {}
        for name, parameter in own.items():
            full_name = f"{prefix}{owner_name}.{name}" if owner_name else f"{prefix}{name}"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed(seed, "init", full_name))
                reset()
            drawn[name] = parameter.detach().clone()
        for name, parameter in own.items():
            parameter.copy_(drawn[name])
