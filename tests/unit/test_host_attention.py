"""Attention blocks of ours within transformers of diffusers: what is kept, what is swapped, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers import DENOISERS, DiffusersDenoiser
from lightning_sora.models.text_base import TextContext
from lightning_sora.nn.attention import ATTENTION, list_attention
from lightning_sora.nn.attention.full import FullAttention
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.host_toys import FAMILIES, HOSTS, TEXT, channels_of, host_folder, transformer
from tests.unit.test_host import CLIPS, GRID, PIPELINES, WORDS, Given, make, times

IN_THE_SEQUENCE = ("cogvideox", "hunyuan_video", "mochi")  # text


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: host_folder(family, tmp_path_factory.mktemp("host")) for family in HOSTS}


# The same sums, bit by bit.
@pytest.mark.parametrize("grid", [GRID, TokenGrid(1, 4, 2), TokenGrid(4, 4, 6)], ids=str)
@pytest.mark.parametrize("family", HOSTS)
@torch.no_grad()
def test_full_is_diffusers_own_bit_by_bit(family: str, grid: TokenGrid, paths: dict[str, Path]) -> None:
    own, full = make(paths[family], family), make(paths[family], family, ", attention='full'")
    assert [type(block) for block in full.attention] == [FullAttention] * 2
    given = Given(family, own, grid)
    assert torch.equal(given.through(full), given.through(own))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_full_is_what_runs(family: str, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Were our block left out, it would be bit-equal too."""
    full = make(paths[family], family, ", attention='full'")
    given = Given(family, full)
    before = given.through(full)
    for block in full.attention:
        kernel = block.kernel
        monkeypatch.setattr(block, "kernel", lambda q, *rest, kernel=kernel: kernel(1.5 * q, *rest))
    assert not torch.allclose(given.through(full), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_full_are_diffusers_own(family: str, paths: dict[str, Path]) -> None:
    own, full = make(paths[family], family), make(paths[family], family, ", attention='full'")
    given = Given(family, own)
    for denoiser in (own, full):
        given.through(denoiser).square().mean().backward()
    theirs = dict(own.named_parameters())
    for name, parameter in full.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-6, msg=name)


# Windows, against masks made here.
def in_one_window(grid: TokenGrid, layer: int, size: tuple[int, int, int]) -> Tensor:
    """Which token is in the window of which: those of odd layers are shifted by half along axes longer than one."""
    boxes = []
    for t in range(grid.frames):
        for y in range(grid.height):
            for x in range(grid.width):
                place = []
                for coordinate, extent, step in zip((t, y, x), grid, size, strict=True):
                    shift = step // 2 if layer % 2 and extent > step else 0
                    place.append((coordinate - shift) // step)
                boxes.append(tuple(place))
    return torch.tensor([[one == other for other in boxes] for one in boxes])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_window_is_a_mask_of_diffusers_own_attention(
    family: str, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens see their window and all text, text sees everything."""
    size = (1, 2, 2)
    window, net = make(paths[family], family, f", attention='window(size={size})'"), transformer(family)
    given = Given(family, window)
    asked = given.t
    if family == "cogvideox":
        asked = torch.tensor([100, 700])
        given.t = times(family, asked)
    found = given.through(window)
    dense, calls = F.scaled_dot_product_attention, [0]

    def masked(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **other: Any) -> Tensor:
        q, k, v = query, key, value
        total = q.shape[-2]
        if total != k.shape[-2] or total < GRID.tokens:
            return dense(q, k, v, attn_mask=attn_mask, **other)  # to text, and within it
        layer = calls[0] // (CLIPS if family == "mochi" else 1)
        calls[0] += 1
        first = total - GRID.tokens if family == "cogvideox" else 0
        seen = torch.ones(total, total, dtype=torch.bool)
        seen[first : first + GRID.tokens, first : first + GRID.tokens] = in_one_window(GRID, layer, size)
        return dense(q, k, v, attn_mask=seen if attn_mask is None else seen & attn_mask, **other)

    monkeypatch.setattr(F, "scaled_dot_product_attention", masked)
    theirs = PIPELINES[family](net, given, asked)
    monkeypatch.undo()
    assert calls[0] == 2 * (CLIPS if family == "mochi" else 1)
    expected = given.rows(-theirs if family == "mochi" else theirs)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 if family == "cogvideox" else 2e-6)
    assert not torch.allclose(found, given.through(make(paths[family], family)), atol=1e-3)


@torch.no_grad()
def test_layers_have_blocks_of_their_own(paths: dict[str, Path]) -> None:
    """A pattern runs over all layers, of HunyuanVideo those of two streams and then those of one."""
    for family in FAMILIES:
        mixed = make(paths[family], family, ", attention='window(size=(1, 1, 2)), full'")
        assert [type(block).__name__ for block in mixed.attention] == ["WindowAttention", "FullAttention"]
        given = Given(family, mixed)
        others = [make(paths[family], family, f", attention={one!r}") for one in ("window(size=(1, 1, 2))", "full")]
        assert not any(torch.allclose(given.through(mixed), given.through(other), atol=1e-4) for other in others)


# Every block.
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", list_attention())
def test_every_block_runs(block: str, family: str, paths: dict[str, Path]) -> None:
    denoiser = make(paths[family], family, f", attention={block!r}").train()
    given = Given(family, denoiser)
    found = given.through(denoiser)
    assert found.isfinite().all()
    found.square().mean().backward()
    for name, parameter in denoiser.attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    alone = Given(family, denoiser, clips=1)
    alone.latents, alone.t = given.latents[1:], given.t[1:]
    alone.text = TextContext(given.text.embeddings[1:], given.text.mask[1:], given.text.pooled[1:])  # type: ignore[index]
    torch.testing.assert_close(alone.through(denoiser)[0], found[1], rtol=0, atol=2e-6)


class OwnForward(FullAttention):
    def forward(self, *args: object, **options: object) -> Tensor:
        return 2 * super().forward(*args, **options)  # type: ignore[arg-type]


@pytest.fixture
def scratch() -> Iterator[None]:
    with ATTENTION.temporary():
        yield


def test_what_cannot_be_carried_is_refused_by_name(paths: dict[str, Path], scratch: None) -> None:
    ATTENTION.register("doubled")(OwnForward)
    with pytest.raises(SoraError, match="attention doubled has a forward of its own"):
        make(paths["wan"], "wan", ", attention='full, doubled'")


def test_what_a_block_cannot_take_it_says_itself(tmp_path: Path) -> None:
    path = host_folder("wan", tmp_path, attention_head_dim=14)
    with pytest.raises(SoraError, match="head_dim=14"):
        make(path, "wan", ", attention='differential'")


@torch.no_grad()
def test_kernels_agree(paths: dict[str, Path]) -> None:
    for family in FAMILIES:
        one, other = (make(paths[family], family, f", attention='causal', kernel={k!r}") for k in ("sdpa", "matmul"))
        given = Given(family, one)
        torch.testing.assert_close(given.through(one), given.through(other), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_gate_has_its_say(family: str, paths: dict[str, Path]) -> None:
    """On tokens alone, between the scores and the output projection: one of zeros halves what goes into that."""
    made = {}
    for name in ("gated", "full"):
        denoiser = make(paths[family], family, f", attention={name!r}")
        for parameter in denoiser.attention.parameters():
            parameter.zero_()
        layer = denoiser.family.layers(denoiser.network)[0]
        layer.register_forward_hook(lambda module, _, output, name=name: made.update({name: output}))
        Given(family, denoiser).through(denoiser)
    (tokens, *words), (all_tokens, *all_words) = (
        made[name] if isinstance(made[name], tuple) else (made[name],) for name in ("gated", "full")
    )
    bias = layer.to_out[0].bias
    torch.testing.assert_close(tokens - bias, (all_tokens - bias) / 2, rtol=0, atol=1e-6)
    assert len(words) == (family in IN_THE_SEQUENCE)
    assert all(torch.equal(one, other) for one, other in zip(words, all_words, strict=True))


# Costs.
def counted(denoiser: DiffusersDenoiser, given: Given, t: Tensor | None = None) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        given.through(denoiser, t)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("attention", [None, "full", "gated"])
@pytest.mark.parametrize("family", HOSTS)
def test_flops_are_those_that_torch_counts(family: str, attention: str | None, paths: dict[str, Path]) -> None:
    further = "" if attention is None else f", attention={attention!r}, kernel='matmul'"
    denoiser = make(paths[family], family, further)
    given = Given(family, denoiser, TokenGrid(3, 4, 6), clips=3)
    given.text = TextContext(given.text.embeddings, torch.ones_like(given.text.mask), given.text.pooled)
    if given.image is not None:
        given.image = torch.zeros(3, 257, given.image.shape[-1])
    assert denoiser.flops(given.layout, WORDS) == counted(denoiser, given)
    assert not any(p.grad is not None for p in denoiser.parameters())
    if denoiser.facts.token_times:
        t = given.t[:, None].repeat(1, given.layout.shape[1])
        assert denoiser.flops(given.layout, WORDS, per_token=True) == counted(denoiser, given, t)


@pytest.mark.slow
def test_blocks_declare_their_flops(paths: dict[str, Path]) -> None:
    layout = TokenLayout.uniform(TokenGrid(4, 8, 8), 2)
    for family in FAMILIES:
        full, sparse = (
            make(paths[family], family, f", attention={one!r}") for one in ("full", "window(size=(2, 4, 4))")
        )
        blocks = zip(full.attention, sparse.attention, strict=True)
        saved = sum(4 * (a.pairs(layout) - b.pairs(layout)) * a.dim for a, b in blocks)  # type: ignore[operator]
        assert full.flops(layout, WORDS) - sparse.flops(layout, WORDS) == saved > 0


def test_flops_of_a_real_size_are_counted_without_computing(tmp_path: Path) -> None:
    """Wan's 1.3B over 81 frames of 480p would take minutes; an estimate by its parts agrees."""
    path = host_folder("wan", tmp_path)
    denoiser = make(path, "wan")
    grid = TokenGrid(21, 30, 52)
    dim, depth, n = 24, 2, grid.tokens
    found = denoiser.flops(TokenLayout.uniform(grid, 1), 512)
    attention = 4 * n * n * dim
    linear = 2 * n * dim * (4 * dim + 2 * 32 + 2 * dim)
    cross = 4 * n * 512 * dim
    estimate = depth * (attention + linear + cross)
    assert 1 <= found / estimate < 1.01


# Memory, copies, training.
@pytest.mark.parametrize("attention", [None, "window(size=(1, 2, 2)), gated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_have_the_same_gradients(family: str, attention: str | None, paths: dict[str, Path]) -> None:
    """Also where another forward pass, over clips of another size, comes between."""
    further = "" if attention is None else f", attention={attention!r}"
    plain, saving = (make(paths[family], family, further + more) for more in ("", ", checkpoint=True"))
    for denoiser in (plain, saving):
        denoiser.train()
        given, other = Given(family, denoiser), Given(family, denoiser, TokenGrid(1, 4, 2), clips=1)
        calls = [0]
        denoiser.family.layers(denoiser.network)[0].to_q.register_forward_hook(
            lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1)
        )
        first = given.through(denoiser).square().mean()
        (first + other.through(denoiser).square().mean()).backward()
        assert calls[0] == (4 if denoiser is saving else 2)
    theirs = dict(plain.named_parameters())
    for name, parameter in saving.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-6, msg=name)


@torch.no_grad()
def test_a_copy_is_another_one(paths: dict[str, Path]) -> None:
    denoiser = make(paths["wan"], "wan", ", attention='gated'")
    given = Given("wan", denoiser)
    before = given.through(denoiser)
    other = copy.deepcopy(denoiser)
    for block in other.attention:
        block.gate.weight.add_(1.0)  # type: ignore[operator, union-attr]
    assert torch.equal(given.through(denoiser), before)
    assert not torch.allclose(given.through(other), before)


@torch.no_grad()
def test_another_backend_of_diffusers_is_not_passed_over(paths: dict[str, Path]) -> None:
    """It would attend in full, whatever the block."""
    denoiser = make(paths["wan"], "wan", ", attention='window'")
    given = Given("wan", denoiser)
    layer = denoiser.family.layers(denoiser.network)[0]
    layer.processor.own._attention_backend = "flex"
    with pytest.raises(SoraError, match="DIFFUSERS_ATTN_BACKEND"):
        given.through(denoiser)


def test_it_is_trained_with_blocks_that_learn(paths: dict[str, Path]) -> None:
    denoiser = make(paths["ltx"], "ltx", ", attention='gated, full'").train()
    given = Given("ltx", denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    target, losses = given.rows(torch.ones_like(given.latents)), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.mse_loss(given.through(denoiser), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    own = denoiser.spec_of_its_own(f"diffusers(path={str(paths['ltx'])!r}, attention='gated, full')")
    rebuilt = DENOISERS.create(own, channels_of("ltx"), TEXT)
    rebuilt.load_state_dict(denoiser.state_dict())
    assert isinstance(rebuilt, DiffusersDenoiser)
    assert torch.equal(given.through(rebuilt.eval()), given.through(denoiser.eval()))
