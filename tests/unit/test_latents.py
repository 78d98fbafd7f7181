"""Caches of latents on disk, and the source that reads them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open

from lightning_sora.data import latents
from lightning_sora.data.latents import CachedClip, LatentReader, shard_bytes, shard_rows, table_bytes
from lightning_sora.data.sources import SOURCES, LatentSource
from lightning_sora.data.sources.latents import facts_of, facts_text
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import Crop, PatchSize, VideoSize
from lightning_sora.world import LEVELS, Facts, World, WorldConfig

VAE_HASH = "0123456789abcdef"
SIZES = [(9, 16, 16), (1, 16, 32), (5, 32, 16)]  # pixels; the stride is 4 x 8 x 8


def latents_of(seed: int = 0) -> list[torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn((1 + (f - 1) // 4, h // 8, w // 8, 3), generator=numbers) for f, h, w in SIZES]


def clips_of() -> list[CachedClip]:
    words = [["another"], [], ["b", "c"]]
    return [
        CachedClip(f"clip {i}", f"caption {i}", words[i], *size, 8.0, *size, 8.0, place=2 * i)
        for i, size in enumerate(SIZES)
    ]


def write(root: Path, dtype: str = "float32", vae_hash: str = VAE_HASH, **changes: object) -> Path:
    (root / "shards").mkdir(parents=True, exist_ok=True)
    shard = root / "shards" / "train-00000000.safetensors"
    shard.write_bytes(shard_bytes(clips_of(), latents_of(), vae_hash, dtype))
    (root / "train.parquet").write_bytes(table_bytes(shard_rows(shard, vae_hash)))
    header = {
        "schema": 1,
        "vae_hash": vae_hash,
        "vae_stride": [4, 8, 8],
        "dtype": dtype,
        "splits": {"train": 3},
        "clips": {"train": 6},
    }
    (root / "cache.json").write_text(json.dumps({**header, "data": {"train": "d"}, **changes}))
    return root


def source(root: Path, split: str = "train") -> LatentSource:
    made = SOURCES.create("latents", root=str(root), split=split, seed=0)
    assert isinstance(made, LatentSource)
    return made


def load(made: LatentSource, index: int, size: tuple[int, int, int] | None = None, fps: float | None = 8.0):
    return made.load(index, Crop(VideoSize(*(size or SIZES[index])), fps), generator=torch.Generator())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_latent_comes_back_as_stored_and_as_safetensors_reads_it(tmp_path: Path, dtype: str) -> None:
    made = source(write(tmp_path, dtype))
    assert (made.space, made.vae_hash, made.vae_stride) == ("latent", VAE_HASH, PatchSize(4, 8, 8))
    with safe_open(tmp_path / "shards" / "train-00000000.safetensors", framework="pt") as shard:
        for index, latent in enumerate(latents_of()):
            clip = load(made, index)
            assert clip.video.dtype == torch.float32
            assert torch.equal(clip.video, latent.to(getattr(torch, dtype)).float())
            assert torch.equal(clip.video, shard.get_tensor(f"{index:06d}.latent").float())
            info = made.infos[index]
            assert (info.frames, info.height, info.width, info.fps) == (*SIZES[index], 8.0)
            assert (clip.caption, list(clip.alternatives)) == (f"caption {index}", clips_of()[index].alternatives)


def test_a_copy_for_a_worker_reads_the_same(tmp_path: Path) -> None:
    made = source(write(tmp_path))
    before = load(made, 0).video
    copy = pickle.loads(pickle.dumps(made))
    assert torch.equal(load(copy, 0).video, before)
    assert len(pickle.dumps(made)) < 20_000


@pytest.mark.slow
def test_a_shard_has_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib; from tests.unit.test_latents import *; "
        "print(hashlib.sha256(shard_bytes(clips_of(), latents_of(), VAE_HASH, 'float32', ['a: b'])).hexdigest())"
    )
    here = hashlib.sha256(shard_bytes(clips_of(), latents_of(), VAE_HASH, "float32", ["a: b"])).hexdigest()
    for _ in range(2):
        there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert there.strip() == here


@pytest.mark.parametrize(
    ("size", "fps", "words"),
    [((5, 16, 16), 8.0, "9x16x16 at 8.* 5x16x16"), ((9, 16, 16), 4.0, "at 8 .* at 4 ")],
)
def test_another_size_or_rate_is_refused_at_set_up_and_at_reading(
    tmp_path: Path, size: tuple[int, int, int], fps: float, words: str
) -> None:
    made = source(write(tmp_path))
    for rate in (8.0, None):
        made.prepare({index: Crop(VideoSize(*own), rate) for index, own in enumerate(SIZES)})
    with pytest.raises(SoraError, match=words):
        made.prepare({0: Crop(VideoSize(*size), fps)})
    with pytest.raises(SoraError, match=words):
        load(made, 0, size, fps)


def _cut(root: Path) -> None:
    shard = next((root / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-4])


def _other_vae(root: Path) -> None:
    """A shard of the same size, whose latents another VAE made."""
    shard = next((root / "shards").iterdir())
    length = shard.stat().st_size
    shard.write_bytes(shard_bytes(clips_of(), latents_of(), "f" * 16, "float32"))
    assert shard.stat().st_size == length


def _other_offsets(root: Path) -> None:
    rows = pyarrow.parquet.read_table(root / "train.parquet").to_pylist()
    rows[0]["offset"], rows[1]["offset"] = rows[1]["offset"], rows[0]["offset"]
    (root / "train.parquet").write_bytes(table_bytes(rows))


def _no_header(root: Path) -> None:
    (root / "cache.json").unlink()


def _no_shard(root: Path) -> None:
    next((root / "shards").iterdir()).unlink()


def _no_column(root: Path) -> None:
    table = pyarrow.parquet.read_table(root / "train.parquet").drop_columns(["offset"])
    pyarrow.parquet.write_table(table, root / "train.parquet")


def _header_without(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        header = json.loads((root / "cache.json").read_text())
        del header[name]
        (root / "cache.json").write_text(json.dumps(header))

    return damage


def _header_is_a_folder(root: Path) -> None:
    _no_header(root)
    (root / "cache.json").mkdir()


def _header_is_a_pipe(root: Path) -> None:
    _no_header(root)
    os.mkfifo(root / "cache.json")


def _no_count(root: Path) -> None:
    write(root, clips={"train": "many"})


def _old_schema(root: Path) -> None:
    write(root, schema=0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "cut short"),
        (_other_vae, "f{16}"),
        (_other_offsets, "disagree"),
        (_no_header, "no cache"),
        (_no_shard, "missing"),
        (_no_column, "lacks the columns offset"),
        (_old_schema, "schema 0"),
        *(
            (_header_without(name), f"is damaged: it lacks {name}; delete")
            for name in ("splits", "vae_stride", "clips")
        ),
        (_header_is_a_folder, "cannot be read .*directory"),
        (_header_is_a_pipe, "cannot be read .*no regular file"),
        (_no_count, "does not count the clips of 'train'"),
    ],
)
def test_damage_is_told_at_set_up(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(write(tmp_path))
    with pytest.raises(SoraError, match=words):
        source(tmp_path)


def test_latents_of_other_bytes_are_told_when_they_are_read(tmp_path: Path) -> None:
    shard = write(tmp_path) / "shards" / "train-00000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # in the last latent
    shard.write_bytes(content)
    made = source(tmp_path)
    load(made, 0)
    with pytest.raises(SoraError, match="the latent of clip 2 is not what was written"):
        load(made, 2)


def test_a_latent_is_verified_once_and_again_if_its_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[int] = []
    digest = latents._digest

    def counting(content: bytes | memoryview) -> str:
        verified.append(len(content))
        return digest(content)

    monkeypatch.setattr(latents, "_digest", counting)
    shard = write(tmp_path) / "shards" / "train-00000000.safetensors"
    made = source(tmp_path)
    verified.clear()
    for index in (0, 1, 0, 1, 0):
        load(made, index)
    assert len(verified) == 2
    load(pickle.loads(pickle.dumps(made)), 0)
    assert len(verified) == 3
    os.utime(shard, ns=(0, 0))
    load(made, 0)
    assert len(verified) == 4
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    load(made, 0)
    with pytest.raises(SoraError, match="the latent of clip 2 is not what was written"):
        load(made, 2)


def test_a_latent_from_a_store_is_verified_whenever_it_is_read(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    write(tmp_path)
    for path in tmp_path.rglob("*.*"):
        store.pipe(f"/latents/{path.relative_to(tmp_path)}", path.read_bytes())
    made = SOURCES.create("latents", root="memory://latents", split="train", seed=0)
    assert torch.equal(load(made, 2).video, latents_of()[2])
    content = bytearray(store.cat("/latents/shards/train-00000000.safetensors"))
    content[-1] ^= 1
    store.pipe("/latents/shards/train-00000000.safetensors", bytes(content))
    with pytest.raises(SoraError, match="the latent of clip 2 is not what was written"):
        load(made, 2)


def test_a_shard_that_is_cut_while_it_is_open_is_told(tmp_path: Path) -> None:
    shard = write(tmp_path) / "shards" / "train-00000000.safetensors"
    made = source(tmp_path)
    load(made, 2)
    os.truncate(shard, shard.stat().st_size - 4)
    with pytest.raises(SoraError, match="cut short"):
        load(made, 2)
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        load(made, 2)


def test_no_more_shards_stay_open_than_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "OPEN_SHARDS", 2)
    (tmp_path / "shards").mkdir()
    rows = []
    for number in range(4):
        shard = tmp_path / "shards" / f"{number}.safetensors"
        shard.write_bytes(shard_bytes(clips_of()[:1], latents_of(number)[:1], VAE_HASH, "float32"))
        rows += shard_rows(shard, VAE_HASH)
    reader = LatentReader(tmp_path)
    opened = set()
    for number in (0, 1, 2, 3, 0, 3, 1):
        assert torch.equal(reader.read(rows[number]), latents_of(number)[0])
        assert len(reader._open) <= 2
        opened |= {weakref.ref(shard) for shard in reader._open.values()}
    del reader
    assert len(opened) == 6  # 1 and 0 were closed in between
    assert not any(shard() for shard in opened)


def test_clips_come_in_the_order_of_their_source_less_those_that_were_left_out(tmp_path: Path) -> None:
    made = source(write(tmp_path))  # clips 0, 2 and 4 of six
    drawn = torch.randperm(6, generator=coarse_generator(7, "order", 3)).tolist()
    assert made.order(7, 3) == [(place // 2, 3) for place in drawn if place % 2 == 0]


def test_a_split_that_is_not_cached_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="no split 'val', only train"):
        source(write(tmp_path), "val")


def test_the_fingerprint_covers_vae_data_and_dtype(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "same")
    write(tmp_path / "dtype", "bfloat16")
    write(tmp_path / "vae", vae_hash="f" * 16)
    write(tmp_path / "data", data={"train": "e"})
    prints = {name: source(tmp_path / name).fingerprint() for name in ("a", "same", "dtype", "vae", "data")}
    assert prints["a"] == prints["same"]
    assert len(set(prints.values())) == 4


def test_facts_of_the_world_come_back_fit_for_judging() -> None:
    world = World(LEVELS["medium"], seed=3, split="train")
    facts = world.facts(7)
    told = {**facts.as_dict(), "config": vars(world.config)}
    back = facts_of(facts_text(told))
    assert back is not None
    assert Facts.from_dict(back) == facts
    assert WorldConfig(**back["config"]) == world.config
    assert back["config"]["stage"] == LEVELS["medium"].stage
    assert facts_of(facts_text(None)) is None


@pytest.mark.parametrize("name", ["../train-00000000.safetensors", "/etc/passwd", "", ".."])
def test_a_table_names_no_shard_but_those_of_its_own_cache(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "cache")
    rows = [{**row, "shard": name} for row in latents.read_table(root, "train")]
    (root / "train.parquet").write_bytes(table_bytes(rows))
    with pytest.raises(SoraError, match=r"names the shard .* no file of its own"):
        source(root)
