"""Files are read as they were written, or refused in one line: bits flipped at keyed places, in every kind of file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor, nn

from lightning_sora.data import latents
from lightning_sora.data.recaptions import COLUMNS as CAPTION_COLUMNS
from lightning_sora.data.recaptions import read_captions, write_captions
from lightning_sora.data.sources import SOURCES
from lightning_sora.errors import SoraError
from lightning_sora.lit.checkpoint import read_checkpoint
from lightning_sora.lit.clip_cache import ClipCache
from lightning_sora.metrics.frechet import Moments
from lightning_sora.metrics.reference import ReferenceStatistics
from lightning_sora.models import text_files
from lightning_sora.randomness import generator
from lightning_sora.sealing import BLANK, is_whole, read_json, seal, seal_json
from lightning_sora.spacetime import Crop, VideoSize
from lightning_sora.tracking.checkpoint import AtomicCheckpointIO

FLIPS = 150
VAE_HASH = "0123456789abcdef"
Make = Callable[[Path], tuple[Path, Callable[[Path], Any]]]


def captions(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / "captions.parquet"
    numbers = {"frames": 9, "height": 32, "width": 32, "fps": 8.0, "whole": True}
    row: dict[str, Any] = dict.fromkeys(CAPTION_COLUMNS, "") | numbers
    write_captions(path, [row | {"id": f"clip {i}", "caption": f"cube {i}", "confidence": i / 40} for i in range(40)])
    return path, read_captions


def shard(folder: Path) -> Path:
    numbers = generator(0, "latents")
    kept = [torch.randn((2, 4, 4, 3), generator=numbers) for _ in range(4)]
    clips = [
        latents.CachedClip(f"clip {i}", f"cube {i}", [], 5, 32, 32, 8.0, 5, 32, 32, 8.0, place=i)
        for i in range(len(kept))
    ]
    path = folder / "train-00000000.safetensors"
    path.write_bytes(latents.shard_bytes(clips, kept, VAE_HASH, "float32"))
    return path


def table(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / "train.parquet"
    path.write_bytes(latents.table_bytes(latents.shard_rows(shard(folder), VAE_HASH)))
    return path, lambda path: latents.read_table(path.parent, "train")


def header(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / latents.HEADER
    path.write_bytes(seal_json({"schema": latents.SCHEMA, "vae_hash": VAE_HASH, "splits": {"train": 4}}))
    return path, lambda path: latents.read_header(path.parent)


def measured(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / "seconds_per_step.json"
    path.write_bytes(seal_json({"full": 0.1251, "window": 0.0625}))
    return path, lambda path: read_json(path.read_bytes(), path, "delete it")


def checkpoint(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / "last.ckpt"
    weights = {"w": torch.randn(300, generator=generator(0, "w")), "b": torch.randn(5, generator=generator(0, "b"))}
    AtomicCheckpointIO().save_checkpoint({"module": "LitDiT", "state_dict": weights, "global_step": 7}, path)
    return path, read_checkpoint


def resumed(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    return checkpoint(folder)[0], AtomicCheckpointIO().load_checkpoint


def embeddings(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    path = folder / "shard-00000000.safetensors"
    drawn = {key: torch.randn((3, 8), generator=generator(0, key)) for key in ("a", "b", "c")}
    kept = {
        "a": text_files.Embedded(drawn["a"]),
        "b": text_files.Embedded(drawn["b"], tokens=2),
        "c": text_files.Embedded(drawn["c"], None, drawn["a"][0].clone()),
    }
    path.write_bytes(text_files.embeddings_bytes(kept, "encoder"))

    def read(path: Path) -> dict[str, Any]:
        # A name that is not there is a caption that is encoded anew, which gives the same.
        found = [key for key in text_files.stored_keys(path) if key in kept]
        read = kept | {key: text_files.read_embedding(path, key) for key in found}
        return {key: one._asdict() for key, one in read.items()}

    return path, read


def reference(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    features = torch.randn((12, 6), generator=generator(0, "features"), dtype=torch.float64)
    groups = [Moments(6, f.sum(0), f.T @ f) for f in features.split(6)]
    path = ReferenceStatistics(groups, torch.arange(12), {"extractor": {"name": "random"}}).save(folder, "real")
    return path, lambda path: ReferenceStatistics.load(path).digest


KINDS: dict[str, Make] = {
    make.__name__: make for make in (captions, table, header, measured, checkpoint, resumed, embeddings, reference)
}


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_a_flipped_bit_is_refused_or_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    path, read = KINDS[kind](tmp_path)
    content, expected = path.read_bytes(), read(path)
    expected = {**expected} if isinstance(expected, dict) else expected
    refused = []
    for bit in torch.randint(8 * len(content), (FLIPS,), generator=generator(0, "flips", kind)).tolist():
        # Replaced, not written into: what was read may be mapped to memory.
        other = path.with_name("damaged")
        other.write_bytes(flipped(content, bit))
        os.replace(other, path)
        try:
            assert same(read(path), expected), f"bit {bit}"
        except SoraError as problem:
            refused.append(str(problem))
    assert len(refused) > FLIPS / 4
    assert all(path.name in message and "\n" not in message for message in refused)


def test_every_bit_of_what_the_directory_of_a_checkpoint_says_of_a_tensor_counts(tmp_path: Path) -> None:
    path, read = resumed(tmp_path)
    content, expected = path.read_bytes(), read(path)
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0"))
    refused = 0
    for bit in range(8 * entry, 8 * (entry + 46)):  # APPNOTE.TXT 4.3.12: its fixed part
        path.write_bytes(flipped(content, bit))
        try:
            assert same(read(path), expected), f"bit {bit - 8 * entry}"
        except SoraError:
            refused += 1
    assert refused > 46


def test_every_flipped_bit_of_a_shard_is_found_where_it_is_cached_again(tmp_path: Path) -> None:
    path = shard(tmp_path)
    content, rows = path.read_bytes(), latents.shard_rows(path, VAE_HASH)
    assert latents.shard_is_whole(path, VAE_HASH)
    kept = 0
    for bit in torch.randint(8 * len(content), (FLIPS,), generator=generator(0, "flips")).tolist():
        path.write_bytes(flipped(content, bit))
        try:
            whole = latents.shard_is_whole(path, VAE_HASH)
        except SoraError:
            continue
        if whole:  # the bit is of the digest's own name
            assert latents.shard_rows(path, VAE_HASH) == rows
            kept += 1
    assert kept < FLIPS / 10


def test_what_carries_no_digest_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_json(b'{"a": 1}', "x", "") == {"a": 1}
    path, read = captions(tmp_path)
    before = read(path)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path), path)
    assert is_whole(path.read_bytes()) is None
    assert read(path) == before
    old = tmp_path / "old.ckpt"
    torch.save({"module": "LitDiT"}, old, _use_new_zipfile_serialization=False)
    assert AtomicCheckpointIO().load_checkpoint(old) == {"module": "LitDiT"}


def test_the_digest_is_sha256_of_the_file_with_zeros_for_it() -> None:
    content = b"before " + BLANK.encode() + b" after"
    told = seal(content)
    assert told[-70:-6].decode() == hashlib.sha256(content).hexdigest()
    # Text that looks like a digest, as in a caption, does not stand for the file's own.
    assert is_whole(seal_json({"caption": told.decode()}))
    assert "_sha256" in json.loads(seal_json({"a": 1}))


def test_a_checkpoint_is_whole_by_zip_s_own_reckoning(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    assert zipfile.ZipFile(path).testzip() is None
    assert torch.load(path, weights_only=True)["global_step"] == 7


def test_a_generated_clip_that_is_damaged_is_generated_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ClipCache(tmp_path, nn.Linear(2, 2), {})
    video = torch.randint(256, (3, 4, 4, 3), generator=generator(0, "video")).to(torch.uint8)
    cache.put("clip", video)
    kept = cache.get("clip")
    assert kept is not None
    assert torch.equal(kept, video)
    path = cache.path("clip")
    content = path.read_bytes()
    for bit in torch.randint(8 * len(content), (FLIPS,), generator=generator(0, "flips")).tolist():
        path.write_bytes(flipped(content, bit))
        assert cache.get("clip") is None
    assert f"{path} is damaged" in caplog.text


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes(), 8 * (path.stat().st_size // 2)))


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
@pytest.mark.parametrize("filled", [True, False])
def test_clips_of_a_damaged_cache_are_rendered_again_with_a_word(
    damage: Callable[[Path], None], filled: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def videos(cache: Path | None, prepared: bool = False) -> list[Tensor]:
        spec = "world(clips=3)" if cache is None else f"world(clips=3, cache={str(cache)!r})"
        source = SOURCES.create(spec, root=None, split="train", seed=0)
        if prepared:
            source.prepare(dict.fromkeys(range(3), Crop(VideoSize(2, 16, 16), 8.0)))
        key = generator(0, "unused")
        return [source.load(i, Crop(VideoSize(2, 16, 16), 8.0), generator=key).video for i in range(3)]

    expected = videos(None)
    assert all(map(torch.equal, videos(tmp_path), expected))
    (pixels,) = tmp_path.glob("*.u8")
    damage(pixels)
    with caplog.at_level(logging.WARNING):
        assert all(map(torch.equal, videos(tmp_path, filled), expected))
    assert pixels.name in caplog.text
    assert "rendered again" in caplog.text
    caplog.clear()
    assert all(map(torch.equal, videos(tmp_path, filled), expected))  # now from the file, which is whole again
    assert not caplog.text
