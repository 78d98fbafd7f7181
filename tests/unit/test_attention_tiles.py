"""Rules for pairs, computed by tiles: against softmax over all pairs, and what plans hold and who shares them."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_sora.nn.attention import ATTENTION, MaskedBlock, blocks, create_attention, register_attention
from lightning_sora.nn.attention.base import TextKeys
from lightning_sora.nn.attention.contract import HEADS, rope_of, text_of, tokens_of
from lightning_sora.nn.attention.tiling import Coordinates, Plan, make_plan, shared
from lightning_sora.nn.rope import Rope
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import TokenGrid, TokenLayout

SPECS = ("causal", "radial", "neighborhood", "neighborhood(radius=(0, 2, 1))", "tile", "tile(tile=(2, 3, 2))", "uneven")
GRIDS = (TokenGrid(5, 7, 6), TokenGrid(9, 3, 8), TokenGrid(1, 11, 13), TokenGrid(8, 8, 8))
DIM = 24


@pytest.fixture(autouse=True)
def uneven():  # type: ignore[no-untyped-def]
    """A block of somebody's own, that implements its rule alone, which no box fits."""
    with ATTENTION.temporary():

        @register_attention("uneven")
        class Uneven(MaskedBlock):
            def visible(self, queries: Coordinates, keys: Coordinates, grid: TokenGrid) -> Tensor:
                apart = queries.t * 3 + queries.y * 5 + queries.x - keys.t * 3 - keys.y * 5 - keys.x
                return (apart % 7 == 0) | (apart % 11 == 3)

        yield


def block_of(spec: str, layer: int = 0, kernel: str | None = None) -> MaskedBlock:
    block = create_attention(spec, DIM, HEADS, layer=layer, depth=4, kernel=kernel)
    assert isinstance(block, MaskedBlock)
    initialize(block, seed=1)
    return block


def seen_pair_by_pair(block: MaskedBlock, grid: TokenGrid) -> Tensor:
    at = TokenLayout((grid,)).coordinates()[:, 1:]
    queries, keys = Coordinates(*at[:, None].unbind(-1)), Coordinates(*at[None].unbind(-1))
    return block.visible(queries, keys, grid).expand(grid.tokens, grid.tokens)


def by_all_pairs(block: MaskedBlock, x: Tensor, layout: TokenLayout, rope: Rope, text: TextKeys | None) -> Tensor:
    """Softmax over one clip after the other, hidden pairs at minus infinity."""
    q, k, v = block.project(x, rope)
    rows = []
    for i in range(layout.clips):
        keys, values, seen = k[i], v[i], seen_pair_by_pair(block, layout.grids[i])
        if text is not None:
            keys, values = torch.cat([keys, text.k[i]]), torch.cat([values, text.v[i]])
            seen = torch.cat([seen, text.mask[i].expand(len(seen), -1)], dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[i], keys) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
    return block.out(torch.stack(rows))


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_are_exact_forward_and_backward(grid: TokenGrid, spec: str, kernel: str) -> None:
    layout = TokenLayout.uniform(grid, 2)
    block = block_of(spec, kernel=kernel)
    for with_text in (False, True):
        found = []
        for compute in (block, partial(by_all_pairs, block)):
            x, rope = tokens_of(layout).requires_grad_(), rope_of(layout)
            text = text_of(layout)
            k, v = (y.detach().requires_grad_() for y in (text.k, text.v))
            y = compute(x, layout, rope, TextKeys(k, v, text.mask) if with_text else None)
            inputs = (x, block.project.qkv.weight, *((k, v) if with_text else ()))
            found.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, DIM)).sum(), inputs)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5 * float(other.detach().abs().max()), rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_plan_holds_every_pair_once(grid: TokenGrid, spec: str) -> None:
    block = block_of(spec)
    seen = seen_pair_by_pair(block, grid)
    held = torch.zeros(grid.tokens, grid.tokens, dtype=torch.int)
    for queries, keys, pattern in block.plan(grid).pieces():
        for some, others in zip(queries, keys, strict=True):
            held[some[:, None], others] += torch.ones(len(some), len(others)).int() if pattern is None else pattern
    assert torch.equal(held, seen.int())
    assert block.pairs(TokenLayout.uniform(grid, 3)) == 3 * int(seen.sum())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile"
)  # meant: what it computes is looked at
@pytest.mark.parametrize("spec", ["neighborhood", "radial", "uneven"])
def test_block_masks_are_exact_and_made_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of 128 queries, of which the second is not full; text that changes from call to call."""
    made = []
    monkeypatch.setattr(blocks, "_blocks", lambda *a, make=blocks._blocks: made.append(a) or make(*a))
    layout = TokenLayout.uniform(TokenGrid(5, 7, 6), 2)
    block, x, rope, text = block_of(spec, kernel="flex"), tokens_of(layout), rope_of(layout), text_of(layout)
    other = TextKeys(text.k.flip(0), text.v, text.mask.flip(0))
    for words in (None, text, other, None, other):
        expected = by_all_pairs(block, x, layout, rope, words)
        torch.testing.assert_close(block(x, layout, rope, words), expected, atol=1e-5, rtol=0)
    assert len(made) <= 2


def test_plans_grow_with_what_is_seen() -> None:
    """Four times the tokens, of which each sees as many: four times the plan, not sixteen."""
    block = block_of("neighborhood")
    small, large = (block.plan(grid) for grid in (TokenGrid(4, 12, 12), TokenGrid(4, 24, 24)))
    assert large.nbytes < 6 * small.nbytes
    assert large.computed < 5 * small.computed
    assert large.nbytes < large.queries.numel() ** 2 / 8


def test_frames_and_tiles_of_a_rule_need_no_pattern() -> None:
    for spec in ("causal", "tile(tile=4)"):
        plan = block_of(spec).plan(TokenGrid(8, 16, 16))
        assert plan.computed == plan.pairs
        assert not plan.patterns.numel()


def test_equal_layers_share_a_plan_and_others_do_not() -> None:
    grid = TokenGrid(3, 4, 5)
    first, second = block_of("neighborhood(radius=1)", 0), block_of("neighborhood(radius=(1, 1, 1))", 3)
    plan = first.plan(grid)
    assert second.plan(grid) is plan
    assert copy.deepcopy(first).plan(grid) is pickle.loads(pickle.dumps(first)).plan(grid) is plan
    assert block_of("neighborhood(radius=2)").plan(grid) is not plan
    assert block_of("tile").plan(grid) is not plan
    assert block_of("uneven", 0).plan(grid) is not block_of("uneven", 1).plan(grid)  # its rule may know the layer


def test_a_model_keeps_no_plans() -> None:
    block = block_of("radial")
    before = len(pickle.dumps(block))
    block.plan(TokenGrid(4, 6, 6))
    assert len(pickle.dumps(block)) == before


def test_plans_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_sora.nn.attention import tiling

    monkeypatch.setattr(tiling, "_kept", type(tiling._kept)())
    monkeypatch.setattr(tiling, "PLANS_KEPT", 3)
    plans = [shared(i, lambda: make_plan(block_of("causal").visible, TokenGrid(2, 2, 2))) for i in range(5)]
    assert list(tiling._kept) == [2, 3, 4]
    assert shared(3, pytest.fail) is plans[3]  # type: ignore[arg-type]
    monkeypatch.setattr(tiling, "PLAN_BYTES_KEPT", 2 * plans[0].nbytes)
    shared(5, lambda: plans[0])
    assert list(tiling._kept) == [3, 5]
    assert isinstance(plans[0], Plan)
