"""``data cache``: encode every clip of a recipe's data once, by a frozen VAE."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.commands.arguments import whole
from lightning_sora.errors import SoraError
from lightning_sora.jobs.shards import check_unchanged
from lightning_sora.redaction import redacted

if TYPE_CHECKING:
    from lightning_sora.data.datamodule import SpacetimeDataModule
    from lightning_sora.data.plan import BatchPlan
    from lightning_sora.models.text_hf import FrozenTransformer
    from lightning_sora.models.vae import VideoVAE

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
#: Options of the data that move no latent.
AS_ONE_LIKES = ("num_workers", "captions", "caption_share", "side_by_side", "on_error")


def add_parser(actions: Any) -> None:
    parser = actions.add_parser(
        "cache",
        help="encode clips once, to train on their latents",
        description="Encodes every clip of a recipe's data by a frozen VAE, at the size and window of its first visit. "
        "Then train with data.source=latents data.root=DIR. Called again after an interruption, it goes on, "
        "and makes damaged shards anew.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as data.root=FOLDER")
    parser.add_argument("--config", required=True, type=Path, help="the recipe that will train on the latents")
    parser.add_argument("--vae", help="checkpoint or run of a LitVAE; default: model.vae of the recipe")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--splits", default="train,val", help="of train, val, test (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--text", help="spec of a frozen text encoder whose embeddings are cached too, under DIR/text")
    parser.add_argument("--shard-clips", type=whole, default=256, help="clips per shard (default: %(default)s)")
    parser.add_argument("--engine", default="local(processes=1)", help="local(processes=N) or ray")
    parser.add_argument("--device", default="cpu", help="of VAE and text encoder (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Makes or completes a cache; returns 0.

    Raises:
        SoraError: a mistake in the recipe or the VAE; or the folder holds a cache of another VAE, recipe or data.
    """
    from lightning_sora.data.latents import (
        HEADER,
        SCHEMA,
        read_header,
        shard_is_whole,
        shard_rows,
        shard_skipped,
        table_bytes,
    )
    from lightning_sora.data.recaptions import read_captions
    from lightning_sora.jobs.shards import IDENTITY, Shard, claim, run_shards
    from lightning_sora.lit.captioners import checkpoint_of
    from lightning_sora.plugins import load_packages, load_plugins
    from lightning_sora.recipe.recipe import Recipe
    from lightning_sora.sealing import seal_json, write_whole
    from lightning_sora.writing import check_folder

    wanted = args.splits.split(",")
    if not wanted or set(wanted) - set(SPLITS):
        raise SoraError(f"--splits {args.splits!r} must be of {', '.join(SPLITS)}, with commas between")
    check_folder("--out", args.out, IDENTITY)
    load_packages()
    load_plugins(args.plugins)
    recipe = Recipe.load(args.config, _overrides(args.overrides))
    options = recipe.options("data")
    if not {"patch", "source"} <= set(options):
        raise SoraError(f"{args.config} has no clips to cache; give a recipe with a SpacetimeDataModule")
    named = args.vae or recipe.options("model").get("vae")
    if not named:
        raise SoraError(f"{args.config} names no model.vae; give the checkpoint of a LitVAE run by --vae")
    encoder = None if args.text is None else _frozen(args.text, args.device)
    path = checkpoint_of(named)
    seed = int(recipe.options("model").get("seed") or 0)  # moves a VAE with fresh weights
    vae = _made_vae(path, args.device, seed)
    if any(p % s for p, s in zip(options["patch"], vae.stride, strict=True)):
        raise SoraError(
            f"data.patch={options['patch']} is no multiple of the stride {list(vae.stride)} of the VAE {path}"
        )
    data = _made_data(options)
    for split in wanted:
        _refuse_what_varies(data, split)
    what = {key: options[key] for key in sorted(options) if key not in AS_ONE_LIKES}
    identity = {
        "vae": vae.fingerprint(),
        **{f"data.{key}": value for key, value in what.items()},
        "dtype": args.dtype,
        "shard clips": args.shard_clips,
    }
    remedy = f"give another --out, or delete {args.out}"
    claim(args.out, identity, remedy)
    sources = {split: data.source(split) for split in wanted}
    for split, source in sources.items():  # one may be added to those that are there
        claim(args.out, {"data fingerprint": source.fingerprint()}, remedy, name=f"{split}.identity.json")
    shards = []
    for split in wanted:
        used = sorted(_plan(data, split).grids)
        for first in range(0, len(used), args.shard_clips):
            work = {"data": options, "split": split, "first": first, "clips": args.shard_clips, "vae": path,
                    "dtype": args.dtype, "device": args.device, "seed": seed,
                    "identity": [sources[split].fingerprint(), vae.fingerprint()]}  # fmt: skip
            shards.append(Shard(args.out / "shards" / f"{split}-{first:08d}.safetensors", work))

    def intact(file: Path) -> bool:
        try:
            if shard_is_whole(file, vae.fingerprint()):
                return True
            reason = f"{file} is damaged: its bytes are not those that were written"
        except SoraError as problem:
            reason = str(problem)
        log.warning("%s: its clips are encoded again", reason)
        return False

    run_shards(
        shards, cache_shard, engine=args.engine, intact=intact,
        label="encoding", logs=args.out / "logs", plugins=args.plugins,
    )  # fmt: skip
    before = read_header(args.out) if (args.out / HEADER).is_file() else {}
    counts: dict[str, int] = dict(before.get("splits", {}))
    skipped: dict[str, list[str]] = dict(before.get("skipped", {}))
    fingerprints = before.get("data", {}) | {split: source.fingerprint() for split, source in sources.items()}
    totals = before.get("clips", {}) | {split: len(source.infos) for split, source in sources.items()}
    captions = {""}
    for split in wanted:
        files = [shard.path for shard in shards if shard.path.name.startswith(f"{split}-")]
        rows = [row for file in files for row in shard_rows(file, vae.fingerprint())]
        write_whole(args.out / f"{split}.parquet", table_bytes(rows))
        counts[split] = len(rows)
        skipped[split] = [reason for file in files for reason in shard_skipped(file, vae.fingerprint())]
        captions.update(caption for row in rows for caption in (row["caption"], *row["alternatives"]))
        print(f"{split}: {len(rows)} clips, {len(skipped[split])} unreadable")
        for reason in skipped[split]:
            print(f"  left out: {reason}")
    if encoder is not None:
        if options.get("captions"):
            captions.update(row.caption for row in read_captions(options["captions"]).values())
        count = encoder.store(sorted(captions), args.out / "text")
        print(f"text: {count} captions; use them with text=\"hf(name=..., cache='{args.out / 'text'}')\"")
    header = {"schema": SCHEMA, "vae_hash": vae.fingerprint(), "vae": path, "vae_stride": list(vae.stride),
              "channels": vae.latent_channels, "dtype": args.dtype, "splits": counts, "skipped": skipped,
              "data": fingerprints, "clips": totals, "recipe": what,
              "text": args.text or before.get("text")}  # fmt: skip
    # Last: a cache without it is not finished.
    write_whole(args.out / HEADER, seal_json(redacted(header)))
    print(f"{args.out}: train on it with --data.source=latents --data.root={args.out}")
    return 0


def cache_shard(work: Mapping[str, Any], path: Path) -> None:
    """Encodes the clips of one shard; those that cannot be read are left out."""
    import torch

    from lightning_sora.data.latents import CachedClip, shard_bytes
    from lightning_sora.data.sources import DecodeError
    from lightning_sora.data.sources.latents import facts_text
    from lightning_sora.models.pixels import from_uint8
    from lightning_sora.randomness import generator
    from lightning_sora.sealing import write_whole
    from lightning_sora.spacetime import Crop

    of_data, of_vae = work["identity"]
    data = _data(json.dumps(work["data"], sort_keys=True), work["split"], of_data)
    vae = _vae(work["vae"], work["device"], work["seed"], of_vae)
    source, plan = data.source(work["split"]), _plan(data, work["split"])
    clips, latents, skipped = [], [], []
    for index in sorted(plan.grids)[work["first"] : work["first"] + work["clips"]]:
        info, size = source.infos[index], plan.grids[index].size(data.patch)
        try:
            clip = source.load(index, Crop(size, data.fps), generator=generator(data.seed, "crop", info.id, 0))
        except DecodeError as problem:
            if data.on_error == "raise":
                raise
            skipped.append(f"{info.id}: {problem}")
            continue
        pixels = from_uint8([clip.video.to(work["device"])])
        # One at a time: in a batch, sums may be rounded otherwise, and the bytes depend on its size.
        with torch.no_grad():
            latents.append(vae.encode_latent(pixels)[0].movedim(0, -1).cpu())
        told = facts_text(clip.facts)
        clips.append(
            CachedClip(
                info.id,
                clip.caption,
                list(clip.alternatives),
                *size,
                clip.fps,
                info.frames,
                info.height,
                info.width,
                info.fps,
                index,
                info.source,
                info.content,
                told,
            )
        )
    write_whole(path, shard_bytes(clips, latents, vae.fingerprint(), work["dtype"], skipped))


def _frozen(spec: str, device: str) -> FrozenTransformer:
    from lightning_sora.lab.devices import usable_device
    from lightning_sora.models.text import TEXT_ENCODERS
    from lightning_sora.models.text_hf import FrozenTransformer

    encoder = TEXT_ENCODERS.create(spec)
    if not isinstance(encoder, FrozenTransformer):
        raise SoraError(
            f"--text {spec}: it learns with the model, so that its embeddings cannot be kept; name a frozen one"
        )
    return encoder.to(usable_device(device))


def _refuse_what_varies(data: SpacetimeDataModule, split: str) -> None:
    """A cache keeps one latent per clip, each of equal standing."""
    from lightning_sora.data.sizes import Bucketed
    from lightning_sora.data.sources import Source

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


def _overrides(given: list[str]) -> dict[str, str]:
    found = {}
    for item in given:
        key, equals, value = item.removeprefix("--").partition("=")
        if not equals:
            raise SoraError(f"{item!r} must be KEY=VALUE, as in data.root=FOLDER")
        found[key] = value
    return found


# One process may serve several calls: what it keeps is that of the fingerprint that the call has seen.


@lru_cache(maxsize=1)
def _vae(path: str, device: str, seed: int, fingerprint: str) -> VideoVAE:
    vae = _made_vae(path, device, seed)
    check_unchanged(f"the VAE {path}", vae.fingerprint(), fingerprint)
    return vae


def _made_vae(path: str, device: str, seed: int) -> VideoVAE:
    from lightning_sora.lab.devices import usable_device
    from lightning_sora.lit.pretrained import load_vae

    vae, _, _ = load_vae(path, seed)
    return vae.to(usable_device(device)).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _data(options: str, split: str, fingerprint: str) -> SpacetimeDataModule:
    data = _made_data(json.loads(options))
    check_unchanged(f"the data {data.spec!r}", data.source(split).fingerprint(), fingerprint)
    return data


def _made_data(options: Mapping[str, Any]) -> SpacetimeDataModule:
    from lightning_sora.data.datamodule import SpacetimeDataModule

    data = SpacetimeDataModule(**{**options, "captions": None, "caption_share": 1.0})
    if data.source("train").space != "pixel":
        raise SoraError(f"data.source={data.spec!r} yields latents already; name the source of the clips")
    return data


def _plan(data: SpacetimeDataModule, split: str) -> BatchPlan:
    """The sizes of a split; each clip has one, as there is one latent of it."""
    return data.plan(split)
