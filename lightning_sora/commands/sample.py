"""sample: videos from prompts, by a trained model."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.redaction import redacted
from lightning_sora.sealing import write_whole
from lightning_sora.texts import read_text
from lightning_sora.writing import check_folder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("sample", help="make videos from prompts", description=__doc__)
    parser.add_argument("--ckpt", required=True, type=Path, help="checkpoint of a LitDiT run, or the run's folder")
    parser.add_argument("--prompt", action="append", default=[], help="what to show; may be given several times")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    parser.add_argument("--frames", type=whole, help="default: as trained")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained")
    parser.add_argument("--width", type=whole, help="pixels; default: as trained")
    parser.add_argument("--fps", type=positive, help="frames per second of the files; default: as trained")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; the same seed gives the same videos")
    parser.add_argument("--steps", type=whole, help="sampling steps; default: those of the recipe")
    parser.add_argument("--guidance", help="scale of plain guidance, 1 is off, or a spec; default: that of the recipe")
    parser.add_argument(
        "--expand",
        metavar="EXPANDER",
        help="make prompts rich first: a LitExpander's checkpoint, hf(...) or openai(...)",
    )
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument("--out", type=Path, help="folder (default: samples/prompts in the run's folder)")
    parser.add_argument("--scale", type=whole, default=1, help="enlarge by this whole number (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole, default=8, help="videos at once (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def run(args: argparse.Namespace) -> int:
    """Writes an MP4 and a GIF per prompt and one contact sheet, and prints their paths."""
    prompts = [*args.prompt, *(_read_prompts(args.prompts) if args.prompts else [])]
    if not prompts:
        raise SoraError("nothing to sample; give --prompt TEXT or --prompts FILE")
    if not os.path.exists(args.ckpt):
        raise SoraError(f"no checkpoint at {args.ckpt}; give the path of a .ckpt file that `lightning-sora fit` wrote")
    if args.out is None:  # samples of two fits do not mix
        folder = args.ckpt if os.path.isdir(args.ckpt) else args.ckpt.parent
        args.out = (folder.parent if folder.name == "checkpoints" else folder) / "samples" / "prompts"
    check_folder("--out", args.out)
    from tqdm import tqdm

    from lightning_sora import media
    from lightning_sora.diffusion.guidance import guidance_of
    from lightning_sora.lit.captioners import checkpoint_of
    from lightning_sora.lit.dit import LitDiT
    from lightning_sora.lit.expander import create_expander
    from lightning_sora.plugins import load_packages, load_plugins

    load_packages()
    load_plugins(args.plugins)
    if args.guidance is not None:
        guidance_of(args.guidance)  # refused before the model is loaded
    asked = list(prompts)
    told: dict[str, Any] = {"ckpt": str(args.ckpt), "seed": args.seed}
    if args.expand is not None:
        expander = create_expander(args.expand, str(usable_device(args.device)))
        prompts = expander.expand(asked, seed=args.seed)
        told |= {"expander": args.expand, "expander_fingerprint": expander.fingerprint()}
        for short, rich in zip(asked, prompts, strict=True):
            print(f"{short} -> {rich}")
    model = LitDiT.load(checkpoint_of(str(args.ckpt)), usable_device(args.device))
    fps = args.fps or model.native_fps
    videos: list[Any] = []
    written: list[Path] = []
    for start in range(0, len(prompts), args.batch_size):
        some = prompts[start : start + args.batch_size]
        label = f"sampling {start + len(some)}/{len(prompts)}"
        made = model.sample(
            some,
            args.frames,
            args.height,
            args.width,
            seed=args.seed,
            steps=args.steps,
            guidance=args.guidance,
            # A prompt's noise depends on its place among all, not on the size of the batches.
            keys=[(index,) for index in range(start, start + len(some))],
            progress=partial(tqdm, desc=label, unit="step", file=sys.stderr),
        )
        for index, video in enumerate(made, start):  # at once: what is made is kept, whatever becomes of the rest
            name = args.out / f"{index:03d}_{_slug(asked[index])}_seed{args.seed}"
            written += [name.with_suffix(".mp4"), name.with_suffix(".gif")]
            media.write_mp4(written[-2], video, fps, scale=args.scale)
            media.write_gif(written[-1], video, fps, scale=args.scale)
        videos += made
    written.append(args.out / "contact_sheet.png")
    media.contact_sheet(written[-1], videos, asked)
    written.append(args.out / "samples.json")
    drawn = model.model.sampling
    told |= {"run_id": model.run_id, "size": list(videos[0].shape[:3]), "fps": fps}
    told |= {"steps": args.steps or drawn.steps, "guidance": args.guidance or drawn.guidance}
    told["prompts"] = [
        {"prompt": short, **({"expanded": rich} if args.expand else {})}
        for short, rich in zip(asked, prompts, strict=True)
    ]
    write_whole(written[-1], json.dumps(redacted(told), indent=1, ensure_ascii=False).encode())
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


def _read_prompts(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40] or "empty"
