"""VAEs: frames a second of encoding and decoding, in bfloat16 by autocast, without gradients; and a training step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.randomness import initialize

SPECS = (
    "causal_conv(dim=96)",
    "causal_conv(dim=96, chunk_frames=16)",
    "causal_conv(dim=96, convolution='full')",
)
#: Frames, height, width.
VIDEOS = ((17, 256, 256), (17, 480, 832), (65, 480, 832), (17, 720, 1280))
REDUCED = ("causal_conv(dim=8, latent_channels=4)", (5, 16, 16))


def cases(session: Session) -> list[Case]:
    pairs = [REDUCED] if session.reduced else [(spec, video) for video in VIDEOS for spec in SPECS]
    return [
        Case({"vae": spec, "video": "x".join(map(str, video))}, partial(_measure, session, spec, video))
        for spec, video in pairs
    ]


def _measure(session: Session, spec: str, size: tuple[int, int, int]) -> Iterator[Row]:
    vae: VideoVAE = VAES.create(spec)
    initialize(vae, seed=0)
    vae.to(session.device)
    video = torch.rand(1, 3, *size, device=session.device) * 2 - 1

    @torch.no_grad()
    def encode() -> torch.Tensor:
        with session.half():
            return vae.encode_latent(video)

    latent = encode()

    @torch.no_grad()
    def decode() -> torch.Tensor:
        with session.half():
            return vae.decode_latent(latent)

    def train() -> None:
        with session.half():
            loss = (vae.decode(vae.encode(video).mean).float() - video).square().mean()
        loss.backward()
        vae.zero_grad(set_to_none=True)

    for name, run in {"encode": encode, "decode": decode, "forward and backward": train}.items():
        seconds = session.seconds(run)
        memory = session.peak_gib(run)
        yield {"what": name, "ms": 1000 * seconds, "frames_per_s": size[0] / seconds, "peak_GiB": memory}
