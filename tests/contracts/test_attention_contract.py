"""What every attention block must do; parametrised over the registry, plugins included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.nn.attention import AttentionBlock, create_attention, list_attention
from lightning_sora.nn.rope import Rope, rotary
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import TokenGrid, TokenLayout

DIM, HEADS, DEPTH = 24, 2, 4
GRID = TokenGrid(3, 5, 4)
MIXED = (TokenGrid(3, 2, 5), TokenGrid(1, 4, 3), TokenGrid(2, 5, 4), TokenGrid(1, 4, 3))
LAYOUTS = {
    "video": TokenLayout.uniform(GRID, 2),
    "image": TokenLayout.uniform(TokenGrid(1, 4, 6), 3),
    "packed": TokenLayout.pack(MIXED),
}


@pytest.fixture(params=list_attention())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[0, 1], ids=["even", "odd"])
def layer(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> TokenLayout:
    return LAYOUTS[request.param]


def block_of(name: str, layer: int = 0, kernel: str = "sdpa") -> AttentionBlock:
    block = create_attention(name, DIM, HEADS, layer=layer, depth=DEPTH, kernel=kernel)
    initialize(block, seed=1)
    return block


def rope_of(layout: TokenLayout) -> Rope:
    return rotary(layout.coordinates()[: layout.shape[1], 1:], DIM // HEADS)


def tokens_of(layout: TokenLayout) -> Tensor:
    return torch.randn(*layout.shape, DIM, generator=torch.Generator().manual_seed(2))


def gradients(block: AttentionBlock, layout: TokenLayout) -> Iterator[tuple[int, Tensor]]:
    """For some tokens: how much each token of the batch moves it; float64, so that only true zeros are zero."""
    block = block.double()
    x = tokens_of(layout).double().requires_grad_()
    y = block(x, layout, rope_of(layout).to(torch.complex128)).reshape(layout.total, DIM)
    for token in range(0, layout.total, 7):
        (gradient,) = torch.autograd.grad(y[token].sum(), x, retain_graph=True)
        yield token, gradient.reshape(layout.total, DIM).abs().sum(dim=-1)


def test_shape_is_kept_and_gradient_reaches_every_parameter(name: str, layer: int, layout: TokenLayout) -> None:
    block = block_of(name, layer)
    y = block(tokens_of(layout), layout, rope_of(layout))
    assert y.shape == (*layout.shape, DIM)
    y.square().sum().backward()
    for parameter_name, parameter in block.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_nothing_leaks_between_clips_nor_from_outside_the_receptive_field(
    name: str, layer: int, layout: TokenLayout
) -> None:
    block = block_of(name, layer)
    field = block.receptive_field(layout)
    clip = layout.coordinates()[:, 0]
    assert field.shape == (layout.total, layout.total)
    assert field.diagonal().all()
    for token, influence in gradients(block, layout):
        assert not influence[clip != clip[token]].any()
        assert not influence[~field[token]].any()
        assert influence[field[token]].all()


def test_packed_equals_one_clip_at_a_time(name: str, layer: int) -> None:
    block, layout = block_of(name, layer), LAYOUTS["packed"]
    x = tokens_of(layout)
    together = layout.split(block(x, layout, rope_of(layout)))
    for i, part in enumerate(layout.split(x)):
        alone = layout.clip(i)
        expected = block(part[None], alone, rope_of(alone))[0]
        torch.testing.assert_close(together[i], expected, atol=1e-5, rtol=0)


def test_a_uniform_batch_equals_the_same_clips_packed(name: str, layer: int) -> None:
    block, layout = block_of(name, layer), LAYOUTS["video"]
    packed = TokenLayout.pack(layout.grids)
    x = tokens_of(layout)
    expected = block(x.reshape(1, -1, DIM), packed, rope_of(packed)).reshape(x.shape)
    torch.testing.assert_close(block(x, layout, rope_of(layout)), expected, atol=1e-5, rtol=0)


def test_it_equals_dense_attention_masked_by_its_receptive_field(name: str, layer: int, layout: TokenLayout) -> None:
    """Against softmax written out over all tokens of the batch."""
    block = block_of(name, layer)
    x, rope = tokens_of(layout), rope_of(layout)
    q, k, v = (a.reshape(layout.total, HEADS, -1) for a in block.project(x, rope))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~block.receptive_field(layout), float("-inf")).softmax(dim=-1)
    expected = block.out(torch.einsum("hqk,khd->qhd", weights, v).reshape(*layout.shape, DIM))
    torch.testing.assert_close(block(x, layout, rope), expected, atol=1e-5, rtol=0)


def test_every_supported_kernel_gives_the_same(name: str, layer: int, layout: TokenLayout) -> None:
    x, rope = tokens_of(layout), rope_of(layout)
    block = block_of(name, layer)
    results = []
    for kernel in block.kernels:
        block.use_kernel(kernel)
        results.append(block(x, layout, rope))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=0)


def test_renaming_the_clips_of_a_packed_batch_permutes_the_result(name: str) -> None:
    block, layout = block_of(name), LAYOUTS["packed"]
    parts = layout.split(tokens_of(layout))
    order = [2, 0, 3, 1]
    shuffled = TokenLayout.pack([MIXED[i] for i in order])
    before = layout.split(block(layout.join(parts), layout, rope_of(layout)))
    after = shuffled.split(block(shuffled.join([parts[i] for i in order]), shuffled, rope_of(shuffled)))
    for place, i in enumerate(order):
        torch.testing.assert_close(after[place], before[i], atol=1e-5, rtol=0)


def test_bfloat16_autocast_is_finite_and_close(name: str, layout: TokenLayout) -> None:
    block = block_of(name)
    x, rope = tokens_of(layout), rope_of(layout)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x, layout, rope)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    torch.testing.assert_close(y.float(), block(x, layout, rope), atol=0.05, rtol=0)


def test_its_state_loads_strictly_into_another(name: str) -> None:
    first, second = block_of(name), create_attention(name, DIM, HEADS, layer=0, depth=DEPTH)
    second.load_state_dict(first.state_dict(), strict=True)
    layout = LAYOUTS["video"]
    x = tokens_of(layout)
    assert torch.equal(first(x, layout), second(x, layout))


def test_analytic_flops_equal_the_counted_ones(name: str, layer: int, layout: TokenLayout) -> None:
    block = block_of(name, layer, kernel="matmul")
    with FlopCounterMode(display=False) as counter:
        block(tokens_of(layout), layout, rope_of(layout))
    assert block.flops(layout) == counter.get_total_flops()
