"""Each block against full attention where it must equal it, and against its rule written out by loops."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention import create_attention, kernels, list_attention
from lightning_sora.nn.attention.contract import DEPTH, DIM, HEADS, LAYOUTS, make, rope_of, text_of, tokens_of
from lightning_sora.nn.attention.kernels import flex, kept_first, masked_row_ends, row_ends, sdpa, varlen
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.annotations import plain_annotations

COVERING = (
    "window(size=(8, 16, 16))",
    "neighborhood(radius=8)",
    "tile(tile=2, window=9)",
    "tile(tile=8, window=1)",
    "dilated(stride=1)",
    "skiparse(k=1)",
    "radial(width=1000.0)",
)
GRIDS = (TokenGrid(5, 4, 3), TokenGrid(1, 5, 5), TokenGrid(4, 1, 7), TokenGrid(9, 2, 2))
Place = tuple[int, int, int]


@pytest.mark.parametrize("spec", COVERING)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_block_that_covers_the_grid_is_full_attention(spec: str, layout: TokenLayout) -> None:
    layer = 0  # windows of odd layers are shifted
    x, rope, text = tokens_of(layout), rope_of(layout), text_of(layout)
    for words in (None, text):
        expected = make("full", layer)(x, layout, rope, words)
        torch.testing.assert_close(make(spec, layer)(x, layout, rope, words), expected, atol=1e-5, rtol=0)


def places(grid: TokenGrid) -> list[Place]:
    return list(itertools.product(range(grid.frames), range(grid.height), range(grid.width)))


def seen_by(spec: str, grid: TokenGrid, layer: int = 0) -> list[set[Place]]:
    block = create_attention(spec, DIM, HEADS, layer=layer, depth=DEPTH)
    field, names = block.receptive_field(TokenLayout((grid,))), places(grid)
    return [{names[k] for k in row.nonzero()[:, 0].tolist()} for row in field]


def box(at: int, size: int, radius: int) -> set[int]:
    """``2 r + 1`` neighbours, moved inwards."""
    if 2 * radius + 1 >= size:
        return set(range(size))
    low = min(max(at - radius, 0), size - 2 * radius - 1)
    return set(range(low, low + 2 * radius + 1))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("radius", [(1, 1, 1), (0, 2, 1), (3, 0, 0)])
def test_neighborhoods_are_boxes_of_equal_size(grid: TokenGrid, radius: Place) -> None:
    found = seen_by(f"neighborhood(radius={radius})", grid)
    for place, seen in zip(places(grid), found, strict=True):
        axes = [box(at, size, r) for at, size, r in zip(place, grid, radius, strict=True)]
        assert seen == set(itertools.product(*axes))
    assert len({len(seen) for seen in found}) == 1


@pytest.mark.parametrize("grid", GRIDS)
def test_tiles_see_the_tiles_around_them(grid: TokenGrid) -> None:
    tile, window = (2, 2, 1), (3, 1, 3)
    for place, seen in zip(places(grid), seen_by(f"tile(tile={tile}, window={window})", grid), strict=True):
        axes = []
        for at, size, t, w in zip(place, grid, tile, window, strict=True):
            tiles = math.ceil(size / t)
            chosen = box(at // t, tiles, w // 2)
            axes.append({p for p in range(size) if p // t in chosen})
        assert seen == set(itertools.product(*axes))


@pytest.mark.parametrize("grid", GRIDS)
def test_radial_bands_halve_with_each_doubling_of_distance(grid: TokenGrid) -> None:
    frame = grid.height * grid.width
    for (t, y, x), seen in zip(places(grid), seen_by("radial", grid), strict=True):
        for other in places(grid):
            apart = abs(t - other[0])
            distance = abs((y - other[1]) * grid.width + x - other[2])
            band = frame / 2 ** (int(math.log2(apart)) if apart else 0)
            if apart == 0:
                expected = True
            elif band < 1:
                expected = distance == 0 and apart % math.ceil(1 / band) == 0
            else:
                expected = distance + 1 <= band
            assert (other in seen) == expected


def swin_regions(axis: int, window: int, layer: int) -> list[int]:
    """The window of each place of one axis after Swin's roll, and the region of its mask."""
    if axis <= window:
        return [0] * axis
    shift = window // 2 if layer % 2 else 0
    padded = -(-axis // window) * window
    rolled = [(place + shift) % padded for place in range(padded)]  # where each rolled place comes from
    region = [0 if i < padded - window else 1 if i < padded - shift else 2 for i in range(padded)]
    named = {origin: (i // window, region[i]) for i, origin in enumerate(rolled)}
    names = list(dict.fromkeys(named.values()))
    return [names.index(named[place]) for place in range(axis)]


@pytest.mark.parametrize("grid", [*GRIDS, TokenGrid(7, 8, 9), TokenGrid(3, 6, 2)])
@pytest.mark.parametrize("size", [(2, 4, 4), (3, 3, 5), (8, 1, 3)])
@pytest.mark.parametrize("layer", [0, 1])
def test_windows_are_those_of_video_swin(grid: TokenGrid, size: Place, layer: int) -> None:
    axes = [swin_regions(n, w, layer) for n, w in zip(grid, size, strict=True)]
    for place, seen in zip(places(grid), seen_by(f"window(size={size})", grid, layer), strict=True):
        own = [axis[at] for axis, at in zip(axes, place, strict=True)]
        assert seen == {p for p in places(grid) if [axis[at] for axis, at in zip(axes, p, strict=True)] == own}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_skiparse_takes_every_kth_token_or_run(grid: TokenGrid, layer: int) -> None:
    names = places(grid)
    for index, seen in enumerate(seen_by("skiparse(k=3)", grid, layer)):
        group = (lambda i: i // 3 % 3) if layer else (lambda i: i % 3)
        assert seen == {names[i] for i in range(len(names)) if group(i) == group(index)}


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_axial_moves_along_one_axis_per_layer(layer: int) -> None:
    grid = GRIDS[0]
    for place, seen in zip(places(grid), seen_by("axial", grid, layer), strict=True):
        fixed = [a for a in range(3) if a != layer % 3]
        assert seen == {p for p in places(grid) if all(p[a] == place[a] for a in fixed)}


def test_causal_sees_no_later_frame() -> None:
    for place, seen in zip(places(GRIDS[0]), seen_by("causal", GRIDS[0]), strict=True):
        assert seen == {p for p in places(GRIDS[0]) if p[0] <= place[0]}


def test_linear_attention_is_a_ratio_of_sums() -> None:
    layout = TokenLayout.uniform(TokenGrid(2, 2, 2), 1)
    block, x = make("linear"), tokens_of(layout)
    q, k, v = (a[0].double() for a in block.project(x, rope_of(layout)))
    expected = torch.zeros_like(v)
    for head in range(HEADS):
        for i in range(8):
            weights = [torch.relu(q[i, head]) @ torch.relu(k[j, head]) for j in range(8)]
            expected[i, head] = sum(w * v[j, head] for j, w in enumerate(weights)) / (sum(weights) + 1e-6)
    found = block(x, layout, rope_of(layout))
    torch.testing.assert_close(found, block.out(expected.float().flatten(1)[None]), atol=1e-5, rtol=0)


def test_a_gate_of_zero_halves_what_it_gates() -> None:
    layout = LAYOUTS["video"]
    gated, full = make("gated"), make("full")
    torch.nn.init.zeros_(gated.gate.weight)  # type: ignore[union-attr,arg-type]
    x, rope = tokens_of(layout), rope_of(layout)
    torch.testing.assert_close(gated(x, layout, rope), full(x, layout, rope) / 2, atol=1e-6, rtol=0)


def test_differential_attention_without_the_second_map_is_normalised_softmax() -> None:
    layout = LAYOUTS["video"]
    block = make("differential")
    block.balance.initial = 0.0  # type: ignore[union-attr]
    for name in ("q1", "q2"):
        torch.nn.init.zeros_(getattr(block.balance, name))
    x, rope = tokens_of(layout), rope_of(layout)
    q, k, v = block.project(x, rope)
    first = [a.unflatten(-1, (-1, 2, 2))[..., 0, :].flatten(-2) for a in (q, k)]
    scores = torch.einsum("bqhd,bkhd->bhqk", *first) * first[0].shape[-1] ** -0.5
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    expected = block.out((1 - block.initial) * block.norm(expected).flatten(2))  # type: ignore[operator]
    torch.testing.assert_close(block(x, layout, rope), expected, atol=1e-5, rtol=0)


def test_rows_end_to_end_for_variable_lengths() -> None:
    assert row_ends(torch.zeros(3, 4, 1, 2)).tolist() == [0, 4, 8, 12]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_row_ends(mask).tolist() == [0, 2, 3]
    assert masked_row_ends(mask).dtype == torch.int32
    assert kept_first(mask).tolist() == [0, 1, 3, 2, 4, 5]


def row_by_row(q: Tensor, k: Tensor, v: Tensor, ends: tuple[Tensor, Tensor], longest: tuple[int, int]) -> Tensor:
    """The variable-length kernel, which runs on CUDA alone, written out."""
    mixed = torch.full_like(q, torch.nan)
    for queries, keys in zip(*(itertools.pairwise(e.tolist()) for e in ends), strict=True):
        assert queries[1] - queries[0] <= longest[0]
        assert keys[1] - keys[0] <= longest[1]
        rows = (x[None, slice(*place)] for x, place in ((q, queries), (k, keys), (v, keys)))
        mixed[slice(*queries)] = sdpa(*rows)[0]
    return mixed


@pytest.mark.parametrize("spec", ["full", "window", "axial", "dilated(stride=3)"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_groups_of_all_lengths_are_rows_of_one_call(
    spec: str, layout: TokenLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "varlen_flat", row_by_row)
    x, rope, text = tokens_of(layout), rope_of(layout), text_of(layout)
    for words in (None, text):
        expected = make(spec, 1)(x, layout, rope, words)
        torch.testing.assert_close(make(spec, 1, "varlen")(x, layout, rope, words), expected, atol=1e-5, rtol=0)


def test_kernels_that_cannot_run_here_say_which_can() -> None:
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(SoraError, match=r"CUDA.*'sdpa', 'matmul' or 'flex'"):
        varlen(q, q, q)
    with pytest.raises(SoraError, match="'sdpa' or 'matmul'"):
        flex(q.requires_grad_(), q, q)
    with pytest.raises(SoraError, match="it can on: sdpa, matmul, flex"):
        create_attention("tile", DIM, HEADS, layer=0, depth=DEPTH, kernel="varlen")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("neighborhood(radius=-1)", "at least 0"),
        ("neighborhood(radius=(1, 2))", "int or tuple"),
        ("tile(window=2)", "odd"),
        ("tile(tile=0)", "at least 1"),
        ("radial(width=0.0)", "positive"),
        ("skiparse(k=0)", "at least 1"),
        ("dilated(stride=(1, 0, 1))", "at least 1"),
        ("linear(conv=2)", "odd"),
        ("gated(operator='gated')", "gated already"),
        ("gated(operator='fulll')", "did you mean 'full'"),
    ],
)
def test_impossible_options_are_refused(spec: str, said: str) -> None:
    with pytest.raises(SoraError, match=said):
        create_attention(spec, DIM, HEADS, layer=0, depth=DEPTH)


def test_differential_heads_must_split() -> None:
    with pytest.raises(SoraError, match="divisible by 4"):
        create_attention("differential", 36, 6, layer=0, depth=DEPTH)


@pytest.mark.release
@pytest.mark.parametrize("spec", ["axial", "neighborhood"])
def test_compiled_once_it_follows_grids_of_equal_shape(spec: str) -> None:
    """Their plans differ though no shape of a tensor does."""
    block = make(spec)
    torch.compiler.reset()
    with plain_annotations():
        compiled = torch.compile(lambda x, layout, rope: block(x, layout, rope), backend="eager", dynamic=False)
        for grid in (TokenGrid(2, 4, 8), TokenGrid(4, 4, 4), TokenGrid(2, 8, 4), TokenGrid(2, 4, 8)):
            layout = TokenLayout.uniform(grid, 2)
            given = tokens_of(layout), layout, rope_of(layout)
            torch.testing.assert_close(compiled(*given), block(*given))
    torch.compiler.reset()


def test_under_autocast_queries_keys_and_values_are_of_one_dtype() -> None:
    """Also where the norm comes out in float32, as under autocast on CUDA."""
    block, layout = make("full"), LAYOUTS["video"]
    for norm in (block.project.q_norm, block.project.k_norm):
        norm.register_forward_hook(lambda module, given, found: found.float())
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = block.project(tokens_of(layout), rope_of(layout))
    assert {q.dtype, k.dtype, v.dtype} == {torch.bfloat16}


@pytest.mark.parametrize(
    "spec",
    [
        *list_attention(),
        "dilated(stride=(4, 1, 1))",
        "dilated(stride=(12, 1, 1))",
        "window(size=(1, 2, 2))",
        "tile(tile=(1, 2, 2), window=(1, 3, 3))",
        "tile(tile=(2, 1, 1), window=(1, 3, 3))",
        "tile(tile=(1, 1, 1), window=(3, 1, 1))",
        "neighborhood(radius=(0, 1, 1))",
        "gated(operator='spatial')",
        "gated(operator='temporal')",
    ],
)
def test_a_block_that_calls_itself_causal_sees_no_later_frame_however_many_there_are(spec: str) -> None:
    for layer in range(3):
        block = create_attention(spec, DIM, HEADS, layer=layer, depth=DEPTH)
        fields = [block.receptive_field(TokenLayout((grid,))) for grid in (TokenGrid(20, 2, 2), TokenGrid(3, 3, 3))]
        frames = [torch.arange(len(field)) // (4 if len(field) == 80 else 9) for field in fields]
        ahead = [bool((f & (t[None] > t[:, None])).any()) for f, t in zip(fields, frames, strict=True)]
        assert block.causal == (not any(ahead)), layer
