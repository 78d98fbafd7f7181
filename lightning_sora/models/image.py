"""ImageEncoder: a frozen image encoder of transformers, for denoisers that attend to the first frame, or the last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lightning_sora.errors import SoraError, first_line
from lightning_sora.models.digests import tensor_bytes
from lightning_sora.models.text_hf import refuse_missing_folder
from lightning_sora.models.transformers_folder import check_folder_fits


class ImageEncoder(nn.Module):
    """The last hidden states but one of a CLIP image tower, of an image that is brought to its size, as Wan 2.1's
    image-to-video models attend to them (Wan Team 2025, arXiv:2503.20314, section 5.1).

    Its weights belong to no checkpoint: it records their fingerprint, and refuses to load beside others.

    Attributes:
        dim, tokens: width of the embeddings, and how many there are of an image.

    Args:
        name: a folder that ``CLIPVisionModel.save_pretrained`` wrote, with a preprocessor_config.json in it or in
            ``image_processor`` beside it, as pipelines of diffusers have them; or a name on a hub.

    Raises:
        SoraError: transformers is not installed, nothing can be read there, or more than this machine can hold.
    """

    _device: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        tower, self.processor = _load(name)
        self._hidden: tuple[Any] = (tower.requires_grad_(False).eval(),)  # out of reach of parameters and state
        self.dim = int(tower.config.hidden_size)
        self.tokens = (tower.config.image_size // tower.config.patch_size) ** 2 + 1  # of patches, and of the whole
        self.register_buffer("_device", torch.empty(0), persistent=False)
        digest = hashlib.blake2b(repr(sorted(self.processor.to_dict().items())).encode(), digest_size=8)
        for key, value in sorted(tower.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(tensor_bytes(value))
        self._fingerprint = digest.hexdigest()

    def fingerprint(self) -> str:
        """A hash of the weights and of what is done to images before."""
        return self._fingerprint

    @torch.no_grad()
    def forward(self, images: Sequence[UInt8[Tensor, "height width 3"]]) -> Float[Tensor, "images tokens dim"]:
        """Embeds images of any size."""
        pixels = self.processor(images=[image.cpu().numpy() for image in images], return_tensors="pt").pixel_values
        with torch.autocast(self._device.device.type, enabled=False):  # as the VAE: an image has one embedding
            return self._hidden[0](pixels.to(self._device.device), output_hidden_states=True).hidden_states[-2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageEncoder:
        super()._apply(fn, recurse)
        self._hidden[0].to(self._device.device)
        return self

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return torch.tensor(list(self._fingerprint.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: UInt8[Tensor, " bytes"]) -> None:
        recorded = bytes(state.tolist()).decode()
        if recorded != self._fingerprint:
            raise SoraError(
                f"the model was trained with the image encoder {recorded}, but {self.name!r} is {self._fingerprint}; "
                "give the same weights"
            )


def _load(name: str) -> tuple[Any, Any]:
    try:
        from transformers import CLIPImageProcessor, CLIPVisionModel
    except ImportError as problem:
        raise SoraError(
            "an image encoder needs transformers, which is not installed: pip install 'lightning-sora[hf]'"
        ) from problem
    refuse_missing_folder(name, "image encoder")
    check_folder_fits(name, torch.float32)
    try:
        tower = CLIPVisionModel.from_pretrained(name, dtype=torch.float32)
        try:
            return tower, CLIPImageProcessor.from_pretrained(name)
        except OSError:
            return tower, CLIPImageProcessor.from_pretrained(f"{name.rstrip('/')}/../image_processor")
    except (OSError, ValueError) as problem:
        reason = first_line(problem)
        raise SoraError(
            f"cannot load the image encoder {name!r} ({reason}); give a folder that CLIPVisionModel.save_pretrained "
            "wrote, with its preprocessor_config.json"
        ) from problem
