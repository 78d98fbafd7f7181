"""Caches of latents: every clip of a recipe's data, encoded once by a frozen VAE."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_sora.data import latents as cached
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.data.reading import read_clip
from lightning_sora.data.recaptions import read_captions
from lightning_sora.data.records import SPLITS
from lightning_sora.data.sizes import Bucketed
from lightning_sora.data.sources import DecodeError, Source
from lightning_sora.data.sources.latents import facts_text
from lightning_sora.errors import SoraError
from lightning_sora.jobs.shards import IDENTITY, Shard, check_unchanged, claim, run_shards
from lightning_sora.lab.devices import usable_device
from lightning_sora.lit.captioners import checkpoint_of
from lightning_sora.lit.pretrained import load_vae
from lightning_sora.models.diffusers_folder import is_folder
from lightning_sora.models.pixels import from_uint8
from lightning_sora.models.text import TEXT_ENCODERS
from lightning_sora.models.text_cached import CachedTransformer
from lightning_sora.models.text_hf import FrozenTransformer
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.recipe.recipe import Recipe
from lightning_sora.redaction import redacted
from lightning_sora.sealing import seal_json, write_whole
from lightning_sora.shown import Shown
from lightning_sora.spacetime import Crop, PatchSize
from lightning_sora.writing import check_folder

if TYPE_CHECKING:
    from rich.text import Text

    from lightning_sora.models.vae import VideoVAE

log = logging.getLogger(__name__)

#: Options of the data that move no latent.
AS_ONE_LIKES = ("num_workers", "captions", "caption_share", "side_by_side", "on_error")


@dataclass(frozen=True)
class LatentCache(Shown):
    """A finished cache of latents: train on it with ``data.source=latents data.root=FOLDER``.

    Attributes:
        folder: that holds it.
        clips: how many there are of each split that was asked for.
        skipped: why clips are left out, each "id: reason", by split.
        texts: captions whose embeddings are kept too; None where none were asked for.
    """

    folder: Path
    clips: Mapping[str, int]
    skipped: Mapping[str, Sequence[str]]
    texts: int | None = None

    def tables(self) -> Iterator[Text]:
        from rich.text import Text

        yield Text(str(self))

    def __str__(self) -> str:
        lines = []
        for split, count in self.clips.items():
            lines.append(f"{split}: {count} clips, {len(self.skipped[split])} unreadable")
            lines += [f"  left out: {reason}" for reason in self.skipped[split]]
        if self.texts is not None:
            spec = f"cached(path='{self.folder}')"
            lines.append(f'text: {self.texts} captions; use them with --model.text="{spec}", without the encoder')
        return "\n".join([*lines, f"{self.folder}: train on it with --data.source=latents --data.root={self.folder}"])


def cache_latents(
    recipe: Recipe,
    out: str | Path,
    *,
    vae: str | None = None,
    splits: Sequence[str] = ("train", "val"),
    dtype: str = "float32",
    text: str | None = None,
    prompts: Sequence[str] = (),
    shard_clips: int = 256,
    engine: str = "local(processes=1)",
    device: str = "cpu",
    plugins: Sequence[str | Path] = (),
) -> LatentCache:
    """Encodes every clip of a recipe's data by a frozen VAE, at the size and window of its first visit.

    Called again after an interruption it goes on, and makes damaged shards anew.

    Args:
        recipe: that will train on the latents.
        out: folder of the cache.
        vae: checkpoint or run of a LitVAE, or the spec of one that comes with its weights, such as
            "diffusers(path='DIR')"; None for ``model.vae`` of the recipe.
        splits: of "train", "val" and "test".
        dtype: of the latents: "float32", "bfloat16" or "float16".
        text: spec of a frozen text encoder whose embeddings are cached too, under ``out/text``: of all captions, of
            ``model.prompts`` of the recipe, and of the empty caption.
        prompts: further texts to keep embeddings of, such as those of samples.
        shard_clips: clips per shard.
        engine: spec of what runs the shards: "local(processes=N)" or "ray".
        device: of VAE and text encoder.
        plugins: files that register parts.

    Raises:
        SoraError: a mistake in the recipe or the VAE; or the folder holds a cache of another VAE, recipe or data.

    Example:
        >>> import lightning_sora as ls
        >>> recipe = ls.Recipe.load("recipes/world_dit.yaml")  # doctest: +SKIP
        >>> print(ls.cache_latents(recipe, "outputs/latents"))  # doctest: +SKIP
        train: 2048 clips, 0 unreadable
        val: 256 clips, 0 unreadable
        outputs/latents: train on it with --data.source=latents --data.root=outputs/latents
    """
    out = Path(out)
    if not splits or set(splits) - set(SPLITS):
        raise SoraError(f"--splits {','.join(splits)!r} must be of {', '.join(SPLITS)}, with commas between")
    if dtype not in cached.DTYPES or shard_clips < 1:
        raise SoraError(
            f"dtype={dtype!r} must be of {', '.join(cached.DTYPES)}, and shard_clips={shard_clips} 1 or more"
        )
    if prompts and text is None:
        raise SoraError("prompts are kept as embeddings of a text encoder; name it by --text, or leave out --prompts")
    check_folder("--out", out, IDENTITY)
    load_packages()
    load_plugins(plugins)
    named, options = ", ".join(map(str, recipe.files)), recipe.options("data")
    if not {"patch", "source"} <= set(options):
        raise SoraError(f"{named} has no clips to cache; give a recipe with a SpacetimeDataModule")
    chosen = vae or recipe.options("model").get("vae")
    if not chosen:
        raise SoraError(f"{named} names no model.vae; give the checkpoint of a LitVAE run by --vae")
    encoder = None if text is None else _frozen(text, device)
    path = chosen if is_folder(chosen) else checkpoint_of(chosen)
    seed = int(recipe.options("model").get("seed") or 0)  # moves a VAE with fresh weights
    network = _made_vae(path, device, seed)
    _check_patch(options["patch"], recipe.options("model"), network, path)
    data = _made_data(options)
    for split in splits:
        _refuse_what_varies(data, split)
    vae_hash, what = network.fingerprint(), {key: options[key] for key in sorted(options) if key not in AS_ONE_LIKES}
    identity = {"vae": vae_hash, **{f"data.{key}": value for key, value in what.items()}}
    remedy = f"give another --out, or delete {out}"
    claim(out, {**identity, "dtype": dtype, "shard clips": shard_clips}, remedy)
    fingerprints = {split: data.source(split).fingerprint() for split in splits}
    for split, found in fingerprints.items():  # one may be added to those that are there
        claim(out, {"data fingerprint": found}, remedy, name=f"{split}.identity.json")
    shards: dict[str, list[Shard]] = {}
    for split in splits:
        work = {"data": options, "split": split, "clips": shard_clips, "vae": path, "dtype": dtype, "device": device,
                "seed": seed, "identity": [fingerprints[split], vae_hash]}  # fmt: skip
        _refuse_or_warn_of_sizes(data, split, network)
        shards[split] = [
            Shard(out / "shards" / f"{split}-{first:08d}.safetensors", {**work, "first": first})
            for first in range(0, len(data.plan(split).grids), shard_clips)
        ]

    def intact(file: Path) -> bool:
        try:
            if cached.shard_is_whole(file, vae_hash):
                return True
            reason = f"{file} is damaged: its bytes are not those that were written"
        except SoraError as problem:
            reason = str(problem)
        log.warning("%s: its clips are encoded again", reason)
        return False

    run_shards(
        [shard for some in shards.values() for shard in some], encode_shard, engine=engine, intact=intact,
        label="encoding", logs=out / "logs", plugins=plugins,
    )  # fmt: skip
    clips, skipped, captions = {}, {}, {""}
    for split, some in shards.items():
        rows = [row for shard in some for row in cached.shard_rows(shard.path, vae_hash)]
        write_whole(out / f"{split}.parquet", cached.table_bytes(rows))
        clips[split] = len(rows)
        skipped[split] = [reason for shard in some for reason in cached.shard_skipped(shard.path, vae_hash)]
        captions.update(caption for row in rows for caption in (row["caption"], *row["alternatives"]))
        captions.update(data.source(split).told_captions())  # also of clips that could not be read
    count = None
    if encoder is not None:
        if options.get("captions"):
            captions.update(row.caption for row in read_captions(options["captions"]).values())
        captions.update(recipe.options("model").get("prompts") or ())
        count = encoder.store(sorted(captions.union(prompts)), out / "text")
    before = cached.read_header(out) if (out / cached.HEADER).is_file() else {}
    totals = {split: len(data.source(split).infos) for split in splits}
    header = {"schema": cached.SCHEMA, "vae_hash": vae_hash, "vae": path, "vae_stride": list(network.stride),
              "vae_facts": asdict(network.facts), "channels": network.latent_channels, "dtype": dtype,
              "splits": before.get("splits", {}) | clips,
              "skipped": before.get("skipped", {}) | skipped, "data": before.get("data", {}) | fingerprints,
              "clips": before.get("clips", {}) | totals, "recipe": what,
              "text": text or before.get("text")}  # fmt: skip
    # Last: a cache without it is not finished.
    write_whole(out / cached.HEADER, seal_json(redacted(header)))
    return LatentCache(out, clips, skipped, count)


def encode_shard(work: Mapping[str, Any], path: Path) -> None:
    """Encodes the clips of one shard; those that cannot be read are left out."""
    of_data, of_vae = work["identity"]
    data = _data(json.dumps(work["data"], sort_keys=True), work["split"], of_data)
    vae = _vae(work["vae"], work["device"], work["seed"], of_vae)
    source, grids = data.source(work["split"]), data.plan(work["split"]).grids
    clips, latents, skipped = [], [], []
    for index in sorted(grids)[work["first"] : work["first"] + work["clips"]]:
        info, size = source.infos[index], grids[index].size(data.patch)
        try:
            clip = read_clip(source, index, Crop(size, data.fps), seed=data.seed)
        except DecodeError as problem:
            if data.on_error == "raise":
                raise
            skipped.append(f"{info.id}: {problem}")
            continue
        pixels = from_uint8([clip.video.to(work["device"])])
        # One at a time: in a batch, sums may be rounded otherwise, and the bytes depend on its size.
        with torch.no_grad():
            latents.append(vae.encode_latent(pixels)[0].movedim(0, -1).cpu())
        clips.append(
            cached.CachedClip(
                info.id, clip.caption, list(clip.alternatives), *size, clip.fps, info.frames, info.height, info.width,
                info.fps, index, info.source, info.content, facts_text(clip.facts),
            )
        )  # fmt: skip
    write_whole(path, cached.shard_bytes(clips, latents, vae.fingerprint(), work["dtype"], skipped))


def _frozen(spec: str, device: str) -> FrozenTransformer:
    encoder = TEXT_ENCODERS.create(spec)
    if isinstance(encoder, CachedTransformer):
        raise SoraError(f"--text {spec} reads embeddings and makes none; name the encoder itself, as hf(name='MODEL')")
    if not isinstance(encoder, FrozenTransformer):
        raise SoraError(
            f"--text {spec}: it learns with the model, so that its embeddings cannot be kept; name a frozen one"
        )
    return encoder.to(usable_device(device))


def _check_patch(patch: Sequence[int], model: Mapping[str, Any], vae: VideoVAE, path: str) -> None:
    """Refuses pixels per token that are not those of the VAE and of the recipe's transformer."""
    if any(p % s for p, s in zip(patch, vae.stride, strict=True)):
        raise SoraError(f"data.patch={list(patch)} is no multiple of the stride {list(vae.stride)} of the VAE {path}")
    tokens = (model.get("dit") or {}).get("patch_size")
    if tokens is None or model.get("denoiser") is not None:  # which knows its own once it is loaded
        return
    if (expected := vae.stride * PatchSize.of(tokens)) != PatchSize.of(patch):
        raise SoraError(
            f"data.patch={list(patch)} is not the stride {list(vae.stride)} of the VAE {path} times "
            f"model.dit.patch_size={list(tokens)}; set data.patch to {list(expected)}, or another patch_size"
        )


def _refuse_or_warn_of_sizes(data: SpacetimeDataModule, split: str, vae: VideoVAE) -> None:
    """Before anything is encoded: each size is one that the VAE takes; and images beside clips are told of."""
    grids = set(data.plan(split).grids.values())
    for grid in grids:
        vae.grid(*grid.size(data.patch))
    otherwise = vae.facts.otherwise("first_frame_alone")
    if otherwise and len({grid.frames == 1 for grid in grids}) == 2:
        log.warning("the split %s has images beside clips, and of this VAE, %s", split, otherwise)


def _refuse_what_varies(data: SpacetimeDataModule, split: str) -> None:
    """A cache keeps one latent per clip, each of equal standing."""
    if type(data.source(split)).order is not Source.order:
        raise SoraError(
            f"data.source={data.spec!r} draws its clips by shares, which a cache cannot keep; cache each of its "
            "sources by itself, then train on a mixture of caches: \"latents(root='DIR')\""
        )
    policy = data.sizes if split == "train" else data.eval_sizes
    if isinstance(policy, Bucketed) and policy.keep:
        raise SoraError(
            "data.sizes draws a clip's bucket anew at every visit (keep=...), but a cache keeps a clip at one size; "
            "leave keep out"
        )


# One process may serve several calls: what it keeps is that of the fingerprint that the call has seen.


@lru_cache(maxsize=1)
def _vae(path: str, device: str, seed: int, fingerprint: str) -> VideoVAE:
    vae = _made_vae(path, device, seed)
    check_unchanged(f"the VAE {path}", vae.fingerprint(), fingerprint)
    return vae


def _made_vae(path: str, device: str, seed: int) -> VideoVAE:
    vae, _, _ = load_vae(path, seed)
    return vae.to(usable_device(device)).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _data(options: str, split: str, fingerprint: str) -> SpacetimeDataModule:
    data = _made_data(json.loads(options))
    check_unchanged(f"the data {data.spec!r}", data.source(split).fingerprint(), fingerprint)
    return data


def _made_data(options: Mapping[str, Any]) -> SpacetimeDataModule:
    data = SpacetimeDataModule(**{**options, "captions": None, "caption_share": 1.0})
    if data.source("train").space != "pixel":
        raise SoraError(f"data.source={data.spec!r} yields latents already; name the source of the clips")
    return data
