"""Sampling: seconds a step and a clip, with classifier-free guidance, in bfloat16; and the decoding of its latent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.gpu.models import IN_DIM, TEXT_DIM, TEXT_TOKENS, make_dit
from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session
from lightning_sora.diffusion.guidance import classifier_free
from lightning_sora.diffusion.paths import OBJECTIVES
from lightning_sora.diffusion.samplers import sample_euler, time_schedule
from lightning_sora.models.denoisers import DiT
from lightning_sora.models.text import TextContext
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout, unpatchify

PATCH = PatchSize(1, 2, 2)
STEPS, SCALE = 32, 3.0
VAE = "causal_conv(dim=96, latent_channels=16, chunk_frames=16)"
#: Frames, height and width of the video.
VIDEOS = ((17, 256, 256), (17, 480, 832), (65, 480, 832))


def cases(session: Session) -> list[Case]:
    if session.reduced:
        return [_case(session, "B", (5, 16, 16), 1)]
    return [
        _case(session, size, video, clips)
        for size, clips in (("XL", 1), ("B", 1), ("B", 4))
        for video in (VIDEOS if clips == 1 else VIDEOS[:1])
    ]


def _case(session: Session, size: str, video: tuple[int, int, int], clips: int) -> Case:
    labels = {"model": size, "video": "x".join(map(str, video)), "clips": clips}
    return Case(labels, partial(_measure, session, size, video, clips))


@torch.no_grad()
def _measure(session: Session, size: str, video: tuple[int, int, int], clips: int) -> Iterator[Row]:
    grid = TokenGrid.of(*video, PatchSize(4, 8, 8) * PATCH)
    dtype = torch.float32 if session.reduced else torch.bfloat16
    vae: VideoVAE = VAES.create("causal_conv(dim=8, latent_channels=16)" if session.reduced else VAE)
    initialize(vae, seed=0)
    vae.to(session.device, dtype)
    model = make_dit(session, size).to(dtype).eval()
    noise = torch.randn(clips, grid.tokens, IN_DIM, device=session.device)
    steps = 2 if session.reduced else STEPS
    times = time_schedule(steps, shift=3.0)
    text = torch.randn(2 * clips, TEXT_TOKENS, TEXT_DIM, device=session.device, dtype=dtype)
    denoisers = {way: _denoiser(model, text, grid, clips, way) for way in ("two calls", "one batch")}
    # A step is measured alone, so that long clips need not be made many times.
    taken = session.interleaved({way: partial(denoise, noise, 0.5) for way, denoise in denoisers.items()})

    def decode() -> Tensor:
        rows = noise.to(dtype)
        return vae.decode_latent(rearrange(unpatchify(rows, grid, PATCH), "b t h w c -> b c t h w"))

    decoding = session.seconds(decode)
    for way, denoise in denoisers.items():
        yield {
            "tokens": grid.tokens,
            "guidance": way,
            "ms_per_step": 1000 * taken[way],
            "steps_per_s": 1 / taken[way],
            f"s_of_{steps}_steps": session.once(partial(sample_euler, denoise, noise, times)),
            "s_of_decoding": decoding,
            "peak_GiB_of_a_step": session.peak_gib(partial(denoise, noise, 0.5)),
            "peak_GiB_of_decoding": session.peak_gib(decode),
        }


def _denoiser(model: DiT, text: Tensor, grid: TokenGrid, clips: int, way: str) -> Callable[[Tensor, float], Tensor]:
    """Guided ``(x_t, t) -> x_0``: conditional and unconditional in one batch, or one after the other."""
    objective = OBJECTIVES.create("velocity")
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)

    def predict(x_t: Tensor, t: float, part: slice) -> Tensor:
        layout = TokenLayout.uniform(grid, len(x_t))
        times = torch.full((len(x_t),), t, device=x_t.device)
        found = model(x_t.to(text.dtype), times.to(text.dtype), TextContext(text[part], mask[part]), layout)
        return objective.x_0(found.float(), x_t, times[:, None, None])

    def denoise(x_t: Tensor, t: float) -> Tensor:
        if way == "one batch":
            conditional, unconditional = predict(torch.cat([x_t, x_t]), t, slice(None)).chunk(2)
        else:
            conditional, unconditional = predict(x_t, t, slice(clips)), predict(x_t, t, slice(clips, None))
        return classifier_free(conditional, unconditional, SCALE)

    return denoise
