"""What every text encoder must do, over the registry; and that its laws catch what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sora.contracts import ContractViolation
from lightning_sora.models.text import TEXT_ENCODERS, BytesEncoder, TextContext
from lightning_sora.models.text_contract import CONTRACT

#: "hf" and "hunyuan_video" need folders, and seconds for their import, and "cached" what they made: test_text.py,
#: test_text_hunyuan.py and test_text_cached.py of tests/unit put them to the contract.
SPECS = {
    "bytes": ["bytes(dim=16, depth=1)"],
    "words": ["words(dim=16, depth=1, rows=512)"],
    "hf": [],
    "hunyuan_video": [],
    "cached": [],
}


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", [spec for name in TEXT_ENCODERS.list() for spec in SPECS.get(name, [name])])
def test_contract(spec: str, law: str) -> None:
    CONTRACT.laws[law](spec)


class Small(BytesEncoder):
    def __init__(self) -> None:
        super().__init__(dim=16, depth=1)


class OfAnotherWidth(Small):
    def __init__(self) -> None:
        super().__init__()
        self.dim = 32


class NothingForNothing(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        return TextContext(
            context.embeddings, context.mask & torch.tensor([bool(c.strip()) for c in captions])[:, None]
        )


class PadsInFront(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        return TextContext(context.embeddings.flip(1), context.mask.flip(1))


class SeesPadding(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        return TextContext(context.embeddings - context.embeddings.mean(1, keepdim=True), context.mask)


class KnowsItsPlace(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        return TextContext(context.embeddings + torch.arange(len(captions))[:, None, None], context.mask)


class Draws(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        return TextContext(context.embeddings + 1e-3 * torch.randn(()), context.mask)


class Remembers(Small):
    calls = 0

    def forward(self, captions: Sequence[str]) -> TextContext:
        self.calls += 1
        context = super().forward(captions)
        return TextContext(context.embeddings * self.calls, context.mask)


class Deaf(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        return super().forward(["one and the same" if caption else "" for caption in captions])


class CountsBytes(Small):
    def length(self, captions: Sequence[str]) -> int:
        return max(map(len, captions))


class ProbesLess(Small):
    def probe(self, tokens: int) -> TextContext:
        return super().probe(tokens // 2)


class Idle(Small):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


class FrozenInName(Small):
    trainable = False


class Overflows(Small):
    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        large = torch.full((4, 4), 3e38).bfloat16() * (2 if torch.is_autocast_enabled("cpu") else 0)
        return TextContext(context.embeddings + large.float().mean(), context.mask)


class Forgets(Small):
    def __init__(self) -> None:
        super().__init__()
        self.start = float(torch.rand(()))

    def forward(self, captions: Sequence[str]) -> TextContext:
        context = super().forward(captions)
        return TextContext(context.embeddings + self.start, context.mask)


MUTANTS = {
    OfAnotherWidth: "has_the_width_that_it_declares",
    NothingForNothing: "every_caption_has_tokens_and_padding_follows_them",
    PadsInFront: "every_caption_has_tokens_and_padding_follows_them",
    SeesPadding: "captions_do_not_mix",
    KnowsItsPlace: "captions_do_not_mix",
    Draws: "encodes_the_same_every_time",
    Remembers: "encodes_the_same_every_time",
    Deaf: "tells_captions_apart",
    CountsBytes: "counts_its_tokens",
    ProbesLess: "its_probe_costs_what_a_caption_costs",
    Idle: "learns_if_it_says_so",
    FrozenInName: "learns_if_it_says_so",
    Overflows: "bfloat16_is_finite",
    Forgets: "state_loads_strictly",
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with TEXT_ENCODERS.temporary():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_laws_catch_an_encoder_that_breaks_them(mutant: Any, scratch: None) -> None:
    TEXT_ENCODERS.register("mutant")(mutant)
    with pytest.raises(ContractViolation):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")


def test_every_law_has_its_mutant() -> None:
    assert set(MUTANTS.values()) == set(CONTRACT.laws)
