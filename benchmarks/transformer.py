"""Our diffusion transformer beside those of diffusers: forward and backward, eager, float32, random weights.

    python -m benchmarks.transformer [--quick] [--out FILE.md]

All have the same width, heads, depth and tokens, text of the same length, and an MLP of the same size (two matrices of
4 x width, or three of 8/3). A peer is compared with the model of ours that attends as it does: Wan and LTX see text by
cross-attention, CogVideoX and HunyuanVideo in one sequence with the video, Latte alternates between space and time and
shows text to its spatial layers alone: it is compared with ours less the text of the temporal layers. Peers come from
diffusers; without it, ours are timed alone and the page says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import command_line, interleaved, markdown_table, matrix_rate, page, write_page
from lightning_sora.models.denoisers import DiT
from lightning_sora.models.text import TextContext
from lightning_sora.randomness import generator
from lightning_sora.spacetime import TokenGrid, TokenLayout

CHANNELS, PATCH = 16, 2
ROW = CHANNELS * PATCH**2
TEXT_DIM, TEXT_TOKENS = 64, 16

KINDS = {
    "cross": "ours, cross",
    "joint": "ours, joint",
    "factorised": "ours, spatial, temporal",
    "factorised, text in space": "ours, spatial, temporal, text in space",
}


@dataclass(frozen=True)
class Size:
    """One size to compare at; the peers' depth must be even."""

    clips: int
    grid: TokenGrid
    dim: int
    heads: int
    depth: int
    repeats: int = 9

    def __str__(self) -> str:
        tokens = f"{self.clips} x {self.grid.tokens:,} tokens ({'x'.join(map(str, self.grid))})"
        return f"{tokens}, {self.dim} wide, {self.heads} heads, {self.depth} layers"

    def draw(self, name: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator(0, name))

    def video(self) -> Tensor:
        """A latent clip per row, ``[clips channels t h w]``."""
        frames, height, width = self.grid
        return self.draw("video", self.clips, CHANNELS, frames, PATCH * height, PATCH * width)

    def text(self) -> Tensor:
        return self.draw("text", self.clips, TEXT_TOKENS, TEXT_DIM)


SIZES = (
    Size(32, TokenGrid(5, 2, 2), 192, 3, 6),
    Size(1, TokenGrid(4, 8, 8), 384, 6, 6),
    Size(1, TokenGrid(4, 16, 16), 384, 6, 4, 5),
    Size(1, TokenGrid(16, 16, 16), 384, 6, 2, 3),
)
QUICK = (Size(2, TokenGrid(3, 2, 2), 32, 1, 2, 1),)


@dataclass(frozen=True)
class Candidate:
    """A network and a call of its forward pass.

    Attributes:
        kind: how it attends, a key of ``KINDS``.
    """

    kind: str
    net: nn.Module
    forward: Callable[[], Tensor]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    def flops(self) -> int:
        """Of the forward pass, counted by torch: products, convolutions and attention."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.forward()
        return int(counter.get_total_flops())

    def step(self) -> None:
        """One forward and one backward pass."""
        self.net.zero_grad(set_to_none=True)
        self.forward().square().mean().backward()


def ours(size: Size, kind: str) -> Candidate:
    layout = TokenLayout.uniform(size.grid, size.clips)
    net = DiT(
        ROW,
        dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        text_dim=TEXT_DIM,
        attention="spatial, temporal" if kind.startswith("factorised") else "full",
        mlp_ratio=8 / 3,
        conditioning="joint" if kind == "joint" else "cross",
    )
    if kind == "factorised, text in space":
        for block in net.blocks[1::2]:
            block.cross = None  # type: ignore[assignment]
    for parameter in net.parameters():
        if not parameter.detach().any():  # what starts at zero would make all that it feeds zero
            nn.init.normal_(parameter, std=0.02)
    rows, t = size.draw("rows", size.clips, size.grid.tokens, ROW), torch.full((size.clips,), 0.5)
    text = TextContext(size.text(), torch.ones(size.clips, TEXT_TOKENS, dtype=torch.bool))
    return Candidate(kind, net, lambda: net(rows, t, text, layout))


def wan(size: Size) -> Candidate:
    from diffusers import WanTransformer3DModel

    net = WanTransformer3DModel(
        patch_size=(1, PATCH, PATCH),
        num_attention_heads=size.heads,
        attention_head_dim=size.dim // size.heads,
        text_dim=TEXT_DIM,
        ffn_dim=4 * size.dim,
        num_layers=size.depth,
    )
    video, text, t = size.video(), size.text(), torch.full((size.clips,), 500)
    return Candidate("cross", net, lambda: net(video, t, text, return_dict=False)[0])


def ltx(size: Size) -> Candidate:
    from diffusers import LTXVideoTransformer3DModel

    net = LTXVideoTransformer3DModel(
        in_channels=ROW,
        out_channels=ROW,
        num_attention_heads=size.heads,
        attention_head_dim=size.dim // size.heads,
        cross_attention_dim=size.dim,
        num_layers=size.depth,
        caption_channels=TEXT_DIM,
    )
    rows, text = size.draw("rows", size.clips, size.grid.tokens, ROW), size.text()
    # A timestep per token, as its pipelines give it where frames are conditioned on; one per clip is the common case.
    t, mask = torch.full((size.clips, 1), 500), torch.ones(size.clips, TEXT_TOKENS)
    frames, height, width = size.grid
    return Candidate("cross", net, lambda: net(rows, text, t, mask, frames, height, width, return_dict=False)[0])


def cogvideox(size: Size) -> Candidate:
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, height, width = size.grid
    net = CogVideoXTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.dim // size.heads,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=size.dim // 4,  # about as released: 512 for 1,920
        text_embed_dim=TEXT_DIM,
        num_layers=size.depth,
        sample_width=PATCH * width,
        sample_height=PATCH * height,
        sample_frames=1 + 4 * (frames - 1),
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
    )
    rope = get_3d_rotary_pos_embed(size.dim // size.heads, ((0, 0), (height, width)), (height, width), frames)
    video, text, t = size.video().transpose(1, 2), size.text(), torch.full((size.clips,), 500)
    return Candidate("joint", net, lambda: net(video, text, t, image_rotary_emb=rope, return_dict=False)[0])


def hunyuan(size: Size) -> Candidate:
    from diffusers import HunyuanVideoTransformer3DModel

    head_dim = size.dim // size.heads
    double = max(1, size.depth // 3)  # as released: one block of two streams to two of one
    net = HunyuanVideoTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=head_dim,
        num_layers=double,
        num_single_layers=size.depth - double,
        num_refiner_layers=1,
        patch_size=PATCH,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        rope_axes_dim=(head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8),
        guidance_embeds=False,
    )
    video, text, t = size.video(), size.text(), torch.full((size.clips,), 500)
    mask, pooled = torch.ones(size.clips, TEXT_TOKENS, dtype=torch.int64), size.draw("pooled", size.clips, TEXT_DIM)
    return Candidate("joint", net, lambda: net(video, t, text, mask, pooled, return_dict=False)[0])


def latte(size: Size) -> Candidate:
    from diffusers import LatteTransformer3DModel

    net = LatteTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.dim // size.heads,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=size.depth // 2,  # pairs of a spatial and a temporal layer
        cross_attention_dim=size.dim,
        attention_bias=True,
        sample_size=PATCH * size.grid.height,
        patch_size=PATCH,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=TEXT_DIM,
        video_length=size.grid.frames,
    )
    video, text, t = size.video(), size.text(), torch.full((size.clips,), 500)
    return Candidate("factorised, text in space", net, lambda: net(video, t, text, return_dict=False)[0])


PEERS = {"Wan": wan, "LTX": ltx, "CogVideoX": cogvideox, "HunyuanVideo": hunyuan, "Latte": latte}


def compare(size: Size, peers: dict[str, Callable[[Size], Candidate]]) -> str:
    """A table of one size, and under it how ours stand beside the fastest peer of each kind."""
    print(f"timing {size}", file=sys.stderr)
    candidates = {name: ours(size, kind) for kind, name in KINDS.items()}
    candidates |= {name: make(size) for name, make in peers.items()}
    seconds = interleaved(
        {name: c.step for name, c in candidates.items()}, repeats=size.repeats, least=0.2 if size.repeats > 1 else 0.0
    )
    work = {name: candidate.flops() for name, candidate in candidates.items()}
    rate = matrix_rate(256 if size in QUICK else 1024)
    rows, verdicts = [], []
    for name, candidate in candidates.items():
        own = seconds[KINDS[candidate.kind]]
        flops = work[name]
        share = 3 * flops / seconds[name] / rate
        ratio = seconds[name] / own
        figures = (f"{candidate.parameters / 1e6:.2f}", f"{flops / 1e9:.2f}", f"{1e3 * seconds[name]:,.0f}")
        rows.append((name, candidate.kind, *figures, f"{share:.0%}", f"{ratio:.2f}"))
    for kind, name in KINDS.items():
        others = {n: seconds[n] for n in peers if candidates[n].kind == kind}
        if others:
            best = min(others, key=others.__getitem__)
            ratio = seconds[name] / others[best]
            per_flop = ratio * work[best] / work[name]
            verdicts.append(f"{kind} {ratio:.2f} of {best}'s (per FLOP {per_flop:.2f})")
    header = ("", "attention", "parameters (M)", "GFLOP forward", "CPU ms", "of the matrix rate", "ratio to ours")
    below = f"Ours beside the fastest peer that attends alike: {'; '.join(verdicts)}." if verdicts else ""
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
        f"{source} Forward and backward, eager, float32, one thread, random weights, {TEXT_TOKENS} text tokens. CPU "
        "milliseconds are medians of interleaved repeats; ratios are times over that of our model of the same kind, so "
        "above 1 is slower than ours. FLOPs as torch counts them; the share of the matrix rate takes the backward pass "
        "as twice the forward and compares with a float32 product of 1,024 cubed in the same process."
    )
    tables = [compare(size, peers) for size in (QUICK if args.quick else SIZES)]
    command = command_line("transformer", arguments)
    write_page(args.out, page("The diffusion transformer beside its peers", command, [intro, *tables]))


if __name__ == "__main__":
    main()
