"""What every denoiser must do; and that the checks catch what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sora.contracts import ContractViolation
from lightning_sora.models.denoisers import DENOISERS, DenoiserFacts, DiT
from lightning_sora.models.denoisers.contract import CONTRACT
from lightning_sora.models.text_base import TextContext

SHAPE = "dim=24, depth=2, num_heads=2"
SPECS = (
    f"dit({SHAPE})",
    f"dit({SHAPE}, patch_size=(1, 2, 2), modulation='per_block', conditioning='joint')",
    f"dit({SHAPE}, attention='window(size=(2, 2, 2)), gated')",
)


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", SPECS)
def test_contract(spec: str, law: str) -> None:
    CONTRACT.laws[law](spec)


class Small(DiT):
    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__(channels, text_dim, dim=24, depth=1, num_heads=2)


class Wider(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        rows = super().forward(x, *args, **options)
        return torch.cat([rows, rows], dim=-1)


class Idle(Small):
    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__(channels, text_dim)
        self.idle = nn.Linear(2, 2)


class AcrossClips(Small):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        rows = super().forward(x, *args, **options)
        return rows + rows.mean(dim=0, keepdim=True)


class PacksNot(Small):
    """Says that it does not pack, and does so without a word."""

    facts = DenoiserFacts(packs=False)

    def check(self, *args: Any, **options: Any) -> None:
        pass


class OneTime(Small):
    """Says that it takes a timestep per token, and takes the first."""

    def forward(self, x: Tensor, t: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().forward(x, t[:, 0] if t.dim() == 2 else t, *args, **options)


class Deaf(Small):
    def forward(self, x: Tensor, t: Tensor, text: TextContext, *args: Any, **options: Any) -> Tensor:
        silent = TextContext(torch.zeros_like(text.embeddings), text.mask)
        return super().forward(x, t, silent, *args, **options)


class HearsPadding(Small):
    def forward(self, x: Tensor, t: Tensor, text: TextContext, *args: Any, **options: Any) -> Tensor:
        return super().forward(x, t, TextContext(text.embeddings, torch.ones_like(text.mask)), *args, **options)


class Boasts(Small):
    def flops(self, *args: Any, **options: Any) -> int:
        return 2 * super().flops(*args, **options)


class CountsAdapters(Small):
    lora_targets = ("attention.out",)

    def flops(self, *args: Any, **options: Any) -> int:
        return super().flops(*args, **options) + sum(p.numel() for n, p in self.named_parameters() if ".lora_" in n)


class OtherSpec(Small):
    def spec_of_its_own(self, spec: str) -> str:
        return "dit(dim=24, depth=1, num_heads=4)"


class Redrawn(Small):
    def fresh(self) -> frozenset[str]:
        return frozenset({"embed.weight"})


class Lenient(Small):
    def forward(self, x: Tensor, t: Tensor, text: TextContext, *args: Any, **options: Any) -> Tensor:
        cut = TextContext(text.embeddings[..., : self.text_dim], text.mask)
        return super().forward(x, t, cut, *args, **options)


MUTANTS = {
    Wider: "gives_a_row_for_each_row",
    Idle: "gradient_reaches_every_parameter",
    AcrossClips: "predicts_each_clip_alone",
    PacksNot: "predicts_each_clip_alone",
    OneTime: "takes_a_timestep_per_token_as_it_says",
    Deaf: "hears_what_it_is_told",
    HearsPadding: "hears_what_it_is_told",
    Boasts: "declares_no_flops_that_it_does_not_spend",
    CountsAdapters: "declares_no_flops_of_adapters",
    OtherSpec: "is_rebuilt_by_its_own_spec",
    Redrawn: "draws_what_is_fresh_by_name",
    Lenient: "refuses_what_does_not_fit",
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with DENOISERS.temporary():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_checks_catch_a_denoiser_that_breaks_the_contract(mutant: type, scratch: None) -> None:
    DENOISERS.register("mutant")(mutant)
    with pytest.raises((ContractViolation, RuntimeError)):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")
    assert set(MUTANTS.values()) == set(CONTRACT.laws)
