"""What the extractors of other people's networks share: loading that never guesses, and plain arithmetic."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_sora.errors import SoraError, WeightsMissing, first_line
from lightning_sora.metrics.digests import file_sha256
from lightning_sora.sealing import verify_archive

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_UNREADABLE = (OSError, ValueError, ImportError, RuntimeError, SafetensorError)


def load_pretrained(kind: str, name: str, part: str, optional: tuple[str, ...] = ()) -> Any:
    """A network of transformers in float32.

    Args:
        kind: the class of transformers.
        name: a local directory, or a name on the hub.
        part: what asks for it, for the message.
        optional: first letters of the parameters that the files need not hold.

    Raises:
        SoraError: transformers is not installed, nothing can be loaded, or parameters are not in the files:
            transformers would draw those at random and say so in a log alone.
    """
    try:
        import transformers
    except ImportError as problem:
        raise WeightsMissing(
            f"{part} needs transformers, which is not installed: pip install 'lightning-sora[hf]'"
        ) from problem
    try:
        network, report = getattr(transformers, kind).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except _UNREADABLE as problem:
        raise _cannot_load(part, name, problem, f"a {kind} of transformers") from problem
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(optional))
    if missing:
        raise SoraError(
            f"{part} cannot use {name!r}: {len(missing)} parameters of {kind} are not in its files "
            f"({', '.join(missing[:3])}, ...) and would be random; give a directory saved from such a model"
        )
    return network


def load_tokenizer(name: str, part: str) -> Any:
    """The tokenizer that lies beside a network of transformers.

    Raises:
        SoraError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        # Where there are no files, transformers makes a tokenizer that knows no word.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("its tokenizer knows no words")
    except _UNREADABLE as problem:
        raise _cannot_load(part, name, problem, "a tokenizer of transformers beside the network") from problem
    return tokenizer


def _cannot_load(part: str, name: str, problem: Exception, wanted: str) -> SoraError:
    reason = first_line(problem)
    return WeightsMissing(
        f"{part} cannot load {name!r} ({reason}); give a local directory that holds {wanted}, or a name on the hub "
        "that this machine can reach"
    )


def card_name(weights: str) -> str:
    """What a card calls a model: a directory by its name alone, for where it lies is no part of a protocol."""
    path = Path(weights)
    return path.name if os.path.isdir(path) else weights


def read_state_dict(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of a state_dict file, read without running anything in it.

    Raises:
        SoraError: not such a file.
    """
    verify_archive(path, "download the file again")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as problem:
        raise SoraError(
            f"{part} cannot read {str(path)!r} as a PyTorch state_dict; download the file again"
        ) from problem
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise SoraError(f"{part}: {str(path)!r} holds no plain state_dict of tensors; save network.state_dict() alone")
    return found


def is_published(path: Path, published: str, part: str) -> bool:
    """Whether a file is the published one, whose name ends in the first digits of its SHA-256 ("net-0123abcd.pth").

    Raises:
        SoraError: it goes by the published name but holds something else.
    """
    prefix = published.rpartition("-")[2].partition(".")[0]
    digest = file_sha256(path)
    if digest.startswith(prefix):
        return True
    if path.name == published:
        raise SoraError(
            f"{part}: the SHA-256 of {str(path)!r} begins with {digest[: len(prefix)]}, not {prefix}: the download is "
            "damaged; fetch it again, or rename the file if these are weights of your own"
        )
    return False


def is_pinned(digest: str, sha256: str | None, part: str) -> bool:
    """Whether weights are those that the user pinned; without a pin they are not verified.

    Raises:
        SoraError: they are others.
    """
    if sha256 is not None and digest != sha256.removeprefix("sha256:"):
        raise SoraError(
            f"{part}: the weights have the digest {digest}, but sha256={sha256!r} was asked for; give those weights, "
            "or leave sha256 out to score with these as not verified"
        )
    return sha256 is not None


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32: features must not depend on how the training around them reckons."""
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width once the shorter is ``side``; the longer is rounded down, as in torchvision."""
    return (side, side * width // height) if height <= width else (side * height // width, side)


def resized(
    frames: UInt8[Tensor, "frames height width 3"], size: tuple[int, int], mode: str, antialias: bool
) -> Float[Tensor, "frames 3 new_height new_width"]:
    """Frames in display values 0 to 255, not rounded; sampled between pixel centres.

    Raises:
        SoraError: not uint8; other values would be taken for display values, or scaled twice.
    """
    if frames.dtype != torch.uint8:
        raise SoraError(f"frames of {frames.dtype} cannot be embedded: give display values 0 to 255 as uint8")
    values = frames.permute(0, 3, 1, 2).float()
    return F.interpolate(values, size=size, mode=mode, align_corners=False, antialias=antialias)


def resized_uint8(
    frames: UInt8[Tensor, "frames height width 3"], size: tuple[int, int], mode: str, antialias: bool
) -> Float[Tensor, "frames 3 new_height new_width"]:
    """Frames in whole display values, as where images are resized in uint8: overshoots are cut.

    With antialiasing it is PIL's: first across, then down, rounded in between as well.
    """
    if antialias:
        across = _whole(resized(frames, (frames.shape[1], size[1]), mode, antialias))
        frames = across.to(torch.uint8).permute(0, 2, 3, 1)
    return _whole(resized(frames, size, mode, antialias))


def _whole(frames: Tensor) -> Tensor:
    return frames.round().clamp(0, 255)


def normalised(
    frames: Float[Tensor, "frames 3 height width"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "frames 3 height width"]:
    """Display values to [0, 1], less the mean, over the deviation, by channel."""
    centre, spread = (frames.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (frames / 255 - centre) / spread


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters of a network are."""
    return next(network.parameters()).device
