"""A step of Muon beside timm's, in float32 and in bfloat16, on the matrices of the demo's DiT.

    python -m benchmarks.muon [--quick] [--out FILE.md]

The step alone, on random gradients: matrices by Muon, all else by AdamW, as `muon(lr=0.006, adamw_lr=1.5e-3)`
divides them. timm's is measured as it is, in bfloat16, and patched to orthogonalise in float32.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm.optim
import torch
from timm.optim import muon as timms
from torch import nn

from benchmarks.measure import command_line, interleaved, markdown_table, page, write_page
from lightning_sora.lit.dit import LitDiT
from lightning_sora.lit.optimizers import create_optimizer
from lightning_sora.models.denoisers import DiT

OURS, TIMM = "ours, {}", "timm, {}"
SIZES = {"demo's DiT: 192 wide, 6 layers": (192, 6)}
QUICK = {"24 wide, 1 layer": (24, 1)}


def candidates(dim: int, depth: int) -> dict[str, Callable[[], object]]:
    """The steps of four optimizers, each on a model of its own with the same gradients."""
    torch.manual_seed(0)
    model = DiT(64, dim=dim, depth=depth, num_heads=max(1, dim // 48), text_dim=128)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    boundary = tuple(name.removeprefix("model.dit.") for name in LitDiT.boundary)
    found: dict[str, Callable[[], object]] = {}
    for dtype in ("float32", "bfloat16"):
        spec = f"muon(lr=0.006, adamw_lr=1.5e-3, dtype={dtype!r})"
        found[OURS.format(dtype)] = create_optimizer(spec, _copied(model).named_parameters(), boundary).step
        groups = create_optimizer(spec, _copied(model).named_parameters(), boundary).param_groups
        kept = [{k: g[k] for k in ("params", "weight_decay", "use_fallback") if k in g} for g in groups]
        optimizer = timm.optim.create_optimizer_v2(
            kept, opt="muon", filter_bias_and_bn=False, lr=0.006, fallback_lr_scale=0.25
        )
        found[TIMM.format(dtype)] = _in(getattr(torch, dtype), optimizer.step)
    return found


def _copied(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for mine, given in zip(other.parameters(), model.parameters(), strict=True):
        mine.grad = given.grad
    return other


def _in(dtype: torch.dtype, step: Callable[[], object]) -> Callable[[], object]:
    """timm's step, orthogonalising in ``dtype``."""
    original = timms.zeropower_via_newtonschulz

    def run() -> object:
        with patch.object(timms, "zeropower_via_newtonschulz", lambda *a, **k: original(*a, **{**k, "dtype": dtype})):
            return step()

    return run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one tiny size, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the page here too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sections = ["The optimizer's step, one thread. CPU milliseconds are medians of interleaved repeats."]
    for title, (dim, depth) in (QUICK if args.quick else SIZES).items():
        print(f"timing {title}", file=sys.stderr)
        seconds = interleaved(candidates(dim, depth), repeats=2 if args.quick else 5)
        base = seconds[TIMM.format("float32")]
        rows = [(name, f"{1e3 * s:,.1f}", f"{s / base:.2f}") for name, s in seconds.items()]
        sections.append(f"## {title}\n\n" + markdown_table(("", "CPU ms", "of timm's in float32"), rows))
    write_page(args.out, page("Muon beside timm's", command_line("muon", arguments), sections))


if __name__ == "__main__":
    main()
