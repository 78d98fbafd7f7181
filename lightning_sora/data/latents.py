"""Cached latents on disk: safetensors shards, and a Parquet table that tells where in them each clip lies.

DIR/cache.json              what made them: VAE hash, recipe, data
DIR/train.parquet           a row per clip: id, captions, size in pixels, shard, offset, bytes, dtype, shape, facts
DIR/shards/train-00000000.safetensors
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save
from torch import Tensor

from lightning_sora.data import storage
from lightning_sora.errors import SoraError
from lightning_sora.sealing import BLANK, KEY, is_whole, parquet_bytes, read_json, seal, verify

SCHEMA = 1
HEADER = "cache.json"
#: What a header tells, where it does.
TOLD: dict[str, type] = {"vae_hash": str, "dtype": str, "splits": dict, "clips": dict, "data": dict, "skipped": dict}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPEN_SHARDS = 64  # of a reader at most; processes may often hold no more than 1,024 open files
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
COLUMNS = (
    "id", "caption", "alternatives", "frames", "height", "width", "fps", "own_frames", "own_height", "own_width",
    "own_fps", "place", "source", "content", "facts", "digest", "shard", "offset", "size", "dtype", "shape",
)  # fmt: skip


@dataclass(frozen=True)
class CachedClip:
    """What a cache keeps of a clip beside its latent.

    Attributes:
        frames, height, width, fps: in pixels, of the window that was encoded.
        own_frames, own_height, own_width, own_fps: of the whole clip, by which size policies go.
        place: among all clips of its source, used or not, by which their order goes.
        facts: JSON, or empty.
    """

    id: str
    caption: str
    alternatives: list[str]
    frames: int
    height: int
    width: int
    fps: float
    own_frames: int
    own_height: int
    own_width: int
    own_fps: float
    place: int
    source: str = ""
    content: str = ""
    facts: str = ""


def shard_bytes(
    clips: Sequence[CachedClip],
    latents: Sequence[Float[Tensor, "t h w channels"]],
    vae_hash: str,
    dtype: str,
    skipped: Sequence[str] = (),
) -> bytes:
    """The content of one shard file, the same in every process.

    Args:
        skipped: why clips are left out, each "id: reason".
    """
    tensors = {f"{place:06d}.latent": latent.to(DTYPES[dtype]).contiguous() for place, latent in enumerate(latents)}
    digests = [_digest(tensor.flatten().view(torch.uint8).numpy().tobytes()) for tensor in tensors.values()]
    rows = [{**asdict(clip), "digest": digest} for clip, digest in zip(clips, digests, strict=True)]
    told = {"schema": SCHEMA, "vae_hash": vae_hash, "clips": rows, "skipped": list(skipped), KEY: BLANK}
    # One key: safetensors writes several in an order that differs from process to process.
    return seal(save(tensors, metadata={"cache": json.dumps(told, sort_keys=True)}))


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def shard_skipped(path: Path, vae_hash: str) -> list[str]:
    """The clips that a shard leaves out because they cannot be read, each "id: reason"."""
    return _read_shard(path, vae_hash)[0]["skipped"]


def shard_is_whole(path: Path, vae_hash: str) -> bool:
    """Whether every byte of a shard is what was written; of one without a seal, every latent.

    Raises:
        SoraError: as of :func:`shard_rows`.
    """
    rows, content = shard_rows(path, vae_hash), path.read_bytes()
    whole = is_whole(content)
    if whole is None:
        inside = memoryview(content)
        return all(_digest(inside[row["offset"] :][: row["size"]]) == row["digest"] for row in rows)
    return whole


def shard_rows(path: Path, vae_hash: str) -> list[dict[str, Any]]:
    """The rows of a shard, with the place of each latent in the file.

    Raises:
        SoraError: cut short, damaged, of another VAE, or written by another version.
    """
    told, header, begin = _read_shard(path, vae_hash)
    rows = []
    try:
        for place, clip in enumerate(told["clips"]):
            entry = header[f"{place:06d}.latent"]
            first, last = entry["data_offsets"]
            rows.append(
                {**clip, "shard": path.name, "offset": begin + first, "size": last - first,
                 "dtype": NAMES[entry["dtype"]], "shape": entry["shape"]}
            )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None
    return rows


def _read_shard(path: Path, vae_hash: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What a shard tells, where its tensors are, and where they begin."""
    with path.open("rb") as file:
        header, begin = _header(file, path)
    try:
        told = json.loads(header.pop("__metadata__", {}).get("cache", "{}"))
        schema, found = told.get("schema"), told.get("vae_hash")
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError):
        raise _damaged(path) from None
    if schema != SCHEMA or found != vae_hash:
        raise SoraError(f"{path} holds latents of VAE {found}, not {vae_hash}; make the cache anew")
    if path.stat().st_size != begin + end:
        raise SoraError(
            f"{path} is cut short: {path.stat().st_size:,} of {begin + end:,} bytes; run `data cache` again"
        )
    return told, header, begin


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    try:
        content = file.read(length)
        if len(content) != length or length > 1 << 28:
            raise ValueError
        return json.loads(content), 8 + length
    except (ValueError, MemoryError, OverflowError, RecursionError):
        raise _damaged(path) from None


def _damaged(path: Path) -> SoraError:
    return SoraError(f"{path} is damaged or cut short; run `data cache` again")


def table_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The Parquet table of a split, with its digest."""
    import pyarrow

    whole, text = pyarrow.int64(), pyarrow.string()
    kinds: dict[str, Any] = dict.fromkeys(COLUMNS, text)
    numbers = ("frames", "height", "width", "own_frames", "own_height", "own_width", "place", "offset", "size")
    kinds |= dict.fromkeys(numbers, whole) | dict.fromkeys(("fps", "own_fps"), pyarrow.float64())
    kinds |= {"alternatives": pyarrow.list_(text), "shape": pyarrow.list_(whole)}
    return parquet_bytes(pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema(list(kinds.items()))))


def read_table(root: storage.Location, split: str) -> list[dict[str, Any]]:
    """The rows of a split.

    Raises:
        SoraError: there is no such table, it is damaged, or it is none of a cache.
    """
    import pyarrow
    import pyarrow.parquet

    name = f"{split}.parquet"
    try:
        with storage.open_file(root, name) as file:
            content = verify(file.read(), f"{root}/{name}", "run `data cache` again")
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowInvalid, OSError) as problem:
        raise SoraError(f"{root}/{name} is not a Parquet table ({problem}); make the cache anew") from problem
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise SoraError(f"{root}/{name} lacks the columns {', '.join(missing)}; it is no table of `data cache`")
    rows = table.to_pylist()
    # A cache from elsewhere reads nothing but its own shards.
    strange = next((row["shard"] for row in rows if not _is_name(str(row["shard"]))), None)
    if strange is not None:
        raise SoraError(f"{root}/{name} names the shard {strange!r}, which is no file of its own; make the cache anew")
    return rows


def _is_name(name: str) -> bool:
    return os.path.basename(name) == name and name not in ("", ".", "..")


def read_header(root: storage.Location) -> dict[str, Any]:
    """What made a cache.

    Raises:
        SoraError: no cache there, one that is unfinished, damaged, or of another version.
    """
    try:
        with storage.open_file(root, HEADER) as file:
            header = read_json(file.read(), f"{root}/{HEADER}", "delete it and run `data cache` again")
    except FileNotFoundError:
        raise SoraError(
            f"no cache of latents at {root}: it has no {HEADER}, which `lightning-sora data cache` writes at its "
            "end; run that to the end, or correct data.root"
        ) from None
    except OSError as problem:
        reason = problem.strerror or problem
        raise SoraError(f"{root}/{HEADER} cannot be read ({reason}); delete it and run `data cache` again") from problem
    if header.get("schema") != SCHEMA:
        raise SoraError(f"{root} was written by another version (schema {header.get('schema')}, not {SCHEMA})")
    wrong = [name for name, kind in TOLD.items() if not isinstance(header.get(name, kind()), kind)]
    stride = header.get("vae_stride", [1, 1, 1])
    if not isinstance(stride, list) or len(stride) != 3 or not all(type(n) is int and n > 0 for n in stride):
        wrong.append("vae_stride")
    if wrong:
        said = f"{', '.join(wrong)} cannot be what it says"
        raise SoraError(f"{root}/{HEADER} is damaged: {said}; delete it and run `data cache` again")
    return header


class LatentReader:
    """Reads latents out of the shards of a cache, each in one read of its range.

    On a disk shards stay open, and a latent is verified once: the first time that this object reads it, and again
    if its file has changed since (by inode, size or time of change). From a store it is verified whenever it is read,
    as each read is another transfer. A copy in another process begins anew.

    Args:
        root: the folder of the cache, or its URL.
    """

    def __init__(self, root: storage.Location) -> None:
        self.root, self._remote, self._folder = root, storage.is_remote(root), f"{root}/shards/"
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._verified: dict[str, tuple[tuple[int, ...], set[int]]] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[LatentReader], tuple[storage.Location]]:
        return LatentReader, (self.root,)

    def read(self, row: Mapping[str, Any]) -> Float[Tensor, "t h w channels"]:
        """One latent, in float32.

        Args:
            row: of the table of a split.

        Raises:
            SoraError: the shard ends before it, its bytes are not those written, or its shape is another.
            FileNotFoundError: there is no such shard.
        """
        seen: set[int] | None = None
        if self._remote:
            with storage.open_file(self.root, f"shards/{row['shard']}") as file:
                file.seek(row["offset"])
                content = np.frombuffer(bytearray(file.read(row["size"])), dtype=np.uint8)
        else:
            opened, seen = self._opened(row["shard"])
            content = opened.read(row["offset"], row["size"])
        if len(content) != row["size"]:
            raise SoraError(f"{self._name(row)} is cut short; run `data cache` again")
        if seen is None or row["offset"] not in seen:
            if _digest(content.data) != row["digest"]:
                raise SoraError(
                    f"{self._name(row)} is damaged: the latent of {row['id']} is not what was written; delete the "
                    "shard and run `data cache` again"
                )
            if seen is not None:
                seen.add(row["offset"])
        flat = torch.from_numpy(content).view(DTYPES[row["dtype"]])
        if flat.numel() != math.prod(row["shape"]):
            raise SoraError(f"{self._name(row)} and its table disagree on {row['id']}; make the cache anew")
        return flat.reshape(row["shape"]).float()

    def _name(self, row: Mapping[str, Any]) -> str:
        return f"{self.root}/shards/{row['shard']}"

    def _opened(self, name: str) -> tuple[_OpenShard, set[int]]:
        """A shard, and where the latents begin that were found to be whole since it last changed."""
        path = f"{self._folder}{name}"
        found = os.stat(path)
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        with self._lock:
            known, seen = self._verified.get(name, ((), set()))
            if known != state:
                self._open.pop(name, None)
                self._verified[name] = state, (seen := set())
            if name not in self._open:
                self._open[name] = _OpenShard(path)
            self._open.move_to_end(name)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            return self._open[name], seen


class _OpenShard:
    """A file that is open for reading, closed when nobody holds it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> UInt8[np.ndarray, " bytes"]:
        """``size`` bytes from ``offset``, fewer where the file ends."""
        content, done = np.empty(size, dtype=np.uint8), 0
        while done < size:
            # Not mapped to memory: a file that is cut short meanwhile would kill the process.
            read = os.preadv(self.descriptor, [content[done:].data], offset + done)
            if not read:
                break
            done += read
        return content[:done]

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
