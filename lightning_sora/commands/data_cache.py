"""``data cache``: encode every clip of a recipe's data once, by a frozen VAE."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.commands.arguments import whole
from lightning_sora.errors import SoraError

if TYPE_CHECKING:
    from lightning_sora.data.datamodule import SpacetimeDataModule
    from lightning_sora.data.plan import BatchPlan
    from lightning_sora.models.vae import VideoVAE

SPLITS = ("train", "val", "test")


def add_parser(actions: Any) -> None:
    parser = actions.add_parser(
        "cache",
        help="encode clips once, to train on their latents",
        description="Encodes every clip of a recipe's data by a frozen VAE, at the size and window of its first visit. "
        "Then train with data.source=latents data.root=DIR. Called again after an interruption, it goes on.",
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
    parser.add_argument("--device", default="cpu", help="of the VAE (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Makes or completes a cache; returns 0.

    Raises:
        SoraError: a mistake in the recipe or the VAE; or the folder holds a cache of another VAE, recipe or data.
    """
    from lightning_sora.commands.planning import resolve
    from lightning_sora.commands.shards import Shard, claim, run_shards, write_whole
    from lightning_sora.data.latents import HEADER, SCHEMA, shard_rows, table_bytes
    from lightning_sora.lit.captioners import checkpoint_of
    from lightning_sora.plugins import load_packages, load_plugins

    wanted = args.splits.split(",")
    if not wanted or set(wanted) - set(SPLITS):
        raise SoraError(f"--splits {args.splits!r} must be of {', '.join(SPLITS)}, with commas between")
    load_packages()
    load_plugins(args.plugins)
    recipe = resolve(args.config, _overrides(args.overrides))
    options = recipe["data"]["init_args"]
    source = args.vae or (recipe["model"].get("init_args") or {}).get("vae", "")
    path = checkpoint_of(source)
    vae = _vae(path, args.device)
    if any(p % s for p, s in zip(options["patch"], vae.stride, strict=True)):
        raise SoraError(
            f"data.patch={options['patch']} is no multiple of the stride {list(vae.stride)} of the VAE {path}"
        )
    data = _data(json.dumps(options, sort_keys=True))
    what = {key: options[key] for key in sorted(options) if key not in ("num_workers", "captions", "caption_share")}
    identity = {
        "vae": vae.fingerprint(),
        "recipe's data": what,
        "data": {split: data.source(split).fingerprint() for split in wanted},
        "dtype": args.dtype,
        "shard clips": args.shard_clips,
        "splits": wanted,
    }
    claim(args.out, identity, f"give another --out, or delete {args.out}")
    shards = []
    for split in wanted:
        used = sorted(_plan(data, split).grids)
        for first in range(0, len(used), args.shard_clips):
            work = {"data": options, "split": split, "first": first, "clips": args.shard_clips, "vae": path,
                    "dtype": args.dtype, "device": args.device}  # fmt: skip
            shards.append(Shard(args.out / "shards" / f"{split}-{first:08d}.safetensors", work))
    (args.out / "shards").mkdir(exist_ok=True)

    def intact(file: Path) -> bool:
        try:
            return shard_rows(file, vae.fingerprint()) is not None
        except SoraError:
            return False

    run_shards(
        shards, "lightning_sora.commands.data_cache:cache_shard", engine=args.engine, intact=intact,
        label="encoding", logs=args.out / "logs", plugins=args.plugins,
    )  # fmt: skip
    counts = {}
    for split in wanted:
        files = [shard.path for shard in shards if shard.path.name.startswith(f"{split}-")]
        rows = [row for file in files for row in shard_rows(file, vae.fingerprint())]
        write_whole(args.out / f"{split}.parquet", table_bytes(rows))
        counts[split] = len(rows)
        left_out = len(data.source(split).infos) - len(rows)
        print(
            f"{split}: {len(rows)} clips"
            + (f", {left_out} left out: unreadable, or of no usable size" if left_out else "")
        )
    if args.text is not None:
        _cache_text(args.text, data, wanted, args.out / "text")
    header = {"schema": SCHEMA, "vae_hash": vae.fingerprint(), "vae": path, "vae_stride": list(vae.stride),
              "channels": vae.latent_channels, "dtype": args.dtype, "splits": counts, "data": identity["data"],
              "recipe": what, "text": args.text}  # fmt: skip
    # Last: a cache without it is not finished.
    write_whole(args.out / HEADER, json.dumps(header, indent=1, sort_keys=True).encode())
    print(f"{args.out}: train on it with --data.source=latents --data.root={args.out}")
    return 0


def cache_shard(work: Mapping[str, Any], path: Path) -> None:
    """Encodes the clips of one shard; those that cannot be read are left out."""
    import logging

    import torch

    from lightning_sora.commands.shards import write_whole
    from lightning_sora.data.latents import CachedClip, shard_bytes
    from lightning_sora.data.sources import DecodeError
    from lightning_sora.data.sources.latents import facts_text
    from lightning_sora.randomness import generator

    data, vae = _data(json.dumps(work["data"], sort_keys=True)), _vae(work["vae"], work["device"])
    source, plan = data.source(work["split"]), _plan(data, work["split"])
    clips, latents = [], []
    for index in sorted(plan.grids)[work["first"] : work["first"] + work["clips"]]:
        info, size = source.infos[index], plan.grids[index].size(data.patch)
        try:
            clip = source.load(index, *size, generator=generator(data.seed, "crop", info.id, 0), fps=data.fps)
        except DecodeError as problem:
            logging.getLogger(__name__).warning("left out: %s", problem)
            continue
        pixels = (clip.video.to(work["device"]).float() / 127.5 - 1).movedim(-1, 0)[None]
        # One at a time: in a batch, sums may be rounded otherwise, and the bytes depend on its size.
        with torch.no_grad():
            latents.append(vae.encode_latent(pixels)[0].movedim(0, -1).cpu())
        told = facts_text(clip.facts)
        clips.append(CachedClip(info.id, clip.caption, list(clip.alternatives), *size, clip.fps, info.source, told))
    write_whole(path, shard_bytes(clips, latents, vae.fingerprint(), work["dtype"]))


def _cache_text(spec: str, data: SpacetimeDataModule, splits: list[str], folder: Path) -> None:
    from lightning_sora.models.text import TEXT_ENCODERS
    from lightning_sora.models.text_hf import FrozenTransformer

    encoder = TEXT_ENCODERS.create(spec)
    if not isinstance(encoder, FrozenTransformer):
        raise SoraError(
            f"--text {spec}: it learns with the model, so that its embeddings cannot be kept; name a frozen one"
        )
    captions = {""}
    for split in splits:
        source = data.source(split)
        for index, info in enumerate(source.infos):
            captions |= {info.caption or _caption(source, index, data), *info.alternatives}
    count = encoder.store(sorted(captions), folder)
    print(f"text: {count} captions; use them with text=\"hf(name=..., cache='{folder}')\"")


def _caption(source: Any, index: int, data: SpacetimeDataModule) -> str:
    """The caption of a clip whose source makes it up as it is loaded."""
    import torch

    patch = data.patch
    return source.load(index, 1, patch.height, patch.width, generator=torch.Generator(), fps=data.fps).caption


def _overrides(given: list[str]) -> dict[str, str]:
    found = {}
    for item in given:
        key, equals, value = item.removeprefix("--").partition("=")
        if not equals:
            raise SoraError(f"{item!r} must be KEY=VALUE, as in data.root=FOLDER")
        found[key] = value
    return found


@lru_cache(maxsize=1)
def _vae(path: str, device: str) -> VideoVAE:
    from lightning_sora.commands.arguments import usable_device
    from lightning_sora.lit.pretrained import load_vae

    vae, _, _ = load_vae(path, 0)
    return vae.to(usable_device(device)).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _data(options: str) -> SpacetimeDataModule:
    from lightning_sora.data.datamodule import SpacetimeDataModule

    data = SpacetimeDataModule(**{**json.loads(options), "captions": None, "caption_share": 1.0})
    if data.source("train").space != "pixel":
        raise SoraError(f"data.source={data.spec!r} yields latents already; name the source of the clips")
    return data


def _plan(data: SpacetimeDataModule, split: str) -> BatchPlan:
    """The sizes of a split; each clip has one, as there is one latent of it."""
    return data.plan(split)
