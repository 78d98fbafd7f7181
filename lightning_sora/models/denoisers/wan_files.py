"""Folders of Wan transformers, by diffusers' names and by Wan's own: read tensor by tensor, and written.

Nothing of diffusers is needed for a folder that lies here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_sora.errors import SoraError, some
from lightning_sora.models.denoisers.wan_config import ORIGINAL
from lightning_sora.models.denoisers.wan_keys import to_diffusers
from lightning_sora.models.diffusers_folder import CONFIG, INDEX, WEIGHTS, Stored, weight_files
from lightning_sora.models.memory_estimate import check_weights_fit
from lightning_sora.models.safetensors_files import read_header, read_tensor
from lightning_sora.names import local_path
from lightning_sora.sealing import write_whole
from lightning_sora.writing import whole

#: Bytes of a file of weights at most, as diffusers' `save_pretrained` has it.
SHARD = 10 * 10**9
#: Of some files, which no network has.
UNUSED = ("norm_added_q",)


@dataclass(frozen=True)
class Weights:
    """The weights of a folder, of which nothing is read yet.

    Attributes:
        path: as it was asked for.
        places: the file of each, and its name there, by diffusers' names.
        shapes: of each.
    """

    path: str
    places: Mapping[str, tuple[Path, str]]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, stored: Stored) -> Weights:
        """Looks up what a folder holds.

        Raises:
            SoraError: files that are missing, damaged or pickled, or more than this machine can hold.
        """
        named = _in_diffusers if stored.name == ORIGINAL else str
        places, shapes = {}, {}
        for file in weight_files(stored):
            for own, tensor in read_header(file).tensors.items():
                if not any(word in own for word in UNUSED):
                    places[named(own)], shapes[named(own)] = (file, own), tensor.shape
        check_weights_fit(stored.name, sum(map(math.prod, shapes.values())))
        return cls(stored.path, places, shapes)

    def check(self, wanted: Mapping[str, Tensor], name: str) -> None:
        """Refuses weights that are not those of a network.

        Args:
            name: what its config.json calls the network.

        Raises:
            SoraError: some are missing, in excess, or of another shape.
        """
        for told, names in (("lacks", wanted.keys() - self.places), ("has in excess", self.places.keys() - wanted)):
            if names:
                raise SoraError(
                    f"{self.path!r} {told} weights of the {name} that its {CONFIG} describes: "
                    f"{some(sorted(names))}; download it again"
                )
        for key, value in wanted.items():
            if self.shapes[key] != tuple(value.shape):
                raise SoraError(
                    f"{self.path!r} has {key} of shape {self.shapes[key]}, and its {CONFIG} describes "
                    f"{tuple(value.shape)}; download it again"
                )

    @torch.no_grad()
    def fill(self, wanted: Mapping[str, Tensor]) -> None:
        """Copies each into a tensor, whatever its precision.

        No more than one is held beside what is filled.

        Raises:
            SoraError: a file is damaged.
        """
        for key, value in wanted.items():
            value.copy_(read_tensor(*self.places[key]))


def _in_diffusers(own: str) -> str:
    """Of what no Wan transformer has, its own name: it is told in excess then."""
    try:
        return to_diffusers(own)
    except SoraError:
        return own


def write_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    named: Callable[[str], str] = str,
    shard: int = SHARD,
) -> Path:
    """Writes a config.json and safetensors, in several files with an index where they are many.

    Args:
        weights: by diffusers' names.
        named: the name of each in the files.
        shard: bytes of a file at most; one tensor at least is in each.

    Returns:
        the folder.

    Raises:
        SoraError: the disk is full, or nothing can be written there.
    """
    place = local_path(folder)
    shards = list(_shards({named(key): value for key, value in weights.items()}, shard))
    of = len(shards)
    files: dict[str, str] = {}
    for index, part in enumerate(shards, 1):
        name = WEIGHTS if of == 1 else WEIGHTS.replace(".", f"-{index:05}-of-{of:05}.", 1)
        with whole(place / name) as partial:
            save_file({key: value.contiguous() for key, value in part.items()}, partial, metadata={"format": "pt"})
        files |= dict.fromkeys(part, name)
    for old in place.glob(WEIGHTS.replace(".", "*.")):
        if old.name not in files.values():
            old.unlink()  # of a model that was here before
    if of > 1:
        size = sum(value.nbytes for value in weights.values())
        told = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
        write_whole(place / INDEX, f"{json.dumps(told, indent=2)}\n".encode())
    else:
        (place / INDEX).unlink(missing_ok=True)
    write_whole(place / CONFIG, f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode())
    return place


def _shards(weights: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    for key, value in weights.items():
        if part and sum(one.nbytes for one in part.values()) + value.nbytes > most:
            yield part
            part = {}
        part[key] = value
    yield part


def put_on_cpu(module: nn.Module) -> None:
    """Gives memory to the parameters of a network that was built without, for values that are read or drawn next."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if value.is_meta:
                setattr(part, name, nn.Parameter(torch.empty_like(value, device="cpu")))
