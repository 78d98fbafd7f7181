"""Patterns over layers, the built-in partitions by brute force, kernels and plugins."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention import (
    ATTENTION,
    CrossAttention,
    PartitionBlock,
    create_attention,
    layer_specs,
    list_attention,
    register_attention,
)
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import TokenGrid, TokenLayout

GRID = TokenGrid(3, 5, 4)


def names(pattern: str | list[str], depth: int) -> list[str]:
    return [str(spec) for spec in layer_specs(pattern, depth)]


def test_patterns_are_tiled_over_depth() -> None:
    window = "window(size=(2, 4, 4))"
    assert names("full", 3) == ["full"] * 3
    assert names("spatial, temporal", 5) == ["spatial", "temporal", "spatial", "temporal", "spatial"]
    assert names("window(size=(2,4,4))*3, full", 8) == [window, window, window, "full"] * 2
    assert names(["spatial*2", "window(size=(2,4,4)), full"], 4) == ["spatial", "spatial", window, "full"]
    assert layer_specs("window(size=(1,2,3)) * 2", 2)[0].options == {"size": (1, 2, 3)}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("window*3, full", "4 layers but depth=3"),
        ("", "empty"),
        ([], "empty"),
        ("full,,full", "empty place"),
        ("full*0", "0 times"),
        ("window(size=(2,4)", "cannot read"),
    ],
)
def test_an_impossible_pattern_says_why(pattern: str | list[str], words: str) -> None:
    with pytest.raises(SoraError, match=words.replace("(", r"\(").replace("*", r"\*")):
        layer_specs(pattern, 3)


@pytest.mark.parametrize(
    ("spec", "layer", "same_group"),
    [
        ("full", 0, lambda a, b: True),
        ("spatial", 1, lambda a, b: a[0] == b[0]),
        ("temporal", 0, lambda a, b: a[1:] == b[1:]),
        (
            "window(size=(2, 2, 3))",
            0,
            lambda a, b: all(i // s == j // s for i, j, s in zip(a, b, (2, 2, 3), strict=True)),
        ),
        (
            "window(size=(2, 2, 3))",
            1,
            lambda a, b: all(
                (i - o) // s == (j - o) // s for i, j, s, o in zip(a, b, (2, 2, 3), (1, 1, 1), strict=True)
            ),
        ),
    ],
)
def test_the_receptive_field_is_what_the_definition_says(spec, layer, same_group) -> None:  # type: ignore[no-untyped-def]
    field = create_attention(spec, 12, 2, layer=layer, depth=4).receptive_field(TokenLayout.uniform(GRID, 1))
    places = list(itertools.product(*(range(size) for size in GRID)))
    assert field.tolist() == [[same_group(a, b) for b in places] for a in places]


def test_a_window_over_the_whole_grid_is_full_attention() -> None:
    layout = TokenLayout.uniform(GRID, 2)
    x = torch.randn(*layout.shape, 12, generator=torch.Generator().manual_seed(1))
    full = create_attention("full", 12, 2, layer=0, depth=4)
    window = create_attention("window(size=(3, 5, 4))", 12, 2, layer=0, depth=4)
    window.load_state_dict(full.state_dict())
    torch.testing.assert_close(window(x, layout), full(x, layout), atol=1e-5, rtol=0)


def test_permuting_the_tokens_of_a_group_permutes_the_result() -> None:
    """Without positions, attention knows its tokens as a set."""
    layout = TokenLayout.uniform(TokenGrid(1, 3, 4), 2)
    block = create_attention("spatial", 12, 2, layer=0, depth=1)
    x = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(block(x[:, order], layout), block(x, layout)[:, order], atol=1e-5, rtol=0)


def test_layers_share_the_plans_of_a_layout_and_batches_of_one_grid_share_them_too() -> None:
    even, other, odd = (create_attention("window", 12, 2, layer=layer, depth=3) for layer in (0, 2, 1))
    layout = TokenLayout.uniform(GRID, 2)
    plan = even.groups(layout)  # type: ignore[attr-defined]
    assert other.groups(TokenLayout.uniform(GRID, 5)) is plan  # type: ignore[attr-defined]
    assert odd.groups(layout) is not plan  # type: ignore[attr-defined]


def test_a_new_partition_needs_one_method_and_its_options_tell_its_plans_apart() -> None:
    with ATTENTION.temporary():

        @register_attention("rows")
        class Rows(PartitionBlock):
            def __init__(self, dim, num_heads, *, layer, depth, step=1):  # type: ignore[no-untyped-def]
                super().__init__(dim, num_heads, layer=layer, depth=depth)
                self.step = step

            def group(self, coordinates, grids):  # type: ignore[no-untyped-def]
                return coordinates[:, 2] // self.step

        assert "rows" in list_attention("r*")
        layout = TokenLayout.uniform(GRID, 1)
        pairs = [create_attention(f"rows(step={s})", 12, 2, layer=0, depth=1).pairs(layout) for s in (1, 5)]
        assert pairs == [5 * 12**2, 60**2]
    assert "rows" not in list_attention()


@pytest.mark.parametrize(
    ("spec", "arguments", "words"),
    [
        ("windw", {}, "window"),
        ("window(width=3)", {}, "size"),
        ("window(size=(2, 4))", {}, "must be int or tuple"),
        ("window(size=(2, 0, 4))", {}, "whole number of at least 1"),
        ("full", {"kernel": "spda"}, "sdpa"),
        ("full", {"num_heads": 5}, "num_heads=5"),
    ],
)
def test_what_cannot_be_built_says_why(spec: str, arguments: dict, words: str) -> None:
    with pytest.raises(SoraError, match=words):
        create_attention(spec, 12, **{"num_heads": 2, "layer": 0, "depth": 1, **arguments})


def test_a_kernel_that_cannot_honour_a_block_names_those_that_can() -> None:
    block = create_attention("full", 12, 2, layer=0, depth=1)
    type(block).kernels, before = ("sdpa",), type(block).kernels
    try:
        with pytest.raises(SoraError, match="cannot run on kernel 'matmul'; it can on: sdpa"):
            block.use_kernel("matmul")
    finally:
        type(block).kernels = before


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_cross_attention_sees_the_clips_own_text_and_no_padding(kernel: str) -> None:
    cross = CrossAttention(12, 2, kernel)
    initialize(cross, 1)
    torch.nn.init.normal_(cross.out.weight, generator=torch.Generator().manual_seed(3))
    layout = TokenLayout.pack((TokenGrid(1, 2, 3), TokenGrid(2, 2, 1), TokenGrid(1, 3, 2)))
    draw = torch.Generator().manual_seed(4)
    x, text = torch.randn(1, 16, 12, generator=draw), torch.randn(3, 5, 12, generator=draw)
    lengths = [5, 1, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    together = layout.split(cross(x, text, mask, layout))
    for i, part in enumerate(layout.split(x)):
        trimmed = text[i, None, : lengths[i]]
        alone = cross(part[None], trimmed, torch.ones(1, lengths[i], dtype=torch.bool), layout.clip(i))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)
