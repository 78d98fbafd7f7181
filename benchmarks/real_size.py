"""Does a model of a real size run here? One LoRA step and one sampling step of Wan 2.1 1.3B's shape, and their memory.

    python -m benchmarks.real_size [--frames 17 --height 224 --width 224] [--denoiser wan] [--small] [--out FILE.md]

Weights are random, of the published shape (Wan 2.1 T2V 1.3B: 30 layers of width 1536, 12 heads, MLP 8960, text of 512
vectors of 4096; its VAE of 127 M parameters), in float32: what is measured is time and memory, which do not depend on
their values. Each part runs in a process of its own. Text comes as vectors and training clips as latents, as from
caches, so that neither UMT5-XXL nor the VAE computes while training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import command_line, markdown_table, page, write_page
from lightning_sora.lit.dit import LitDiT
from lightning_sora.memory import peak_memory_gib
from lightning_sora.models.text_base import TEXT_ENCODERS, TextContext, TextEncoder
from lightning_sora.randomness import normal_per_clip
from lightning_sora.spacetime import SpacetimeBatch, TokenGrid, TokenLayout

WAN = {
    "_class_name": "WanTransformer3DModel", "num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128,
    "ffn_dim": 8960, "text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16,
}  # fmt: skip
SMALL = WAN | {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 32}
VAE = {"_class_name": "AutoencoderKLWan", "base_dim": 96, "z_dim": 16}
SMALL_VAE = VAE | {"base_dim": 4, "num_res_blocks": 1}
PARTS = {"lora": "LoRA step, rank 16", "checkpointed": "LoRA step, layers recomputed", "sample": "sampling step"}


@TEXT_ENCODERS.register("vectors")
class Vectors(TextEncoder):
    """As many random vectors of a caption as it has words, as a cache of embeddings would give.

    Args:
        dim: width.
    """

    trainable = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, captions: Sequence[str]) -> TextContext:
        lengths = torch.tensor([1 + len(caption.split()) for caption in captions])
        rows = normal_per_clip([(int(lengths.max()), self.dim)] * len(captions), 0, "text", [(c,) for c in captions])
        return TextContext(torch.stack(rows), torch.arange(int(lengths.max())) < lengths[:, None])

    def probe(self, tokens: int) -> Tensor:
        return torch.zeros(1, tokens, self.dim)


def module(args: argparse.Namespace, checkpointed: bool = False) -> LitDiT:
    wan, vae = (SMALL, SMALL_VAE) if args.small else (WAN, VAE)
    options = ", checkpoint=True" if checkpointed else ""
    return LitDiT(
        f"spec:diffusers(path='none', config={vae})",
        text=f"vectors(dim={wan['text_dim']})",
        denoiser=f"{args.denoiser}({'path=' + repr('none') + ', ' if args.denoiser == 'diffusers' else ''}"
        f"config={wan}{options})",
        tuning="lora(rank=16)",
        sampling={"steps": 1, "guidance": 5.0, "shift": 3.0},
        ema_decay=None,
        optimizer="adamw(lr=1e-4)",
    )


def measured(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one part in this process."""
    begun = time.perf_counter()
    lit = module(args, part == "checkpointed")
    found: dict[str, Any] = {"made": time.perf_counter() - begun, "built": peak_memory_gib()}
    size = args.frames, args.height, args.width
    layout = TokenLayout.uniform(TokenGrid.of(*size, lit.patch), 1)
    found["tokens"] = layout.total
    found["parameters"] = sum(p.numel() for p in lit.model.dit.parameters())
    found["trained"] = sum(p.numel() for p in lit.parameters() if p.requires_grad)
    prompt = "a red cube moves left over a wooden table"
    if part == "sample":
        begun = time.perf_counter()
        lit.model.sample(prompt, *size, seed=0, on_step=lambda t, x_0: found.update(step=time.perf_counter() - begun))
        found["decoded"] = time.perf_counter() - begun - found["step"]
    else:
        lit.log = lambda *args, **options: None  # type: ignore[method-assign]
        optimizer = torch.optim.AdamW([p for p in lit.parameters() if p.requires_grad], lr=1e-4)
        grid = layout.grids[0].size(lit.model.patch_size)
        latent = torch.randn(*grid, lit.model.vae.latent_channels)
        batch = SpacetimeBatch.of(
            [latent], layout=layout, patch=lit.model.patch_size, captions=(prompt,), ids=("a",), visits=(0,),
            fps=(16.0,), space="latent", vae_hash=lit.model.vae_hash,
        )  # fmt: skip
        lit.train()
        begun = time.perf_counter()
        lit.training_step(batch, 0).backward()
        optimizer.step()
        found["step"] = time.perf_counter() - begun
        found["flops"] = lit.training_flops(batch)
        reached = [p for p in lit.parameters() if p.grad is not None]
        if not reached or not all(bool(p.grad.isfinite().all()) for p in reached if p.grad is not None):
            raise SystemExit("the gradients of this step are not finite, or there are none")
    return {**found, "peak": peak_memory_gib()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=224)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--denoiser", choices=("wan", "diffusers"), default="wan")
    parser.add_argument("--small", action="store_true", help="of another shape, to try the benchmark itself")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.part is not None:
        print(json.dumps(measured(args.part, args)))
        return
    rows, last = [], {}
    given = sys.argv[1:] if arguments is None else list(arguments)
    for part, name in PARTS.items():
        command = [sys.executable, "-m", "benchmarks.real_size", *given, "--part", part]
        last = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        flops = f"{last['flops'] / 1e12:.1f}" if "flops" in last else "–"
        memory = f"{last['built']:.1f}", f"{last['peak']:.1f}"
        rows.append([name, f"{last['trained'] / 1e6:.1f} M", *memory, f"{last['step']:.0f}", flops])
    about = (
        f"{last['parameters'] / 1e9:.2f} billion parameters in float32, one clip of {args.frames} frames of "
        f"{args.width}x{args.height} pixels, {last['tokens']} tokens. A sampling step is two predictions, with and "
        f"without the prompt; the VAE then decodes the clip in {last['decoded']:.0f} s. Memory is that of the process."
    )
    table = markdown_table(
        ["", "trained", "built, peak (GiB)", "run, peak (GiB)", "step (s)", "step (TFLOPs)"], rows
    )  # fmt: skip
    title = "A model of Wan 2.1 1.3B's shape on one machine"
    write_page(args.out, page(title, command_line("real_size", arguments), [about, table]))


if __name__ == "__main__":
    main()
