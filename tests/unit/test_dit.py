"""The DiT: the same for packed and single clips, images and videos, and paired between arms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers import DiT
from lightning_sora.models.text import TextContext
from lightning_sora.nn.rope import SCALINGS, Stretch
from lightning_sora.randomness import initialize, stream_seed
from lightning_sora.spacetime import TokenGrid, TokenLayout

IN_DIM, TEXT_DIM, DIM, HEADS, DEPTH = 6, 10, 24, 2, 3
MIXED = (TokenGrid(3, 2, 5), TokenGrid(1, 4, 3), TokenGrid(2, 5, 4), TokenGrid(1, 4, 3))
ATTENTIONS = ["full", "spatial, temporal", "window(size=(2,2,2))*2, full"]


def dit_of(attention: str = "full", zero: bool = False, **options: object) -> DiT:
    """A DiT whose layers that start at zero are drawn too, unless ``zero``."""
    dit = DiT(IN_DIM, dim=DIM, depth=DEPTH, num_heads=HEADS, text_dim=TEXT_DIM, attention=attention, **options)  # type: ignore[arg-type]
    initialize(dit, seed=1)
    if not zero:
        for name, parameter in dit.named_parameters():
            if not parameter.any():
                draw = torch.Generator().manual_seed(stream_seed(1, name))
                parameter.data.normal_(std=0.3, generator=draw)
    return dit


def draw(*size: int, seed: int = 2) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def text_of(lengths: list[int], padding: int = 0) -> TextContext:
    longest = max(lengths) + padding
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    rows = torch.stack([draw(40, TEXT_DIM, seed=10 + i)[:longest] for i in range(len(lengths))])
    return TextContext(rows, mask)


def one(text: TextContext, i: int) -> TextContext:
    length = int(text.mask[i].sum())
    return TextContext(text.embeddings[i, None, :length], text.mask[i, None, :length])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("modulation", ["single", "per_block"])
@torch.no_grad()
def test_packed_equals_one_clip_at_a_time(attention: str, modulation: str) -> None:
    dit, layout = dit_of(attention, modulation=modulation), TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, IN_DIM), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9], padding=3)
    together = layout.split(dit(x, t, text, layout))
    assert together[0].abs().mean() > 0.1
    for i, part in enumerate(layout.split(x)):
        alone = dit(part[None], t[i, None], one(text, i), layout.clip(i))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
@torch.no_grad()
def test_each_clip_is_stretched_by_itself(scaling: str) -> None:
    dit, layout = dit_of(), TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, IN_DIM), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9])
    factors = torch.tensor([[2.0, 1.0, 1.5], [1.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 2.0, 2.0]])
    plain = layout.split(dit(x, t, text, layout))
    together = layout.split(dit(x, t, text, layout, Stretch(scaling, factors)))
    for i, part in enumerate(layout.split(x)):
        alone = dit(part[None], t[i, None], one(text, i), layout.clip(i), Stretch(scaling, factors[i, None]))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)
        assert torch.equal(together[i], plain[i]) == bool((factors[i] == 1).all())


@torch.no_grad()
def test_a_uniform_batch_equals_one_clip_at_a_time() -> None:
    dit, layout = dit_of("window, full"), TokenLayout.uniform(TokenGrid(3, 4, 4), 3)
    x, t, text = draw(*layout.shape, IN_DIM), torch.tensor([0.1, 0.9, 0.5]), text_of([7, 1, 4])
    together = dit(x, t, text, layout)
    for i in range(3):
        alone = dit(x[i, None], t[i, None], one(text, i), layout.clip(i))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_clip_of_one_frame_is_an_image() -> None:
    """With one row of tokens in time there is nothing to attend to but the frame."""
    layout = TokenLayout.uniform(TokenGrid(1, 3, 4), 2)
    x, t, text = draw(*layout.shape, IN_DIM), torch.tensor([0.2, 0.7]), text_of([3, 5])
    video, image = (dit_of(attention)(x, t, text, layout) for attention in ("full", "spatial"))
    torch.testing.assert_close(video, image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modulation", ["single", "per_block"])
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_equal_timesteps_per_token_are_one_timestep_per_clip(modulation: str, packed: bool) -> None:
    grids = MIXED if packed else MIXED[:1] * 4
    layout = TokenLayout(grids, packed)
    dit = dit_of("window, full", modulation=modulation)
    x, t, text = draw(*layout.shape, IN_DIM), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9])
    spread = layout.per_token(t).expand(layout.shape)
    torch.testing.assert_close(dit(x, spread, text, layout), dit(x, t, text, layout), atol=1e-5, rtol=1e-5)
    moved = spread.clone()
    moved[0, 0] += 0.5
    assert not torch.allclose(dit(x, moved, text, layout)[0, 1:], dit(x, t, text, layout)[0, 1:])


@pytest.mark.parametrize("modulation", ["single", "per_block"])
def test_a_new_model_predicts_zero_and_wakes_up_in_three_steps(modulation: str) -> None:
    """Zero output, then gates, then all that they gate: each step opens the next way for the gradient."""
    dit, layout = dit_of(zero=True, modulation=modulation), TokenLayout.uniform(TokenGrid(2, 2, 2), 2)
    x, t, text = draw(2, 8, IN_DIM), torch.tensor([0.2, 0.7]), text_of([3, 5])
    assert not dit(x, t, text, layout).any()
    for _ in range(3):
        dit.zero_grad()
        (dit(x, t, text, layout) - draw(2, 8, IN_DIM, seed=5)).square().mean().backward()
        for parameter in dit.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
    still = [n for n, p in dit.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_arms_with_different_attention_start_from_the_same_shared_parameters() -> None:
    first, second = (dict(dit_of(a, zero=True).named_parameters()) for a in ("full", "spatial, window"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_text_and_timestep_both_matter_and_padding_does_not() -> None:
    dit, layout = dit_of(), TokenLayout.uniform(TokenGrid(2, 2, 2), 2)
    x, t, text = draw(2, 8, IN_DIM), torch.tensor([0.2, 0.7]), text_of([3, 5])
    y = dit(x, t, text, layout)
    torch.testing.assert_close(dit(x, t, text_of([3, 5], padding=6), layout), y, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(dit(x, t, text_of([3, 4]), layout)[1], y[1], atol=1e-3)
    assert not torch.allclose(dit(x, t + 0.1, text, layout), y, atol=1e-3)
    torch.testing.assert_close(dit(x, t, text_of([3, 4]), layout)[0], y[0], atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_no_gradient() -> None:
    layout = TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, IN_DIM), torch.rand(4), text_of([7, 1, 4, 9])
    gradients = []
    for checkpoint in (False, True):
        dit = dit_of("window, full", checkpoint=checkpoint)
        dit(x, t, text, layout).square().mean().backward()
        gradients.append({name: p.grad for name, p in dit.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("modulation", ["single", "per_block"])
@pytest.mark.parametrize("layout", [TokenLayout.pack(MIXED), TokenLayout.uniform(MIXED[2], 3)])
def test_analytic_flops_equal_the_counted_ones(modulation: str, layout: TokenLayout) -> None:
    dit = dit_of("window(size=(2,2,2)), full, temporal", modulation=modulation, kernel="matmul")
    text = text_of([7] * layout.clips)
    with FlopCounterMode(display=False) as counter:
        dit(draw(*layout.shape, IN_DIM), torch.rand(layout.clips), text, layout)
    assert dit.flops(layout, text_tokens=7) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": draw(2, 8, 5)}, "in_dim"),
        ({"x": draw(2, 9, IN_DIM)}, "layout"),
        ({"t": torch.rand(3)}, "neither per clip"),
        ({"text": text_of([1, 2, 3])}, "3 clips"),
        ({"text": TextContext(draw(2, 4, 3), torch.ones(2, 4, dtype=torch.bool))}, "width 3"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict, words: str) -> None:
    inputs = {"x": draw(2, 8, IN_DIM), "t": torch.rand(2), "text": text_of([3, 5]), **change}
    with pytest.raises(SoraError, match=words):
        dit_of()(**inputs, layout=TokenLayout.uniform(TokenGrid(2, 2, 2), 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "full, full, full, full"}, "depth=3"),
        ({"modulation": "double"}, "modulation 'double'"),
        ({"kernel": "fast"}, "attention kernel 'fast'"),
        ({"num_heads": 6}, "head_dim=4"),
        ({"num_heads": 0}, "num_heads=0"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(options: dict, words: str) -> None:
    with pytest.raises(SoraError, match=words):
        DiT(IN_DIM, **{"dim": DIM, "depth": DEPTH, "num_heads": HEADS, "text_dim": TEXT_DIM, **options})
