"""What every attention block must do, parametrised over the registry; and that the checks catch what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sora.contracts import ContractViolation
from lightning_sora.errors import SoraError
from lightning_sora.nn.attention import ATTENTION, create_operator, list_attention
from lightning_sora.nn.attention.contract import CONTRACT
from lightning_sora.nn.attention.full import FullAttention
from lightning_sora.nn.attention.window import WindowAttention
from tests.annotations import plain_annotations

#: Blocks at options other than their defaults.
FURTHER = (
    "window(size=(1, 2, 3))",
    "neighborhood(radius=(1, 0, 2))",
    "tile(tile=(2, 2, 3), window=(1, 3, 1))",
    "radial(width=0.3)",
    "dilated(stride=(1, 2, 3))",
    "skiparse(k=3)",
    "linear(conv=3)",
    "gated(operator='tile(tile=2)')",
    "gated(operator='linear')",
)


#: What compiles a block, and runs it on every kernel: the same code for all blocks that share an ``attend``.
LONG = ("compiles", "kernels_agree")


def cases() -> Iterator[Any]:
    """Every block and check; the long checks, for all but the first block of each base, before a release alone."""
    seen = set()
    for spec in list_attention():
        base = ATTENTION.builder(spec).attend  # type: ignore[attr-defined]
        for check in CONTRACT.laws:
            marks = [pytest.mark.release] if check in LONG and base in seen else []
            marks += [pytest.mark.slow] if check in LONG else []
            yield pytest.param(spec, check, marks=marks)
        seen.add(base)
    for spec in FURTHER:
        for check in CONTRACT.laws:
            yield pytest.param(spec, check, marks=[pytest.mark.slow, pytest.mark.release] if check in LONG else [])


@pytest.mark.parametrize(("spec", "check"), list(cases()))
def test_contract(spec: str, check: str) -> None:
    with plain_annotations() if check == "compiles" else nullcontext():
        CONTRACT.laws[check](spec)


def test_every_base_is_compiled_in_every_tier() -> None:
    tried = {p.values[0] for p in cases() if p.values[1] == "compiles" and pytest.mark.release not in p.marks}
    bases = [ATTENTION.builder(spec).attend for spec in tried]  # type: ignore[attr-defined]
    assert len(set(bases)) == len(bases)
    assert set(bases) == {ATTENTION.builder(spec).attend for spec in list_attention()}  # type: ignore[attr-defined]


class AcrossClips(FullAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: object, text: object = None) -> Tensor:
        return super().attend(q, k, v, layout, text) + v.mean(dim=(0, 1), keepdim=True)  # type: ignore[arg-type]


class NarrowerThanItSays(WindowAttention):
    def receptive_field(self, layout: object) -> Tensor:
        return FullAttention.receptive_field(self, layout) | (torch.ones(layout.total, layout.total) > 0)  # type: ignore[arg-type,attr-defined]


class WrongFlops(FullAttention):
    def flops(self, layout: object, text_tokens: int = 0) -> int:
        return super().flops(layout, text_tokens) // 2  # type: ignore[arg-type]


class DeafToText(FullAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: object, text: object = None) -> Tensor:
        return super().attend(q, k, v, layout, None)  # type: ignore[arg-type]


class IdleParameter(FullAttention):
    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.idle = nn.Linear(dim, dim)


class PackedOtherwise(FullAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: object, text: object = None) -> Tensor:
        mixed = super().attend(q, k, v, layout, text)  # type: ignore[arg-type]
        return mixed * 2 if layout.packed else mixed  # type: ignore[attr-defined]


class NotSoftmax(FullAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: object, text: object = None) -> Tensor:
        return super().attend(2 * q, k, v, layout, text)  # type: ignore[arg-type]


class Global(FullAttention):
    """Draws from the global generator."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: object, text: object = None) -> Tensor:
        return super().attend(q, k, v, layout, text) + 0.01 * torch.rand(1)  # type: ignore[arg-type]


class ReadsItsProjection(FullAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: object, text: object = None) -> Tensor:
        return super().attend(q, k, v, layout, text) + self.out(v.flatten(2)).view_as(v)  # type: ignore[arg-type]


class TextSeesItselfAlone(FullAttention):
    def attend_jointly(self, q: Tensor, k: Tensor, v: Tensor, layout: object, mask: object, first: int) -> Tensor:
        return super().attend_jointly(q, k, v, layout, mask, first).where(mask[..., None, None], v)  # type: ignore


MUTANTS = {
    TextSeesItselfAlone: "shares_a_sequence_with_text",
    ReadsItsProjection: "is_carried_whole_by_other_networks",
    AcrossClips: "sees_its_receptive_field_and_nothing_else",
    NarrowerThanItSays: "sees_its_receptive_field_and_nothing_else",
    WrongFlops: "counts_its_flops",
    DeafToText: "text_joins_in",
    IdleParameter: "gradient_reaches_every_parameter",
    PackedOtherwise: "uniform_equals_packed",
    NotSoftmax: "equals_softmax_over_its_receptive_field",
    Global: "state_loads_strictly",
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with ATTENTION.temporary():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_checks_catch_a_block_that_breaks_the_contract(mutant: type, scratch: None) -> None:
    ATTENTION.register("mutant")(mutant)
    with pytest.raises(ContractViolation):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")


@pytest.mark.slow
def test_all_checks_are_run_whatever_one_finds(scratch: None) -> None:
    ATTENTION.register("mutant")(WrongFlops)
    with plain_annotations():
        found = list(CONTRACT.findings("mutant"))
    assert [one.law for one in found] == [law.replace("_", " ") for law in CONTRACT.laws]
    (broken,) = [one for one in found if one.problem]
    assert broken.law == "counts its flops"
    assert "torch counts" in str(broken.problem)


class OwnForward(FullAttention):
    def forward(self, *args: object, **options: object) -> Tensor:
        return 2 * super().forward(*args, **options)  # type: ignore[arg-type]


class GainWithin(FullAttention):
    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.project.gain = nn.LayerNorm(dim)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("block", "lost"), [(OwnForward, "OwnForward does there"), (GainWithin, "project.gain.weight")]
)
def test_what_another_network_would_lose_of_a_block_is_refused(block: type, lost: str, scratch: None) -> None:
    ATTENTION.register("mutant")(block)
    with pytest.raises(SoraError, match=lost):
        create_operator("mutant", 24, 2)
    assert {name for name, _ in create_operator("gated", 24, 2).named_parameters()} == {"gate.weight"}
