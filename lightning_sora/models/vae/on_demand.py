"""The network of a pretrained VAE that is read when something is first encoded or decoded, and not before."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from lightning_sora.errors import SoraError, some
from lightning_sora.models.diffusers_folder import CONFIG, Stored, load, skeleton, weights_of
from lightning_sora.models.digests import tensor_bytes
from lightning_sora.models.safetensors_files import read_tensor

log = logging.getLogger(__name__)


class OnDemand(nn.Module):
    """A module of diffusers whose weights stay in their files until it is run.

    They belong to no parameters, no ``state_dict`` and no checkpoint of ours: of them a state holds a digest alone, and
    refuses to load beside other weights.

    Args:
        stored: where they are, a folder.

    Attributes:
        config: what diffusers makes of its config.json.

    Raises:
        SoraError: a name on a hub, or files that do not hold what its config.json describes.
    """

    _like: Tensor

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        if not Path(stored.place).is_dir():
            raise SoraError(
                f"on_demand=True reads a folder, and {stored.path!r} is a name on a hub; download it, and give its "
                "folder"
            )
        self.stored = stored
        self._prepare: Callable[[Any], None] = _leave
        shape = skeleton(stored.config)
        self.config: Any = shape.config
        self.shape = (shape,)  # on no device, and out of reach of parameters()
        self._files = weights_of(Path(stored.place))
        self._check(stored)
        self._hidden: tuple[nn.Module, ...] = ()
        self._digest: str | None = None
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def _check(self, stored: Stored) -> None:
        expected = {name: tuple(value.shape) for name, value in self.shape[0].state_dict().items()}
        found = {name: header.shape for name, (_, header) in self._files.items()}
        differ = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if differ:
            raise SoraError(
                f"the files of {stored.path!r} do not hold the weights of the {stored.name} that its {CONFIG} "
                f"describes: {some(differ)}; download it again, or leave out on_demand=True, where "
                "diffusers takes names of before"
            )

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return bool(self._hidden)

    def prepare(self, call: Callable[[Any], None]) -> None:
        """Has the network passed to a function once it is read."""
        self._prepare = call

    def network(self) -> Any:
        """The network itself, read now if it was not."""
        if not self._hidden:
            log.info("reading the weights of %s: something is encoded or decoded", self.stored.path)
            made = load(self.stored).requires_grad_(False)
            self._prepare(made)
            self._hidden = (made.to(self._like),)
        return self._hidden[0]

    def encode(self, video: Tensor) -> Any:
        """As the network does."""
        return self.network().encode(video)

    def decode(self, latent: Tensor, **given: Any) -> Any:
        """As the network does."""
        return self.network().decode(latent, **given)

    def buffers_of_file(self, *names: str) -> Mapping[str, Tensor]:
        """Those of some tensors that the files hold."""
        return {name: self._tensor(name) for name in names if name in self._files}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with its name, in the order of names, read one at a time where they are not in memory."""
        state = self._hidden[0].state_dict() if self._hidden else None
        for name in sorted(self._files):
            yield name, self._tensor(name) if state is None else state[name]

    def _tensor(self, name: str) -> Tensor:
        value = read_tensor(self._files[name][0], name)
        return value.float().to(self._like.dtype) if value.is_floating_point() else value

    # What nn.Module must know of weights that it does not own.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnDemand:
        super()._apply(fn, recurse)
        for made in self._hidden:
            made.to(self._like)
        return self

    def _own_digest(self) -> str:
        if self._digest is None:
            digest = hashlib.blake2b(digest_size=8)
            for name in sorted(self._files):  # in float32, whatever it runs in
                value = read_tensor(self._files[name][0], name)
                digest.update(f"{name} {tuple(value.shape)}".encode())
                digest.update(tensor_bytes(value.float()))
            self._digest = digest.hexdigest()
        return self._digest

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return torch.tensor(list(self._own_digest().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: UInt8[Tensor, " bytes"]) -> None:
        recorded = bytes(state.tolist()).decode()
        if recorded != self._own_digest():
            raise SoraError(
                f"the model was trained on latents of a VAE of other weights ({recorded}) than {self.stored.path!r} "
                f"holds ({self._own_digest()}); give the folder of those weights"
            )


def _leave(network: Any) -> None:
    """Nothing is to be done to it."""
