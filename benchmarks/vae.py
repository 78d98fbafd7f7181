"""Our video VAE beside those of diffusers: encode + decode and a training step, eager, float32, random weights.

    python -m benchmarks.vae [--quick] [--out FILE.md]

All have the same width, levels and residual blocks per level. A peer is compared with the model of ours that has the
same front end, stride and kind of convolution: Wan 2.1, CogVideoX and HunyuanVideo convolve pixels as they are in 3D,
LTX cuts them into patches first, Cosmos into wavelet blocks and convolves in space and time by turns. The VAE of
`recipes/world_vae.yaml` is timed beside them. Peers come from diffusers; without it, ours are timed alone and the page
says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import command_line, interleaved, markdown_table, page, write_page
from lightning_sora.models.vae import VAES
from lightning_sora.randomness import generator

LATENT = 16
LEVELS = (1, 2, 4, 4)
BLOCKS = 2


def ours(width: int, **options: Any) -> nn.Module:
    options = {"latent_channels": LATENT, "dim": width, "blocks": BLOCKS, "decoder_blocks": BLOCKS + 1, **options}
    return VAES.create(f"causal_conv({', '.join(f'{name}={value!r}' for name, value in options.items())})")


OURS: dict[str, Callable[[int], nn.Module]] = {
    "pixels, 3D": lambda width: ours(width, stride=(4, 8, 8), multipliers=LEVELS, convolution="full", front_end="none"),
    "patches, 3D": lambda width: ours(
        width, stride=(8, 32, 32), multipliers=LEVELS, convolution="full", front_end_patch=(1, 4, 4)
    ),
    "wavelets, factorised": lambda width: ours(
        width, stride=(8, 8, 8), multipliers=LEVELS[:2], front_end="wavelet", front_end_patch=(4, 4, 4)
    ),
}
DEMO = "causal_conv(stride=(4, 8, 8), latent_channels=16, dim=48, decoder_blocks=1, front_end_patch=(2, 4, 4))"


def wan(width: int) -> nn.Module:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=width, z_dim=LATENT, dim_mult=list(LEVELS), num_res_blocks=BLOCKS)


def cogvideox(width: int) -> nn.Module:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        block_out_channels=tuple(width * level for level in LEVELS),
        latent_channels=LATENT,
        layers_per_block=BLOCKS,
        norm_num_groups=4,
    )


def hunyuan(width: int) -> nn.Module:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        block_out_channels=tuple(width * level for level in LEVELS),
        latent_channels=LATENT,
        layers_per_block=BLOCKS,
        norm_num_groups=4,
    )


def ltx(width: int) -> nn.Module:
    from diffusers import AutoencoderKLLTXVideo

    widths = tuple(width * level for level in LEVELS)
    return AutoencoderKLLTXVideo(
        latent_channels=LATENT,
        block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=(BLOCKS,) * 5,
        decoder_layers_per_block=(BLOCKS,) * 5,
    )


def cosmos(width: int) -> nn.Module:
    from diffusers import AutoencoderKLCosmos

    widths = tuple(width * level for level in LEVELS[:2])
    return AutoencoderKLCosmos(
        latent_channels=LATENT,
        encoder_block_out_channels=widths,
        decode_block_out_channels=widths,
        num_layers=BLOCKS,
        latents_mean=None,
        latents_std=None,
    )


PEERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "Wan 2.1": ("pixels, 3D", wan),
    "CogVideoX": ("pixels, 3D", cogvideox),
    "HunyuanVideo": ("pixels, 3D", hunyuan),
    "LTX": ("patches, 3D", ltx),
    "Cosmos": ("wavelets, factorised", cosmos),
}


@dataclass(frozen=True)
class Size:
    clips: int
    frames: int
    side: int
    width: int = 32
    repeats: int = 5

    def __str__(self) -> str:
        return f"{self.clips} x {self.frames}x{self.side}x{self.side}, {self.width} wide"

    def video(self) -> Tensor:
        return torch.rand(self.clips, 3, self.frames, self.side, self.side, generator=generator(0, "video")) * 2 - 1


SIZES = (Size(1, 17, 32), Size(4, 17, 32, repeats=3), Size(1, 17, 64, repeats=3))
QUICK = (Size(1, 9, 32, width=4, repeats=1),)


@dataclass(frozen=True)
class Candidate:
    """A network, and how it is called: ours return the posterior and the video, the peers wrap them."""

    kind: str
    net: nn.Module
    own: bool

    def reconstruct(self, video: Tensor, sampled: bool) -> Tensor:
        """Decodes the posterior's mean, or a sample of it."""
        net: Any = self.net
        if self.own:
            posterior = net.encode(video)
            return net.decode(posterior.sample(torch.randn_like(posterior.mean)) if sampled else posterior.mean)
        posterior = net.encode(video).latent_dist
        return net.decode(posterior.sample() if sampled else posterior.mode()).sample

    @torch.no_grad()
    def evaluate(self, video: Tensor) -> Tensor:
        return self.reconstruct(video, sampled=False)

    def step(self, video: Tensor) -> None:
        """Reconstructs a sample of the posterior, and takes the gradient of its squared error."""
        self.net.zero_grad(set_to_none=True)
        (self.reconstruct(video, sampled=True) - video).square().mean().backward()

    def flops(self, video: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            made = self.evaluate(video)
        assert made.shape == video.shape, f"{type(self.net).__name__} made {tuple(made.shape)} of {tuple(video.shape)}"
        return int(counter.get_total_flops())


def compare(size: Size, peers: dict[str, tuple[str, Callable[[int], nn.Module]]]) -> str:
    """A table of one size, and under it how ours stand beside the fastest peer of each kind."""
    print(f"timing {size}", file=sys.stderr)
    candidates = {f"ours: {kind}": Candidate(kind, make(size.width), True) for kind, make in OURS.items()}
    candidates["ours: demo"] = Candidate("patches, factorised", VAES.create(DEMO), True)
    candidates |= {name: Candidate(kind, make(size.width), False) for name, (kind, make) in peers.items()}
    video = size.video()

    def timed(what: str) -> dict[str, float]:
        calls = {name: partial(getattr(candidate, what), video) for name, candidate in candidates.items()}
        return interleaved(calls, repeats=size.repeats, least=0.05 if size.repeats > 1 else 0.0)

    flops = {name: candidate.flops(video) for name, candidate in candidates.items()}
    passes, steps = timed("evaluate"), timed("step")
    rows = []
    for name, c in candidates.items():
        own = f"ours: {c.kind}" if f"ours: {c.kind}" in candidates else name
        parameters = sum(p.numel() for p in c.net.parameters()) / 1e6
        figures = (f"{parameters:.2f}", f"{flops[name] / 1e9:.2f}", f"{1e3 * passes[name]:,.1f}")
        ratios = (f"{passes[name] / passes[own]:.2f}", f"{1e3 * steps[name]:,.1f}", f"{steps[name] / steps[own]:.2f}")
        rows.append((name, c.kind, *figures, *ratios))
    verdicts = []
    for kind in OURS:
        for what, seconds in (("encode + decode", passes), ("step", steps)):
            others = {n: seconds[n] for n in peers if candidates[n].kind == kind}
            if others:
                best = min(others, key=others.__getitem__)
                verdicts.append(f"{kind}, {what} {seconds[f'ours: {kind}'] / others[best]:.2f} of {best}'s")
    header = (
        "",
        "kind",
        "parameters (M)",
        "GFLOP",
        "encode + decode, ms",
        "ratio to ours",
        "step, ms",
        "ratio to ours",
    )
    below = f"Ours beside the fastest peer of the same kind: {'; '.join(verdicts)}." if verdicts else ""
    return f"## {size}\n\n{markdown_table(header, rows)}\n\n{below}".rstrip()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one tiny size, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the page here too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    peers = PEERS
    try:
        import diffusers

        source = f"Peers from diffusers {diffusers.__version__}."
    except ImportError:
        peers, source = {}, "Peers are absent: diffusers is not installed."
    intro = (
        f"{source} Eager, float32, one thread, random weights. A step is a forward and a backward pass under the "
        "squared error. CPU milliseconds are medians of interleaved repeats; a ratio is the time over that of our "
        "model of the same kind, so above 1 is slower than ours. FLOPs of encoding and decoding as torch counts them."
    )
    tables = [compare(size, peers) for size in (QUICK if args.quick else SIZES)]
    command = command_line("vae", arguments)
    write_page(args.out, page("The video VAE beside its peers", command, [intro, *tables]))


if __name__ == "__main__":
    main()
