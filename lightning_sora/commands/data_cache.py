"""``data cache``: encode every clip of a recipe's data once, by a frozen VAE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import whole
from lightning_sora.commands.flags import assignments
from lightning_sora.commands.following import tell_next


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
    parser.add_argument("--vae", help="checkpoint or run of a LitVAE, or diffusers(path='DIR'); default: model.vae")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--splits", default="train,val", help="of train, val, test (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--text", help="spec of a frozen text encoder whose embeddings are cached too, under DIR/text")
    parser.add_argument("--prompts", metavar="FILE", help="with --text: further texts to keep, one per line")
    parser.add_argument("--shard-clips", type=whole, default=256, help="clips per shard (default: %(default)s)")
    parser.add_argument("--engine", default="local(processes=1)", help="local(processes=N) or ray")
    parser.add_argument("--device", default="cpu", help="of VAE and text encoder (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Makes or completes a cache; returns 0.

    Raises:
        SoraError: a mistake in the recipe or the VAE; or the folder holds a cache of another VAE, recipe or data.
    """
    from lightning_sora.lab.cache import cache_latents
    from lightning_sora.lab.sampling import read_prompts
    from lightning_sora.plugins import load_packages, load_plugins
    from lightning_sora.recipe.recipe import Recipe

    load_packages()
    load_plugins(args.plugins)
    cache = cache_latents(
        Recipe.load(args.config, assignments(args.overrides)), args.out, vae=args.vae, splits=args.splits.split(","),
        dtype=args.dtype, text=args.text, prompts=read_prompts(args.prompts) if args.prompts else (),
        shard_clips=args.shard_clips, engine=args.engine, device=args.device, plugins=args.plugins,
    )  # fmt: skip
    print(cache)
    tell_next("fit", "--config", str(args.config), "--data.source=latents", f"--data.root={args.out}")
    return 0
