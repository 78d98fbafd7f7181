"""Weights of I3D, read from any public form of them and compared, tensor by tensor, with the published checksums.

FVD means one network. Its look-alikes (the ImageNet-inflated I3D above all) have the same shapes and give numbers
that look as good, so nothing is taken on its name: each tensor, put into TensorFlow's layout, must have the CRC32C
that the index of DeepMind's checkpoint has for it. The table holds those checksums *unmasked* (the index file stores
them masked), so they are the plain CRC32C of the little-endian float32 values.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt32
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.extractors.i3d_network import I3D

Table = Mapping[str, Mapping[str, Any]]
"""TF variable name to {"shape": [...], "crc32c": eight hexadecimal digits}."""

PREFIX = "RGB/inception_i3d/"
DOWNLOAD = (
    "download either the TF-Hub module deepmind/i3d-kinetics-400/1, of which variables/variables.data-00000-of-00001 "
    "is needed (the same file as google-deepmind/kinetics-i3d's data/checkpoints/rgb_scratch/"
    "model.ckpt.data-00000-of-00001: 50818176 bytes, git blob SHA-1 fa7df95674dbf3579e7fccd954e51e706b4734c1), or "
    "StyleGAN-V's i3d_torchscript.pt (git blob SHA-1 93daef59...)"
)
_BRANCHES = {
    "b0": "Branch_0.Conv3d_0a_1x1",
    "b1a": "Branch_1.Conv3d_0a_1x1",
    "b1b": "Branch_1.Conv3d_0b_3x3",
    "b2a": "Branch_2.Conv3d_0a_1x1",
    "b2b": "Branch_2.Conv3d_0b_3x3",
    "b3b": "Branch_3.Conv3d_0b_1x1",
}
_LEAVES = {
    "conv3d.weight": "conv_3d.w",
    "conv3d.bias": "conv_3d.b",
    "conv_3d.weight": "conv_3d.w",
    "conv_3d.bias": "conv_3d.b",
    "bn.bias": "batch_norm.beta",
    "bn.running_mean": "batch_norm.moving_mean",
    "bn.running_var": "batch_norm.moving_variance",
}
# What the readers raise for a foreign, damaged or unsafe file.
_UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
    zipfile.BadZipFile,
)


def load_i3d(path: str | Path, table: Table | None = None) -> I3D:
    """The network with the weights of a file, every one of them verified.

    Args:
        path: TensorFlow's data file, a TorchScript archive, or a state_dict as ``.pt`` or ``.safetensors``. Tensors
            are found by the names of piergiaj's I3D or of :class:`I3D`, else by their checksums alone.
        table: other checksums than the published ones, for weights that are not FVD's.

    Raises:
        SoraError: no such file, a file of no known form, or a tensor that is missing, misshapen or of other values.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise WeightsMissing(
            f"there is no file {str(path)!r}, where the weights of I3D are looked for; {DOWNLOAD}, to it"
        )
    table = published_table() if table is None else table
    tensors = _read(path, table)
    named = {name: tensor for key, tensor in tensors.items() if (name := tf_name(key)) in table}
    if 2 * len(named) >= len(table):
        _check_scales(path, tensors)
        found = {name: _tf_layout(tensor) for name, tensor in named.items()}
    else:
        found = _by_content(tensors, table)
        if not found:
            raise _another(path, len(tensors))
    _verify(path, found, table)
    network = I3D()
    network.load_state_dict({key: _torch_layout(found[tf_name(key)]) for key in network.state_dict()})
    return network


def published_table() -> Table:
    """Shapes and checksums of the network that FVD is defined with."""
    file = resources.files(__package__) / "i3d_k400_crc32c.json"
    return json.loads(file.read_text(encoding="utf-8"))["tensors"]


def crc_table(network: I3D) -> Table:
    """Shapes and checksums of a network whose batch norms are not folded."""
    tensors = {tf_name(key): _tf_layout(value) for key, value in network.state_dict().items()}
    return {k: {"shape": list(v.shape), "crc32c": _checksum(v)} for k, v in sorted(tensors.items())}


def tf_name(key: str) -> str:
    """The TensorFlow variable that a state_dict's key stands for, or a name of none.

    >>> tf_name("Mixed_5b.b2b.bn.running_mean")
    'RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/batch_norm/moving_mean'
    """
    if key.startswith(PREFIX):
        return key
    if start := re.search(r"\b(Conv3d_\d|Mixed_|[Ll]ogits\.)", key):
        key = key[start.start() :]  # after "module." and other wrappings
    key = re.sub(r"^logits\.", "Logits.Conv3d_0c_1x1.", key)
    key = re.sub(r"^(Mixed_\w\w)\.(b\d\w?)\.", lambda m: f"{m[1]}.{_BRANCHES.get(m[2], m[2])}.", key)
    if key.startswith("Mixed_5b.Branch_2."):
        key = key.replace("Conv3d_0b_3x3", "Conv3d_0a_3x3")
    for theirs, tf in _LEAVES.items():
        if key.endswith(f".{theirs}"):
            key = key.removesuffix(theirs) + tf
            break
    return PREFIX + key.replace(".", "/")


def crc32c(data: bytes) -> int:
    """The CRC of Castagnoli's polynomial, reflected, as in RFC 3720.

    The checksum is linear, so all words are taken at once and neighbours are then merged, pair by pair: 50 MB take
    about a second.
    """
    size = len(data)
    words = np.frombuffer(bytes(-size % 4) + data if size % 4 else data, dtype="<u4").astype(np.uint32)
    parts = _shift(words, 2)
    power = 2
    while len(parts) > 1:
        if len(parts) % 2:  # zeros in front change nothing
            parts = np.concatenate([np.zeros(1, np.uint32), parts])
        parts = _shift(parts[0::2], power) ^ parts[1::2]
        power += 1
    start = np.full(1, 0xFFFFFFFF, np.uint32)
    for power in range(size.bit_length()):
        if size >> power & 1:
            start = _shift(start, power)
    return int(np.bitwise_xor.reduce(parts) ^ start[0] ^ np.uint32(0xFFFFFFFF))


def _shift(values: UInt32[np.ndarray, " n"], power: int) -> UInt32[np.ndarray, " n"]:
    """Checksum states after 2 ** power more zero bytes."""
    table = _shift_table(power)
    return table[0][values & 255] ^ table[1][values >> 8 & 255] ^ table[2][values >> 16 & 255] ^ table[3][values >> 24]


@cache
def _shift_table(power: int) -> UInt32[np.ndarray, "4 256"]:
    """What each value of each byte of a state becomes."""
    basis = np.left_shift(np.arange(256, dtype=np.uint32)[None], 8 * np.arange(4, dtype=np.uint32)[:, None])
    if power:
        half = basis.reshape(-1)
        return _shift(_shift(half, power - 1), power - 1).reshape(4, 256)
    for _ in range(8):
        basis = basis >> 1 ^ np.where(basis & 1, np.uint32(0x82F63B78), np.uint32(0))
    return basis


def _checksum(tensor: Tensor) -> str:
    return f"{crc32c(tensor.contiguous().numpy().astype('<f4', copy=False).tobytes()):08x}"


def _tf_layout(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().float().cpu()
    return tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor


def _torch_layout(tensor: Tensor) -> Tensor:
    return tensor.permute(4, 3, 0, 1, 2) if tensor.ndim == 5 else tensor


def _read(path: Path, table: Table) -> dict[str, Tensor]:
    """The tensors of a file in torch's layout."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                scripted = any("/code/" in name for name in archive.namelist())
            if scripted:
                with warnings.catch_warnings():  # that torch.jit is deprecated is nothing a user can act on
                    warnings.simplefilter("ignore", FutureWarning)
                    return dict(torch.jit.load(path, map_location="cpu").state_dict())
        elif ".data-" in path.name or path.stat().st_size == _table_bytes(table):
            return _read_tensorflow(path, table)
        # Only tensors and plain containers: a pickle is never run.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    except SoraError:
        raise
    except _UNREADABLE as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> SoraError:
    return SoraError(
        f"{str(path)!r} cannot be read as weights of I3D ({type(problem).__name__}); give TensorFlow's data file, a "
        f"TorchScript archive, or a state_dict of tensors alone: {DOWNLOAD}"
    )


def _read_tensorflow(path: Path, table: Table) -> dict[str, Tensor]:
    """A checkpoint's data file: values in the order of their names, one after another."""
    if path.stat().st_size != _table_bytes(table):
        raise SoraError(
            f"{str(path)!r} has {path.stat().st_size} bytes, and the weights of I3D are {_table_bytes(table)}; the "
            f"download is cut short or of another network: {DOWNLOAD}"
        )
    values = torch.from_numpy(np.fromfile(path, dtype="<f4").astype(np.float32, copy=False))
    tensors, start = {}, 0
    for name in sorted(table):
        shape = table[name]["shape"]
        tensors[name] = _torch_layout(values[start : start + math.prod(shape)].reshape(shape))
        start += math.prod(shape)
    return tensors


def _table_bytes(table: Table) -> int:
    return 4 * sum(math.prod(row["shape"]) for row in table.values())


def _check_scales(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, scale in tensors.items():
        if name.endswith(("bn.weight", "batch_norm.weight")) and not bool((scale == 1).all()):
            raise SoraError(
                f"{str(path)!r} has a batch-norm scale {name!r} that is not all ones, and the network that FVD is "
                f"defined with has no scales; {DOWNLOAD}"
            )


def _by_content(tensors: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Tensors of unknown names, in torch's layout or TensorFlow's, told by shape and checksum."""
    wanted: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for name, row in table.items():
        wanted.setdefault((tuple(row["shape"]), row["crc32c"]), []).append(name)
    shapes = {shape for shape, _ in wanted}
    found: dict[str, Tensor] = {}
    for tensor in tensors.values():
        for value in (_tf_layout(tensor), tensor.detach().float().cpu()):
            if tuple(value.shape) in shapes:
                found.update(dict.fromkeys(wanted.get((tuple(value.shape), _checksum(value)), []), value))
    return found


def _verify(path: Path, found: Mapping[str, Tensor], table: Table) -> None:
    missing = [name for name in table if name not in found]
    if missing:
        raise SoraError(
            f"{str(path)!r} lacks {len(missing)} of the {len(table)} tensors of I3D, the first {missing[0]!r} (one "
            f"whose batch norms are folded into its convolutions cannot be verified); {DOWNLOAD}"
        )
    for name, row in table.items():
        if list(found[name].shape) != list(row["shape"]):
            raise SoraError(
                f"{str(path)!r}: the tensor {name!r} has the shape {list(found[name].shape)} in TensorFlow's layout "
                f"and must have {list(row['shape'])}; {DOWNLOAD}"
            )
    wrong = [name for name, row in table.items() if _checksum(found[name]) != row["crc32c"]]
    if len(wrong) == len(table):
        raise _another(path, len(table))
    if wrong:
        raise SoraError(
            f"{str(path)!r}: the values of {len(wrong)} of {len(table)} tensors are not the published ones, the first "
            f"{wrong[0]!r} (CRC32C {_checksum(found[wrong[0]])}, must be {table[wrong[0]]['crc32c']}); the file is "
            f"damaged or altered: {DOWNLOAD}"
        )


def _another(path: Path, count: int) -> SoraError:
    return SoraError(
        f"{str(path)!r}: none of its {count} tensors has a published checksum: this is another network (for example "
        f"the ImageNet-inflated one), not the one that FVD is defined with; {DOWNLOAD}"
    )
