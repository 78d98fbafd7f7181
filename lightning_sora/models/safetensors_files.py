"""What a safetensors file says of itself in its header, and tensors of it one at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_sora.errors import SoraError

#: What the format calls the precisions of torch.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of one of its tensors.

    Attributes:
        dtype: as the format writes it, "F32" or "BF16".
        shape: its sizes.
        bytes: that it takes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FileHeader:
    """What a file says of its tensors, by name, and the metadata that its writer gave."""

    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]


def read_header(path: Path) -> FileHeader:
    """The header of a safetensors file; no tensor is read, and the file's length is held against what it says.

    Raises:
        SoraError: the file is cut short, as a download that was broken off leaves it, or is no safetensors file.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> from lightning_sora.models.safetensors_files import read_header
        >>> save_file({"weight": torch.zeros(3, 2)}, "small.safetensors")
        >>> read_header(Path("small.safetensors")).tensors["weight"].shape
        (3, 2)
    """
    size = path.stat().st_size
    if size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise SoraError(
            f"{path} is a pointer of git-lfs, and not the weights; fetch them by `git lfs pull` in its folder"
        )
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= 100_000_000:  # as the format bounds it
            raise SoraError(f"{path} is no safetensors file; download or copy it again")
        if size < 8 + length:
            raise _cut_short(path, size, 8 + length)
        try:
            told: dict[str, Any] = json.loads(file.read(length))
            metadata = told.pop("__metadata__", None) or {}
            spans = {name: one["data_offsets"] for name, one in told.items()}
            tensors = {
                name: TensorHeader(one["dtype"], tuple(one["shape"]), spans[name][1] - spans[name][0])
                for name, one in told.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise SoraError(f"{path} is no safetensors file ({problem!r}); download or copy it again") from problem
    whole = 8 + length + max((end for _, end in spans.values()), default=0)
    if size < whole:
        raise _cut_short(path, size, whole)
    return FileHeader(tensors, metadata)


def _cut_short(path: Path, size: int, whole: int) -> SoraError:
    return SoraError(f"{path} is cut short: {size:,} of {whole:,} bytes are there; download or copy it again")


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, of memory of its own.

    Raises:
        SoraError: the file is damaged, or has no such tensor.
    """
    try:
        with safe_open(path, framework="pt") as content:
            return content.get_tensor(name).clone()  # a file that changes while it is mapped kills the process
    except SafetensorError as problem:
        reason = " ".join(str(problem).split())
        raise SoraError(f"{name!r} of {path} cannot be read ({reason}); download or copy it again") from problem
