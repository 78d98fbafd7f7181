"""What a folder of a model of transformers says of its weights, before they are read."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lightning_sora.errors import SoraError
from lightning_sora.models.memory_estimate import check_weights_fit
from lightning_sora.models.safetensors_files import read_header
from lightning_sora.names import local_path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check_folder_fits(
    name: str, dtype: torch.dtype, *, but: tuple[str, ...] = (), available: int | None = None
) -> None:
    """Refuses a folder of more weights than this machine can hold, before any is read.

    Of a name on a hub, and of a folder without safetensors, nothing is known before, and nothing is refused.

    Args:
        name: a folder, or a name on a hub.
        dtype: that the weights are held in.
        but: beginnings of the names of weights that are left in the files.
        available: bytes that can be taken; None to ask the machine.

    Raises:
        SoraError: they do not fit, or a file is cut short.

    Example:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from lightning_sora.models.transformers_folder import check_folder_fits
        >>> save_file({"weight": torch.zeros(1000, 1000)}, "model.safetensors")
        >>> check_folder_fits("./", torch.float32, available=2**20)
        Traceback (most recent call last):
        lightning_sora.errors.SoraError: './', of 1.0 million parameters, needs in float32, for its weights alone, ...
    """
    files = [file for file in _files_of(local_path(name)) if file.is_file()]
    headers = [(key, header) for file in files for key, header in read_header(file).tensors.items()]
    count = sum(header.numel for key, header in headers if not key.startswith(but))
    instead = "; of texts that are known before, 'cached(path=...)' keeps the embeddings alone"
    check_weights_fit(repr(name), count, dtype=dtype, instead=instead, available=available)


def _files_of(folder: Path) -> list[Path]:
    """The files of its weights, the one before the several, as transformers chooses."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    try:
        return [folder / name for name in sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise SoraError(f"{folder / INDEX} cannot be read ({problem!r}); download the folder again") from problem
