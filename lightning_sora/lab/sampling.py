"""Videos from prompts, by a trained model, as files."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.lab.models import load
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.redaction import redacted
from lightning_sora.sealing import write_whole
from lightning_sora.texts import read_text
from lightning_sora.writing import check_folder

if TYPE_CHECKING:
    from lightning_sora.media import Video


@dataclass(frozen=True)
class Samples:
    """Videos that were sampled, and their files; a notebook plays them.

    Attributes:
        prompts: as asked for.
        expanded: what was sampled from; the prompts themselves where nothing makes them rich.
        videos: uint8 [frames height width 3], one per prompt.
        files: an MP4 and a GIF of each, then contact_sheet.png and samples.json, which tells how they were made.
    """

    prompts: tuple[str, ...]
    expanded: tuple[str, ...]
    videos: tuple[Video, ...] = field(repr=False)
    fps: float
    files: tuple[Path, ...]

    def _repr_html_(self) -> str:
        gifs = [file for file in self.files if file.suffix == ".gif"]
        return "".join(
            f"<figure style='display:inline-block'><img src='data:image/gif;base64,"
            f"{base64.b64encode(file.read_bytes()).decode()}'><figcaption>{html.escape(text)}</figcaption></figure>"
            for file, text in zip(gifs, self.expanded, strict=True)
        )


def sample(
    checkpoint: str | Path, prompts: Sequence[str], *, frames: int | None = None, height: int | None = None,
    width: int | None = None, fps: float | None = None, seed: int = 0, steps: int | None = None,
    guidance: str | float | None = None, expand: str | None = None, plugins: Sequence[str | Path] = (),
    out: str | Path | None = None, scale: int = 1, batch_size: int = 8, device: str | None = None,
) -> Samples:  # fmt: skip
    """Makes a video per prompt, and writes each as MP4 and GIF, with a contact sheet of all.

    Args:
        checkpoint: of a LitDiT, the folder of its run, or one that ``save`` of a model wrote.
        frames, height, width, fps: None for as trained; sizes in pixels.
        seed: of the noise; the same seed gives the same videos.
        steps, guidance: None for those of the recipe; guidance is a scale, 1 is off, or a spec.
        expand: what makes prompts rich first: a LitExpander's checkpoint, hf(...) or openai(...).
        plugins: files that register parts.
        out: folder; None for samples/prompts in the run's.
        scale: each pixel of a file is so many wide and high.
        batch_size: videos at once.
        device: None for CUDA where there is one.

    Raises:
        SoraError: no prompt, no such checkpoint, one of another model, or a size that the model cannot have.
    """
    if not prompts:
        raise SoraError("nothing to sample; give --prompt TEXT or --prompts FILE")
    place, asked = Path(checkpoint), list(prompts)
    if not os.path.exists(place):
        raise SoraError(f"no checkpoint at {place}; give a .ckpt file that `lightning-sora fit` wrote, or its folder")
    folder = _samples_of(place) if out is None else Path(out)
    check_folder("--out", folder)

    from tqdm import tqdm

    from lightning_sora import media
    from lightning_sora.diffusion.guidance import guidance_of
    from lightning_sora.lit.expander import create_expander
    from lightning_sora.lit.generate import GenerativeModule
    from lightning_sora.models.latent_diffusion import LatentDiffusion

    load_packages()
    load_plugins(plugins)
    if guidance is not None:
        guidance_of(guidance)  # refused before the model is loaded
    told: dict[str, Any] = {"ckpt": str(place), "seed": seed}
    expanded = asked
    if expand is not None:
        expander = create_expander(expand, str(usable_device(device)))
        expanded = expander.expand(asked, seed=seed)
        told |= {"expander": expand, "expander_fingerprint": expander.fingerprint()}
    model = load(place, device)
    if not isinstance(model, GenerativeModule | LatentDiffusion):
        raise SoraError(f"{place} is of a {type(model).__name__}, which makes no videos of prompts; give a LitDiT's")
    own = model if isinstance(model, LatentDiffusion) else model.model
    rate = fps or own.seen_sizes.fps
    videos: list[Video] = []
    written: list[Path] = []
    for start in range(0, len(expanded), batch_size):
        some = expanded[start : start + batch_size]
        label = f"sampling {start + len(some)}/{len(expanded)}"
        made = model.sample(
            some,
            frames,
            height,
            width,
            seed=seed,
            steps=steps,
            guidance=guidance,
            # A prompt's noise depends on its place among all, not on the size of the batches.
            keys=[(index,) for index in range(start, start + len(some))],
            progress=partial(tqdm, desc=label, unit="step", file=sys.stderr),
        )
        for index, video in enumerate(made, start):  # at once: what is made is kept, whatever becomes of the rest
            name = folder / f"{index:03d}_{_slug(asked[index])}_seed{seed}"
            written += [name.with_suffix(".mp4"), name.with_suffix(".gif")]
            media.write_mp4(written[-2], video, rate, scale=scale)
            media.write_gif(written[-1], video, rate, scale=scale)
        videos += made
    written.append(folder / "contact_sheet.png")
    media.contact_sheet(written[-1], videos, asked)
    written.append(folder / "samples.json")
    told |= {"run_id": getattr(model, "run_id", None), "size": list(videos[0].shape[:3]), "fps": rate}
    told |= {"steps": own.sampling.steps if steps is None else steps}
    told |= {"guidance": own.sampling.guidance if guidance is None else guidance}
    told["prompts"] = [
        {"prompt": short, **({"expanded": rich} if expand else {})} for short, rich in zip(asked, expanded, strict=True)
    ]
    write_whole(written[-1], json.dumps(redacted(told), indent=1, ensure_ascii=False).encode())
    return Samples(tuple(asked), tuple(expanded), tuple(videos), rate, tuple(written))


def read_prompts(path: str | Path) -> list[str]:
    """Returns the prompts of a text file, one per line, without empty ones."""
    return [line.strip() for line in read_text(Path(path)).splitlines() if line.strip()]


def _samples_of(checkpoint: Path) -> Path:
    """Where the samples of a fit go: those of two do not mix."""
    folder = checkpoint if os.path.isdir(checkpoint) else checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "samples" / "prompts"


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40] or "empty"
